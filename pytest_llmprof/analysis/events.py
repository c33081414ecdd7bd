"""Decode a torch.profiler (kineto) Chrome trace into columns, fast and within a few times its size.

Only complete events (``"ph": "X"``) of the categories below are kept, and of them only the fields that the
analysis needs. Times in the file are microseconds with three decimals; here they are whole nanoseconds from
the first kept event.
"""

from __future__ import annotations

import gzip
import re
import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from pytest_llmprof.errors import ArtifactError

__all__ = [
    "KERNEL",
    "MEMCPY",
    "MEMSET",
    "OP",
    "RANGE",
    "RUNTIME",
    "DeviceEvents",
    "HostEvents",
    "Ints",
    "RawTrace",
    "decode",
]

Ints = npt.NDArray[np.int64]

OP, RANGE, RUNTIME = 0, 1, 2
"""Kinds of host events: a torch operator, a `record_function` range, a CUDA runtime or driver call."""
KERNEL, MEMCPY, MEMSET = 0, 1, 2
"""Kinds of device events."""

_FIRST_DEVICE = 3
_KINDS = {
    "cpu_op": OP,
    "user_annotation": RANGE,
    "cuda_runtime": RUNTIME,
    "cuda_driver": RUNTIME,
    "kernel": _FIRST_DEVICE + KERNEL,
    "gpu_memcpy": _FIRST_DEVICE + MEMCPY,
    "gpu_memset": _FIRST_DEVICE + MEMSET,
}


class _Args(msgspec.Struct, gc=False, frozen=True):
    external: int = msgspec.field(default=-1, name="External id")
    correlation: int = -1


_NO_ARGS = _Args()


class _Complete(msgspec.Struct, tag_field="ph", tag="X", gc=False):
    # The order in which kineto writes them: msgspec finds the next field fastest.
    cat: str = ""
    name: str = ""
    tid: int | str = 0
    ts: float = 0.0
    dur: float = 0.0
    args: _Args = _NO_ARGS


# Every other phase letter of the Trace Event Format becomes an empty object of its own: flow events (s, f)
# are a third of a CUDA trace, and the tag lets the decoder skip their fields.
_OTHERS: list[Any] = [
    msgspec.defstruct(f"_Ph{ord(letter)}", [], tag_field="ph", tag=letter, gc=False)
    for letter in "BEibeinstfPpODNMCRcvVaAdxyz()="
    if letter != "X"
]
_OTHERS = list({kind.__struct_config__.tag: kind for kind in _OTHERS}.values())


def _decoders() -> tuple[msgspec.json.Decoder[Any], msgspec.json.Decoder[Any]]:
    union: Any = _Complete
    for kind in _OTHERS:
        union = union | kind
    trace = msgspec.defstruct("_TraceFile", [("traceEvents", list[union])], gc=False)
    return msgspec.json.Decoder(list[union]), msgspec.json.Decoder(trace)


_EVENTS, _WHOLE = _decoders()
_OPENING = re.compile(rb'"traceEvents"\s*:\s*\[')
_BETWEEN = re.compile(rb"\}(\s*,)\s*\{")
SLICE = 1 << 17
"""Bytes that are decoded at a time: the objects of one slice stay in the processor's cache (twice as fast as 1 MiB)."""
_NOT_FINITE = re.compile(rb":\s*-?(?:inf(?:inity)?|nan)\b", re.IGNORECASE)


@dataclass(frozen=True)
class HostEvents:
    """Host events in the order (thread, start, longest first). All arrays have one entry an event."""

    name: Ints
    """Index into `RawTrace.names`."""
    kind: Ints
    """OP, RANGE or RUNTIME."""
    thread: Ints
    """0, 1, ...: which thread."""
    start: Ints
    """Nanoseconds."""
    dur: Ints
    """Nanoseconds."""
    external: Ints
    """The profiler's id of the operator (of a runtime call: its caller's); -1 where there is none."""
    correlation: Ints
    """Of runtime calls: equal to that of the device events they caused; else -1."""

    def __len__(self) -> int:
        return len(self.name)


@dataclass(frozen=True)
class DeviceEvents:
    """What ran on the card, in the order of its start."""

    name: Ints
    kind: Ints
    """KERNEL, MEMCPY or MEMSET."""
    start: Ints
    dur: Ints
    external: Ints
    correlation: Ints

    def __len__(self) -> int:
        return len(self.name)


@dataclass(frozen=True)
class RawTrace:
    """A decoded trace."""

    names: list[str]
    host: HostEvents
    device: DeviceEvents
    events: int
    """Events in the file, of every kind."""
    size: int
    """Bytes of the file's JSON."""


def _read(source: Path | str | bytes) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        return source, "the trace"
    path = Path(source)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read the trace {path}: {error.strerror}") from error
    return data, str(path)


def _unpacked(source: Path | str | bytes) -> tuple[bytes, str]:
    data, where = _read(source)
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ArtifactError(f"{where} is not a whole gzip file: {error}") from error
    return data, where


def _slices(data: bytes) -> Iterator[list[Any]]:
    """The trace's events, slice by slice, so that no more than one slice lies in memory as objects.

    A slice is cut where one object follows another. Where that was not between two events (inside a text,
    say) a part does not parse, and the caller reads the whole at once.
    """
    opening = _OPENING.search(data)
    begin = opening.end() if opening else 0
    while opening and (cut := _BETWEEN.search(data, begin + SLICE)):
        yield _EVENTS.decode(b"[" + data[begin : cut.start(1)] + b"]")
        begin = cut.end(1)
    yield _WHOLE.decode(b'{"traceEvents":[' + data[begin:] if opening else data).traceEvents


def _whole(data: bytes) -> Iterator[list[Any]]:
    """All events at once; also where figures that nobody reads here are inf or nan, as kineto has printed."""
    try:
        yield _WHOLE.decode(data).traceEvents
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        yield _WHOLE.decode(_NOT_FINITE.sub(b": null", data)).traceEvents


class _Table(dict[Any, int]):
    """Numbers for values, in the order in which they first come."""

    def __missing__(self, value: Any) -> int:
        number = self[value] = len(self)
        return number


class _Columns:
    """The fields of the kept events, one array each."""

    def __init__(self, slices: Iterable[list[Any]]) -> None:
        self.names, self.threads = _Table(), _Table()
        self.kind, self.name, self.thread, self.external, self.correlation = (array("q") for _ in range(5))
        self.ts, self.dur = array("d"), array("d")
        self.events = 0
        for events in slices:
            self.events += len(events)
            self._add(events)

    def _add(self, events: list[Any]) -> None:
        # A pass a column: half the time of one pass that appends to all of them.
        names, threads = self.names, self.threads
        kept = [event for event in events if type(event) is _Complete and event.cat in _KINDS]
        self.kind.extend([_KINDS[event.cat] for event in kept])
        self.name.extend([names[event.name] for event in kept])
        self.thread.extend([threads[event.tid] for event in kept])
        self.ts.extend([event.ts for event in kept])
        self.dur.extend([event.dur for event in kept])
        self.external.extend([event.args.external for event in kept])
        self.correlation.extend([event.args.correlation for event in kept])


def _ints(column: array[int]) -> Ints:
    return np.array(column, dtype=np.int64)


def _nanoseconds(values: npt.NDArray[np.float64]) -> Ints:
    return np.rint(values * 1e3).astype(np.int64)


def decode(source: Path | str | bytes) -> RawTrace:
    """Read a trace: a path (`.json` or `.json.gz`) or the file's bytes, packed or not.

    Raises `ArtifactError` where the file cannot be read or is not a whole trace.
    """
    data, where = _unpacked(source)
    try:
        try:
            columns = _Columns(_slices(data))
        except msgspec.DecodeError:
            columns = _Columns(_whole(data))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{where} is not a whole torch.profiler trace: {error}") from error
    kind, name, thread = _ints(columns.kind), _ints(columns.name), _ints(columns.thread)
    external, correlation = _ints(columns.external), _ints(columns.correlation)
    ts = np.array(columns.ts)
    start = _nanoseconds(ts - (ts.min() if len(ts) else 0.0))
    dur = _nanoseconds(np.array(columns.dur))

    def take(order: Ints, first: int) -> dict[str, Ints]:
        return {
            "name": name[order],
            "kind": kind[order] - first,
            "start": start[order],
            "dur": dur[order],
            "external": external[order],
            "correlation": correlation[order],
        }

    host = np.flatnonzero(kind < _FIRST_DEVICE)
    host = host[np.lexsort((-dur[host], start[host], thread[host]))]
    device = np.flatnonzero(kind >= _FIRST_DEVICE)
    device = device[np.argsort(start[device], kind="stable")]
    return RawTrace(
        names=list(columns.names),
        host=HostEvents(**take(host, 0), thread=thread[host]),
        device=DeviceEvents(**take(device, _FIRST_DEVICE)),
        events=columns.events,
        size=len(data),
    )
