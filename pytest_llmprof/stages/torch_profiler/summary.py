"""The profiled window in a few numbers, for metrics.json."""

from __future__ import annotations

from typing import Any

from pytest_llmprof.analysis.busy_kernels import busiest
from pytest_llmprof.analysis.rows import PhaseRow, profiled
from pytest_llmprof.analysis.trace import Trace
from pytest_llmprof.stages.torch_profiler.records import PhaseProfile, Profile, TopKernel, TopOperator

__all__ = ["profile_summary"]

_TOP = 10


def profile_summary(trace: Trace, *, clean_step_ms: float | None = None) -> Profile:
    """Summarise *trace*. *clean_step_ms* is a step's time in the measured rounds (TPOT), for `gpu_busy_share`."""
    gpu = len(trace.device) > 0
    totals, steps = trace.totals(), trace.steps()
    operators = sorted(trace.operators(), key=lambda row: (-row.self_ms, row.name, row.phase))
    of_gpu: dict[str, Any] = {}
    if gpu:
        of_gpu = {
            **profiled(Profile, totals),
            "graph_launches": trace.graph_launches(),
            "copies": trace.copies(),
            "gpu_busy_share": steps.gpu_busy_ms_per_step / clean_step_ms if steps and clean_step_ms else None,
        }
    return Profile(
        events=trace.events,
        window_ms_profiled=trace.window_ms,
        phases={row.name: _phase(row, gpu=gpu) for row in trace.phase_rows()},
        top_operators=[TopOperator(**profiled(TopOperator, row)) for row in operators[:_TOP]],
        top_kernels=busiest(TopKernel, trace.kernels()),
        **{**of_gpu, "steps": 0, **profiled(Profile, steps, gpu=gpu)},
    )


def _phase(row: PhaseRow, *, gpu: bool) -> PhaseProfile:
    return PhaseProfile(**{**profiled(PhaseProfile, row, gpu=gpu), "parent": row.parent or None})
