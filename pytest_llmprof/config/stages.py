"""The options of the stages that come with the package, as the configuration sees them (no torch here)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from pytest_llmprof.config.registry import StageSpec

__all__ = [
    "DIRECT_INFERENCE",
    "NCU",
    "NSYS",
    "STATIC_ANALYSIS",
    "TORCH_PROFILER",
    "NcuOptions",
    "NsysOptions",
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


@dataclass(frozen=True)
class NsysOptions:
    """`pipeline.nsys.*` beside `enable`."""

    path: str | None = None
    """The program `nsys`; None looks on PATH and in the usual places."""
    capture: str = "all"
    """What is captured: `all` (measured passes) or an NVTX range of ours (prefill, decode, step, vision, sam ...)."""
    occurrences: int = 1
    """How many of them, the first ones (>= 1)."""
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Environment variables for the tool and what runs under it."""
    args: tuple[str, ...] = ()
    """More arguments of `nsys profile`."""
    timeout_s: float = 600.0
    """The child is ended after this many seconds, with the tool's own work (> 0)."""


@dataclass(frozen=True)
class NcuOptions:
    """`pipeline.ncu.*` beside `enable`."""

    path: str | None = None
    """The program `ncu`; None looks on PATH and in the usual places."""
    capture: str = "decode"
    """The NVTX range whose kernels are profiled: `all` (measured passes), decode, prefill, step, vision ..."""
    kernels: str = "top:5"
    """`top:N` (of this test's torch_profiler or nsys result in this run), `all`, or a regular expression."""
    launch_skip: int = 0
    """Matching launches passed over first (>= 0)."""
    launch_count: int = 50
    """Launches profiled (>= 1)."""
    set: str = "basic"
    """ncu's section set: basic, detailed, full ..."""
    sections: tuple[str, ...] = ()
    """Sections in place of the set."""
    clock_control: str = "none"
    """none | base: whether ncu locks the clocks to base."""
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Environment variables for the tool and what runs under it."""
    args: tuple[str, ...] = ()
    """More arguments of `ncu`."""
    timeout_s: float = 600.0
    """The child is ended after this many seconds, with the tool's own work (> 0)."""


_RANGE = re.compile(r"[A-Za-z_][\w.-]*")
_TOP = re.compile(r"top:([1-9]\d*)")


def _check_tool(options: NsysOptions | NcuOptions) -> Iterator[tuple[str, object, str]]:
    if not _RANGE.fullmatch(options.capture):
        yield "capture", options.capture, "all, or the name of one NVTX range (prefill, decode, step, vision, ...)"
    if options.path is not None and "/" in options.path and not options.path.startswith(("/", "~/")):
        yield "path", options.path, "an absolute path, a program's name, or null"
    if not options.timeout_s > 0:  # nan too
        yield "timeout_s", options.timeout_s, "a number > 0"
    for name in options.env:
        if not name or "=" in name:
            yield "env", name, "a block of NAME: VALUE"


def check_nsys(options: NsysOptions) -> Iterator[tuple[str, object, str]]:
    """Yield (key below the stage's block, value, what is allowed) for each value out of range."""
    yield from _check_tool(options)
    if options.occurrences < 1:
        yield "occurrences", options.occurrences, "an integer >= 1"


def check_ncu(options: NcuOptions) -> Iterator[tuple[str, object, str]]:
    """Yield (key below the stage's block, value, what is allowed) for each value out of range."""
    yield from _check_tool(options)
    for name, value, least in (
        ("launch_skip", options.launch_skip, 0),
        ("launch_count", options.launch_count, 1),
    ):
        if value < least:
            yield name, value, f"an integer >= {least}"
    if options.clock_control not in ("none", "base"):
        yield "clock_control", options.clock_control, "none or base"
    allowed = "all, top:N with N >= 1, or a regular expression for kernel names"
    if not options.kernels or (options.kernels.startswith("top:") and not _TOP.fullmatch(options.kernels)):
        yield "kernels", options.kernels, allowed
        return
    try:
        re.compile(options.kernels)
    except re.error:
        yield "kernels", options.kernels, allowed


NSYS = StageSpec(name="nsys", options=NsysOptions, check=check_nsys)
NCU = StageSpec(name="ncu", options=NcuOptions, check=check_ncu)
