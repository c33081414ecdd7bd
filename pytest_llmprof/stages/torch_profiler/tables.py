"""operators.csv|md and kernels.csv|md of one profiled window."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_llmprof.analysis.rows import OperatorRow
from pytest_llmprof.analysis.tables import TOP, Column, csv_text, top_rows_md, write_kernels
from pytest_llmprof.analysis.trace import Trace
from pytest_llmprof.records.files import write_text
from pytest_llmprof.text.markdown import code, percent

__all__ = ["write_tables"]


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
