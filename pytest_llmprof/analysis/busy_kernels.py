"""The busiest kernels of a profile or capture: their record, and their table in the report."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from pytest_llmprof.text.escape import inline
from pytest_llmprof.text.markdown import code, percent, table
from pytest_llmprof.text.numbers import number

__all__ = ["BusyKernel", "busy_kernels_table"]

_ROWS = 5


class BusyKernel(Struct, kw_only=True):
    """One of the busiest kernels."""

    name: str
    """Shortened."""
    phase: str
    count: int
    total_ms_profiled: float
    busy_ms_profiled: float
    """What it added to the time in which the GPU was busy."""
    share: float
    """Of the GPU's busy time (0..1)."""


def busy_kernels_table(kernels: Sequence[BusyKernel]) -> str:
    """The kernels that kept the GPU busy longest; empty without kernels."""
    rows = [
        [
            code(row.name, 90),
            inline(row.phase or "–"),
            f"{row.count:,}",
            number(row.busy_ms_profiled),
            percent(row.share),
        ]
        for row in kernels[:_ROWS]
    ]
    return table(["Kernel ([more](kernels.md))", "Phase", "Count", "Busy ms", "Share"], rows, 2) if rows else ""
