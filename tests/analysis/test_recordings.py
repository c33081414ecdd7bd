"""Real recordings of nsys and ncu, cut down by `recordings.py`: read to what their runs said, and to plain counts."""

from __future__ import annotations

import csv
import gzip
import json
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from pytest_llmprof.analysis.kernel_names import short_name
from pytest_llmprof.analysis.lanes import timeline_of
from pytest_llmprof.records.timeline import Timeline
from pytest_llmprof.stages.ncu.export import kernel_rows, read_csv
from pytest_llmprof.stages.ncu.records import NcuLaunch
from pytest_llmprof.stages.nsys.export import read_reports
from pytest_llmprof.stages.nsys.records import NsysBlock
from pytest_llmprof.stages.nsys.summary import summary, write_nsys_tables
from pytest_llmprof.stages.torch_profiler.kineto import read_trace

DATA = Path(__file__).parents[1] / "data"
NSYS = sorted(DATA.glob("nsys-*.sqlite.gz"))
NCU = sorted(DATA.glob("ncu-*.csv.gz"))
TORCH = sorted(DATA.glob("torch-*.trace.json.gz"))


def name(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".sqlite").removesuffix(".csv").removesuffix(".trace.json")


def rounded(value: object) -> object:
    """As JSON has it, to six digits."""
    return json.loads(json.dumps(value), parse_float=lambda text: f"{float(text):.6g}")


@pytest.mark.parametrize("recorded", NSYS, ids=name)
def test_nsys(recorded, tmp_path):
    path = tmp_path / "nsys.sqlite"
    path.write_bytes(gzip.decompress(recorded.read_bytes()))
    with closing(sqlite3.connect(path)) as base:
        tables = {table for (table,) in base.execute("select name from sqlite_master")}

        def count(table: str, condition: str = "true", value: str = "count(*)") -> int:
            if table not in tables:
                return 0
            return base.execute(f"select {value} from {table} where {condition}").fetchone()[0] or 0

        kernels = count("CUPTI_ACTIVITY_KIND_KERNEL")
        of_graphs = count("CUPTI_ACTIVITY_KIND_KERNEL", "graphNodeId > 0") if kernels else 0
        busy = count("CUPTI_ACTIVITY_KIND_KERNEL", value="sum(end - start)") / 1e6
        to_host = count("CUPTI_ACTIVITY_KIND_MEMCPY", "copyKind = 2")
        text = "coalesce(text, (select value from StringIds where id = textId))"
        steps = count("NVTX_EVENTS", f"eventType = 59 and end is not null and {text} = 'step'")
    report = read_reports([path], "llmprof")
    expected = {"events_left_out": 0, **json.loads((DATA / f"{name(recorded)}.json").read_text())}
    asked = msgspec.convert({key: expected[key] for key in ("tool", "capture", "occurrences")}, NsysBlock)
    found = msgspec.to_builtins(summary(report, asked, gpu=kernels > 0))
    assert rounded(found) == {key: rounded(expected[key]) for key in found}
    assert (report.kernels, report.graph_kernels, found["steps"]) == (kernels, of_graphs, steps)
    assert steps > 0
    assert {"vision", "sam", "prefill", "decode"} <= found["phases"].keys()
    if kernels:
        whole = [phase for phase in found["phases"].values() if phase["parent"] is None]
        assert sum(phase["kernels"] for phase in whole) <= kernels
        assert all(found["phases"][phase]["kernels"] > 0 for phase in ("sam", "prefill", "decode"))
        assert 0 < found["gpu_busy_ms_profiled"] <= busy * (1 + 1e-9)
        assert found["d2h_copies"] == to_host > 0
        assert found["host_launches"] > 0
        assert sum(kernel["share"] for kernel in found["top_kernels"]) <= 1 + 1e-9


@pytest.mark.parametrize("recorded", [path for path in NSYS if "h100" in path.name], ids=name)
def test_timeline_of_a_gpu(recorded, tmp_path):
    """What the run's page draws adds up to kernels.csv, and its phases lie where the recording has them."""
    path = tmp_path / "nsys.sqlite"
    path.write_bytes(gzip.decompress(recorded.read_bytes()))
    report = read_reports([path], "llmprof")
    expected = json.loads((DATA / f"{name(recorded)}.json").read_text())
    asked = msgspec.convert({key: expected[key] for key in ("tool", "capture", "occurrences")}, NsysBlock)
    write_nsys_tables(tmp_path, report, summary(report, asked, gpu=True))
    timeline = msgspec.json.decode((tmp_path / "timeline.json").read_bytes(), type=Timeline)
    drawn, launched, idle, phases = Counter(), Counter(), Counter(), Counter()
    for lane in timeline.lanes:
        sums = {"gpu": drawn, "idle": idle, "phases": phases}.get(lane.kind, Counter())
        for label, dur in zip(lane.label, lane.dur, strict=True):
            sums[timeline.names[label]] += dur
            launched[timeline.names[label]] += lane.kind == "gpu"
    table, counts = Counter(), Counter()
    with (tmp_path / "kernels.csv").open() as file:
        for row in csv.DictReader(file):
            table[short_name(row["name"], 90)] += round(float(row["total_ms"]) * 1e6)
            counts[short_name(row["name"], 90)] += int(row["count"])
    assert drawn == table
    assert +launched == counts
    assert sum(idle.values()) / 1e6 == pytest.approx(sum(report.trace.totals().idle_ms.values()))
    assert {row.name: phases[row.name] / 1e6 for row in report.trace.phase_rows()} == pytest.approx(
        {row.name: row.host_ms for row in report.trace.phase_rows()}
    )
    assert {"vision", "sam", "prefill", "decode", "step"} <= phases.keys()


@pytest.mark.parametrize("recorded", NCU, ids=name)
def test_ncu(recorded):
    text = gzip.decompress(recorded.read_bytes()).decode()
    launches = read_csv(text)
    table = [line for line in text.splitlines() if line.startswith('"')]
    assert len(launches) == len(list(csv.reader(table))) - 2 > 0  # the heading and the units
    for launch in launches:
        assert all(getattr(launch, field) is not None for field in NcuLaunch.__struct_fields__), launch.kernel
        shares = (launch.sm_percent, launch.dram_percent, launch.l2_percent, launch.occupancy_percent)
        assert all(0 <= share <= 100 for share in shares)
        assert 0.5 < launch.duration_us < 1e5
        assert launch.dram_gb_per_s < 8000
        assert 16 <= launch.registers <= 255
    expected = json.loads((DATA / f"{name(recorded)}.json").read_text())
    assert rounded([msgspec.to_builtins(row) for row in kernel_rows(launches)]) == rounded(expected["kernels"])


@pytest.mark.parametrize("recorded", TORCH, ids=name)
def test_torch(recorded):
    """A trace of a real GPU: the page's timeline holds each kernel of kernels.csv, as written on that machine."""
    trace = read_trace(recorded)
    timeline = timeline_of(trace)
    written = recorded.with_name(f"{name(recorded)}.kernels.csv.gz")
    with gzip.open(written, "rt", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    table: Counter[str] = Counter()
    for row in rows:
        table[short_name(row["name"], 90)] += round(float(row["total_ms"]) * 1e6)
    shown: Counter[str] = Counter()
    for lane in timeline.lanes:
        if lane.kind == "gpu":
            for label, dur in zip(lane.label, lane.dur, strict=True):
                shown[timeline.names[label]] += dur
    assert shown == table
    kernels = sum(len(lane.start) for lane in timeline.lanes if lane.kind == "gpu")
    assert kernels == sum(int(row["count"]) for row in rows)
    phases = next(lane for lane in timeline.lanes if lane.kind == "phases")
    assert [timeline.names[label] for label in phases.label] == ["preprocess", "vision", "prefill", "decode"]
    by_phase: Counter[str] = Counter()
    for row in rows:
        by_phase[row["phase"]] += int(row["count"])
    read: Counter[str] = Counter()
    for kernel in trace.kernels():
        read[kernel.phase or ""] += kernel.count
    assert read == by_phase
