"""Read the Chrome trace that torch.profiler (its tracer is called kineto) writes, within a few times its size.

Only complete events of the kinds in `analysis.events` are kept. Times in the file are microseconds with three
decimals; here they are whole nanoseconds from the first kept event. The file is decoded slice by slice.
"""

from __future__ import annotations

import gzip
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
from pytest_llmprof.stages.torch_profiler.json_reader import JsonReader, decode_finite

_NOT_WHOLE = (*NOT_JSON, OverflowError)
"""What a broken file raises; the last one for an id beyond 64 bits."""


def read_trace(source: Path | str | bytes) -> Trace:
    """Read a trace: a path (`.json` or `.json.gz`) or the file's bytes, packed or not.

    Raises `ArtifactError` where the file cannot be read or is not a whole trace.
    """
    return Trace(decode(source))


def decode(source: Path | str | bytes) -> RawTrace:
    """The events of a trace; argument and errors as those of `read_trace`."""
    data, where = _unpacked(source)
    reader = JsonReader(data)
    try:
        try:
            columns, total = reader.read_slices()
        except msgspec.DecodeError:  # a cut inside a name
            columns, total = reader.read_file()
    except _NOT_WHOLE as error:
        raise _not_whole(where, error) from error
    names, name, kind, thread = reader.heads.columns()
    head, start, dur, external, correlation = columns
    profiles = columns[1:3, reader.heads.of("trace")[head]].T.tolist()
    spans = [(begin, length) for begin, length in profiles if abs(begin) < NEVER and 0 < length < NEVER]
    known = np.flatnonzero(kind[head] >= 0)
    kept = known[possible(start[known], dur[known], spans)]
    ids = {"external": external[kept], "correlation": correlation[kept]}
    head = head[kept]
    events = Events(name=name[head], kind=kind[head], thread=thread[head], start=start[kept], dur=dur[kept], **ids)
    windows = np.array([begin for begin, _ in spans], dtype=np.int64)
    return raw_trace(names, events, windows, total, len(known) - len(kept))


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
