"""Tables of a profile: CSV files hold every row with its full name, Markdown files the top rows with short names."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from pytest_llmprof.analysis.kernel_names import short_name
from pytest_llmprof.analysis.rows import KernelRow
from pytest_llmprof.text.markdown import code, percent, table

__all__ = ["TOP", "Column", "csv_text", "kernels_md", "top_rows_md"]

TOP = 30
"""Rows of a Markdown table."""

Column = tuple[str, Callable[[Any], str], str]
"""Heading, function from a row to its cell, cell of the line for all rows."""


def csv_text(row_type: type, rows: Sequence[Any]) -> str:
    """All *rows* (instances of *row_type*, a dataclass or Struct) as CSV with a header; floats with six decimals."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = [field.name for field in msgspec.inspect.type_info(row_type).fields]  # type: ignore[attr-defined]
    writer.writerow(names)
    for row in rows:
        values = (getattr(row, name) for name in names)
        writer.writerow([f"{value:.6f}" if isinstance(value, float) else value for value in values])
    return stream.getvalue()


def top_rows_md(columns: Sequence[Column], rows: Sequence[Any], top: int, csv_name: str) -> str:
    """A table of the first *top* rows (the first three columns are texts) and of all, and a line on the others.

    Each row has its part of the whole in `share`.
    """
    cells = [[cell(row) for _, cell, _ in columns] for row in rows[:top]]
    text = table([head for head, _, _ in columns], [*cells, [total for _, _, total in columns]], 3) + "\n"
    others = rows[top:]
    if not others:
        return text + f"All rows, in full precision: [{csv_name}]({csv_name}).\n"
    number = "1 more row holds" if len(others) == 1 else f"{len(others)} more rows hold"
    return text + f"{number} {percent(sum(row.share for row in others))}: see [{csv_name}]({csv_name}).\n"


def kernels_md(rows: Sequence[KernelRow], top: int = TOP) -> str:
    """The *top* kernels, copies and fills by what they added to the GPU's busy time, as Markdown."""
    total, busy = sum(row.total_ms for row in rows), sum(row.busy_ms for row in rows)
    columns: list[Column] = [
        ("Kernel", lambda row: code(short_name(row.name)), "**all**"),
        ("Phase", lambda row: code(row.phase), ""),
        ("Launched by", lambda row: code(row.operator, 80), ""),
        ("Count", lambda row: f"{row.count}", f"{sum(row.count for row in rows)}"),
        ("Total ms", lambda row: f"{row.total_ms:.3f}", f"{total:.3f}"),
        ("Busy ms", lambda row: f"{row.busy_ms:.3f}", f"{busy:.3f}"),
        ("Mean µs", lambda row: f"{row.mean_us:.2f}", ""),
        ("Min µs", lambda row: f"{row.min_us:.2f}", ""),
        ("Max µs", lambda row: f"{row.max_us:.2f}", ""),
        ("Share", lambda row: percent(row.share), percent(1.0 if busy else 0.0)),
    ]
    return (
        "# Kernels\n\nKernels, copies and fills on the GPU under the profiler. Busy is what a row added to the time in "
        "which the GPU was busy: less than its total where kernels overlap, for example where one starts early and "
        "waits for the one before it. Names are shortened here and complete in the CSV file.\n\n"
        + top_rows_md(columns, rows, top, "kernels.csv")
    )
