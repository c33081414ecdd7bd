"""Exports of nsys: any database is read to numbers that can be, or refused."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path

import msgspec
import pytest
from broken import assert_one_line, mutated
from hypothesis import given
from hypothesis import strategies as st
from nsys_tables import GEMM, Export, one_round

from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.records.metrics import Metrics
from pytest_llmprof.records.stage import StageRecords
from pytest_llmprof.stages.nsys.export import read_reports
from pytest_llmprof.stages.nsys.records import NsysBlock
from pytest_llmprof.stages.nsys.section import nsys_section
from pytest_llmprof.stages.nsys.summary import summary, write_nsys_tables
from pytest_llmprof.stages.tool_block import ToolInfo


def _export() -> tuple[bytes, dict[str, list[str]]]:
    """An export whose columns may be null, and its tables' columns."""
    with tempfile.TemporaryDirectory() as directory:
        path = one_round().write(Path(directory) / "r.sqlite", schema=lambda text: text.replace(" NOT NULL", ""))
        with closing(sqlite3.connect(path)) as base:
            tables = [name for (name,) in base.execute("select name from sqlite_master where type = 'table'")]
            columns = {name: [row[1] for row in base.execute(f"pragma table_info({name})")] for name in tables}
        return path.read_bytes(), columns


EXPORT, COLUMNS = _export()
VALUES = st.one_of(
    st.sampled_from(["null", "''", "'x'", "x'ff00'", "1.5", "-1", "0", "9e18", "'\ud83d'", "abs(random())"]),
    st.integers(-(2**63), 2**63 - 1).map(str),
    st.sampled_from(["-start", "start * 1000", "end - 1000000", "rowid", "rowid % 3"]),
)


@st.composite
def statements(draw: st.DrawFn) -> list[str]:
    found = []
    for _ in range(draw(st.integers(1, 5))):
        table = draw(st.sampled_from(sorted(COLUMNS)))
        column, value, row = draw(st.sampled_from(COLUMNS[table])), draw(VALUES), draw(st.integers(1, 20))
        where = draw(st.sampled_from(["", f" where rowid = {row}", f" where rowid > {row}"]))
        found.append(
            draw(
                st.sampled_from(
                    [
                        *[f"update {table} set {column} = {value}{where}"] * 12,
                        f"delete from {table}{where}",
                        f"drop table {table}",
                        f"alter table {table} rename to {table}_V{row}",
                        f"alter table {table} rename column {column} to other",
                        f"insert into {table} select * from {table}",
                    ]
                )
            )
        )
    return found


def read(path: Path) -> None:
    try:
        report = read_reports([path, path], "llmprof")
    except ArtifactError as error:
        assert_one_line(error)
        return
    trace, totals = report.trace, report.trace.totals()
    assert 0 <= trace.left_out <= trace.events
    assert 0 <= totals.gpu_busy_ms <= trace.window_ms * (1 + 1e-9) + 1e-9
    assert all(value >= 0 for value in totals.idle_ms.values())
    assert all(row.self_ms >= 0 for row in trace.operators())
    assert sum(row.count for row in trace.kernels()) == len(trace.device)
    for gpu in (True, False):
        block = NsysBlock(tool=ToolInfo("/nsys", "2025.1"), capture="all", occurrences=2)
        block = summary(report, block, gpu=gpu)
        msgspec.json.encode(block)
        metrics = Metrics(test="t", id="t", stage="nsys", kind="pages", status="ok", rounds=1, pages=1)
        section = nsys_section(StageRecords(metrics, {"nsys": block}))
        assert section is not None
        assert all(isinstance(part, str) for part in section.parts)
        write_nsys_tables(path.parent, report, block)


@given(statements())
def test_rows_with_odd_values(changes: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "r.sqlite"
        path.write_bytes(EXPORT)
        with closing(sqlite3.connect(path, isolation_level=None)) as base:
            base.execute("pragma synchronous = off")
            for change in changes:
                with suppress(sqlite3.Error, UnicodeEncodeError):  # a table that is gone already
                    base.execute(change)
        read(path)


@given(mutated(EXPORT))
def test_broken_bytes(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "r.sqlite"
        path.write_bytes(data)
        read(path)


def test_the_export_itself_is_read() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "r.sqlite"
        path.write_bytes(EXPORT)
        assert read_reports([path], "llmprof").trace.totals().kernels == 6
        with pytest.raises(ArtifactError):
            read_reports([path.parent], "llmprof")


_KERNELS = st.lists(st.tuples(st.sampled_from([GEMM, "a", "b"]), st.integers(20, 300), st.integers(1, 60)), max_size=12)
_COPIES = st.lists(
    st.tuples(st.sampled_from([(1, "HtoD"), (2, "DtoH"), (8, "DtoD")]), st.integers(0, 2**40), st.integers(1, 60)),
    max_size=6,
)


@given(_KERNELS, _COPIES, st.integers(0, 3))
def test_figures_are_those_that_were_made(
    kernels: list[tuple[str, int, int]], copies: list[tuple[tuple[int, str], int, int]], steps: int
) -> None:
    """Kernels launched by a call each, copies, and ranges of the decode step, in one round."""
    export = Export()
    export.range("round", 0, 1000)
    export.range("decode", 1, 900)
    for step in range(steps):
        export.range("step", 2 + 5 * step, 6 + 5 * step)
    for name, start, length in kernels:
        export.kernel(name, start, start + length, export.call("cudaLaunchKernel_v7000", start - 15, start - 14))
    for (kind, _), size, length in copies:
        call = export.call("cudaMemcpyAsync_v3020", 400, 401)
        export.copy(kind, size, 402, 402 + length, call, (2, 2))
    with tempfile.TemporaryDirectory() as directory:
        path = export.write(Path(directory) / "r.sqlite", schema="pragma synchronous = off;{}".format)
        read(path)
        report = read_reports([path], "llmprof")
    totals = report.trace.totals()
    busy = len({place for _, start, length in kernels for place in range(start, start + length)})
    assert totals.gpu_busy_ms == pytest.approx(busy / 1000, abs=1e-9)
    assert (report.kernels, totals.host_launches) == (len(kernels), len(kernels))
    for name in {name for name, *_ in kernels}:
        mine = [length for other, _, length in kernels if other == name]
        rows = [row for row in report.trace.kernels() if row.name == name]
        assert sum(row.count for row in rows) == len(mine)
        assert sum(row.total_ms for row in rows) == pytest.approx(sum(mine) / 1000, abs=1e-9)
    for direction, found in report.copies.items():
        sizes = [size for (_, name), size, _ in copies if name == direction]
        assert (found.count, found.bytes) == (len(sizes), sum(sizes))
    assert sum(found.count for found in report.copies.values()) == len(copies)
    assert (report.trace.timeline.steps or 0) == steps
