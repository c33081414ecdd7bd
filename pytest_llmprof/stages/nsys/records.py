"""The block `nsys` of metrics.json."""

from __future__ import annotations

from msgspec import Struct, field

from pytest_llmprof.analysis.records import BusyKernel, PhaseCounts
from pytest_llmprof.stages.tool_block import ToolBlock


class NsysPhase(PhaseCounts, kw_only=True):
    """One phase in all captures. Sub-phases are included in their parent."""

    gpu_idle_ms_profiled: float | None = None
    """Gaps in the GPU's work before what it launched."""
    gpu_busy_share: float | None = None
    """gpu_busy_ms / (gpu_busy_ms + gpu_idle_ms)."""


class Copies(Struct):
    """Copies in one direction."""

    count: int
    bytes: int
    ms: float


class NsysBlock(ToolBlock, kw_only=True):
    """All of the block."""

    occurrences: int | None = None
    """How many captures were asked for."""
    captures: int | None = None
    events_left_out: int = 0
    """Events with impossible times or without any, left out of all numbers."""
    window_ms_profiled: float | None = None
    """The captures' length together."""
    kernels: int | None = None
    graph_kernels: int | None = None
    """Kernels that were nodes of a CUDA graph."""
    host_launches: int | None = None
    graph_launches: int | None = None
    copies: dict[str, Copies] | None = None
    """By direction."""
    d2h_copies: int | None = None
    synchronisations: int | None = None
    gpu_busy_ms_profiled: float | None = None
    gpu_idle_ms_profiled: dict[str, float] | None = None
    """By cause."""
    gpu_busy_share_profiled: float | None = None
    steps: int | None = None
    """Decode steps."""
    kernels_per_token: float | None = None
    """Per decode step, as the three below."""
    host_launches_per_token: float | None = None
    d2h_copies_per_token: float | None = None
    synchronisations_per_token: float | None = None
    gpu_busy_ms_per_step_profiled: float | None = None
    phases: dict[str, NsysPhase] = field(default_factory=dict)
    top_kernels: list[BusyKernel] = field(default_factory=list)
