"""What the blocks of several profiling stages share, in metrics.json and in the report.

Times that the profiler has slowed end in `_profiled`; what is of the GPU is null where nothing ran on one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from msgspec import Struct

from pytest_llmprof.analysis.kernel_names import short_name
from pytest_llmprof.analysis.rows import KernelRow, profiled
from pytest_llmprof.text.escape import inline
from pytest_llmprof.text.markdown import code, known, percent, table
from pytest_llmprof.text.numbers import count, number

_TOP = 10
_SHOWN = 5


class PhaseCounts(Struct, kw_only=True):
    """One phase. Sub-phases are included in their parent."""

    parent: str | None = None
    count: int = 0
    """How often it was opened."""
    host_ms_profiled: float | None = None
    """Sum of its ranges on the host."""
    gpu_busy_ms_profiled: float | None = None
    """Union of the intervals of its kernels."""
    kernels: int | None = None
    host_launches: int | None = None
    """Kernel and CUDA graph launches by the host."""
    d2h_copies: int | None = None
    """Device-to-host copies."""
    synchronisations: int | None = None
    """Times the host waited for the GPU."""


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
        [code(name, 90), inline(phase or "–"), f"{calls:,}", number(ms), percent(share)]
        for name, phase, calls, ms, share in rows[:_SHOWN]
    ]
    return table(head, cells, 2)


def counts_of_a_step(block: Any, step: str) -> list[list[str]]:
    """Rows of the report for what *step* ("a token") takes, from the fields `*_per_token` of *block*."""
    counts = (
        (f"Launches by the host {step}", block.host_launches_per_token),
        (f"Kernels {step}", block.kernels_per_token),
        (f"Device-to-host copies {step}", block.d2h_copies_per_token),
        (f"Synchronisations {step}", block.synchronisations_per_token),
    )
    return known(counts, number)


def left_out(events: int) -> list[str]:
    """The report's note on events with impossible times; none where there are none."""
    return [f"{count(events, 'event')} with impossible times left out of the profile's numbers."] if events else []
