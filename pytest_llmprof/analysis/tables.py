"""Tables of a profile: CSV files hold every row with its full name, Markdown files the top rows with short names."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pytest_llmprof.analysis.kernel_names import short_name
from pytest_llmprof.analysis.rows import KernelRow
from pytest_llmprof.records.files import write_text
from pytest_llmprof.text.markdown import code, percent, table

TOP = 30
"""Rows of a Markdown table."""

Column = tuple[str, Callable[[Any], str], str]
"""Heading, function from a row to its cell, cell of the line for all rows."""


def csv_text(row_type: type, rows: Sequence[Any]) -> str:
    """All *rows* (instances of *row_type*, a dataclass or Struct) as CSV with a header; floats with six decimals."""
    names = [field.name for field in msgspec.inspect.type_info(row_type).fields]  # type: ignore[attr-defined]
    return rows_csv(names, [[getattr(row, name) for name in names] for row in rows])


def rows_csv(head: Sequence[str], rows: Iterable[Sequence[Any]], decimals: int | None = 6) -> str:
    """CSV of *rows* below *head*; None is an empty cell, and floats have *decimals* (None: all)."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        exact = decimals is None
        writer.writerow([f"{one:.{decimals}f}" if isinstance(one, float) and not exact else one for one in row])
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


def write_kernels(out_dir: Path, rows: Sequence[KernelRow], top: int = TOP) -> None:
    """Write kernels.csv, and kernels.md with the *top* rows by what they added to the GPU's busy time."""
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
    text = (
        "# Kernels\n\nKernels, copies and fills on the GPU under the profiler. Busy is what a row added to the time in "
        "which the GPU was busy: less than its total where kernels overlap, for example where one starts early and "
        "waits for the one before it. Names are shortened here and complete in the CSV file.\n\n"
        + top_rows_md(columns, rows, top, "kernels.csv")
    )
    write_text(out_dir / "kernels.csv", csv_text(KernelRow, rows))
    write_text(out_dir / "kernels.md", text)
