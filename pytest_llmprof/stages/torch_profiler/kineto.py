"""Read the Chrome trace that torch.profiler (its tracer is called kineto) writes, within a few times its size.

Only complete events of the kinds in `analysis.events` are kept. Times in the file are microseconds with three
decimals; here they are whole nanoseconds from the first kept event. The file is decoded slice by slice.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pytest_llmprof.analysis.events import DeviceEvents, HostEvents, Ints, RawTrace
from pytest_llmprof.analysis.trace import Trace
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.records.files import read_bytes
from pytest_llmprof.stages.torch_profiler.json_reader import FIRST_DEVICE, Columns, Heads, JsonReader, decode_finite

__all__ = ["decode", "merged", "read_trace"]

_OPENING = re.compile(rb'"traceEvents"\s*:\s*\[')
_BETWEEN_EVENTS = re.compile(rb'\}(\s*,)\s*\{\s*"ph"')


def read_trace(source: Path | str | bytes) -> Trace:
    """Read a trace: a path (`.json` or `.json.gz`) or the file's bytes, packed or not.

    Raises `ArtifactError` where the file cannot be read or is not a whole trace.
    """
    return Trace(decode(source))


def decode(source: Path | str | bytes) -> RawTrace:
    """The events of a trace; argument and errors as those of `read_trace`."""
    data, where = _unpacked(source)
    heads = Heads()
    try:
        try:
            columns, events = _read_slices(JsonReader(data, heads), data)
        except msgspec.DecodeError:  # a cut inside a name
            heads = Heads()
            columns, events = JsonReader(data, heads).read_file()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _not_whole(where, error) from error
    return _sorted(columns, heads, events)


def merged(paths: Sequence[Path]) -> bytes:
    """One trace made of several: the first one's header with the events of all.

    Raises `ArtifactError` where one cannot be read.
    """
    if len(paths) == 1:
        return read_bytes(paths[0])
    whole: dict[str, Any] = {}
    events: list[msgspec.Raw] = []
    for path in paths:
        try:
            trace = decode_finite(read_bytes(path), msgspec.json.Decoder(dict[str, msgspec.Raw]))
            events += msgspec.json.decode(trace["traceEvents"], type=list[msgspec.Raw])
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError) as error:
            raise _not_whole(str(path), error) from error
        whole = {**trace, **whole}
    return msgspec.json.encode({**whole, "traceEvents": events})


def _unpacked(source: Path | str | bytes) -> tuple[bytes, str]:
    data, where = (source, "the trace") if isinstance(source, bytes) else (read_bytes(Path(source)), str(source))
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ArtifactError(f"{where} is not a whole gzip file: {error}") from error
    return data, where


def _not_whole(where: str, error: Exception) -> ArtifactError:
    return ArtifactError(f"{where} is not a whole torch.profiler trace: {error}")


def _read_slices(reader: JsonReader, data: bytes) -> tuple[Columns, int]:
    """All events slice by slice, so that no more than one slice is in memory as objects; and their number."""
    opening = _OPENING.search(data)
    if opening is None:
        return reader.read_file()
    begin = opening.end()
    parts: list[tuple[Columns, int]] = []
    while cut := _BETWEEN_EVENTS.search(data, begin + reader.slice_bytes):
        parts.append(reader.read(begin, cut.start(1)))
        begin = cut.end(1)
    parts.append(reader.read_to_end(begin))
    return Columns.joined([columns for columns, _ in parts]), sum(number for _, number in parts)


def _sorted(columns: Columns, heads: Heads, events: int) -> RawTrace:
    """The kept events of host and device in the order of `HostEvents` and `DeviceEvents`."""
    kind, thread = heads.kinds()[columns.head], heads.threads()[columns.head]
    names, index = heads.names()
    name = index[columns.head]
    kept = kind >= 0
    start = columns.start - (columns.start[kept].min() if kept.any() else 0)

    def take(order: Ints, first_kind: int) -> dict[str, Ints]:
        return {
            "name": name[order],
            "kind": kind[order] - first_kind,
            "start": start[order],
            "dur": columns.dur[order],
            "external": columns.external[order],
            "correlation": columns.correlation[order],
        }

    host = np.flatnonzero(kept & (kind < FIRST_DEVICE))
    host = host[_outer_first(thread[host], start[host], columns.dur[host])]
    device = np.flatnonzero(kind >= FIRST_DEVICE)
    device = device[np.argsort(start[device], kind="stable")]
    return RawTrace(
        names=names,
        host=HostEvents(**take(host, 0), thread=thread[host]),
        device=DeviceEvents(**take(device, FIRST_DEVICE)),
        events=events,
        windows=np.sort(start[heads.of("Trace")[columns.head]]),
    )


def _outer_first(thread: Ints, start: Ints, dur: Ints) -> Ints:
    """The order (thread, start, longest first), fast where starts are nearly in order, as kineto writes them."""
    order = np.argsort(start, kind="stable")
    order = order[np.argsort(thread[order], kind="stable")]
    same = (np.diff(thread[order]) == 0) & (np.diff(start[order]) == 0)
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
    rows = order[tied]
    order[tied] = rows[np.lexsort((-dur[rows], start[rows], thread[rows]))]
    return order
