"""Exports of nsys: what the tables and figures say of them."""

from __future__ import annotations

import csv
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from nsys_tables import GEMM, SCALE, Export, one_round

from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.stages.ncu.records import KernelProfile
from pytest_llmprof.stages.nsys.export import read_reports
from pytest_llmprof.stages.nsys.records import NsysBlock
from pytest_llmprof.stages.nsys.summary import summary, write_nsys_tables


def captured(report, *, gpu):
    """The block of metrics.json as JSON has it."""
    return msgspec.to_builtins(summary(report, NsysBlock(), gpu=gpu))


@pytest.fixture
def recorded(tmp_path):
    return one_round().write(tmp_path / "r.sqlite")


@pytest.fixture
def report(recorded):
    return read_reports([recorded], "llmprof")


def test_figures_of_one_round(report):
    found = captured(report, gpu=True)
    assert report.ranges == 6  # round, preprocess, prefill, decode, two steps; none of the warm-up
    assert (found["captures"], found["kernels"], found["graph_kernels"]) == (1, 6, 4)
    assert (found["host_launches"], found["graph_launches"]) == (4, 2)
    assert (found["steps"], found["kernels_per_token"], found["host_launches_per_token"]) == (2, 2.0, 1.0)
    # The copy into pageable memory and the synchronise behind it are one wait.
    assert (found["d2h_copies"], found["synchronisations"]) == (2, 2)
    assert (found["d2h_copies_per_token"], found["synchronisations_per_token"]) == (1.0, 1.0)
    assert found["copies"] == {
        "HtoD": {"count": 1, "bytes": 4096, "ms": pytest.approx(0.008)},
        "DtoH": {"count": 2, "bytes": 16, "ms": pytest.approx(0.004)},
    }
    assert found["gpu_busy_ms_profiled"] == pytest.approx((30 + 10 + 2 * 30) / 1e3)
    assert found["gpu_busy_ms_per_step_profiled"] == pytest.approx(0.030)
    # From the first copy's start (40) to the last one's end (596), less what copies, fills and kernels took.
    busy = 8 + 30 + 10 + 1 + 2 * (20 + 10 + 2)
    assert sum(found["gpu_idle_ms_profiled"].values()) == pytest.approx((556 - busy) / 1e3)
    assert found["gpu_busy_share_profiled"] == pytest.approx(100 / (100 + 556 - busy))
    assert found["top_kernels"][0] == {
        "name": "Kernel2<…>",
        "phase": "decode",
        "count": 2,
        "total_ms_profiled": pytest.approx(0.04),
        "busy_ms_profiled": pytest.approx(0.04),
        "share": pytest.approx(40 / (100 + 1 + 12)),
    }


def test_phases(report):
    rows = {row.name: row for row in report.trace.phase_rows()}
    assert list(rows) == ["preprocess", "prefill", "decode"]
    assert rows["prefill"].host_ms == pytest.approx(0.19)
    assert (rows["prefill"].kernels, rows["prefill"].host_launches, rows["prefill"].count) == (2, 2, 1)
    assert (rows["decode"].kernels, rows["decode"].host_launches) == (4, 2)
    assert rows["decode"].gpu_busy_ms == pytest.approx(0.06)
    assert (rows["preprocess"].kernels, rows["preprocess"].gpu_busy_share) == (0, None)
    assert all(row["kernels"] is None for row in captured(report, gpu=False)["phases"].values())


def test_kernels_are_counted_by_phase_and_launching_call(report):
    rows = [(row.name, row.phase, row.operator, row.count) for row in report.trace.kernels() if row.kind == "kernel"]
    assert sorted(rows) == sorted(
        [
            (GEMM, "decode", "cudaGraphLaunch", 2),
            (SCALE, "decode", "cudaGraphLaunch", 2),
            (GEMM, "prefill", "cudaLaunchKernel", 1),
            (SCALE, "prefill", "cudaLaunchKernelExC", 1),
        ]
    )
    assert sum(row.share for row in report.trace.kernels()) == pytest.approx(1.0)


def test_every_figure_is_documented(report):
    text = (Path(__file__).parents[2] / "docs" / "nsight.md").read_text(encoding="utf-8")
    found = captured(report, gpu=True)
    for name in (*found, *found["phases"]["decode"], *found["top_kernels"][0], *KernelProfile.__struct_fields__):
        assert f"`{name}`" in text, name


def test_captures_add_up(report, recorded):
    one, two = captured(report, gpu=True), captured(read_reports([recorded, recorded], "llmprof"), gpu=True)
    assert two["captures"] == 2
    for name in ("kernels", "host_launches", "steps", "gpu_busy_ms_profiled", "window_ms_profiled"):
        assert two[name] == pytest.approx(2 * one[name]), name
    for name in ("kernels_per_token", "gpu_busy_share_profiled", "gpu_busy_ms_per_step_profiled"):
        assert two[name] == pytest.approx(one[name]), name
    assert two["phases"]["decode"]["kernels"] == 8
    assert two["copies"]["DtoH"]["count"] == 4


def test_tables(report, tmp_path):
    write_nsys_tables(tmp_path, report, summary(report, NsysBlock(), gpu=True))
    with (tmp_path / "kernels.csv").open() as stream:
        assert {row["name"] for row in csv.DictReader(stream) if row["kind"] == "kernel"} == {GEMM, SCALE}
    with (tmp_path / "phases.csv").open() as stream:
        assert [(row["phase"], row["kernels"]) for row in csv.DictReader(stream)] == [
            ("preprocess", "0"),
            ("prefill", "2"),
            ("decode", "4"),
        ]
    text = (tmp_path / "phases.md").read_text()
    assert "| decode | 1 | 0.380 | 0.060 |" in text


def test_a_cpu_report_has_ranges_alone(tmp_path):
    export = Export()
    export.range("decode", 0, 100)
    export.range("step", 10, 40)
    report = read_reports([export.write(tmp_path / "r.sqlite")], "llmprof")
    found = captured(report, gpu=False)
    assert (report.kernels, found["kernels"], found["kernels_per_token"], found["steps"]) == (0, None, None, 1)
    assert found["phases"]["decode"]["host_ms_profiled"] == pytest.approx(0.1)
    write_nsys_tables(tmp_path, report, summary(report, NsysBlock(), gpu=False))
    assert not (tmp_path / "kernels.csv").exists()


def test_ranges_of_other_domains_and_processes_do_not_count(tmp_path):
    export = Export()
    export.domain("other", 3)
    export.range("decode", 0, 10, domain=3)
    export.range("decode", 20, 30, domain=1)
    report = read_reports([export.write(tmp_path / "r.sqlite")], "llmprof")
    assert (report.ranges, report.copies) == (0, {})


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(ArtifactError, match="no such file"):
        read_reports([tmp_path / "none.sqlite"], "llmprof")
    (tmp_path / "text.sqlite").write_text("this is no database, but long enough to look at")
    with pytest.raises(ArtifactError, match="not an export of nsys that can be read"):
        read_reports([tmp_path / "text.sqlite"], "llmprof")
    with closing(sqlite3.connect(tmp_path / "schema.sqlite")) as base:  # its error quotes the broken name
        base.execute("create table kernels (a)")
        base.execute("pragma writable_schema=on")
        base.execute("update sqlite_master set name = cast(x'6b80' as text), sql = 'create tab'")
        base.commit()
    with pytest.raises(ArtifactError, match=r"schema\.sqlite is not an export of nsys that can be read"):
        read_reports([tmp_path / "schema.sqlite"], "llmprof")
    sqlite3.connect(tmp_path / "empty.sqlite").close()
    with pytest.raises(ArtifactError, match="no table StringIds"):
        read_reports([tmp_path / "empty.sqlite"], "llmprof")


# Line 18 of issue 15: what the schema of an export allows, and what its next version may bring.


def changed(path: Path, *statements: str) -> Path:
    with closing(sqlite3.connect(path)) as base:
        for statement in statements:
            base.execute(statement)
        base.commit()
    return path


IDS = {
    "CUPTI_ACTIVITY_KIND_RUNTIME": ("globalTid", "correlationId"),
    "CUPTI_ACTIVITY_KIND_KERNEL": ("globalPid", "correlationId", "graphNodeId"),
    "CUPTI_ACTIVITY_KIND_MEMCPY": ("globalPid", "correlationId", "srcKind", "dstKind", "copyKind", "bytes"),
    "CUPTI_ACTIVITY_KIND_MEMSET": ("globalPid", "correlationId"),
    "NVTX_EVENTS": ("globalTid", "textId", "domainId"),
}


@pytest.mark.parametrize("value", ["null", "'seven'", "1.5", "x'ff'"])
@pytest.mark.parametrize("table", IDS)
def test_an_id_that_is_null_or_text_is_unknown(table, value, tmp_path):
    def loosened(text: str) -> str:
        return text.replace(" NOT NULL", "")

    for column in IDS[table]:
        path = one_round().write(tmp_path / f"{column}.sqlite", schema=loosened)
        found = captured(read_reports([changed(path, f"update {table} set {column} = {value}")], "llmprof"), gpu=True)
        assert (found["kernels"], sum(row["count"] for row in found["copies"].values())) == (6, 3)
        assert found["events_left_out"] == 0


@pytest.mark.parametrize("value", ["null", "'soon'", "-9223372036854775808", "9223372036854775807", "7e18"])
@pytest.mark.parametrize("column", ["start", "end"])
def test_events_without_a_time_that_can_be_are_left_out_and_counted(column, value, tmp_path):
    path = one_round().write(tmp_path / "r.sqlite", schema=lambda text: text.replace(" NOT NULL", ""))
    clean = captured(read_reports([path], "llmprof"), gpu=True)
    with closing(sqlite3.connect(path)) as base:
        for table in ("CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_MEMCPY", "CUPTI_ACTIVITY_KIND_MEMSET"):
            columns = [row[1] for row in base.execute(f"pragma table_info({table})")]
            values = ", ".join(value if name == column else name for name in columns)
            base.execute(f"insert into {table} select {values} from {table} limit 1")
        base.commit()
    found = captured(read_reports([path], "llmprof"), gpu=True)
    assert found["events_left_out"] == 3
    assert found == {**clean, "events_left_out": 3}


@pytest.mark.parametrize("value", ["null", "x'ff00'", "5"])
def test_names_that_are_null_bytes_or_missing_do_not_end_the_reading(tmp_path, value):
    path = one_round().write(tmp_path / "r.sqlite", schema=lambda text: text.replace(" NOT NULL", ""))
    changed(path, f"update StringIds set value = {value}")
    changed(path, "update CUPTI_ACTIVITY_KIND_RUNTIME set nameId = null")
    assert read_reports([path], "llmprof").kernels == 6


@pytest.mark.parametrize("table", ["CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_RUNTIME", "NVTX_EVENTS"])
def test_tables_of_a_version_that_is_unknown_are_named(table, recorded):
    changed(recorded, f"alter table {table} rename to {table}_V2")
    with pytest.raises(ArtifactError, match=f"tables of a version that is not known here: {table}_V2"):
        read_reports([recorded], "llmprof")


def test_a_table_without_a_column_is_named(recorded):
    changed(recorded, "alter table CUPTI_ACTIVITY_KIND_KERNEL rename column correlationId to id")
    with pytest.raises(ArtifactError, match="can be read: no such column"):
        read_reports([recorded], "llmprof")
