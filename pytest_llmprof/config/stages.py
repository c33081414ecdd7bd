"""The options of the stages that come with the package, as the configuration sees them (no torch here)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pytest_llmprof.config.registry import StageSpec

__all__ = [
    "DIRECT_INFERENCE",
    "STATIC_ANALYSIS",
    "TORCH_PROFILER",
    "StaticAnalysisOptions",
    "TorchProfilerOptions",
    "Window",
    "check_static_analysis",
    "check_torch_profiler",
]


@dataclass(frozen=True)
class Window:
    """`pipeline.torch_profiler.window.*`: what is profiled, at a cost that doesn't grow with the answer."""

    pages: int = 1
    """Pages profiled (>= 1)."""
    start_token: int = 0
    """Generated token at which the window opens (>= 0); 0 takes in preprocessing, vision and prefill."""
    decode_tokens: int = 32
    """Decode steps profiled from there (>= 1)."""


@dataclass(frozen=True)
class TorchProfilerOptions:
    """`pipeline.torch_profiler.*` beside `enable` and `output`."""

    window: Window = Window()
    record_shapes: bool = False
    """Record the operators' input shapes."""
    profile_memory: bool = False
    """Record memory allocations."""
    with_stack: bool = False
    """Record Python stacks (slow, large traces)."""


def check_torch_profiler(options: TorchProfilerOptions) -> Iterator[tuple[str, object, str]]:
    """Yield (key below the stage's block, value, what is allowed) for each value out of range."""
    window = options.window
    for name, value, least in (
        ("pages", window.pages, 1),
        ("start_token", window.start_token, 0),
        ("decode_tokens", window.decode_tokens, 1),
    ):
        if value < least:
            yield f"window.{name}", value, f"an integer >= {least}"


@dataclass(frozen=True)
class StaticAnalysisOptions:
    """`pipeline.static_analysis.*` beside `enable`."""

    peak_tflops: float | None = None
    """This card's dense peak for the run's dtype, 1e12 FLOP a second (> 0); None = the table's."""
    bandwidth_gbs: float | None = None
    """This card's memory bandwidth, 1e9 bytes a second (> 0); None = the table's."""


def check_static_analysis(options: StaticAnalysisOptions) -> Iterator[tuple[str, object, str]]:
    """Yield (key below the stage's block, value, what is allowed) for each value out of range."""
    for name in ("peak_tflops", "bandwidth_gbs"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            yield name, value, "a number > 0, or null for the table's"


TORCH_PROFILER = StageSpec(
    name="torch_profiler", options=TorchProfilerOptions, output=True, check=check_torch_profiler
)
DIRECT_INFERENCE = StageSpec(name="direct_inference", output=True)
STATIC_ANALYSIS = StageSpec(name="static_analysis", options=StaticAnalysisOptions, check=check_static_analysis)
