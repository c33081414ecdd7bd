"""Kernels that appeared, vanished, were renamed or changed their speed between two profiled windows."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from msgspec import Struct

from pytest_llmprof.analysis.kernel_names import short_name
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.records.baseline import SavedKernel
from pytest_llmprof.records.files import read_bytes

KEPT = 200
"""Rows kept of a window: the busiest."""
SLOWER = 1.1
"""A mean time that counts as changed. A window is profiled once, so there is no interval."""
MATTERS = 0.005
"""Share of the window's busy time from which a kernel is named."""
_COLUMNS = ("name", "phase", "count", "busy_ms", "total_ms")
# Triton and inductor number what they generate (triton_poi_fused_add_3, ..._0d1d2de); other builds number anew.
_NUMBERS = re.compile(r"(?<=[a-z])_(?:\d+|(?:\d+d?c?e?){2,})(?=$|[^\w])|0x[0-9a-f]+|\b[0-9a-f]{16,}\b")


class KernelChange(Struct, frozen=True):
    """One kernel that differs."""

    test: str
    stage: str
    phase: str
    change: str
    """appeared | vanished | renamed | slower | faster | more launches | fewer launches"""
    name: str
    new_name: str | None = None
    """Of a renamed kernel."""
    before_us: float | None = None
    """Mean time under the profiler; null where it is not there."""
    after_us: float | None = None
    before_count: int = 0
    after_count: int = 0

    @property
    def ratio(self) -> float | None:
        """Mean time after / before."""
        return self.after_us / self.before_us if self.before_us and self.after_us is not None else None


@lru_cache(maxsize=8192)
def normalised(name: str) -> str:
    """A kernel's name without what differs from build to build: return type, namespaces, arguments, counters."""
    return _NUMBERS.sub("", short_name(name, 120))


def read_kernels(path: Path) -> list[SavedKernel] | None:
    """The kernels of a kernels.csv by normalised name and phase; None where it is missing or has other columns."""
    if not path.exists():
        return None
    rows = csv.reader(io.StringIO(read_bytes(path).decode("utf-8", "replace")))
    sums: dict[tuple[str, str], list[float]] = {}
    try:
        head = next(rows, [])
        if not set(_COLUMNS) <= set(head):
            return None
        places = [head.index(name) for name in _COLUMNS]
        for row in rows:
            name, phase, count, busy, total = (row[place] for place in places)
            found = sums.setdefault((normalised(name), phase), [0.0, 0.0, 0.0])
            for index, text in enumerate((count, busy, total)):
                found[index] += float(text)
        kernels = [
            SavedKernel(name, phase, int(count), busy, total / count * 1000 if count else 0.0)
            for (name, phase), (count, busy, total) in sums.items()
        ]
    except (ArithmeticError, IndexError, ValueError, csv.Error) as error:
        raise ArtifactError(f"{path} is cut off or broken: line {rows.line_num} is no row of kernels") from error
    return sorted(kernels, key=lambda kernel: -kernel.busy_ms)[:KEPT]


def kernel_changes(
    test: str, stage: str, before: Sequence[SavedKernel], after: Sequence[SavedKernel]
) -> list[KernelChange]:
    """What differs between two windows, the largest change of busy time first."""
    old = {(kernel.phase, kernel.name): kernel for kernel in before}
    new = {(kernel.phase, kernel.name): kernel for kernel in after}
    floor = MATTERS * max(_busy(before), _busy(after))
    gone = [kernel for key, kernel in old.items() if key not in new]
    come = [kernel for key, kernel in new.items() if key not in old]
    found: list[tuple[float, KernelChange]] = []

    def add(change: str, one: SavedKernel | None, other: SavedKernel | None) -> None:
        weight = abs((other.busy_ms if other else 0.0) - (one.busy_ms if one else 0.0))
        kernel = one or other
        assert kernel is not None
        found.append(
            (
                max(weight, kernel.busy_ms if change == "renamed" else 0.0),
                KernelChange(
                    test,
                    stage,
                    kernel.phase,
                    change,
                    kernel.name,
                    other.name if one and other and one.name != other.name else None,
                    one.mean_us if one else None,
                    other.mean_us if other else None,
                    one.count if one else 0,
                    other.count if other else 0,
                ),
            )
        )

    for one in list(gone):
        # Renamed: as often in the same phase, at about the same time; of several the nearest in time.
        alike = [
            other
            for other in come
            if other.phase == one.phase and other.count == one.count and 0.5 < other.mean_us / (one.mean_us or 1) < 2
        ]
        if alike:
            other = min(alike, key=lambda kernel: abs(kernel.mean_us - one.mean_us))
            gone.remove(one)
            come.remove(other)
            add("renamed", one, other)
    for one in gone:
        add("vanished", one, None)
    for other in come:
        add("appeared", None, other)
    for key in [key for key in old if key in new]:
        one, other = old[key], new[key]
        ratio = other.mean_us / one.mean_us if one.mean_us else 1.0
        if ratio >= SLOWER or ratio <= 1 / SLOWER:
            add("slower" if ratio > 1 else "faster", one, other)
        elif one.count != other.count:
            add("more launches" if other.count > one.count else "fewer launches", one, other)
    return [change for weight, change in sorted(found, key=lambda pair: -pair[0]) if weight >= floor]


def _busy(kernels: Iterable[SavedKernel]) -> float:
    return sum(kernel.busy_ms for kernel in kernels)
