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
from nsys_tables import one_round

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
