"""The keys of `pipeline.torch_profiler`."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_llmprof.stages.base import Window

_EXTRA = "output.extra.deepseek_ocr"
_OUTPUTS = {
    "save_predictions": "output.prediction.enable",
    "visualization.enable": "output.visualization.enable",
    "visualization.max_images": f"{_EXTRA}.visualization.max_images",
    "visualization.thumbnail_width": f"{_EXTRA}.visualization.thumbnail_width",
    "predictions.strip_special_tokens": f"{_EXTRA}.prediction.strip_special_tokens",
}
LEGACY = {
    **{f"{root}.{key}": path for root in ("outputs", "output") for key, path in _OUTPUTS.items()},
    "output.prediction.enable": "output.prediction.enable",
    "output.prediction.strip_special_tokens": f"{_EXTRA}.prediction.strip_special_tokens",
}
"""Keys of before there were stages, when this one alone made outputs -> its own keys."""


@dataclass(frozen=True)
class TorchProfilerOptions:
    """`pipeline.torch_profiler.*` beside `enable` and `output`."""

    window: Window = Window()  # noqa: RUF009 - frozen
    record_shapes: bool = False
    """Record the operators' input shapes."""
    profile_memory: bool = False
    """Record memory allocations."""
    with_stack: bool = False
    """Record Python stacks: slow, large traces."""
