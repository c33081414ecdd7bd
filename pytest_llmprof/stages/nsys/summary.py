"""Metrics (metrics.json under "nsys") and tables of all captures: phases, kernels, copies.

Each capture is a report. Counts and times are sums over all of them; the time between two is no idle time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import msgspec

from pytest_llmprof.analysis.kernel_names import short_name
from pytest_llmprof.analysis.rows import KernelRow, PhaseRow
from pytest_llmprof.analysis.tables import csv_text, kernels_md
from pytest_llmprof.records.files import write_text
from pytest_llmprof.stages.nsys.export import CopyRow, NsysReport
from pytest_llmprof.stages.nsys.records import NsysBlock
from pytest_llmprof.text.markdown import code, percent, table

__all__ = ["NsysPhaseRow", "kernel_rows", "phase_rows", "summary", "write_nsys_tables"]

_TOP = 10
_GPU_COLUMNS = (
    *("gpu_busy_ms", "gpu_idle_ms", "gpu_busy_share"),
    *("kernels", "host_launches", "d2h_copies", "synchronisations"),
)


@dataclass(frozen=True)
class NsysPhaseRow:
    """One phase in all captures. Times in milliseconds, under the tool; on a CPU what is of the GPU is None."""

    phase: str
    parent: str
    """The phase that includes it."""
    count: int
    """The number of its ranges."""
    host_ms: float
    gpu_busy_ms: float | None
    """Union of its kernels' intervals."""
    gpu_idle_ms: float | None
    """Idle time of the GPU before what it launched."""
    gpu_busy_share: float | None
    """gpu_busy_ms / (gpu_busy_ms + gpu_idle_ms)."""
    kernels: int | None
    host_launches: int | None
    d2h_copies: int | None
    synchronisations: int | None


def _sum(rows: Sequence[PhaseRow]) -> PhaseRow:
    """One phase of all captures."""
    names = [item.name for item in fields(PhaseRow) if item.name not in ("name", "parent", "idle_ms")]
    sums: dict[str, Any] = {name: sum(getattr(row, name) for row in rows) for name in names}
    idle = {cause: sum(row.idle_ms[cause] for row in rows) for cause in rows[0].idle_ms}
    return replace(rows[0], **sums, idle_ms=idle)


def _busy_share(row: PhaseRow) -> float | None:
    return None if row.gpu_idle_share is None else 1 - row.gpu_idle_share


def phase_rows(reports: Sequence[NsysReport], *, gpu: bool) -> list[NsysPhaseRow]:
    """The phases in the order in which they first began."""
    by_name: dict[str, list[PhaseRow]] = {}
    for report in reports:
        for row in report.trace.phase_rows():
            by_name.setdefault(row.name, []).append(row)
    rows = [
        NsysPhaseRow(
            phase=row.name,
            parent=row.parent,
            count=row.count,
            host_ms=row.host_ms,
            gpu_busy_ms=row.gpu_busy_ms,
            gpu_idle_ms=sum(row.idle_ms.values()),
            gpu_busy_share=_busy_share(row),
            kernels=row.kernels,
            host_launches=row.host_launches,
            d2h_copies=row.d2h_copies,
            synchronisations=row.synchronisations,
        )
        for row in map(_sum, by_name.values())
    ]
    unknown: dict[str, Any] = dict.fromkeys(_GPU_COLUMNS)
    return rows if gpu else [replace(row, **unknown) for row in rows]


def kernel_rows(reports: Sequence[NsysReport]) -> list[KernelRow]:
    """Kernels, copies and fills of all captures by name, phase and launching call, the busiest first."""
    by_key: dict[tuple[str, str, str, str], list[KernelRow]] = {}
    for report in reports:
        for row in report.trace.kernels():
            by_key.setdefault((row.name, row.kind, row.phase, row.operator), []).append(row)
    busy = {key: sum(row.busy_ms for row in rows) for key, rows in by_key.items()}
    whole = sum(busy.values()) or 1.0
    in_phase: dict[str, float] = {}
    for (_, _, phase, _), added in busy.items():
        in_phase[phase] = in_phase.get(phase, 0.0) + added
    merged = []
    for key, rows in by_key.items():
        count, total = sum(row.count for row in rows), sum(row.total_ms for row in rows)
        merged.append(
            replace(
                rows[0],
                count=count,
                total_ms=total,
                busy_ms=busy[key],
                mean_us=total / count * 1e3,
                min_us=min(row.min_us for row in rows),
                max_us=max(row.max_us for row in rows),
                share=busy[key] / whole,
                phase_share=busy[key] / (in_phase[key[2]] or 1.0),
            )
        )
    return sorted(merged, key=lambda row: (-row.busy_ms, row.name, row.phase, row.operator))


def _copies(reports: Sequence[NsysReport]) -> list[CopyRow]:
    found: dict[str, CopyRow] = {}
    for row in (row for report in reports for row in report.copies):
        one = found.get(row.direction, CopyRow(row.direction, 0, 0, 0.0))
        found[row.direction] = CopyRow(
            row.direction, one.count + row.count, one.bytes + row.bytes, one.total_ms + row.total_ms
        )
    return sorted(found.values(), key=lambda row: -row.total_ms)


def summary(reports: Sequence[NsysReport], block: NsysBlock, *, gpu: bool) -> NsysBlock:
    """*block* with what was captured. Without a *gpu* what is of the GPU is None."""
    totals = _sum([report.trace.totals() for report in reports])
    steps = [figures for report in reports if (figures := report.trace.steps()) is not None]
    count = sum(one.steps for one in steps)

    def each(name: str) -> float | None:
        """Per decode step, of all captures."""
        return sum(getattr(one, name) * one.steps for one in steps) / count if count and gpu else None

    of_gpu: dict[str, Any] = {
        "kernels": totals.kernels,
        "graph_kernels": sum(report.graph_kernels for report in reports),
        "host_launches": totals.host_launches,
        "graph_launches": sum(report.trace.graph_launches() for report in reports),
        "copies": {
            row.direction: {"count": row.count, "bytes": row.bytes, "ms": row.total_ms} for row in _copies(reports)
        },
        "d2h_copies": totals.d2h_copies,
        "synchronisations": totals.synchronisations,
        "gpu_busy_ms_profiled": totals.gpu_busy_ms,
        "gpu_idle_ms_profiled": dict(totals.idle_ms),
        "gpu_busy_share_profiled": _busy_share(totals),
    }
    values = {
        **msgspec.structs.asdict(block),
        "captures": len(reports),
        "window_ms_profiled": sum(report.trace.window_ms for report in reports),
        **{name: value if gpu else None for name, value in of_gpu.items()},
        "steps": count,
        "kernels_per_token": each("kernels"),
        "host_launches_per_token": each("host_launches"),
        "d2h_copies_per_token": each("d2h_copies"),
        "synchronisations_per_token": each("synchronisations"),
        "gpu_busy_ms_per_step_profiled": each("gpu_busy_ms"),
        "phases": {row.phase: _phase(row) for row in phase_rows(reports, gpu=gpu)},
        "top_kernels": [
            {
                "name": short_name(row.name),
                "phase": row.phase,
                "count": row.count,
                "total_ms_profiled": row.total_ms,
                "busy_ms_profiled": row.busy_ms,
                "share": row.share,
            }
            for row in (kernel_rows(reports)[:_TOP] if gpu else ())
        ],
    }
    return msgspec.convert(values, NsysBlock)


def _phase(row: NsysPhaseRow) -> dict[str, Any]:
    """A phase for metrics.json, where names of times end in `_profiled`: the tool slows them down."""
    figures = asdict(row)
    del figures["phase"]
    figures["parent"] = row.parent or None
    return {f"{name}_profiled" if name.endswith("_ms") else name: value for name, value in figures.items()}


def write_nsys_tables(out_dir: Path, reports: Sequence[NsysReport], *, with_kernels: bool) -> None:
    """Write phases.csv and phases.md to *out_dir*, and with *with_kernels* kernels.csv and kernels.md."""
    phases = phase_rows(reports, gpu=with_kernels)
    write_text(out_dir / "phases.csv", csv_text(NsysPhaseRow, phases))
    write_text(out_dir / "phases.md", "# Phases under Nsight Systems\n\n" + phases_table(phases))
    if with_kernels:
        kernels = kernel_rows(reports)
        write_text(out_dir / "kernels.csv", csv_text(KernelRow, kernels))
        write_text(out_dir / "kernels.md", kernels_md(kernels))


def phases_table(rows: Sequence[NsysPhaseRow]) -> str:
    """The phases as a Markdown table."""
    gpu = any(row.kernels is not None for row in rows)
    head = ["Phase", "Times", "Host ms"]
    if gpu:
        head += ["GPU busy ms", "GPU idle ms", "GPU busy", "Kernels", "Launches", "D2H copies", "Syncs"]
    cells = []
    for row in rows:
        cell = [f"– {code(row.phase)}" if row.parent else code(row.phase), f"{row.count}", f"{row.host_ms:.3f}"]
        if gpu:
            cell += [
                f"{row.gpu_busy_ms:.3f}",
                f"{row.gpu_idle_ms:.3f}",
                "" if row.gpu_busy_share is None else percent(row.gpu_busy_share),
                f"{row.kernels}",
                f"{row.host_launches}",
                f"{row.d2h_copies}",
                f"{row.synchronisations}",
            ]
        cells.append(cell)
    return table(head, cells)
