"""Events of a trace as columns: what both readers of the text (`kineto_text`, and msgspec in `events`) give."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "FIRST_DEVICE",
    "KERNEL",
    "MEMCPY",
    "MEMSET",
    "OP",
    "RANGE",
    "RUNTIME",
    "Columns",
    "Ints",
    "Labels",
    "Table",
]

Ints = npt.NDArray[np.int64]

OP, RANGE, RUNTIME = 0, 1, 2
"""Kinds of host events: a torch operator, a `record_function` range, a CUDA runtime or driver call."""
KERNEL, MEMCPY, MEMSET = 0, 1, 2
"""Kinds of device events."""

FIRST_DEVICE = 3
"""In one column with the host's kinds, those of the device are this much higher."""
_KINDS = {
    "cpu_op": OP,
    "user_annotation": RANGE,
    "cuda_runtime": RUNTIME,
    "cuda_driver": RUNTIME,
    "kernel": FIRST_DEVICE + KERNEL,
    "gpu_memcpy": FIRST_DEVICE + MEMCPY,
    "gpu_memset": FIRST_DEVICE + MEMSET,
}


class Table(dict[Any, int]):
    """Numbers for values, in the order in which they first come."""

    def __missing__(self, value: Any) -> int:
        number = self[value] = len(self)
        return number


class Labels:
    """A number for each category and name; the columns hold it instead of both."""

    def __init__(self) -> None:
        self.numbers = Table()
        """(category, name) -> number."""

    def kinds(self) -> Ints:
        """The kind of each label; -1 of a category that is not kept."""
        return np.array([_KINDS.get(category, -1) for category, _ in self.numbers], dtype=np.int64)

    def of(self, category: str) -> npt.NDArray[np.bool_]:
        """Which labels are of *category*."""
        return np.array([one == category for one, _ in self.numbers], dtype=bool)

    def names(self) -> tuple[list[str], Ints]:
        """The names of the labels, each once, and which of them each label has."""
        table = Table()
        which = np.array([table[name] for _, name in self.numbers], dtype=np.int64)
        return list(table), which


@dataclass(frozen=True)
class Columns:
    """Complete events, one entry each in every array."""

    label: Ints
    """The number that `Labels` gave."""
    thread: Ints
    """A number from one `Table` for all parts of a trace."""
    start: Ints
    """Nanoseconds on the file's own clock."""
    dur: Ints
    """Nanoseconds."""
    external: Ints
    correlation: Ints
    """-1 where there is none; so is `external`."""

    @classmethod
    def of(cls, columns: Iterable[Sequence[int] | Ints]) -> Columns:
        """The columns in their order, from anything that holds whole numbers."""
        return cls(*(np.asarray(column, dtype=np.int64) for column in columns))

    @classmethod
    def joined(cls, parts: Sequence[Columns]) -> Columns:
        """One after the other."""
        if not parts:
            return cls.of([()] * len(fields(cls)))
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))
