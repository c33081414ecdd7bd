"""The keys of `pipeline.ncu`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from pytest_llmprof.stages.tools import check_tool_options

__all__ = ["NcuOptions", "check_ncu"]

_TOP = re.compile(r"top:([1-9]\d*)")


@dataclass(frozen=True)
class NcuOptions:
    """`pipeline.ncu.*` beside `enable`."""

    path: str | None = None
    """The program `ncu`; None looks on PATH and in the usual places."""
    capture: str = "decode"
    """The NVTX range whose kernels are profiled: `all` (measured passes), decode, prefill, step, vision ..."""
    kernels: str = "top:5"
    """`top:N` (the longest in the kernels.csv of another stage of this run), `all`, or a regular expression."""
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


def check_ncu(options: NcuOptions) -> Iterator[tuple[str, object, str]]:
    """Yield (key below the stage's block, value, what is allowed) for each value out of range."""
    yield from check_tool_options(options)
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
