"""The report's section on the profiled window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_llmprof.report.findings import gpu_busy_share
from pytest_llmprof.text.escape import inline
from pytest_llmprof.text.markdown import code, percent, table
from pytest_llmprof.text.numbers import at, count, number, numeric

__all__ = ["profile_section", "top_kernels"]

_ROWS = 5


def profile_section(metrics: Mapping[str, Any]) -> list[str]:
    """Paragraphs and tables; empty where nothing was profiled."""
    profile = at(metrics, "profile")
    if not isinstance(profile, Mapping):
        return []
    parts = [_window(profile), _card(metrics, profile), _phases(profile), top_kernels(profile), _operators(profile)]
    return [part for part in parts if part]


def _window(profile: Mapping[str, Any]) -> str:
    window = at(profile, "window")
    said = []
    pages = numeric(at(window, "pages"))
    if pages is not None:
        said.append(count(int(pages), "batch", "batches") if pages != 1 else "one batch")
    start, tokens = numeric(at(window, "start_token")), numeric(at(window, "decode_tokens"))
    if start:
        said.append(f"from token {int(start)} on")
    steps = numeric(at(profile, "steps"))
    if steps:
        said.append(count(int(steps), "decode step"))
        if tokens is not None:
            said.append(f"at most {count(int(tokens), 'decode token')}{' each' if pages != 1 else ''}")
    text = f"Window: {', '.join(said)}." if said else "Window: the whole call."
    length, events = numeric(at(profile, "window_ms_profiled")), numeric(at(profile, "events"))
    if length is not None and events is not None:
        text += f" {number(length)} ms and {int(events):,} events under the profiler."
    cost = numeric(at(profile, "stage_cost_s"))
    if cost is not None:
        text += f" The stage took {number(cost)} s beyond the measured rounds."
    return text + " Times here are slowed by the profiler; compare shares and counts.\n"


def _card(metrics: Mapping[str, Any], profile: Mapping[str, Any]) -> str:
    if numeric(at(profile, "kernels")) is None:
        return ""
    rows = []
    busy = gpu_busy_share(metrics)
    if busy is not None:
        rows.append(["GPU busy in a decode step (kernel time / clean step time)", percent(busy)])
    idle = numeric(at(profile, "gpu_idle_share_profiled"))
    if idle is not None:
        rows.append(["GPU idle in the window, under the profiler", percent(idle)])
    rows += [
        [label, number(at(profile, key))]
        for key, label in (
            ("host_launches_per_token", "Launches by the host a token"),
            ("kernels_per_token", "Kernels a token"),
            ("d2h_copies_per_token", "Device-to-host copies a token"),
            ("synchronisations_per_token", "Synchronisations a token"),
            ("graph_launches", "CUDA graph launches in the window"),
        )
        if numeric(at(profile, key)) is not None and (key != "graph_launches" or at(profile, key))
    ]
    return table(["Figure", "Value"], rows) if rows else ""


def _phases(profile: Mapping[str, Any]) -> str:
    phases = at(profile, "phases")
    if not isinstance(phases, Mapping) or numeric(at(profile, "kernels")) is None:
        return ""
    rows = []
    for name, phase in phases.items():
        idle = numeric(at(phase, "gpu_idle_share_profiled"))
        causes = at(phase, "idle_ms_profiled")
        cause = max(causes, key=lambda key: causes[key] or 0.0) if isinstance(causes, Mapping) and causes else ""
        rows.append(
            [
                f"– {inline(name)}" if at(phase, "parent") else inline(name),
                inline(cause) if idle and cause else "",
                number(at(phase, "gpu_busy_ms_profiled")),
                "" if idle is None else percent(idle),
                *(
                    "" if numeric(at(phase, key)) is None else f"{int(at(phase, key)):,}"
                    for key in ("kernels", "host_launches", "d2h_copies", "synchronisations")
                ),
            ]
        )
    head = ["Phase", "Idle cause", "GPU busy ms", "GPU idle", "Kernels", "Launches", "D2H copies", "Syncs"]
    return table(head, rows, 2) if rows else ""


def top_kernels(profile: Mapping[str, Any]) -> str:
    """The kernels that kept the card busy longest; of a profile or of what nsys captured."""
    rows = [
        [
            code(str(at(row, "name") or ""), 90),
            inline(str(at(row, "phase") or "–")),
            f"{int(numeric(at(row, 'count')) or 0):,}",
            number(at(row, "busy_ms_profiled")),
            percent(numeric(at(row, "share")) or 0.0),
        ]
        for row in (at(profile, "top_kernels") or [])[:_ROWS]
    ]
    if not rows:
        return ""
    return table(["Kernel ([more](kernels.md))", "Phase", "Count", "Busy ms", "Share"], rows, 2)


def _operators(profile: Mapping[str, Any]) -> str:
    rows = [
        [
            code(str(at(row, "name") or ""), 90),
            inline(str(at(row, "phase") or "–")),
            f"{int(numeric(at(row, 'count')) or 0):,}",
            number(at(row, "self_ms_profiled")),
            percent(numeric(at(row, "share")) or 0.0),
        ]
        for row in (at(profile, "top_operators") or [])[:_ROWS]
    ]
    if not rows:
        return ""
    return table(["Operator ([more](operators.md))", "Phase", "Calls", "Self ms", "Share"], rows, 2)
