"""Events of a slice of a trace file as arrays: what both readers (`json_reader` and `text_reader`) return."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from pytest_llmprof.analysis.events import KERNEL, MEMCPY, MEMSET, OP, RANGE, RUNTIME, Ints, Mask, Numbers

__all__ = ["FIRST_DEVICE", "Columns", "Heads"]

FIRST_DEVICE = 3
"""Added to the kinds of device events, so that one array can hold them and the host's."""
_KINDS = {
    "cpu_op": OP,
    "user_annotation": RANGE,
    "cuda_runtime": RUNTIME,
    "cuda_driver": RUNTIME,
    "kernel": FIRST_DEVICE + KERNEL,
    "gpu_memcpy": FIRST_DEVICE + MEMCPY,
    "gpu_memset": FIRST_DEVICE + MEMSET,
}


class Heads(Numbers):
    """Numbers the triples (category, name, thread) of events, which repeat."""

    def kinds(self) -> Ints:
        """The kind of each head; -1 for a category that is not kept."""
        return np.array([_KINDS.get(category, -1) for category, _, _ in self], dtype=np.int64)

    def of(self, category: str) -> Mask:
        """Which heads are of *category*."""
        return np.array([one == category for one, _, _ in self], dtype=bool)

    def names(self) -> tuple[list[str], Ints]:
        """The distinct names, and for each head the index of its name."""
        numbers = Numbers()
        index = np.array([numbers[name] for _, name, _ in self], dtype=np.int64)
        return list(numbers), index

    def threads(self) -> Ints:
        """For each head the number 0, 1, ... of its thread."""
        numbers = Numbers()
        return np.array([numbers[thread] for _, _, thread in self], dtype=np.int64)


@dataclass(frozen=True)
class Columns:
    """Complete events, one entry for each in every array."""

    head: Ints
    """The event's number in `Heads`."""
    start: Ints
    """Nanoseconds on the file's own clock."""
    dur: Ints
    """Nanoseconds."""
    external: Ints
    """-1 without one."""
    correlation: Ints
    """-1 without one."""

    @classmethod
    def of(cls, columns: Iterable[Sequence[int] | Ints]) -> Columns:
        """From sequences of whole numbers in the order of the fields."""
        return cls(*(np.asarray(column, dtype=np.int64) for column in columns))

    @classmethod
    def joined(cls, parts: Sequence[Columns]) -> Columns:
        """One after the other."""
        if not parts:
            return cls.of([()] * len(fields(cls)))
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))
