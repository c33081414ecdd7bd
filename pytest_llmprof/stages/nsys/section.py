"""The report's section on a test that ran again under Nsight Systems."""

from __future__ import annotations

from functools import partial

from pytest_llmprof.analysis.records import busy_kernels_table, counts_of_a_step, left_out
from pytest_llmprof.records.stage import StageRecords
from pytest_llmprof.report.sections import Section, phase_label
from pytest_llmprof.stages.nsys.records import NsysBlock
from pytest_llmprof.stages.tool_block import TOOL_FILES, tool_section, tool_text
from pytest_llmprof.text.escape import inline
from pytest_llmprof.text.markdown import known, percent, table
from pytest_llmprof.text.numbers import count, fixed, number

_TITLE = "Nsight Systems"
FILES = {
    "phases.md": "phases under the tool",
    "phases.csv": "the same in full precision",
    "timeline.json": "the recording as lanes of events, for the run's page",
    "kernels.md": "kernels, the longest",
    "kernels.csv": "kernels, all",
    "nsys.nsys-rep": "the report, for nsys-ui",
    "nsys.sqlite": "the same as a database",
    **TOOL_FILES,
}
"""What it writes into the stage directory, for the report."""


def nsys_section(records: StageRecords) -> Section | None:
    """Paragraphs and tables; no part where the tool did not run."""
    block = records.block("nsys", NsysBlock)
    if block is None:
        return None
    parts = [_text(block), _gpu(block), phases_table(block), _copies(block), busy_kernels_table(block.top_kernels)]
    return tool_section(_TITLE, block, parts, left_out(block.events_left_out))


def _text(block: NsysBlock) -> str:
    text = tool_text(block, _TITLE)
    if not block.captures:
        return text + ".\n"
    text += f": {count(block.captures, 'capture')}"
    text += f" of {block.occurrences} asked for" if block.captures != block.occurrences else ""
    text += f", {number(block.window_ms_profiled)} ms, {count(block.steps or 0, 'decode step')}."
    return text + " Times here are slowed by the tool; compare shares and counts.\n"


def _gpu(block: NsysBlock) -> str:
    if block.kernels is None:
        return ""
    busy, idle = block.gpu_busy_share_profiled, block.gpu_idle_ms_profiled or {}
    sums = (
        ("Kernels", block.kernels),
        ("Kernels that were nodes of a CUDA graph", block.graph_kernels),
        ("CUDA graph launches", block.graph_launches),
        ("Synchronisations", block.synchronisations),
    )
    rows = [
        ["GPU busy in the capture, under the tool", "" if busy is None else percent(busy)],
        *counts_of_a_step(block, "a decode step"),
        *known([("GPU busy a decode step (ms)", block.gpu_busy_ms_per_step_profiled)], number),
        *([label, f"{value or 0:,}"] for label, value in sums),
        *([f"GPU idle: {inline(cause)} (ms)", number(value)] for cause, value in idle.items()),
    ]
    return table(["Metric", "Value"], rows)


def phases_table(block: NsysBlock, *, whole: bool = False) -> str:
    """The phases: for the report, or *whole* for phases.md, with three decimals."""
    gpu = block.kernels is not None
    ms = partial(fixed, form=".3f") if whole else number
    rows = []
    for name, phase in block.phases.items():
        rows.append([phase_label(name, phase.parent), f"{phase.count}", ms(phase.host_ms_profiled)])
        if gpu:
            share = "" if phase.gpu_busy_share is None else percent(phase.gpu_busy_share)
            counts = (phase.kernels, phase.host_launches, phase.d2h_copies, phase.synchronisations)
            rows[-1] += [ms(phase.gpu_busy_ms_profiled), ms(phase.gpu_idle_ms_profiled), share]
            rows[-1] += [f"{one or 0:,}" for one in counts]
    head = ["Phase" if whole else "Phase ([all](phases.md))", "Times", "Host ms"]
    if gpu:
        head += ["GPU busy ms", "GPU idle ms", "GPU busy", "Kernels", "Launches", "D2H copies", "Syncs"]
    return table(head, rows)


def _copies(block: NsysBlock) -> str:
    rows = [
        [inline(way), f"{row.count:,}", number(row.bytes / 2**20), number(row.ms)]
        for way, row in (block.copies or {}).items()
    ]
    return table(["Copies", "Count", "MiB", "ms"], rows)
