"""Metrics (metrics.json under "nsys") and tables of all captures: phases, kernels, copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec.structs import replace

from pytest_llmprof.analysis.lanes import write_timeline
from pytest_llmprof.analysis.records import BusyKernel, busiest
from pytest_llmprof.analysis.rows import profiled
from pytest_llmprof.analysis.tables import rows_csv, write_kernels
from pytest_llmprof.records.files import write_text
from pytest_llmprof.stages.nsys.export import NsysReport
from pytest_llmprof.stages.nsys.records import NsysBlock, NsysPhase
from pytest_llmprof.stages.nsys.section import phases_table


def summary(report: NsysReport, block: NsysBlock, *, gpu: bool) -> NsysBlock:
    """*block* with what was captured. Without a *gpu* what is of the GPU is None."""
    trace = report.trace
    totals, steps = trace.totals(), trace.steps()
    found: dict[str, Any] = {"steps": 0}
    if gpu:
        found |= {
            **profiled(NsysBlock, totals),
            "graph_kernels": report.graph_kernels,
            "graph_launches": trace.graph_launches(),
            "copies": report.copies,
            "gpu_idle_ms_profiled": totals.idle_ms,
            "top_kernels": busiest(BusyKernel, trace.kernels()),
        }
    found |= profiled(NsysBlock, steps, gpu=gpu)
    phases = {
        row.name: NsysPhase(**{**profiled(NsysPhase, row, gpu=gpu), "parent": row.parent or None})
        for row in trace.phase_rows()
    }
    found |= {"captures": report.captures, "window_ms_profiled": trace.window_ms, "events_left_out": trace.left_out}
    return replace(block, phases=phases, **found)


def write_nsys_tables(out_dir: Path, report: NsysReport, block: NsysBlock) -> None:
    """Write phases.csv, phases.md and timeline.json to *out_dir*, and with a GPU kernels.csv and kernels.md."""
    names = NsysPhase.__struct_fields__
    rows = [[name, *(getattr(phase, column) for column in names)] for name, phase in block.phases.items()]
    heads = ["phase", *(name.removesuffix("_profiled") for name in names)]
    write_text(out_dir / "phases.csv", rows_csv(heads, rows))
    write_text(out_dir / "phases.md", "# Phases under Nsight Systems\n\n" + phases_table(block, whole=True))
    write_timeline(out_dir, report.trace)
    if block.kernels is not None:
        write_kernels(out_dir, report.trace.kernels())
