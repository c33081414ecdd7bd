"""operators.csv|md and kernels.csv|md of one profiled window.

The CSV files hold every row with its full name, the one that took longest first; the Markdown files the top rows, with
short kernel names and a line for the rest.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pytest_llmprof.analysis.kernel_names import short_name
from pytest_llmprof.analysis.rows import KernelRow, OperatorRow
from pytest_llmprof.analysis.trace import Trace
from pytest_llmprof.records.files import write_text
from pytest_llmprof.text.markdown import code, percent, table

__all__ = ["TOP", "csv_text", "kernels_md", "operators_md", "write_tables"]

TOP = 30
"""Rows of a Markdown table."""


def write_tables(out_dir: Path, trace: Trace, *, with_kernels: bool = True, top: int = TOP) -> None:
    """Write operators.csv and operators.md to *out_dir*, and with *with_kernels* kernels.csv and kernels.md."""
    operators = trace.operators()
    write_text(out_dir / "operators.csv", csv_text(OperatorRow, operators))
    write_text(out_dir / "operators.md", operators_md(operators, top))
    if with_kernels:
        kernels = trace.kernels()
        write_text(out_dir / "kernels.csv", csv_text(KernelRow, kernels))
        write_text(out_dir / "kernels.md", kernels_md(kernels, top))


def csv_text(row_type: type, rows: Sequence[Any]) -> str:
    """All *rows* (dataclass instances of *row_type*) as CSV with a header; floats with six decimals."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([item.name for item in fields(row_type)])
    for row in rows:
        writer.writerow(
            [f"{value:.6f}" if isinstance(value, float) else value for value in asdict(row).values()]
        )
    return stream.getvalue()


def _rest(hidden: int, share: float, csv_name: str) -> str:
    if not hidden:
        return f"All rows, in full precision: [{csv_name}]({csv_name}).\n"
    rows = "row" if hidden == 1 else "rows"
    return f"{hidden} more {rows} hold {percent(share)}: see [{csv_name}]({csv_name}).\n"


def operators_md(rows: Sequence[OperatorRow], top: int = TOP) -> str:
    """The *top* operators by self time as Markdown."""
    ordered = sorted(rows, key=lambda row: (-row.self_ms, row.name, row.phase))
    shown = ordered[:top]
    whole = sum(row.self_ms for row in rows)
    device = any(row.device_ms for row in rows)
    head = ["Operator", "Kind", "Phase", "Calls", "Total ms", "Self ms", "Mean ms", "Self share"]
    cells = [
        [
            code(row.name),
            row.kind,
            code(row.phase),
            f"{row.count}",
            f"{row.total_ms:.3f}",
            f"{row.self_ms:.3f}",
            f"{row.mean_ms:.4f}",
            percent(row.share),
            *([f"{row.device_ms:.3f}"] if device else []),
        ]
        for row in shown
    ]
    calls = sum(row.count for row in rows)
    total = ["**all**", "", "", f"{calls}", "", f"{whole:.3f}", "", percent(1.0 if whole else 0.0)]
    if device:
        head.append("GPU ms")
        total.append(f"{sum(row.device_ms for row in rows):.3f}")
    return (
        "# Operators\n\n"
        "Host time under the profiler, sorted by self time (time in the row itself, without what it calls; "
        "totals contain each other). Kind `range` is Python between operators, `runtime` a call into CUDA.\n\n"
        + table(head, [*cells, total], 3)
        + "\n"
        + _rest(len(rows) - len(shown), sum(row.share for row in ordered[top:]), "operators.csv")
    )


def kernels_md(rows: Sequence[KernelRow], top: int = TOP) -> str:
    """The *top* kernels, copies and fills by what they added to the card's busy time, as Markdown."""
    shown = rows[:top]
    head = ["Kernel", "Phase", "Launched by", "Count", "Total ms", "Busy ms", "Mean µs", "Min µs", "Max µs", "Share"]
    cells = [
        [
            code(short_name(row.name)),
            code(row.phase),
            code(row.operator, 80),
            f"{row.count}",
            f"{row.total_ms:.3f}",
            f"{row.busy_ms:.3f}",
            f"{row.mean_us:.2f}",
            f"{row.min_us:.2f}",
            f"{row.max_us:.2f}",
            percent(row.share),
        ]
        for row in shown
    ]
    whole, busy = sum(row.total_ms for row in rows), sum(row.busy_ms for row in rows)
    count = sum(row.count for row in rows)
    total = ["**all**", "", "", f"{count}", f"{whole:.3f}", f"{busy:.3f}", "", "", "", percent(1.0 if busy else 0.0)]
    return (
        "# Kernels\n\n"
        "Kernels, copies and fills on the card under the profiler. Busy is what a row added to the time in which the "
        "card was busy: less than its total where kernels overlap, as one does that starts early and waits for the "
        "one in front of it. Names are shortened here and whole in the CSV file.\n\n"
        + table(head, [*cells, total], 3)
        + "\n"
        + _rest(len(rows) - len(shown), sum(row.share for row in rows[top:]), "kernels.csv")
    )
