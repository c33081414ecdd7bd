"""Files of a run: whatever lies there is read, shown and compared, or refused in one line."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from broken import assert_one_line, json_values, mutated, with_odd_values
from hypothesis import given
from hypothesis import strategies as st
from nsys_tables import one_round
from report_helpers import CATALOGUE, STAGES
from saved_runs import write_run
from test_ncu_report import ROW, table
from traces import one_page

from pytest_llmprof.cli.merge import merge
from pytest_llmprof.compare.kernels import read_kernels
from pytest_llmprof.compare.saved import read_place
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.outputs.predictions import read_predictions
from pytest_llmprof.report import write_report
from pytest_llmprof.stages.child import Outcome
from pytest_llmprof.stages.ncu.export import kernel_rows, read_csv
from pytest_llmprof.stages.ncu.records import NcuBlock
from pytest_llmprof.stages.nsys.export import read_reports
from pytest_llmprof.stages.nsys.records import NsysBlock
from pytest_llmprof.stages.nsys.summary import summary
from pytest_llmprof.stages.static_analysis.records import DecodeStep, PeakTable, PhaseRoof, Roofline
from pytest_llmprof.stages.tool_block import ToolInfo
from pytest_llmprof.stages.torch_profiler.kineto import read_trace
from pytest_llmprof.stages.torch_profiler.summary import profile_summary, write_tables


def _blocks(directory: Path) -> dict[str, Any]:
    """A block of each stage, as metrics.json has it."""
    tool = ToolInfo("/tool", "2025.1")
    reports = read_reports([one_round().write(directory / "r.sqlite")], "llmprof")
    roof = PhaseRoof(1e12, 1e9, {"weights": 1e9}, 1e3, 5.0, 1.0, 0.3, 1.0, "compute", 0.2, 0.06, 0.2)
    return msgspec.to_builtins(
        {
            "profile": profile_summary(read_trace(one_page().text().encode()), clean_step_ms=1.0),
            "nsys": summary(reports, NsysBlock(tool=tool, capture="all", occurrences=1), gpu=True),
            "ncu": NcuBlock(tool=tool, capture="all", chosen_by="first", kernels=kernel_rows(read_csv(table(ROW)))),
            "static_analysis": Roofline(
                applicable=True,
                card="GPU",
                peaks=PeakTable(1e15, 3e12, "bfloat16", "a table"),
                phases={"decode": roof},
                decode_step=DecodeStep(32, 1e9, 1e9, 1.0, 0.5, 2000.0),
            ),
        }
    )


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


_BENCHMARK = {
    "machine_info": {"cpu": {"brand_raw": "Xeon", "count": 4}},
    "datetime": "2026-01-01T00:00:00",
    "benchmarks": [{"fullname": "test_x.py::test_pages[0]", "stats": {"median": 0.5, "iqr": 0.01, "rounds": 5}}],
}

with _scratch() as _directory:
    _stage_dir = write_run(_directory / "run", pages=2, rounds=2) / "test_x" / "test_pages-0" / "direct_inference"
    (_directory / "run" / "benchmark.json").write_text(json.dumps(_BENCHMARK))
    write_tables(_stage_dir, read_trace(one_page().text().encode()))
    _metrics = json.loads((_stage_dir / "metrics.json").read_text()) | _blocks(_directory)
    (_stage_dir / "metrics.json").write_text(json.dumps(_metrics))
    FILES = {
        str(path.relative_to(_directory / "run")): path.read_bytes()
        for path in sorted((_directory / "run").rglob("*"))
        if path.is_file()
    }
JSON = [name for name in FILES if name.endswith((".json", ".jsonl"))]
PLACE = str(Path(next(name for name in FILES if name.endswith("metrics.json"))).parent)


@contextmanager
def run_with(name: str, data: bytes) -> Iterator[Path]:
    """A run directory in which the file *name* holds *data*."""
    with _scratch() as directory:
        for other, content in FILES.items():
            (directory / other).parent.mkdir(parents=True, exist_ok=True)
            (directory / other).write_bytes(data if other == name else content)
        yield directory


def read_all(run: Path) -> None:
    """Compare and show the run; each is refused in one line or goes well."""
    stage_dir = run / PLACE
    readers = [
        lambda: read_place(run),
        lambda: read_kernels(stage_dir / "kernels.csv"),
        lambda: read_predictions(stage_dir / "pred" / "predictions.jsonl"),
        lambda: merge([run], run / "joined"),
        *(lambda stage=stage: write_report(stage_dir, stage, CATALOGUE) for stage in STAGES.values()),
    ]
    for reader in readers:
        try:
            reader()
        except ArtifactError as error:
            assert_one_line(error)


@st.composite
def odd_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file of JSON, or of lines of it, with odd values."""
    name = draw(st.sampled_from(JSON))
    if name.endswith(".json"):
        return name, json.dumps(draw(with_odd_values(json.loads(FILES[name])))).encode()
    lines = [json.loads(line) for line in FILES[name].splitlines()]
    return name, b"".join(json.dumps(draw(with_odd_values(line))).encode() + b"\n" for line in lines)


@given(odd_files())
def test_json_with_odd_values(odd: tuple[str, bytes]) -> None:
    with run_with(*odd) as run:
        read_all(run)


@given(st.data())
def test_broken_bytes(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(FILES)))
    with run_with(name, data.draw(mutated(FILES[name]))) as run:
        read_all(run)


@given(json_values())
def test_json_of_any_shape(value: object) -> None:
    with _scratch() as directory:
        for name in ("outcome.json", "saved.json", "metrics.json"):
            (directory / name).write_text(json.dumps(value))
        for reader in (lambda: Outcome.read(directory), lambda: read_place(directory / "saved.json")):
            try:
                reader()
            except ArtifactError as error:
                assert_one_line(error)


@given(with_odd_values(_BENCHMARK))
def test_files_of_pytest_benchmark_with_odd_values(value: object) -> None:
    with _scratch() as directory:
        (directory / "saved.json").write_text(json.dumps(value))
        try:
            read_place(directory / "saved.json")
        except ArtifactError as error:
            assert_one_line(error)


def test_the_run_itself_is_read() -> None:
    with run_with("", b"") as run:
        assert len(read_place(run).tests) == 1
        write_report(run / PLACE, STAGES["torch_profiler"], CATALOGUE)
        assert "## Profiled window" in (run / PLACE / "report.md").read_text()
        shutil.rmtree(run / PLACE)
        with pytest.raises(ArtifactError):
            write_report(run / PLACE, STAGES["torch_profiler"], CATALOGUE)
