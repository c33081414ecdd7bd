"""The keys of `pipeline.nsys`."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_llmprof.config.schema import Positive
from pytest_llmprof.stages.tools import ToolOptions


@dataclass(frozen=True)
class NsysOptions(ToolOptions):
    """`pipeline.nsys.*` beside `enable`."""

    occurrences: Positive = 1
    """How many ranges of that name to capture, the first ones; each gives a report."""
