"""The stage `direct_inference`: the measured rounds, and nothing else."""

from __future__ import annotations

from pytest_llmprof.stages.base import StagePlugin
from pytest_llmprof.stages.runner import clean_rounds

__all__ = ["clean_rounds", "plugin"]


def plugin() -> StagePlugin:
    """The stage as it is registered."""
    return StagePlugin("direct_inference", output=True, run=clean_rounds)
