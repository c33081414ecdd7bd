"""The profiled window in a few numbers, for metrics.json, and in tables: operators.csv|md and kernels.csv|md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_llmprof.analysis.records import busiest
from pytest_llmprof.analysis.rows import OperatorRow, PhaseRow, profiled
from pytest_llmprof.analysis.tables import TOP, Column, csv_text, top_rows_md, write_kernels
from pytest_llmprof.analysis.trace import Trace
from pytest_llmprof.records.files import write_text
from pytest_llmprof.stages.torch_profiler.records import PhaseProfile, Profile, TopKernel, TopOperator
from pytest_llmprof.text.markdown import code, percent

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
        events_left_out=trace.left_out,
        window_ms_profiled=trace.window_ms,
        phases={row.name: _phase(row, gpu=gpu) for row in trace.phase_rows()},
        top_operators=[TopOperator(**profiled(TopOperator, row)) for row in operators[:_TOP]],
        top_kernels=busiest(TopKernel, trace.kernels()),
        **{**of_gpu, "steps": 0, **profiled(Profile, steps, gpu=gpu)},
    )


def _phase(row: PhaseRow, *, gpu: bool) -> PhaseProfile:
    return PhaseProfile(**{**profiled(PhaseProfile, row, gpu=gpu), "parent": row.parent or None})


def write_tables(out_dir: Path, trace: Trace, *, with_kernels: bool = True, top: int = TOP) -> None:
    """Write operators.csv and operators.md to *out_dir*, and with *with_kernels* kernels.csv and kernels.md."""
    operators = trace.operators()
    write_text(out_dir / "operators.csv", csv_text(OperatorRow, operators))
    write_text(out_dir / "operators.md", _operators_md(operators, top))
    if with_kernels:
        write_kernels(out_dir, trace.kernels(), top)


def _operators_md(rows: Sequence[OperatorRow], top: int) -> str:
    """The *top* operators by self time as Markdown."""
    rows = sorted(rows, key=lambda row: (-row.self_ms, row.name, row.phase))
    self_ms, device_ms = sum(row.self_ms for row in rows), sum(row.device_ms for row in rows)
    columns: list[Column] = [
        ("Operator", lambda row: code(row.name), "**all**"),
        ("Kind", lambda row: row.kind, ""),
        ("Phase", lambda row: code(row.phase), ""),
        ("Calls", lambda row: f"{row.count}", f"{sum(row.count for row in rows)}"),
        ("Total ms", lambda row: f"{row.total_ms:.3f}", ""),
        ("Self ms", lambda row: f"{row.self_ms:.3f}", f"{self_ms:.3f}"),
        ("Mean ms", lambda row: f"{row.mean_ms:.4f}", ""),
        ("Self share", lambda row: percent(row.share), percent(1.0 if self_ms else 0.0)),
    ]
    if device_ms:
        columns.append(("GPU ms", lambda row: f"{row.device_ms:.3f}", f"{device_ms:.3f}"))
    return (
        "# Operators\n\nHost time under the profiler, sorted by self time (time in the row itself, without what it "
        "calls; totals contain each other). Kind `range` is Python between operators, `runtime` a call into CUDA.\n\n"
        + top_rows_md(columns, rows, top, "operators.csv")
    )
