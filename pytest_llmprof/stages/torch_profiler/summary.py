"""The profiled window in a few numbers, for metrics.json."""

from __future__ import annotations

from pytest_llmprof.analysis.kernel_names import short_name
from pytest_llmprof.analysis.rows import PhaseRow
from pytest_llmprof.analysis.trace import Trace
from pytest_llmprof.stages.torch_profiler.records import PhaseProfile, Profile, TopKernel, TopOperator

__all__ = ["profile_summary"]

_TOP = 10


def profile_summary(trace: Trace, *, clean_step_ms: float | None = None) -> Profile:
    """Summarise *trace*. *clean_step_ms* is a step's time in the measured rounds (TPOT), for `gpu_busy_share`."""
    gpu = len(trace.device) > 0
    steps = trace.steps()
    operators = sorted(trace.operators(), key=lambda row: (-row.self_ms, row.name, row.phase))
    profile = Profile(
        events=trace.events,
        window_ms_profiled=trace.window_ms,
        steps=trace.timeline.steps,
        step_ms_profiled=steps.step_ms if steps else None,
        phases={row.name: _phase(row, gpu=gpu) for row in trace.phase_rows()},
        top_operators=[
            TopOperator(row.name, row.kind, row.phase, row.count, row.self_ms, row.share, row.phase_share)
            for row in operators[:_TOP]
        ],
        top_kernels=[
            TopKernel(
                name=short_name(row.name),
                phase=row.phase,
                count=row.count,
                total_ms_profiled=row.total_ms,
                busy_ms_profiled=row.busy_ms,
                share=row.share,
                operator=row.operator,
                phase_share=row.phase_share,
            )
            for row in trace.kernels()[:_TOP]
        ],
    )
    whole = trace.totals()
    profile.gpu_idle_share_profiled = whole.gpu_idle_share
    if not gpu:
        return profile
    profile.kernels = whole.kernels
    profile.host_launches = whole.host_launches
    profile.graph_launches = trace.graph_launches()
    profile.copies = trace.copies()
    profile.d2h_copies = whole.d2h_copies
    profile.synchronisations = whole.synchronisations
    profile.gpu_busy_ms_profiled = whole.gpu_busy_ms
    if steps:
        profile.host_launches_per_token = steps.host_launches
        profile.kernels_per_token = steps.kernels
        profile.d2h_copies_per_token = steps.d2h_copies
        profile.synchronisations_per_token = steps.synchronisations
        profile.gpu_busy_ms_per_step_profiled = steps.gpu_busy_ms
        profile.gpu_busy_share = steps.gpu_busy_ms / clean_step_ms if clean_step_ms else None
    return profile


def _phase(row: PhaseRow, *, gpu: bool) -> PhaseProfile:
    phase = PhaseProfile(row.parent or None, row.count, row.host_ms)
    if gpu:
        phase.gpu_busy_ms_profiled = row.gpu_busy_ms
        phase.gpu_span_ms_profiled = row.gpu_span_ms
        phase.gpu_idle_share_profiled = row.gpu_idle_share
        phase.idle_ms_profiled = row.idle_ms
        phase.kernels = row.kernels
        phase.host_launches = row.host_launches
        phase.d2h_copies = row.d2h_copies
        phase.synchronisations = row.synchronisations
    return phase
