"""The tests that two_gpus.py runs, in workers with a GPU each. Their files say when and where they ran."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_llmprof.stages.runner import PagesWorkload

PLACE = Path(os.environ.get("TWO_GPUS_PLACE", "."))
"""Where the files go."""
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
PATIENCE_S = 180.0


def _wait_for_all(name: str) -> None:
    """Go on when each worker has come so far, so that all measure at the same time."""
    (PLACE / f"ready-{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}").touch()
    until = time.monotonic() + PATIENCE_S
    while len(list(PLACE.glob("ready-*"))) < WORKERS:
        if time.monotonic() > until:
            pytest.fail(f"{name}: the other workers did not begin their rounds within {PATIENCE_S:.0f} s")
        time.sleep(0.001)


@pytest.fixture
def rounds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[float, float]]]:
    """When each measured round began and ended (Unix time). The first waits for other workers, off the clock."""
    found: list[tuple[float, float]] = []
    name = request.node.originalname + "-" + request.node.callspec.params["copy"]
    run_round = PagesWorkload.round

    def timed(self: PagesWorkload, *args: Any) -> Any:
        if not found:
            (PLACE / f"begun-{name}.json").write_text(json.dumps({"pid": os.getpid()}))
            if "together" in request.fixturenames:
                _wait_for_all(name)
        begin = time.time()
        try:
            return run_round(self, *args)
        finally:
            found.append((begin, time.time()))

    monkeypatch.setattr(PagesWorkload, "round", timed)
    yield found
    (PLACE / f"rounds-{name}.json").write_text(json.dumps(found))


@pytest.fixture
def together() -> None:
    """The test measures at the same time as those of the other workers."""


@pytest.mark.parametrize("copy", ["a", "b"])
def test_same_pages(llmprof, rounds, together, copy):
    llmprof.run()


@pytest.mark.llmprof_gate(total_ms="<=1000000")
@pytest.mark.parametrize("copy", ["a", "b", "c"])
def test_gated(llmprof, rounds, together, copy):
    llmprof.run()


@pytest.mark.parametrize("copy", ["a", "b", "c", "d"])
def test_long(llmprof, rounds, copy):
    llmprof.run()


@pytest.mark.parametrize("copy", ["a", "b"])
def test_traced(llmprof, copy):
    llmprof.run()
