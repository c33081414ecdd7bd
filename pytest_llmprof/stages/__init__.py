"""Stages: one file each behind the small protocol of `base`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_llmprof.stages.base import StagePlugin, ToolStagePlugin

__all__ = ["packaged_stages"]


def packaged_stages() -> tuple[StagePlugin | ToolStagePlugin, ...]:
    """The stages that ship with this package; importing none of torch."""
    from pytest_llmprof.stages import direct_inference
    from pytest_llmprof.stages.ncu import stage as ncu
    from pytest_llmprof.stages.nsys import stage as nsys
    from pytest_llmprof.stages.static_analysis import stage as static_analysis
    from pytest_llmprof.stages.torch_profiler import stage as torch_profiler

    profiler = torch_profiler.plugin()
    return (
        direct_inference.plugin(),
        profiler,
        static_analysis.plugin(),
        nsys.plugin(profiler.name),
        ncu.plugin(profiler.name),
    )
