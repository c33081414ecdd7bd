"""Runs of pytest in a directory of their own."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("plugin_bench")

from forks import ForkServer  # noqa: E402
from plugin_bench import Bench, warm_up  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def warm() -> None:
    """Import here what runs need."""
    warm_up()


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """What forks processes for runs apart."""
    server = ForkServer(tmp_path_factory.mktemp("forks"))
    yield server
    server.close()


@pytest.fixture
def bench(pytester: pytest.Pytester, forks: ForkServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A bench in an empty directory."""
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"):
        monkeypatch.delenv(name, raising=False)
    before = signal.getsignal(signal.SIGTERM)
    yield Bench(pytester, forks)
    assert signal.getsignal(signal.SIGTERM) == before
    # What runs leave behind (parsers' tables, pytest's own) would be walked by each later one, three times and more.
    gc.collect()
    gc.freeze()
