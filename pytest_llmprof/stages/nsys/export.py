"""Read what `nsys --export=sqlite` wrote into a `Trace`.

Tables without rows are not in the file. Times are nanoseconds from the start of the capture. A range's name is a text
or an id of the table StringIds; eventType 59 is a push/pop range, 60 a start/end range, 75 names a domain. The high
bits of a globalTid are the process; domains and correlation ids are numbered in each process.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
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
    Numbers,
    RawTrace,
)
from pytest_llmprof.analysis.nesting import PREFIX
from pytest_llmprof.analysis.trace import Trace
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.measure.phases import ROUND

__all__ = ["CopyRow", "NsysReport", "read_report"]

_PUSH_POP, _DOMAIN = 59, 75
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
_KERNELS, _COPIES, _FILLS = (f"CUPTI_ACTIVITY_KIND_{kind}" for kind in ("KERNEL", "MEMCPY", "MEMSET"))
_CALLS = ("CUPTI_ACTIVITY_KIND_RUNTIME", "CUPTI_ACTIVITY_KIND_DRIVER")
_API_VERSION = re.compile(r"_v\d+$")
_DEVICE_COLUMNS = "start, end, correlationId, globalPid"
_ROW = tuple[int, ...]


@dataclass(frozen=True)
class CopyRow:
    """Copies of one direction."""

    direction: str
    """HtoD, DtoH, DtoD ..."""
    count: int
    bytes: int
    total_ms: float
    """Sum of their times on the GPU."""


@dataclass(frozen=True)
class NsysReport:
    """One captured range."""

    trace: Trace
    ranges: int
    """NVTX ranges of the domain, the captured one included."""
    kernels: int
    graph_kernels: int
    """Those of them that were nodes of a CUDA graph."""
    copies: tuple[CopyRow, ...]


class _Database:
    """The tables of one export."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        # A range's name need not be UTF-8.
        self._connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        self.tables = {name for (name,) in self.rows("select name from sqlite_master where type='table'")}

    def close(self) -> None:
        self._connection.close()

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(query).fetchall()

    def select(self, columns: str, table: str, clauses: str = "") -> list[tuple[Any, ...]]:
        """These columns of the table's rows; no rows where the table is not in the file."""
        return self.rows(f"select {columns} from {table} {clauses}") if table in self.tables else []

    def columns(self, table: str) -> set[str]:
        return {row[1] for row in self.rows(f"pragma table_info({table})")}


def read_report(path: Path, domain: str) -> NsysReport:
    """Read one export with the NVTX ranges of *domain*. Raises `ArtifactError`."""
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
    names = Numbers()
    strings = dict(database.select("id, value", "StringIds"))
    ranges = _ranges(database, domain)
    # (name, kind, thread, start, duration, correlation)
    host: list[_ROW] = [
        (names[PREFIX + text], RANGE, thread, start, end - start, -1)
        for text, thread, start, end in ranges
        if text != ROUND  # it encloses all phases, and would be the parent of each
    ]
    for table in _CALLS:
        for name, thread, start, end, correlation in database.select(
            "nameId, globalTid, start, end, correlationId", table
        ):
            number = names[_API_VERSION.sub("", str(strings.get(name, name)))]
            host.append((number, RUNTIME, thread, start, end - start, _key(thread, correlation)))
    device, graph_kernels = _device(database, names, strings)
    origin = min([row[3] for row in host] + [row[2] for row in device], default=0)
    raw = RawTrace(
        names=list(names),
        host=HostEvents(**_columns(host, 6, origin)),
        device=DeviceEvents(**_columns(device, 5, origin)),
        events=len(host) + len(device),
    )
    kernels = sum(row[1] == KERNEL for row in device)
    return NsysReport(Trace(raw), len(ranges), kernels, graph_kernels, _copies(database))


def _key(thread_or_process: int, correlation: int) -> int:
    """A correlation id that differs between processes."""
    return ((thread_or_process >> _THREAD_BITS & 0xFFFFFF) << 39) | (correlation & (1 << 39) - 1)


def _ranges(database: _Database, domain: str) -> list[tuple[str, int, int, int]]:
    """(name, thread, start, end) of each complete range of *domain*."""
    columns = "coalesce(text, (select value from StringIds where id = textId)), domainId, globalTid, start, end"
    domains = {
        (thread >> _THREAD_BITS, number)
        for name, number, thread, *_ in database.select(columns, "NVTX_EVENTS", f"where eventType = {_DOMAIN}")
        if name == domain
    }
    whole = f"where eventType = {_PUSH_POP} and end is not null"
    return [
        (str(name), thread, start, end)
        for name, number, thread, start, end in database.select(columns, "NVTX_EVENTS", whole)
        if name is not None and (thread >> _THREAD_BITS, number) in domains
    ]


def _device(database: _Database, names: Numbers, strings: dict[int, str]) -> tuple[list[_ROW], int]:
    """Rows (name, kind, start, duration, correlation), and the number of kernels that were nodes of a graph."""
    graph_kernels = 0

    def named() -> Iterator[tuple[Any, ...]]:
        nonlocal graph_kernels
        node = "graphNodeId" if "graphNodeId" in database.columns(_KERNELS) else "null"
        for name, graph_node, *rest in database.select(f"demangledName, {node}, {_DEVICE_COLUMNS}", _KERNELS):
            graph_kernels += bool(graph_node)
            yield str(strings.get(name, name)), KERNEL, *rest
        pageable = _pageable(database)
        for kind, source, target, *rest in database.select(f"copyKind, srcKind, dstKind, {_DEVICE_COLUMNS}", _COPIES):
            # As torch names them: a copy into pageable memory makes the host wait.
            memory = " (Pageable)" if pageable & {source, target} else ""
            yield f"Memcpy {_DIRECTIONS.get(kind, 'other')}{memory}", MEMCPY, *rest
        for row in database.select(_DEVICE_COLUMNS, _FILLS):
            yield "Memset", MEMSET, *row

    found: list[_ROW] = [
        (names[name], kind, start, end - start, _key(process, correlation))
        for name, kind, start, end, correlation, process in named()
    ]
    return found, graph_kernels


def _pageable(database: _Database) -> set[int]:
    """The values of srcKind and dstKind that mean pageable host memory."""
    rows = database.select("*", "ENUM_CUDA_MEM_KIND")
    return {row[0] for row in rows if any("pageable" in str(cell).lower() for cell in row[1:])}


def _copies(database: _Database) -> tuple[CopyRow, ...]:
    columns = "copyKind, count(*), sum(bytes), sum(end - start)"
    rows = database.select(columns, _COPIES, "group by copyKind order by 4 desc")
    return tuple(
        CopyRow(_DIRECTIONS.get(kind, "other"), count, size or 0, (length or 0) / 1e6)
        for kind, count, size, length in rows
    )


def _columns(rows: Sequence[_ROW], width: int, origin: int) -> dict[str, Ints]:
    """The arrays of `DeviceEvents`, and the thread, of rows (name, kind, [thread,] start, duration, correlation)."""
    table = np.array(rows, dtype=np.int64).reshape(-1, width).T
    name, kind, *thread, start, dur, correlation = table
    order = np.lexsort((-dur, start, *thread)) if thread else np.argsort(start, kind="stable")
    columns = {"name": name, "kind": kind, "start": start - origin, "dur": dur, "correlation": correlation}
    columns["external"] = np.full(len(rows), -1, dtype=np.int64)
    if thread:
        columns["thread"] = np.unique(thread[0], return_inverse=True)[1].astype(np.int64)
    return {key: column[order] for key, column in columns.items()}
