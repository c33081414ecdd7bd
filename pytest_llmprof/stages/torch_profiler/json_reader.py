"""Decode a kineto trace's events with msgspec.

Complete events (``"ph": "X"``) become objects that hold only the fields that are needed. Every other phase of the
Trace Event Format becomes an empty object: flow events (s, f) are a third of a CUDA trace, and the tag lets the
decoder skip their fields.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
import numpy as np

from pytest_llmprof.analysis.events import Ints, Kind, Mask, Numbers

_OPENING = re.compile(rb'"traceEvents"\s*:\s*\[')
_BETWEEN_EVENTS = re.compile(rb'\}(\s*,)\s*\{\s*"ph"')

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
    """Decodes the events of *data*, the text of a trace. Its methods raise `msgspec.DecodeError`.

    They return the complete events as an array of the rows head (the number in `heads`), start and length
    (nanoseconds), external id and correlation id (-1 without one); and the number of events of every kind.
    """

    slice_bytes = 1 << 19
    """How much to read at a time, so that the objects made of it stay in the processor's cache."""

    def __init__(self, data: bytes) -> None:
        self.heads = Heads()
        self._data = data

    def read_slices(self) -> tuple[Ints, int]:
        """Slice by slice, so that no more than one slice is in memory as objects.

        Fails where it cuts inside a text that looks like the end of an event.
        """
        opening = _OPENING.search(self._data)
        if opening is None:
            return self.read_file()
        begin, parts = opening.end(), []
        while cut := _BETWEEN_EVENTS.search(self._data, begin + self.slice_bytes):
            parts.append(self._columns(decode_finite(b"[" + self._data[begin : cut.start(1)] + b"]", _EVENTS)))
            begin = cut.end(1)
        parts.append(self._columns(decode_finite(b'{"traceEvents":[' + self._data[begin:], _FILE).traceEvents))
        return np.concatenate([columns for columns, _ in parts], axis=1), sum(number for _, number in parts)

    def read_file(self) -> tuple[Ints, int]:
        """The whole file at once."""
        return self._columns(decode_finite(self._data, _FILE).traceEvents)

    def _columns(self, events: list[Any]) -> tuple[Ints, int]:
        # One pass for each column takes half the time of one pass that appends to all of them.
        complete = [event for event in events if type(event) is _Complete]
        args = [event.args for event in complete]
        columns = (
            [self.heads[event.cat, event.name, event.tid] for event in complete],
            _nanoseconds([event.ts for event in complete]),
            _nanoseconds([event.dur for event in complete]),
            [one.external if one.external >= 0 else one.old_external for one in args],
            [one.correlation for one in args],
        )
        return np.array(columns, dtype=np.int64), len(events)


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
