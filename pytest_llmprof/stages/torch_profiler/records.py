"""The block `profile` of metrics.json: the profiled window."""

from __future__ import annotations

from msgspec import Struct, field

from pytest_llmprof.analysis.records import BusyKernel, PhaseCounts


class PhaseProfile(PhaseCounts, kw_only=True):
    """One phase. Sub-phases are included in their parent."""

    gpu_span_ms_profiled: float | None = None
    """From the start of its first kernel to the end of its last one."""
    gpu_idle_share_profiled: float | None = None
    """Idle / (idle + busy), slowed launches included (0..1)."""
    idle_ms_profiled: dict[str, float] | None = None
    """Time in which the GPU waited for its work, by cause: "launch", "synchronisation", "device"."""
    event_ms_profiled: float | None = None
    """Its time between two CUDA events; null on a CPU and in a window that starts late."""


class TopOperator(Struct):
    """One of the ten operators with the longest self time."""

    name: str
    kind: str
    """op | range | runtime"""
    phase: str
    count: int
    self_ms_profiled: float
    share: float
    """Of all self time (0..1)."""
    phase_share: float
    """Of its phase's self time (0..1)."""


class TopKernel(BusyKernel, kw_only=True):
    """One of the ten busiest kernels."""

    operator: str
    """The innermost operator around its launch."""
    phase_share: float
    """Of its phase's share of the busy time (0..1)."""


class ProfiledWindow(Struct):
    """What was profiled."""

    pages: int
    start_token: int
    decode_tokens: int


class Profile(Struct, kw_only=True):
    """All of the block."""

    events: int | None = None
    """Events in the trace file."""
    events_left_out: int = 0
    """Events of operators, calls and GPU work with impossible times, left out of all numbers."""
    window_ms_profiled: float | None = None
    """From the first event to the last, host and GPU."""
    kernels: int | None = None
    host_launches: int | None = None
    graph_launches: int | None = None
    """CUDA graph launches among the host's launches."""
    copies: dict[str, int] | None = None
    """Device copies by direction: {"HtoD": 3, "DtoH": 33}."""
    d2h_copies: int | None = None
    synchronisations: int | None = None
    """Times the host waited for the GPU."""
    steps: int | None = None
    """`llmprof/step` ranges."""
    step_ms_profiled: float | None = None
    """Mean length of a step's range on the host."""
    host_launches_per_token: float | None = None
    """Per step, which is a token of each page of the batch; a token ends where the next step begins."""
    kernels_per_token: float | None = None
    d2h_copies_per_token: float | None = None
    synchronisations_per_token: float | None = None
    gpu_busy_ms_profiled: float | None = None
    """Union of the kernels' intervals, whole window."""
    gpu_busy_ms_per_step_profiled: float | None = None
    """The same of the kernels that steps launched, per step."""
    gpu_busy_share: float | None = None
    """gpu_busy_ms_per_step_profiled / TPOT: how busy the GPU is in the measured rounds (kernels hardly slow down under
    the profiler)."""
    gpu_idle_share_profiled: float | None = None
    """Idle / (idle + busy) over the window."""
    phases: dict[str, PhaseProfile] = field(default_factory=dict)
    top_operators: list[TopOperator] = field(default_factory=list)
    top_kernels: list[TopKernel] = field(default_factory=list)
    window: ProfiledWindow | None = None
    window_s_profiled: float | None = None
    profiler_load_s: float | None = None
    """Seconds of the profiler's first start in this process."""
    profiler_unload_s: float | None = None
    stage_cost_s: float | None = None
    """Seconds that the stage took beyond the measured rounds, without loading and unloading the profiler."""
    stage_costs_s: dict[str, float] = field(default_factory=dict)
    """The same by step."""
    trace_bytes: int | None = None
    """Size of the trace before it was compressed."""
