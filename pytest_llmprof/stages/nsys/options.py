"""The keys of `pipeline.nsys`."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType

from pytest_llmprof.config.schema import Positive
from pytest_llmprof.stages.tools import Capture, Environment, ProgramPath, Seconds

__all__ = ["NsysOptions"]


@dataclass(frozen=True)
class NsysOptions:
    """`pipeline.nsys.*` beside `enable`."""

    path: ProgramPath = None
    """The program `nsys`; None looks on PATH and in the usual places."""
    capture: Capture = "all"
    """What is captured: `all` (measured passes) or one NVTX range (prefill, decode, step, vision, sam ...)."""
    occurrences: Positive = 1
    """How many ranges are captured, the first ones."""
    env: Environment = field(default_factory=lambda: MappingProxyType({}))
    """Environment variables for the tool and what runs under it."""
    args: tuple[str, ...] = ()
    """More arguments of `nsys profile`."""
    timeout_s: Seconds = 600.0
    """The child is ended after this many seconds, the tool's own work included."""
