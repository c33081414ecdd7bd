"""Decode a slice of a kineto trace's events with msgspec.

Complete events (``"ph": "X"``) become objects that hold only the fields that are needed. Every other phase of the
Trace Event Format becomes an empty object: flow events (s, f) are a third of a CUDA trace, and the tag lets the
decoder skip their fields.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import msgspec
import numpy as np

from pytest_llmprof.analysis.events import Ints, Kind, Mask, Numbers

_KINDS = {
    **dict.fromkeys(("cpu_op", "operator"), Kind.OP),
    "user_annotation": Kind.RANGE,
    **dict.fromkeys(("cuda_runtime", "cuda_driver", "runtime"), Kind.RUNTIME),
    "kernel": Kind.KERNEL,
    **dict.fromkeys(("gpu_memcpy", "memcpy"), Kind.MEMCPY),
    **dict.fromkeys(("gpu_memset", "memset"), Kind.MEMSET),
}
"""Kinds by category in small letters; torch before 1.11 called them Operator, Runtime, Kernel, Memcpy, Memset."""


class Heads(Numbers):
    """Numbers the triples (category, name, thread) of events, which repeat."""

    def columns(self) -> tuple[list[str], Ints, Ints, Ints]:
        """The distinct names; and for each head the index of its name, its kind (-1 is not kept) and its thread."""
        names, threads = Numbers(), Numbers()
        rows = [(names[name], _KINDS.get(category.lower(), -1), threads[thread]) for category, name, thread in self]
        return list(names), *np.array(rows, dtype=np.int64).reshape(-1, 3).T

    def of(self, category: str) -> Mask:
        """Which heads are of *category*, in small letters."""
        return np.array([one.lower() == category for one, _, _ in self], dtype=bool)


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

_NOT_FINITE = re.compile(rb":\s*-?(?:inf(?:inity)?|nan)\b", re.IGNORECASE)


class _Args(msgspec.Struct, gc=False, frozen=True):
    external: int = msgspec.field(default=-1, name="External id")
    old_external: int = msgspec.field(default=-1, name="external id")
    correlation: int = -1


_NO_ARGS = _Args()


class _Complete(msgspec.Struct, tag_field="ph", tag="X", gc=False):
    # The order in which kineto writes the fields: msgspec finds the next field fastest.
    cat: str = ""
    name: str = ""
    tid: int | str = 0
    ts: float = 0.0
    dur: float = 0.0
    args: _Args = _NO_ARGS


_EVENT: Any = _Complete
for _letter in "BEibenstfPODNMCRcvVaAdxyz()=p":
    _EVENT |= msgspec.defstruct(f"_Phase{ord(_letter)}", [], tag_field="ph", tag=_letter, gc=False)
_EVENTS = msgspec.json.Decoder(list[_EVENT])
_FILE: msgspec.json.Decoder[Any] = msgspec.json.Decoder(
    msgspec.defstruct("_TraceFile", [("traceEvents", list[_EVENT])], gc=False)
)


class JsonReader:
    """Decodes slices of *data*. *heads* numbers their categories, names and threads."""

    slice_bytes = 1 << 19
    """How much to read at a time, so that the objects made of it stay in the processor's cache."""

    def __init__(self, data: bytes, heads: Heads) -> None:
        self._data, self._heads = data, heads

    def read(self, begin: int, end: int) -> tuple[Columns, int]:
        """The complete events between two places, and the number of events of every kind.

        The slice begins before an event's brace and ends behind another's. Raises `msgspec.DecodeError`.
        """
        return self._columns(decode_finite(b"[" + self._data[begin:end] + b"]", _EVENTS))

    def read_to_end(self, begin: int) -> tuple[Columns, int]:
        """The same from a place between two events up to the end of the file."""
        return self._columns(decode_finite(b'{"traceEvents":[' + self._data[begin:], _FILE).traceEvents)

    def read_file(self) -> tuple[Columns, int]:
        """The same of the whole file at once."""
        return self._columns(decode_finite(self._data, _FILE).traceEvents)

    def _columns(self, events: list[Any]) -> tuple[Columns, int]:
        heads = self._heads
        # One pass for each column takes half the time of one pass that appends to all of them.
        complete = [event for event in events if type(event) is _Complete]
        args = [event.args for event in complete]
        columns = Columns.of(
            (
                [heads[event.cat, event.name, event.tid] for event in complete],
                _nanoseconds([event.ts for event in complete]),
                _nanoseconds([event.dur for event in complete]),
                [one.external if one.external >= 0 else one.old_external for one in args],
                [one.correlation for one in args],
            )
        )
        return columns, len(events)


def _nanoseconds(microseconds: list[float]) -> Ints:
    times = np.rint(np.array(microseconds, dtype=np.float64) * 1e3)
    return np.where(np.abs(times) < 2.0**62, times, 2.0**62).astype(np.int64)


def decode_finite(data: bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
    """Decode *data* also where kineto has written inf or nan, which is no JSON, in fields that nobody reads here."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        return decoder.decode(_NOT_FINITE.sub(b": null", data))
