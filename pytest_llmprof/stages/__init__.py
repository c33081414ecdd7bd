"""Stages: one file each behind the small protocol of `base`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_llmprof.stages.base import StagePlugin, ToolStagePlugin

__all__ = ["packaged_stages"]


def packaged_stages() -> tuple[StagePlugin | ToolStagePlugin, ...]:
    """The stages that ship with this package; importing none of torch."""
    from pytest_llmprof.stages import direct_inference, ncu, nsys, static_analysis, torch_profiler

    return (
        direct_inference.plugin(),
        torch_profiler.plugin(),
        static_analysis.plugin(),
        nsys.plugin(),
        ncu.plugin(),
    )
