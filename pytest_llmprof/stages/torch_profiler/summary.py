"""The profiled window in a few figures, as metrics.json holds them under "profile"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_llmprof.analysis.kernel_names import short_name
from pytest_llmprof.analysis.rows import PhaseRow
from pytest_llmprof.analysis.trace import Trace

__all__ = ["profile_summary"]

_TOP = 10


def profile_summary(trace: Trace, *, clean_step_ms: float | None = None) -> dict[str, Any]:
    """Figures of *trace* for metrics.json. Times that the profiler has slowed end in `_profiled`; the others
    are counts or shares.

    *clean_step_ms* is the same step's time in the measured rounds (TPOT), for `gpu_busy_share`.

    ==================================  ================================================================
    events                              events in the trace file
    window_ms_profiled                  from the first event to the last, host and card
    kernels, host_launches              kernels on the card; kernel and graph launches by the host
    graph_launches                      CUDA graph launches among them
    copies                              device copies by direction: {"HtoD": 3, "DtoH": 33}
    d2h_copies, synchronisations        copies to the host; times the host waited for the card
    steps                               `llmprof/step` ranges
    step_ms_profiled                    mean length of a step's range on the host
    host_launches_per_token,            per step, which is a token of each page of the batch; None
    kernels_per_token,                  without steps. A token ends where the next step begins
    d2h_copies_per_token,
    synchronisations_per_token
    gpu_busy_ms_profiled                union of the kernels' intervals, whole window
    gpu_busy_ms_per_step_profiled       the same of the kernels that steps launched, per step
    gpu_busy_share                      gpu_busy_ms_per_step_profiled / clean_step_ms: how busy the card is
                                        in the clean rounds (kernels hardly slow down under the profiler)
    gpu_idle_share_profiled             idle / (idle + busy) over the window, slowed launches included
    phases                              per phase: parent, count, host_ms_profiled, gpu_busy_ms_profiled,
                                        gpu_span_ms_profiled (first kernel's start to last one's
                                        end), gpu_idle_share_profiled, idle_ms_profiled by cause ("launch",
                                        "synchronisation", "device"), kernels, host_launches, d2h_copies,
                                        synchronisations. Sub-phases are included in their parent
    top_operators                       the ten with the longest self time: name, phase, count,
                                        self_ms_profiled, share (of all self time), phase_share
    top_kernels                         the ten busiest: name (short), phase, operator, count, total_ms_profiled,
                                        busy_ms_profiled, share (of the card's busy time), phase_share
    ==================================  ================================================================

    Figures of the card are None where nothing ran on one.
    """
    card = len(trace.device) > 0
    whole = trace.totals()
    steps = trace.steps()
    per_step = steps if card else None
    busy = per_step.gpu_busy_ms if per_step else None
    operators = sorted(trace.operators(), key=lambda row: (-row.self_ms, row.name, row.phase))
    return {
        "events": trace.events,
        "window_ms_profiled": trace.window_ms,
        "kernels": whole.kernels if card else None,
        "host_launches": whole.host_launches if card else None,
        "graph_launches": trace.graph_launches() if card else None,
        "copies": trace.copies() if card else None,
        "d2h_copies": whole.d2h_copies if card else None,
        "synchronisations": whole.synchronisations if card else None,
        "steps": trace.timeline.steps,
        "step_ms_profiled": steps.step_ms if steps else None,
        "host_launches_per_token": per_step.host_launches if per_step else None,
        "kernels_per_token": per_step.kernels if per_step else None,
        "d2h_copies_per_token": per_step.d2h_copies if per_step else None,
        "synchronisations_per_token": per_step.synchronisations if per_step else None,
        "gpu_busy_ms_profiled": whole.gpu_busy_ms if card else None,
        "gpu_busy_ms_per_step_profiled": busy,
        "gpu_busy_share": busy / clean_step_ms if busy is not None and clean_step_ms else None,
        "gpu_idle_share_profiled": whole.gpu_idle_share,
        "phases": {row.name: _phase(row, card) for row in trace.phase_rows()},
        "top_operators": [
            {
                "name": row.name,
                "kind": row.kind,
                "phase": row.phase,
                "count": row.count,
                "self_ms_profiled": row.self_ms,
                "share": row.share,
                "phase_share": row.phase_share,
            }
            for row in operators[:_TOP]
        ],
        "top_kernels": [
            {
                "name": short_name(row.name),
                "phase": row.phase,
                "operator": row.operator,
                "count": row.count,
                "total_ms_profiled": row.total_ms,
                "busy_ms_profiled": row.busy_ms,
                "share": row.share,
                "phase_share": row.phase_share,
            }
            for row in trace.kernels()[:_TOP]
        ],
    }


def _phase(row: PhaseRow, card: bool) -> Mapping[str, Any]:
    figures: dict[str, Any] = {
        "parent": row.parent or None,
        "count": row.count,
        "host_ms_profiled": row.host_ms,
    }
    return figures | {
        name: value if card else None
        for name, value in (
            ("gpu_busy_ms_profiled", row.gpu_busy_ms),
            ("gpu_span_ms_profiled", row.gpu_span_ms),
            ("gpu_idle_share_profiled", row.gpu_idle_share),
            ("idle_ms_profiled", row.idle_ms),
            ("kernels", row.kernels),
            ("host_launches", row.host_launches),
            ("d2h_copies", row.d2h_copies),
            ("synchronisations", row.synchronisations),
        )
    }
