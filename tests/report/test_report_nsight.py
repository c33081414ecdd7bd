"""The report of a test that ran under a tool."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_llmprof.report.stage_report import render
from pytest_llmprof.stages.nsys.export import read_report
from pytest_llmprof.stages.nsys.summary import summary

TOOL = {"path": "/opt/nsys", "version": "2025.3.1"}


@pytest.fixture
def metrics(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "analysis"))
    from nsys_tables import one_round

    found = summary([read_report(one_round().write(tmp_path / "r.sqlite"), "llmprof")], gpu=True)
    found |= {"tool": TOOL, "capture": "all", "occurrences": 2, "not_applied": ["test_it.py:4: assert run.ttft_ms < 5"]}
    figures = {"ttft_ms": None, "tokens": 3.0}
    return {"test": "t", "stage": "nsys", "status": "ok", "rounds": 1, "pages": 1, "figures": figures, "nsys": found}


def test_nsys(metrics):
    text = render(metrics, {}, ["nsys.nsys-rep"])
    assert "## Nsight Systems" in text
    assert "range `all`: 1 capture of 2 asked for" in text
    assert "| Kernels a decode step | 2.00 |" in text
    assert "| Kernels that were nodes of a CUDA graph | 4 |" in text
    assert "`test_it.py:4: assert run.ttft_ms < 5`. What follows it was not checked" in text
    assert "| DtoH | 2 |" in text
    assert "| prefill | 1 | 0.190 | 0.0400 |" in text
    assert "## Figures" not in text  # no times here, so no table of them
    assert "noise" not in text


def test_ncu(metrics):
    kernel = {
        "kernel": "void f<int>(int)",
        "launches": 2,
        "total_us": 20.0,
        "duration_us": 10.0,
        "sm_percent": 5.0,
        "dram_percent": 91.5,
        "l2_percent": 30.0,
        "occupancy_percent": None,
        "dram_gb_per_s": 3000.0,
        "registers": 32.0,
        "bound": "DRAM",
    }
    found = {"tool": TOOL, "capture": "decode", "chosen_by": "nsys", "chosen": ["f", "g`|g"], "missing": ["g`|g"]}
    found |= {"launches": 2, "launch_count": 50, "kernels": [kernel], "not_applied": []}
    text = render({**metrics, "stage": "ncu", "ncu": found}, {}, [])
    assert "the 2 longest kernels of nsys, 2 launches (at most 50)" in text
    assert "Not among the profiled launches: `g'|g`; raise pipeline.ncu.launch_count, or give" in text
    assert "| `f<…>` | DRAM | 2 | 10.00 | 5.0 | 91.5 | 30.0 |  | 3000 | 32 |" in text


def test_a_tool_that_did_not_get_so_far(metrics):
    error = {"page": None, "error": "nsys was not found"}
    text = render({**metrics, "status": "error", "errors": [error], "nsys": {"not_applied": []}}, {}, [])
    assert "nsys was not found" in text
    assert "## Nsight" not in text
