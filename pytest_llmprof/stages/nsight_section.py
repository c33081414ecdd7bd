"""The report's section on a test that ran again under Nsight Systems or Nsight Compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_llmprof.stages.ncu.export import LATENCY_BELOW, kernels_table
from pytest_llmprof.stages.torch_profiler.section import top_kernels
from pytest_llmprof.text.escape import inline
from pytest_llmprof.text.markdown import code, percent, table
from pytest_llmprof.text.numbers import at, count, number, numeric

__all__ = ["TOOLS", "nsight_section"]

TOOLS = {"nsys": "Nsight Systems", "ncu": "Nsight Compute"}
"""Stages of which this is the section, with their tool's name."""
_ROWS = 10


def nsight_section(metrics: Mapping[str, Any]) -> list[str]:
    """Paragraphs and tables; empty where no such tool ran."""
    stage = str(at(metrics, "stage"))
    found = at(metrics, stage) if stage in TOOLS else None
    if not isinstance(found, Mapping):
        return []
    parts = [_notes(found)]
    if at(found, "tool") is not None:
        parts += [_ncu_text(found), _ncu_kernels(found)] if stage == "ncu" else [_nsys_text(found), _card(found)]
        parts += [_phases(found), _copies(found), top_kernels(found)] if stage == "nsys" else []
    return [part for part in parts if part]


def _notes(found: Mapping[str, Any]) -> str:
    notes = at(found, "not_applied") or []
    if not notes:
        return ""
    where = "; ".join(code(str(note), 200, cell=False) for note in notes)
    return (
        "Times are not applicable under the tool, so the test ended at its first line that computes with one: "
        f"{where}. What follows it was not checked in this stage.\n"
    )


def _tool(found: Mapping[str, Any], name: str) -> str:
    return f"{name} {inline(str(at(found, 'tool', 'version')))}, range {code(str(at(found, 'capture')), cell=False)}"


def _nsys_text(found: Mapping[str, Any]) -> str:
    captures, asked = int(numeric(at(found, "captures")) or 0), int(numeric(at(found, "occurrences")) or 0)
    if not captures:
        return _tool(found, TOOLS["nsys"]) + ".\n"
    text = _tool(found, TOOLS["nsys"]) + f": {count(captures, 'capture')}"
    text += f" of {asked} asked for" if captures != asked else ""
    text += f", {number(at(found, 'window_ms_profiled'))} ms, {count(int(at(found, 'steps') or 0), 'decode step')}."
    return text + " Times here are slowed by the tool; compare shares and counts.\n"


def _card(found: Mapping[str, Any]) -> str:
    if numeric(at(found, "kernels")) is None:
        return ""
    busy = numeric(at(found, "gpu_busy_share_profiled"))
    rows = [["GPU busy in the capture, under the tool", "" if busy is None else percent(busy)]]
    rows += [
        [label, number(at(found, key))]
        for key, label in (
            ("kernels_per_token", "Kernels a decode step"),
            ("host_launches_per_token", "Launches by the host a decode step"),
            ("d2h_copies_per_token", "Device-to-host copies a decode step"),
            ("synchronisations_per_token", "Synchronisations a decode step"),
            ("gpu_busy_ms_per_step_profiled", "GPU busy a decode step (ms)"),
        )
        if numeric(at(found, key)) is not None
    ]
    rows += [
        [label, f"{int(numeric(at(found, key)) or 0):,}"]
        for key, label in (
            ("kernels", "Kernels"),
            ("graph_kernels", "Kernels that were nodes of a CUDA graph"),
            ("graph_launches", "CUDA graph launches"),
            ("synchronisations", "Synchronisations"),
        )
    ]
    idle = at(found, "gpu_idle_ms_profiled")
    if isinstance(idle, Mapping):
        rows += [[f"GPU idle: {inline(cause)} (ms)", number(value)] for cause, value in idle.items()]
    return table(["Figure", "Value"], rows)


def _phases(found: Mapping[str, Any]) -> str:
    phases = at(found, "phases")
    if not isinstance(phases, Mapping) or not phases:
        return ""
    card = numeric(at(found, "kernels")) is not None
    rows = []
    for name, phase in phases.items():
        row = [f"– {inline(name)}" if at(phase, "parent") else inline(name), str(at(phase, "count"))]
        row.append(number(at(phase, "host_ms_profiled")))
        if card:
            busy = numeric(at(phase, "gpu_busy_share"))
            row += [
                number(at(phase, "gpu_busy_ms_profiled")),
                number(at(phase, "gpu_idle_ms_profiled")),
                "" if busy is None else percent(busy),
                *(
                    f"{int(numeric(at(phase, key)) or 0):,}"
                    for key in ("kernels", "host_launches", "d2h_copies", "synchronisations")
                ),
            ]
        rows.append(row)
    head = ["Phase ([all](phases.md))", "Times", "Host ms"]
    if card:
        head += ["GPU busy ms", "GPU idle ms", "GPU busy", "Kernels", "Launches", "D2H copies", "Syncs"]
    return table(head, rows)


def _copies(found: Mapping[str, Any]) -> str:
    copies = at(found, "copies")
    if not isinstance(copies, Mapping) or not copies:
        return ""
    rows = [
        [inline(way), f"{int(at(row, 'count')):,}", number(at(row, "bytes") / 2**20), number(at(row, "ms"))]
        for way, row in copies.items()
    ]
    return table(["Copies", "Count", "MiB", "ms"], rows)


def _ncu_text(found: Mapping[str, Any]) -> str:
    chosen = str(at(found, "chosen_by"))
    names = at(found, "chosen") or []
    how = {
        "all": "every kernel",
        "regex": "kernels that match pipeline.ncu.kernels",
        "first": "the first launches (no torch_profiler or nsys result of this test was in this run)",
    }.get(chosen, f"the {len(names)} longest kernels of {inline(chosen)}")
    launches = numeric(at(found, "launches"))
    text = f"{_tool(found, TOOLS['ncu'])}: {how}"
    if launches is not None:
        text += f", {count(int(launches), 'launch', 'launches')} (at most {at(found, 'launch_count')})"
    text += f". Bound is the unit nearest to its peak, or latency where none reaches {LATENCY_BELOW:g} % of it."
    missing = at(found, "missing") or []
    if missing:
        shown = ", ".join(code(str(name), 90, cell=False) for name in missing)
        text += f" Not among the profiled launches: {shown}; raise pipeline.ncu.launch_count, or give "
        text += "pipeline.ncu.kernels a regular expression for them alone."
    return text + "\n"


def _ncu_kernels(found: Mapping[str, Any]) -> str:
    rows = at(found, "kernels") or []
    return kernels_table(rows) if rows else ""
