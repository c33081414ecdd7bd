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

from pytest_llmprof.analysis.events import KERNEL, MEMCPY, MEMSET, RANGE, RUNTIME, Events, Numbers, raw_trace
from pytest_llmprof.analysis.nesting import PREFIX
from pytest_llmprof.analysis.trace import Trace
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.measure.phases import ROUND
from pytest_llmprof.stages.nsys.records import Copies

_PUSH_POP, _DOMAIN = 59, 75
_THREAD_BITS = 24
_DIRECTIONS = dict(enumerate(["HtoD", "DtoH", "HtoA", "AtoH", "AtoA", "AtoD", "DtoA", "DtoD", "HtoH", "PtoP"], 1))
"""CUpti_ActivityMemcpyKind."""
_KERNELS, _COPIES, _FILLS = (f"CUPTI_ACTIVITY_KIND_{kind}" for kind in ("KERNEL", "MEMCPY", "MEMSET"))
_CALLS = ("CUPTI_ACTIVITY_KIND_RUNTIME", "CUPTI_ACTIVITY_KIND_DRIVER")
_API_VERSION = re.compile(r"_v\d+$")
_DEVICE_COLUMNS = "globalPid, start, end, correlationId"
_Row = tuple[str, int, int, int, int, int | None]
"""Name, kind, thread or process, start, end, correlation id."""


@dataclass(frozen=True)
class NsysReport:
    """All captures of one run, one after the other; nothing lies between two."""

    trace: Trace
    captures: int
    ranges: int
    """NVTX ranges of the domain, the captured ones included."""
    graph_kernels: int
    """Kernels that were nodes of a CUDA graph."""
    copies: dict[str, Copies]
    """By direction, the longest first."""

    @property
    def kernels(self) -> int:
        """The number of kernels."""
        return int((self.trace.device.kind == KERNEL).sum())


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


def read_reports(paths: Sequence[Path], domain: str) -> NsysReport:
    """Read the exports of one run, one a capture, with the NVTX ranges of *domain*. Raises `ArtifactError`."""
    captures = _Captures()
    for path in paths:
        if not path.is_file():
            raise ArtifactError(f"cannot read {path}: no such file")
        try:
            with closing(_Database(path)) as database:
                captures.add(database, domain)
        except sqlite3.Error as error:
            raise ArtifactError(f"{path} is not an export of nsys that can be read: {error}") from error
    return captures.report()


class _Captures:
    """The events of several captures on one axis of time."""

    def __init__(self) -> None:
        self._names, self._threads, self._correlations = Numbers(), Numbers(), Numbers()
        self._rows: list[tuple[int, ...]] = []
        self._begins: list[int] = []
        self._copies: dict[str, Copies] = {}
        self._captures = self._ranges = self._graph_kernels = self._end = 0

    def add(self, database: _Database, domain: str) -> None:
        """Add a capture behind those before it."""
        if "StringIds" not in database.tables:
            raise ArtifactError(f"{database.path} is not an export of nsys: it has no table StringIds")
        self._captures += 1
        strings = dict(database.select("id, value", "StringIds"))
        rows = [*self._host_rows(database, strings, domain), *self._device_rows(database, strings)]
        if not rows:
            return
        self._begins.append(self._end)
        shift = self._end - min(start for _, _, _, start, _, _ in rows)
        for name, kind, owner, start, end, correlation in rows:
            # A correlation id is unique in its process and capture.
            caused = (self._captures, owner >> _THREAD_BITS, correlation)
            number = -1 if correlation is None else self._correlations[caused]
            times = start + shift, end - start
            self._rows.append((self._names[name], kind, self._threads[owner], *times, number))
        self._end = 1 + max(end for _, _, _, _, end, _ in rows) + shift

    def _host_rows(self, database: _Database, strings: dict[int, str], domain: str) -> Iterator[_Row]:
        """Ranges of *domain*, and calls into CUDA."""
        columns = "coalesce(text, (select value from StringIds where id = textId)), domainId, globalTid, start, end"
        domains = {
            (thread >> _THREAD_BITS, number)
            for name, number, thread, *_ in database.select(columns, "NVTX_EVENTS", f"where eventType = {_DOMAIN}")
            if name == domain
        }
        whole = f"where eventType = {_PUSH_POP} and end is not null"
        for name, number, thread, start, end in database.select(columns, "NVTX_EVENTS", whole):
            if name is not None and (thread >> _THREAD_BITS, number) in domains:
                self._ranges += 1
                if name != ROUND:  # it encloses all phases, and would be the parent of each
                    yield f"{PREFIX}{name}", RANGE, thread, start, end, None
        for table in _CALLS:
            for name, *rest in database.select("nameId, globalTid, start, end, correlationId", table):
                yield _API_VERSION.sub("", str(strings.get(name, name))), RUNTIME, *rest

    def _device_rows(self, database: _Database, strings: dict[int, str]) -> Iterator[_Row]:
        """Kernels, copies and fills."""
        node = "graphNodeId" if "graphNodeId" in database.columns(_KERNELS) else "null"
        for name, graph_node, *rest in database.select(f"demangledName, {node}, {_DEVICE_COLUMNS}", _KERNELS):
            self._graph_kernels += bool(graph_node)
            yield str(strings.get(name, name)), KERNEL, *rest
        pageable = _pageable(database)
        columns = f"copyKind, bytes, srcKind, dstKind, {_DEVICE_COLUMNS}"
        for kind, size, source, target, process, start, end, correlation in database.select(columns, _COPIES):
            direction = _DIRECTIONS.get(kind, "other")
            one = self._copies.setdefault(direction, Copies(0, 0, 0.0))
            one.count, one.bytes, one.ms = one.count + 1, one.bytes + (size or 0), one.ms + (end - start) / 1e6
            # As torch names them: a copy into pageable memory makes the host wait.
            memory = " (Pageable)" if pageable & {source, target} else ""
            yield f"Memcpy {direction}{memory}", MEMCPY, process, start, end, correlation
        for row in database.select(_DEVICE_COLUMNS, _FILLS):
            yield "Memset", MEMSET, *row

    def report(self) -> NsysReport:
        """All that was added."""
        fields = ("name", "kind", "thread", "start", "dur", "correlation")
        columns = dict(zip(fields, np.array(self._rows, dtype=np.int64).reshape(-1, 6).T, strict=True))
        events = Events(**columns, external=np.full(len(self._rows), -1, dtype=np.int64))
        trace = Trace(raw_trace(list(self._names), events, np.array(self._begins or [0]), len(self._rows)))
        copies = dict(sorted(self._copies.items(), key=lambda item: -item[1].ms))
        return NsysReport(trace, self._captures, self._ranges, self._graph_kernels, copies)


def _pageable(database: _Database) -> set[int]:
    """The values of srcKind and dstKind that mean pageable host memory."""
    rows = database.select("*", "ENUM_CUDA_MEM_KIND")
    return {row[0] for row in rows if any("pageable" in str(cell).lower() for cell in row[1:])}
