"""The busiest kernels of a profile or capture: their record, and their table in the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from msgspec import Struct

from pytest_llmprof.analysis.kernel_names import short_name
from pytest_llmprof.analysis.rows import KernelRow, profiled
from pytest_llmprof.text.escape import inline
from pytest_llmprof.text.markdown import code, percent, table
from pytest_llmprof.text.numbers import number

__all__ = ["BusyKernel", "busiest", "busy_kernels_table", "top_rows"]

_TOP = 10
_SHOWN = 5


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


_Kernel = TypeVar("_Kernel", bound=BusyKernel)


def busiest(record: type[_Kernel], rows: Sequence[KernelRow]) -> list[_Kernel]:
    """The first ten of *rows*, the busiest first, as *record*."""
    return [record(**{**profiled(record, row), "name": short_name(row.name)}) for row in rows[:_TOP]]


def busy_kernels_table(kernels: Sequence[BusyKernel]) -> str:
    """The kernels that kept the GPU busy longest; empty without kernels."""
    rows = [(row.name, row.phase, row.count, row.busy_ms_profiled, row.share) for row in kernels]
    return top_rows(["Kernel ([more](kernels.md))", "Phase", "Count", "Busy ms", "Share"], rows)


def top_rows(head: Sequence[str], rows: Sequence[tuple[str, str, int, float, float]]) -> str:
    """A table of the first five *rows* (name, phase, count, milliseconds, share); empty without rows."""
    cells = [
        [code(name, 90), inline(phase or "–"), f"{count:,}", number(ms), percent(share)]
        for name, phase, count, ms, share in rows[:_SHOWN]
    ]
    return table(head, cells, 2)
