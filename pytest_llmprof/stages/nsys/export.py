"""Read what `nsys --export=sqlite` wrote into the columns that the analysis of a torch trace uses.

Tables that nsys had nothing for are not in the file. Times are nanoseconds from the start of the capture. A
range's name stands inline or as an id of the table StringIds; eventType 59 is a push/pop range, 60 a start/end
range, 75 names a domain. The high bits of a globalTid are the process, and correlation ids are a process's own.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pytest_llmprof.analysis.events import (
    KERNEL,
    MEMCPY,
    MEMSET,
    RANGE,
    RUNTIME,
    DeviceEvents,
    HostEvents,
    Ints,
    RawTrace,
)
from pytest_llmprof.analysis.nesting import PREFIX
from pytest_llmprof.analysis.trace import Trace
from pytest_llmprof.errors import ArtifactError

__all__ = ["CopyRow", "NsysReport", "read_report"]

_PUSH_POP, _DOMAIN = 59, 75
_ROUND = "round"
_THREAD_BITS = 24
_DIRECTIONS = {
    1: "HtoD",
    2: "DtoH",
    3: "HtoA",
    4: "AtoH",
    5: "AtoA",
    6: "AtoD",
    7: "DtoA",
    8: "DtoD",
    9: "HtoH",
    10: "PtoP",
}
"""CUpti_ActivityMemcpyKind."""
_API_VERSION = re.compile(r"_v\d+$")
_ROW = tuple[int, ...]


@dataclass(frozen=True)
class CopyRow:
    """Copies of one direction."""

    direction: str
    """HtoD, DtoH, DtoD ..."""
    count: int
    bytes: int
    total_ms: float
    """Sum of their times on the card."""


@dataclass(frozen=True)
class NsysReport:
    """One captured range."""

    trace: Trace
    ranges: int
    """NVTX ranges of our domain, the captured one included."""
    kernels: int
    graph_kernels: int
    """Kernels among them that were nodes of a CUDA graph."""
    copies: tuple[CopyRow, ...]


class _Names(dict[str, int]):
    def __missing__(self, name: str) -> int:
        number = self[name] = len(self)
        return number


class _Database:
    """The tables of one export."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        # Text that a program gave as a range's name need not be UTF-8.
        self._connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        self.tables = {name for (name,) in self.rows("select name from sqlite_master where type='table'")}

    def close(self) -> None:
        self._connection.close()

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(query).fetchall()

    def columns(self, table: str) -> set[str]:
        return {row[1] for row in self.rows(f"pragma table_info({table})")}


def read_report(path: Path, domain: str) -> NsysReport:
    """Read one export; *domain* is the NVTX domain of our ranges. Raises `ArtifactError`."""
    if not path.is_file():
        raise ArtifactError(f"cannot read {path}: no such file")
    try:
        with closing(_Database(path)) as database:
            return _read(database, domain)
    except sqlite3.Error as error:
        raise ArtifactError(f"{path} is not an export of nsys that can be read: {error}") from error


def _read(database: _Database, domain: str) -> NsysReport:
    if "StringIds" not in database.tables:
        raise ArtifactError(f"{database.path} is not an export of nsys: it has no table StringIds")
    names = _Names()
    strings = dict(database.rows("select id, value from StringIds"))
    ranges = _ranges(database, domain)
    # (name, kind, thread, start, duration, correlation)
    host: list[_ROW] = [
        (names[PREFIX + text], RANGE, thread, start, end - start, -1)
        for text, thread, start, end in ranges
        if text != _ROUND  # around all phases; as one it would be everyone's parent
    ]
    for table in ("CUPTI_ACTIVITY_KIND_RUNTIME", "CUPTI_ACTIVITY_KIND_DRIVER"):
        if table in database.tables:
            host += [
                (
                    names[_API_VERSION.sub("", str(strings.get(name, name)))],
                    RUNTIME,
                    thread,
                    start,
                    end - start,
                    _key(thread, correlation),
                )
                for name, thread, start, end, correlation in database.rows(
                    f"select nameId, globalTid, start, end, correlationId from {table}"
                )
            ]
    device, graph_kernels = _device(database, names, strings)
    begin = min((row[3] for row in host), default=None)
    first = min((row[2] for row in device), default=None)
    origin = min((value for value in (begin, first) if value is not None), default=0)
    raw = RawTrace(
        names=list(names),
        host=_host_events(host, origin),
        device=_device_events(device, origin),
        events=len(host) + len(device),
    )
    kernels = sum(row[1] == KERNEL for row in device)
    return NsysReport(Trace(raw), len(ranges), kernels, graph_kernels, _copies(database))


def _key(thread_or_process: int, correlation: int) -> int:
    """A correlation id that no other process has."""
    return ((thread_or_process >> _THREAD_BITS & 0xFFFFFF) << 39) | (correlation & (1 << 39) - 1)


def _ranges(database: _Database, domain: str) -> list[tuple[str, int, int, int]]:
    """(name, thread, start, end) of each whole range of ours."""
    if "NVTX_EVENTS" not in database.tables:
        return []
    text = "coalesce(text, (select value from StringIds where id = textId))"
    # Domains are numbered in each process.
    ours = {
        (thread >> _THREAD_BITS, number)
        for name, number, thread in database.rows(
            f"select {text}, domainId, globalTid from NVTX_EVENTS where eventType = {_DOMAIN}"
        )
        if name == domain
    }
    rows = database.rows(
        f"select {text}, domainId, globalTid, start, end from NVTX_EVENTS "
        f"where eventType = {_PUSH_POP} and end is not null"
    )
    return [
        (str(name), thread, start, end)
        for name, number, thread, start, end in rows
        if name is not None and (thread >> _THREAD_BITS, number) in ours
    ]


def _device(database: _Database, names: _Names, strings: dict[int, str]) -> tuple[list[_ROW], int]:
    """Rows (name, kind, start, duration, correlation), and how many kernels were nodes of a graph."""
    found: list[_ROW] = []
    graph = 0
    table = "CUPTI_ACTIVITY_KIND_KERNEL"
    if table in database.tables:
        node = "graphNodeId" if "graphNodeId" in database.columns(table) else "null"
        for name, start, end, correlation, process, one in database.rows(
            f"select demangledName, start, end, correlationId, globalPid, {node} from {table}"
        ):
            graph += bool(one)
            text = str(strings.get(name, name))
            found.append((names[text], KERNEL, start, end - start, _key(process, correlation)))
    table = "CUPTI_ACTIVITY_KIND_MEMCPY"
    if table in database.tables:
        pageable = _pageable(database)
        for kind, start, end, correlation, process, source, target in database.rows(
            f"select copyKind, start, end, correlationId, globalPid, srcKind, dstKind from {table}"
        ):
            # As torch names them: a copy into pageable memory makes the host wait.
            memory = " (Pageable)" if pageable & {source, target} else ""
            name = names[f"Memcpy {_DIRECTIONS.get(kind, 'other')}{memory}"]
            found.append((name, MEMCPY, start, end - start, _key(process, correlation)))
    table = "CUPTI_ACTIVITY_KIND_MEMSET"
    if table in database.tables:
        found += [
            (names["Memset"], MEMSET, start, end - start, _key(process, correlation))
            for start, end, correlation, process in database.rows(
                f"select start, end, correlationId, globalPid from {table}"
            )
        ]
    return found, graph


def _pageable(database: _Database) -> set[int]:
    """The numbers that stand for pageable host memory."""
    if "ENUM_CUDA_MEM_KIND" not in database.tables:
        return set()
    rows = database.rows("select * from ENUM_CUDA_MEM_KIND")
    return {row[0] for row in rows if any("pageable" in str(cell).lower() for cell in row[1:])}


def _copies(database: _Database) -> tuple[CopyRow, ...]:
    table = "CUPTI_ACTIVITY_KIND_MEMCPY"
    if table not in database.tables:
        return ()
    rows = database.rows(
        f"select copyKind, count(*), sum(bytes), sum(end - start) from {table} group by copyKind order by 4 desc"
    )
    return tuple(
        CopyRow(_DIRECTIONS.get(kind, "other"), count, size or 0, (length or 0) / 1e6)
        for kind, count, size, length in rows
    )


def _columns(rows: Sequence[_ROW], width: int) -> list[Ints]:
    if not rows:
        return [np.empty(0, dtype=np.int64) for _ in range(width)]
    return list(np.array(rows, dtype=np.int64).T)


def _host_events(rows: Sequence[_ROW], origin: int) -> HostEvents:
    name, kind, thread, start, dur, correlation = _columns(rows, 6)
    thread = np.unique(thread, return_inverse=True)[1].astype(np.int64)
    order = np.lexsort((-dur, start, thread))
    return HostEvents(
        name=name[order],
        kind=kind[order],
        thread=thread[order],
        start=start[order] - origin,
        dur=dur[order],
        external=np.full(len(rows), -1, dtype=np.int64),
        correlation=correlation[order],
    )


def _device_events(rows: Sequence[_ROW], origin: int) -> DeviceEvents:
    name, kind, start, dur, correlation = _columns(rows, 5)
    order = np.argsort(start, kind="stable")
    return DeviceEvents(
        name=name[order],
        kind=kind[order],
        start=start[order] - origin,
        dur=dur[order],
        external=np.full(len(rows), -1, dtype=np.int64),
        correlation=correlation[order],
    )
