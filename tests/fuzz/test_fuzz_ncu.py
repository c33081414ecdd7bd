"""ncu's CSV: numbers of every locale are read as they were printed, or refused."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from broken import ODD_TEXTS, assert_one_line, mutated
from hypothesis import given
from hypothesis import strategies as st
from test_ncu_report import HEAD, ROW, table

from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.records.metrics import Metrics
from pytest_llmprof.records.stage import StageRecords
from pytest_llmprof.stages.ncu.export import kernel_rows, read_csv, write_ncu_tables
from pytest_llmprof.stages.ncu.records import NcuBlock, NcuLaunch
from pytest_llmprof.stages.ncu.section import ncu_section
from pytest_llmprof.stages.tool_block import ToolInfo

PRINTED = table(ROW, (ROW[0], *ROW[1:3], "30", "40", "95.5", "40", "30.5", "3,000.25", "64")).encode()
LOCALES = st.sampled_from([(".", ","), (".", ""), (".", "'"), (",", "."), (",", ""), (",", "\u202f"), (",", "\u00a0")])


def check(text: str) -> list[NcuLaunch]:
    """The launches, with numbers that can be, and their tables and report; none where they are refused."""
    try:
        launches = read_csv(text)
    except ArtifactError as error:
        assert_one_line(error)
        return []
    rows = kernel_rows(launches)
    assert sum(row.launches for row in rows) == len(launches)
    assert all(0 <= row.duration_us < 1e21 and row.total_us >= 0 for row in rows)
    with tempfile.TemporaryDirectory() as directory:
        write_ncu_tables(Path(directory), rows, launches)
    block = NcuBlock(tool=ToolInfo("/ncu", "2025.1"), capture="decode", chosen_by="first", kernels=rows)
    metrics = Metrics(test="t", id="t", stage="ncu", kind="pages", status="ok", rounds=1, pages=1)
    assert ncu_section(StageRecords(metrics, {"ncu": block})) is not None
    return launches


def printed(value: float, digits: int, mark: str, grouping: str) -> str:
    return f"{value:,.{digits}f}".translate(str.maketrans({",": grouping, ".": mark}))


@given(
    LOCALES,
    st.lists(st.lists(st.tuples(st.floats(0, 1e7), st.integers(0, 6)), min_size=7, max_size=7), min_size=1, max_size=4),
)
def test_numbers_are_read_as_they_were_printed(locale: tuple[str, str], rows: list[list[tuple[float, int]]]) -> None:
    cells = [[printed(value, digits, *locale) for value, digits in row] for row in rows]
    text = table(*((*ROW[:3], *row) for row in cells))
    try:
        launches = read_csv(text)
    except ArtifactError as error:
        pytest.fail(str(error)) if "may be two numbers" not in str(error) else assert_one_line(error)
        return
    for launch, row in zip(launches, rows, strict=True):
        exact = [round(value, digits) for value, digits in row]
        found = [launch.duration_us, launch.sm_percent, launch.dram_percent, launch.l2_percent]
        found += [launch.occupancy_percent, launch.dram_gb_per_s, launch.registers]
        assert found == pytest.approx(exact, rel=1e-6, abs=1e-6)


@given(mutated(PRINTED))
def test_broken_bytes(data: bytes) -> None:
    check(data.decode("utf-8", "replace"))


@given(st.lists(st.lists(ODD_TEXTS, min_size=len(HEAD), max_size=len(HEAD)), max_size=3), st.booleans())
def test_cells_of_any_text(rows: list[list[str]], with_head: bool) -> None:
    def quoted(row: list[str]) -> str:
        return ",".join('"' + cell.replace('"', '""') + '"' for cell in row)

    check("\n".join([PRINTED.decode().rsplit("\n", 4)[0] if with_head else '"ID"', *map(quoted, rows)]))
