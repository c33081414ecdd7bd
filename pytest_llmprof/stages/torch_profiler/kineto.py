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

from pytest_llmprof.analysis.events import NEVER, Events, RawTrace, possible, raw_trace
from pytest_llmprof.analysis.trace import Trace
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.records.files import NOT_JSON, read_bytes
from pytest_llmprof.stages.torch_profiler.json_reader import Columns, Heads, JsonReader, decode_finite

_NOT_WHOLE = (*NOT_JSON, OverflowError)
"""What a broken file raises; the last one for an id beyond 64 bits."""
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
    except _NOT_WHOLE as error:
        raise _not_whole(where, error) from error
    names, name, kind, thread = heads.columns()
    head, known = columns.head, kind[columns.head] >= 0
    profiles = np.flatnonzero(heads.of("trace")[head])
    found = zip(columns.start[profiles].tolist(), columns.dur[profiles].tolist(), strict=True)
    spans = [(start, length) for start, length in found if abs(start) < NEVER and 0 < length < NEVER]
    kept = np.flatnonzero(known)
    kept = kept[possible(columns.start[kept], columns.dur[kept], spans)]
    of_heads = {"name": name[head], "kind": kind[head], "thread": thread[head]}
    times = {"start": columns.start, "dur": columns.dur}
    ids = {"external": columns.external, "correlation": columns.correlation}
    windows = np.array([start for start, _ in spans], dtype=np.int64)
    return raw_trace(names, Events(**of_heads, **times, **ids)[kept], windows, events, int(known.sum()) - len(kept))


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
        except (*_NOT_WHOLE, KeyError) as error:
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
