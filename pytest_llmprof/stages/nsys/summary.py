"""Captured ranges in figures (metrics.json under "nsys") and in tables: phases, kernels, copies.

Several captures are several reports: counts and times add up, each report's gaps are its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pytest_llmprof.analysis.kernel_names import short_name
from pytest_llmprof.analysis.rows import KernelRow, PhaseRow
from pytest_llmprof.analysis.tables import csv_text, kernels_md
from pytest_llmprof.records.files import write_text
from pytest_llmprof.stages.nsys.export import CopyRow, NsysReport
from pytest_llmprof.text.markdown import code, percent, table

__all__ = ["NsysPhaseRow", "kernel_rows", "phase_rows", "summary", "write_nsys_tables"]

_TOP = 10
_STEP = "step"


@dataclass(frozen=True)
class NsysPhaseRow:
    """One phase in all captures. Times in milliseconds, under the tool; what is of the card is None on a CPU."""

    phase: str
    parent: str
    """The phase it lies in; its figures are in that phase's, too."""
    count: int
    """How often it was opened."""
    host_ms: float
    gpu_busy_ms: float | None
    """Union of its kernels' intervals."""
    gpu_idle_ms: float | None
    """Gaps in the card's work before what it launched."""
    gpu_busy_share: float | None
    """gpu_busy_ms / (gpu_busy_ms + gpu_idle_ms)."""
    kernels: int | None
    host_launches: int | None
    d2h_copies: int | None
    synchronisations: int | None


def _add(rows: Sequence[PhaseRow]) -> PhaseRow:
    first = rows[0]
    causes = {cause: sum(row.idle_ms.get(cause, 0.0) for row in rows) for cause in first.idle_ms}
    return replace(
        first,
        count=sum(row.count for row in rows),
        host_ms=sum(row.host_ms for row in rows),
        gpu_busy_ms=sum(row.gpu_busy_ms for row in rows),
        kernels=sum(row.kernels for row in rows),
        host_launches=sum(row.host_launches for row in rows),
        d2h_copies=sum(row.d2h_copies for row in rows),
        synchronisations=sum(row.synchronisations for row in rows),
        idle_ms=causes,
    )


def _phases(reports: Sequence[NsysReport]) -> list[PhaseRow]:
    found: dict[str, list[PhaseRow]] = {}
    for report in reports:
        for row in report.trace.phase_rows():
            found.setdefault(row.name, []).append(row)
    return [_add(rows) for rows in found.values()]


def phase_rows(reports: Sequence[NsysReport], *, card: bool) -> list[NsysPhaseRow]:
    """The phases in the order in which they first began."""
    rows = []
    for row in _phases(reports):
        idle = sum(row.idle_ms.values())
        share = row.gpu_idle_share
        rows.append(
            NsysPhaseRow(
                phase=row.name,
                parent=row.parent,
                count=row.count,
                host_ms=row.host_ms,
                gpu_busy_ms=row.gpu_busy_ms if card else None,
                gpu_idle_ms=idle if card else None,
                gpu_busy_share=1 - share if card and share is not None else None,
                kernels=row.kernels if card else None,
                host_launches=row.host_launches if card else None,
                d2h_copies=row.d2h_copies if card else None,
                synchronisations=row.synchronisations if card else None,
            )
        )
    return rows


def kernel_rows(reports: Sequence[NsysReport]) -> list[KernelRow]:
    """Kernels, copies and fills of all captures by name, phase and launching call, the busiest first."""
    found: dict[tuple[str, str, str, str], list[KernelRow]] = {}
    for report in reports:
        for row in report.trace.kernels():
            found.setdefault((row.name, row.kind, row.phase, row.operator), []).append(row)
    busy = {key: sum(row.busy_ms for row in rows) for key, rows in found.items()}
    whole = sum(busy.values()) or 1.0
    in_phase: dict[str, float] = {}
    for (_, _, phase, _), added in busy.items():
        in_phase[phase] = in_phase.get(phase, 0.0) + added
    merged = []
    for key, rows in found.items():
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
    for report in reports:
        for row in report.copies:
            one = found.setdefault(row.direction, CopyRow(row.direction, 0, 0, 0.0))
            found[row.direction] = CopyRow(
                row.direction, one.count + row.count, one.bytes + row.bytes, one.total_ms + row.total_ms
            )
    return sorted(found.values(), key=lambda row: -row.total_ms)


def summary(reports: Sequence[NsysReport], *, card: bool) -> dict[str, Any]:
    """Figures for metrics.json; docs/measures.md defines each. Without a *card* its figures are None."""
    totals = _add([report.trace.totals() for report in reports])
    steps = [figures for report in reports if (figures := report.trace.steps()) is not None]
    count = sum(one.steps for one in steps)

    def each(name: str) -> float | None:
        """Per decode step, of all captures."""
        return sum(getattr(one, name) * one.steps for one in steps) / count if count and card else None

    idle = totals.gpu_idle_share
    whole: dict[str, Any] = {
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
        "gpu_busy_share_profiled": 1 - idle if idle is not None else None,
    }
    return {
        "captures": len(reports),
        "window_ms_profiled": sum(report.trace.window_ms for report in reports),
        **{name: value if card else None for name, value in whole.items()},
        "steps": count,
        "kernels_per_token": each("kernels"),
        "host_launches_per_token": each("host_launches"),
        "d2h_copies_per_token": each("d2h_copies"),
        "synchronisations_per_token": each("synchronisations"),
        "gpu_busy_ms_per_step_profiled": each("gpu_busy_ms"),
        "phases": {row.phase: _phase(row) for row in phase_rows(reports, card=card)},
        "top_kernels": [
            {
                "name": short_name(row.name),
                "phase": row.phase,
                "count": row.count,
                "total_ms_profiled": row.total_ms,
                "busy_ms_profiled": row.busy_ms,
                "share": row.share,
            }
            for row in (kernel_rows(reports)[:_TOP] if card else ())
        ],
    }


def _phase(row: NsysPhaseRow) -> dict[str, Any]:
    """A phase for metrics.json, where a time that the tool has slowed ends in `_profiled`."""
    figures = asdict(row)
    del figures["phase"]
    figures["parent"] = row.parent or None
    return {f"{name}_profiled" if name.endswith("_ms") else name: value for name, value in figures.items()}


def write_nsys_tables(out_dir: Path, reports: Sequence[NsysReport], *, with_kernels: bool) -> None:
    """Write phases.csv and phases.md to *out_dir*, and with *with_kernels* kernels.csv and kernels.md."""
    phases = phase_rows(reports, card=with_kernels)
    write_text(out_dir / "phases.csv", csv_text(NsysPhaseRow, phases))
    write_text(out_dir / "phases.md", "# Phases under Nsight Systems\n\n" + phases_table(phases))
    if with_kernels:
        kernels = kernel_rows(reports)
        write_text(out_dir / "kernels.csv", csv_text(KernelRow, kernels))
        write_text(out_dir / "kernels.md", kernels_md(kernels))


def phases_table(rows: Sequence[NsysPhaseRow]) -> str:
    """The phases as a Markdown table, parts below the phase they lie in."""
    card = any(row.kernels is not None for row in rows)
    head = ["Phase", "Times", "Host ms"]
    if card:
        head += ["GPU busy ms", "GPU idle ms", "GPU busy", "Kernels", "Launches", "D2H copies", "Syncs"]
    cells = []
    for row in rows:
        cell = [f"– {code(row.phase)}" if row.parent else code(row.phase), f"{row.count}", f"{row.host_ms:.3f}"]
        if card:
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
