"""Runs of pytest in a directory of their own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("plugin_bench")

from plugin_bench import Bench  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def warm() -> None:
    """Import here what runs need: pytester forgets what an inner run imported, and torch cannot start twice."""
    import xdist.plugin  # noqa: F401
    from PIL import Image

    from pytest_llmprof.config.compose import Composer, ConfigSources
    from pytest_llmprof.config.registry import Registry
    from pytest_llmprof.config.schema import InferSettings, ModelSettings
    from pytest_llmprof.datasets import builtin
    from pytest_llmprof.measure.phases import PhaseRecorder
    from pytest_llmprof.models.deepseek_ocr import plugin
    from pytest_llmprof.report import write_report  # noqa: F401
    from pytest_llmprof.run.runner import Runner  # noqa: F401
    from pytest_llmprof.stages import packaged_stages
    from pytest_llmprof.stages.runner import PagesWorkload  # noqa: F401
    from pytest_llmprof.stages.torch_profiler.kineto import read_trace  # noqa: F401

    Composer(ConfigSources(Path(), Path()), Registry.of([plugin()], packaged_stages(), builtin())).show()
    infer = InferSettings(max_new_tokens=2)
    model = plugin().load(ModelSettings(mode="tiny", weights="random", size="tiny"), infer)
    list(model.generate([Image.new("RGB", (64, 64))], infer, PhaseRecorder("cpu")))
    model.close()


@pytest.fixture
def bench(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A bench in an empty directory."""
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"):
        monkeypatch.delenv(name, raising=False)
    before = signal.getsignal(signal.SIGTERM)
    yield Bench(pytester)
    assert signal.getsignal(signal.SIGTERM) == before
