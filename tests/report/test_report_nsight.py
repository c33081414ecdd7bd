"""The report of a test that ran under a tool."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_helpers import report

from pytest_llmprof.records.metrics import ErrorRecord, Metrics
from pytest_llmprof.records.stage import StageRecords
from pytest_llmprof.stages.ncu.records import KernelProfile, NcuBlock
from pytest_llmprof.stages.nsys.export import read_reports
from pytest_llmprof.stages.nsys.records import NsysBlock
from pytest_llmprof.stages.nsys.summary import summary
from pytest_llmprof.stages.tool_block import ToolBlock, ToolInfo

TOOL = ToolInfo("/opt/nsys", "2025.3.1")
NOT_APPLIED = ["test_it.py:4: assert run.ttft_ms < 5"]


@pytest.fixture
def nsys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NsysBlock:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "analysis"))
    from nsys_tables import one_round

    block = summary(read_reports([one_round().write(tmp_path / "r.sqlite")], "llmprof"), NsysBlock(), gpu=True)
    block.tool, block.capture, block.occurrences, block.not_applied = TOOL, "all", 2, NOT_APPLIED
    return block


def under(stage: str, block: ToolBlock, *errors: ErrorRecord) -> StageRecords:
    """What a run under a tool leaves: no times, the child's tokens, the tool's block."""
    metrics = Metrics(
        test="t",
        id="test_it.py::t",
        stage=stage,
        kind="pages",
        status="error" if errors else "ok",
        errors=list(errors),
        rounds=1,
        pages=1,
        figures={"ttft_ms": None, "tokens": 3.0},
    )
    return StageRecords(metrics, {stage: block})


def test_nsys(nsys: NsysBlock) -> None:
    text = report(under("nsys", nsys), ["nsys.nsys-rep"])
    assert "## Nsight Systems" in text
    assert "range `all`: 1 capture of 2 asked for" in text
    assert "| Kernels a decode step | 2.00 |" in text
    assert "| Kernels that were nodes of a CUDA graph | 4 |" in text
    assert "`test_it.py:4: assert run.ttft_ms < 5`. What follows it was not checked" in text
    assert "| DtoH | 2 |" in text
    assert "| prefill | 1 | 0.190 | 0.0400 |" in text
    assert "## Metrics" not in text  # no times here, so no table of them
    assert "noise" not in text


def test_ncu() -> None:
    kernel = KernelProfile(
        kernel="void f<int>(int)",
        launches=2,
        total_us=20.0,
        duration_us=10.0,
        sm_percent=5.0,
        dram_percent=91.5,
        l2_percent=30.0,
        occupancy_percent=None,
        dram_gb_per_s=3000.0,
        registers=32.0,
        bound="DRAM",
    )
    block = NcuBlock(
        tool=TOOL,
        capture="decode",
        chosen_by="nsys",
        chosen=["f", "g`|g"],
        missing=["g`|g"],
        launches=2,
        launch_count=50,
        kernels=[kernel],
    )
    text = report(under("ncu", block))
    assert "the 2 longest kernels of nsys, 2 launches (at most 50)" in text
    assert "Not among the profiled launches: `g'|g`; raise pipeline.ncu.launch_count, or give" in text
    assert "| `f<…>` | DRAM | 2 | 10.00 | 5.0 | 91.5 | 30.0 |  | 3000 | 32 |" in text


def test_a_tool_that_did_not_get_so_far() -> None:
    text = report(under("nsys", NsysBlock(), ErrorRecord(None, "nsys was not found")))
    assert "nsys was not found" in text
    assert "## Nsight" not in text
