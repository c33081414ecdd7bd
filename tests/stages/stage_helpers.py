"""What the profiled window is given in tests: a white page, a workload of it, a context without a runner."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from pytest_llmprof.config.schema import InferSettings
from pytest_llmprof.datasets.base import Page
from pytest_llmprof.measure.phases import PhaseRecorder
from pytest_llmprof.stages.base import Window
from pytest_llmprof.stages.runner import PagesWorkload
from pytest_llmprof.stages.torch_profiler.options import TorchProfilerOptions


class WhitePage(Page):
    def load(self) -> Image.Image:
        return Image.new("RGB", (64, 64), "white")


def pages(model: Any, tokens: int) -> PagesWorkload:
    """One white page whose answer has *tokens* tokens."""
    return PagesWorkload(
        model,
        [WhitePage(name="white", source="white", path=Path("white"))],
        InferSettings(max_new_tokens=tokens, ignore_eos=True),
        on_answer=lambda *_: None,
        on_failure=lambda *facts: pytest.fail(str(facts)),
        progress=lambda *_: None,
    )


def context(out_dir: Path, workload: Any, window: Window, samples: Any = (), device: str = "cpu") -> Any:
    """A `StageContext` as far as the profiled window looks at it."""
    return SimpleNamespace(
        stage=SimpleNamespace(options=TorchProfilerOptions(window=window)),
        workload=workload,
        recorder=lambda domain: PhaseRecorder(device, domain=domain),
        progress=lambda *_: None,
        out_dir=out_dir,
        result=SimpleNamespace(samples=samples),
    )
