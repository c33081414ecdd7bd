"""The block `ncu` of metrics.json: a few kernels, each launch replayed under Nsight Compute."""

from __future__ import annotations

from msgspec import Struct, field

from pytest_llmprof.stages.tool_block import ToolBlock


class _Measures(Struct, kw_only=True):
    """Per cents are of the unit's peak; null where the report does not have it."""

    kernel: str
    duration_us: float
    """Of one launch."""
    sm_percent: float | None = None
    dram_percent: float | None = None
    l2_percent: float | None = None
    occupancy_percent: float | None = None
    """Warps that were active of those the SM can hold."""
    dram_gb_per_s: float | None = None
    registers: float | None = None
    """A thread's."""


class NcuLaunch(_Measures, kw_only=True):
    """One profiled launch."""

    grid: str
    block: str


class KernelProfile(_Measures, kw_only=True):
    """One kernel: means over its profiled launches, weighted by their durations."""

    launches: int
    total_us: float
    bound: str | None = None
    """The unit nearest to its peak (compute, DRAM, L2), or latency where none is near."""


class NcuBlock(ToolBlock, kw_only=True):
    """All of the block."""

    chosen_by: str | None = None
    """The stage whose longest kernels were chosen, or first, all, regex."""
    chosen: list[str] = field(default_factory=list)
    """Function names, the longest first."""
    launch_skip: int | None = None
    launch_count: int | None = None
    """Launches profiled at most."""
    clock_control: str | None = None
    launches: int | None = None
    """Launches that were profiled."""
    missing: list[str] = field(default_factory=list)
    """Chosen kernels that are not among the profiled launches."""
    kernels: list[KernelProfile] = field(default_factory=list)
