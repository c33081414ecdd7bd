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
from typing import Any, NamedTuple

import numpy as np

from pytest_llmprof.analysis.calls import copy_direction
from pytest_llmprof.analysis.events import NEVER, Events, Kind, Numbers, possible, raw_trace
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
_NEWER = re.compile(rf"({'|'.join((_KERNELS, _COPIES, _FILLS, *_CALLS))}|NVTX_EVENTS|StringIds)_V\d+", re.IGNORECASE)


def _whole(column: str) -> str:
    """The column, null where it holds no whole number: the export's schema allows null, and SQLite anything."""
    return f"case typeof({column}) when 'integer' then {column} end"


def _owned(owner: str, correlation: str) -> str:
    """The columns `_Row.owner` to `_Row.correlation`."""
    return f"coalesce({_whole(owner)}, -1), {_whole('start')}, {_whole('end')}, {_whole(correlation)}"


_DEVICE = _owned("globalPid", "correlationId")


class _Row(NamedTuple):
    name: str
    kind: int
    owner: int
    """Thread or process; -1 unknown."""
    start: int | None
    end: int | None
    correlation: int | None
    extra: int | None = None
    """A kernel's graph node, a copy's bytes."""


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
        return int(self.trace.device.of(Kind.KERNEL).sum())


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
        except (sqlite3.Error, UnicodeDecodeError) as error:  # sqlite3's own message may quote bytes that are no UTF-8
            raise ArtifactError(f"{path} is not an export of nsys that can be read: {error}") from error
    return captures.report()


class _Captures:
    """The events of several captures on one axis of time."""

    def __init__(self) -> None:
        self._names, self._threads, self._correlations = Numbers(), Numbers(), Numbers()
        self._rows: list[tuple[int, ...]] = []
        self._begins: list[int] = []
        self._copies: dict[str, Copies] = {}
        self._captures = self._ranges = self._graph_kernels = self._left_out = self._end = 0

    def add(self, database: _Database, domain: str) -> None:
        """Add a capture behind those before it."""
        if "StringIds" not in database.tables:
            raise ArtifactError(f"{database.path} is not an export of nsys: it has no table StringIds")
        if unknown := sorted(name for name in database.tables if _NEWER.fullmatch(name)):
            raise ArtifactError(f"{database.path} has tables of a version that is not known here: {', '.join(unknown)}")
        self._captures += 1
        # SQLite holds anything in any column: a name may be null, bytes or a number.
        found = database.select("id, value", "StringIds")
        strings = {number: "" if text is None else str(text) for number, text in found}
        rows = [*self._host_rows(database, strings, domain), *self._device_rows(database, strings)]
        times = np.array([_span(row.start, row.end) for row in rows], dtype=np.int64).reshape(-1, 2).T
        kept = possible(*times)
        self._left_out += int((~kept).sum())
        if not kept.any():
            return
        self._begins.append(self._end)
        times[0] += self._end - times[0, kept].min()
        self._end = 1 + int((times[0] + times[1])[kept].max())
        for row, (start, length), keep in zip(rows, times.T.tolist(), kept, strict=True):
            if keep:
                # A correlation id is unique in its process and capture.
                caused = (self._captures, row.owner >> _THREAD_BITS, row.correlation)
                number = -1 if row.correlation is None else self._correlations[caused]
                self._rows.append((self._names[row.name], row.kind, self._threads[row.owner], start, length, number))
                if row.kind == Kind.KERNEL:
                    self._graph_kernels += bool(row.extra)
                elif row.kind == Kind.MEMCPY:
                    one = self._copies.setdefault(copy_direction(row.name), Copies(0, 0, 0.0))
                    one.count, one.bytes, one.ms = one.count + 1, one.bytes + (row.extra or 0), one.ms + length / 1e6

    def _host_rows(self, database: _Database, strings: dict[Any, str], domain: str) -> Iterator[_Row]:
        """Ranges of *domain*, and calls into CUDA."""
        text = "coalesce(text, (select value from StringIds where id = textId))"
        columns = f"{text}, domainId, {_owned('globalTid', 'null')}"
        domains = {
            (owner >> _THREAD_BITS, number)
            for name, number, owner, *_ in database.select(columns, "NVTX_EVENTS", f"where eventType = {_DOMAIN}")
            if name == domain
        }
        whole = f"where eventType = {_PUSH_POP} and end is not null"
        for name, number, owner, *rest in database.select(columns, "NVTX_EVENTS", whole):
            if name is not None and (owner >> _THREAD_BITS, number) in domains:
                self._ranges += 1
                if name != ROUND:  # it encloses all phases, and would be the parent of each
                    yield _Row(f"{PREFIX}{name}", Kind.RANGE, owner, *rest)
        for table in _CALLS:
            for name, *rest in database.select(f"nameId, {_owned('globalTid', 'correlationId')}", table):
                yield _Row(_API_VERSION.sub("", _text(strings, name)), Kind.RUNTIME, *rest)

    def _device_rows(self, database: _Database, strings: dict[Any, str]) -> Iterator[_Row]:
        """Kernels, copies and fills."""
        node = "graphNodeId" if "graphNodeId" in database.columns(_KERNELS) else "null"
        for name, *rest in database.select(f"demangledName, {_DEVICE}, {node}", _KERNELS):
            yield _Row(_text(strings, name), Kind.KERNEL, *rest)
        pageable = _pageable(database)
        columns = f"copyKind, srcKind, dstKind, {_DEVICE}, {_whole('bytes')}"
        for kind, source, target, *rest in database.select(columns, _COPIES):
            # As torch names them: a copy into pageable memory makes the host wait.
            memory = " (Pageable)" if pageable & {source, target} else ""
            yield _Row(f"Memcpy {_DIRECTIONS.get(kind, 'other')}{memory}", Kind.MEMCPY, *rest)
        for row in database.select(_DEVICE, _FILLS):
            yield _Row("Memset", Kind.MEMSET, *row)

    def report(self) -> NsysReport:
        """All that was added."""
        fields = ("name", "kind", "thread", "start", "dur", "correlation")
        columns = dict(zip(fields, np.array(self._rows, dtype=np.int64).reshape(-1, 6).T, strict=True))
        events = Events(**columns, external=np.full(len(self._rows), -1, dtype=np.int64))
        total, windows = len(self._rows) + self._left_out, np.array(self._begins or [0])
        trace = Trace(raw_trace(list(self._names), events, windows, total, self._left_out))
        copies = dict(sorted(self._copies.items(), key=lambda item: -item[1].ms))
        return NsysReport(trace, self._captures, self._ranges, self._graph_kernels, copies)


def _span(start: int | None, end: int | None) -> tuple[int, int]:
    """Start and length; a length below zero where there are none."""
    if start is None or end is None or max(abs(start), abs(end)) >= NEVER:
        return 0, -1
    return start, end - start


def _text(strings: dict[Any, str], name: object) -> str:
    """A name, which is an id of StringIds or a text."""
    return strings.get(name, "" if name is None else str(name))


def _pageable(database: _Database) -> set[int]:
    """The values of srcKind and dstKind that mean pageable host memory."""
    rows = database.select("*", "ENUM_CUDA_MEM_KIND")
    return {row[0] for row in rows if any("pageable" in str(cell).lower() for cell in row[1:])}
