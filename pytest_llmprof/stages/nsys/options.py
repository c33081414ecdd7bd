"""The keys of `pipeline.nsys`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from pytest_llmprof.stages.tools import check_tool_options

__all__ = ["NsysOptions", "check_nsys"]


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


def check_nsys(options: NsysOptions) -> Iterator[tuple[str, object, str]]:
    """Yield (key below the stage's block, value, what is allowed) for each value out of range."""
    yield from check_tool_options(options)
    if options.occurrences < 1:
        yield "occurrences", options.occurrences, "an integer >= 1"
