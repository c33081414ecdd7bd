"""Decode a torch.profiler (kineto) Chrome trace into columns, fast and within a few times its size.

Only complete events (``"ph": "X"``) of some categories are kept (see `columns`), and of them only the fields
that the analysis needs. Times in the file are microseconds with three decimals; here they are whole nanoseconds
from the first kept event. The file is read stretch by stretch: as Kineto's own text (`kineto_text`), or where it
is laid out otherwise, by msgspec.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pytest_llmprof.analysis.columns import FIRST_DEVICE, Columns, Ints, Labels, Table
from pytest_llmprof.analysis.kineto_text import Text
from pytest_llmprof.errors import ArtifactError

__all__ = ["DeviceEvents", "HostEvents", "RawTrace", "decode", "merged"]


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
_BETWEEN = re.compile(rb'\}(\s*,)\s*\{\s*"ph"')
SLICE, TAIL = 1 << 21, 1 << 14
"""Bytes that are read at a time: what is made of one stretch stays in the processor's cache. Bytes at the end, where
threads get their names, that are left to the general decoder."""
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
    windows: Ints = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    """When each profile in the file began, nanoseconds; one a page of the profiled window."""


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


def merged(paths: Sequence[Path]) -> bytes:
    """One trace of several: the first one's header with the events of all.

    Raises `ArtifactError` where one cannot be read.
    """
    if len(paths) == 1:
        return _read(paths[0])[0]
    whole: dict[str, Any] = {}
    events: list[msgspec.Raw] = []
    for path in paths:
        data, where = _read(path)
        try:
            trace = _finite(data, msgspec.json.Decoder(dict[str, msgspec.Raw]))
            events += msgspec.json.decode(trace["traceEvents"], type=list[msgspec.Raw])
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError) as error:
            raise _not_whole(where, error) from error
        whole = {**trace, **whole}
    return msgspec.json.encode({**whole, "traceEvents": events})


def _finite(data: bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
    """Decode *data*, also where figures that nobody reads here are inf or nan, as Kineto has printed."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        return decoder.decode(_NOT_FINITE.sub(b": null", data))


def _not_whole(where: str, error: Exception) -> ArtifactError:
    return ArtifactError(f"{where} is not a whole torch.profiler trace: {error}")


class _Reader:
    """Reads a trace's events into columns."""

    def __init__(self) -> None:
        self.labels, self._threads = Labels(), Table()
        self.events = 0
        """Events of every kind."""
        self._parts: list[Columns] = []

    def read(self, data: bytes) -> Columns:
        """All events, stretch by stretch, so that no more than one lies in memory as objects."""
        text = Text(data, self.labels, self._threads)
        opening = _OPENING.search(data)
        begin = opening.end() if opening else 0
        last = len(data) - TAIL
        while opening and begin < last and (cut := _BETWEEN.search(data, min(begin + SLICE, last))):
            found = text.read(begin, cut.start(1))
            if found is None:
                self._add(_EVENTS.decode(b"[" + data[begin : cut.start(1)] + b"]"))
            else:
                self._parts.append(found[0])
                self.events += found[1]
            begin = cut.end(1)
        self._add(_WHOLE.decode(b'{"traceEvents":[' + data[begin:] if opening else data).traceEvents)
        return Columns.joined(self._parts)

    def read_at_once(self, data: bytes) -> Columns:
        """The same by msgspec alone."""
        self._add(_finite(data, _WHOLE).traceEvents)
        return Columns.joined(self._parts)

    def _add(self, events: list[Any]) -> None:
        self.events += len(events)
        labels, threads = self.labels.numbers, self._threads
        # A pass a column: half the time of one pass that appends to all of them.
        complete = [event for event in events if type(event) is _Complete]
        self._parts.append(
            Columns.of(
                (
                    [labels[event.cat, event.name] for event in complete],
                    [threads[event.tid] for event in complete],
                    _nanoseconds([event.ts for event in complete]),
                    _nanoseconds([event.dur for event in complete]),
                    [event.args.external for event in complete],
                    [event.args.correlation for event in complete],
                )
            )
        )


def _nanoseconds(values: list[float]) -> Ints:
    return np.rint(np.array(values, dtype=np.float64) * 1e3).astype(np.int64)


def _outer_first(thread: Ints, start: Ints, dur: Ints) -> Ints:
    """The order (thread, start, longest first), fast where starts are nearly in order, as Kineto writes them."""
    order = np.argsort(start, kind="stable")
    order = order[np.argsort(thread[order], kind="stable")]
    same = (np.diff(thread[order]) == 0) & (np.diff(start[order]) == 0)
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
    rows = order[tied]
    order[tied] = rows[np.lexsort((-dur[rows], start[rows], thread[rows]))]
    return order


def decode(source: Path | str | bytes) -> RawTrace:
    """Read a trace: a path (`.json` or `.json.gz`) or the file's bytes, packed or not.

    Raises `ArtifactError` where the file cannot be read or is not a whole trace.
    """
    data, where = _unpacked(source)
    try:
        reader = _Reader()
        try:
            columns = reader.read(data)
        except msgspec.DecodeError:
            reader = _Reader()
            columns = reader.read_at_once(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _not_whole(where, error) from error
    kind = reader.labels.kinds()[columns.label]
    names, which = reader.labels.names()
    name = which[columns.label]
    kept = kind >= 0
    start = columns.start - (columns.start[kept].min() if kept.any() else 0)

    def take(order: Ints, first: int) -> dict[str, Ints]:
        return {
            "name": name[order],
            "kind": kind[order] - first,
            "start": start[order],
            "dur": columns.dur[order],
            "external": columns.external[order],
            "correlation": columns.correlation[order],
        }

    host = np.flatnonzero(kept & (kind < FIRST_DEVICE))
    host = host[_outer_first(columns.thread[host], start[host], columns.dur[host])]
    device = np.flatnonzero(kind >= FIRST_DEVICE)
    device = device[np.argsort(start[device], kind="stable")]
    return RawTrace(
        names=names,
        host=HostEvents(**take(host, 0), thread=columns.thread[host]),
        device=DeviceEvents(**take(device, FIRST_DEVICE)),
        events=reader.events,
        windows=np.sort(start[reader.labels.of("Trace")[columns.label]]),
        size=len(data),
    )
