"""The keys of `pipeline.ncu`."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from pytest_llmprof.config.schema import Count, Positive
from pytest_llmprof.stages.tools import Capture, ToolOptions

_TOP = re.compile(r"top:([1-9]\d{0,8})")


@dataclass(frozen=True)
class NcuOptions(ToolOptions):
    """`pipeline.ncu.*` beside `enable`."""

    capture: Capture = "decode"
    """The NVTX range whose kernels are profiled; `all` is the measured pass."""
    kernels: str = "top:5"
    """`top:N`: the N longest in the `kernels.csv` of another stage of this run, the first in the order of the stages;
    without one, the first N launches. `all`, or a regular expression for function names."""
    launch_skip: Count = 0
    """Matching launches to skip first."""
    launch_count: Positive = 50
    """Launches to profile."""
    set: str = "basic"
    """ncu's section set: `basic`, `detailed`, `full`."""
    sections: tuple[str, ...] = ()
    """Sections in place of the set."""
    clock_control: Annotated[Literal["none", "base"], Meta(description="none or base")] = "none"
    """`base`: ncu locks the clocks to base while it profiles."""


def check_ncu(options: NcuOptions) -> Iterator[tuple[str, object, str]]:
    """Yield (key below the stage's block, value, what is allowed) for `kernels` where it is no pattern."""
    allowed = "all, top:N with N >= 1, or a regular expression for kernel names"
    if not options.kernels or (options.kernels.startswith("top:") and not _TOP.fullmatch(options.kernels)):
        yield "kernels", options.kernels, allowed
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a later Python may read otherwise
            re.compile(options.kernels)
    except (re.error, OverflowError, RecursionError):
        yield "kernels", options.kernels, allowed
