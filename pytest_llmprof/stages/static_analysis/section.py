"""The roofline of `static_analysis`: its tables, its diagram and its section of the report."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from pytest_llmprof.analysis.tables import rows_csv
from pytest_llmprof.records.files import write_text
from pytest_llmprof.records.metrics import Metrics
from pytest_llmprof.records.stage import StageRecords
from pytest_llmprof.report.sections import Finding, Section, phase_label, phase_weight
from pytest_llmprof.stages.static_analysis.records import PeakTable, PhaseRoof, Roofline
from pytest_llmprof.text.escape import inline
from pytest_llmprof.text.markdown import percent, table
from pytest_llmprof.text.numbers import NOT_APPLICABLE, number
from pytest_llmprof.text.templates import render_template

_SVG = Path(__file__).parent / "roofline.svg.j2"
_COLUMNS = [name for name in PhaseRoof.__struct_fields__ if name not in ("parts", "parent")]
_PARTS = ("weights", "cache", "activations")
FLOOR_SHARE = 0.5
"""A phase that reaches less of its roofline's floor is worth a line."""
FILES = {
    "roofline.md": "FLOPs, bytes and floors of each phase",
    "roofline.csv": "the same as numbers",
    "roofline.svg": "the same as a diagram",
}
"""What it writes into the stage directory, for the report."""


def write_roofline(stage_dir: Path, block: Roofline) -> None:
    """Write roofline.csv, roofline.md and roofline.svg into *stage_dir*."""
    write_text(stage_dir / "roofline.csv", _csv(block))
    write_text(stage_dir / "roofline.md", "\n".join(["# Roofline\n", *filter(None, _parts(block))]))
    write_text(stage_dir / "roofline.svg", roofline_svg(block))


def roofline_section(records: StageRecords) -> Section | None:
    """Paragraphs, tables, findings and warnings; None where the stage's tool did not run."""
    block = records.block("static_analysis", Roofline)
    if block is None:
        return None
    findings = list(_floors(records.metrics, block))
    return Section("Roofline", _parts(block), findings=findings, warnings=_over_peak(block))


def _parts(block: Roofline) -> list[str]:
    if not block.applicable:
        return [f"{NOT_APPLICABLE}: {inline(block.reason or 'no reason given', 300)}.\n"]
    return [_peaks(block), _table(block), _moved(block), _step(block), _notes(block), "![roofline](roofline.svg)\n"]


def _floors(metrics: Metrics, block: Roofline) -> Iterator[Finding]:
    """Phases that take far longer than the GPU needs for their FLOPs and bytes."""
    for name in ("vision", "prefill", "decode"):
        phase = block.phases.get(name)
        if phase is None or not phase.of_floor or phase.of_floor > FLOOR_SHARE or phase.bound is None:
            continue
        least = "its arithmetic" if phase.bound == "compute" else "moving its weights, cache and activations once"
        yield Finding(
            phase_weight(metrics, name) * (1 - phase.of_floor),
            f"**{name.capitalize()} takes {number(1 / phase.of_floor)} times its floor**: {least} "
            f"would take {number(phase.floor_ms)} of its {number(phase.ms)} ms a round.",
        )


def _over_peak(block: Roofline) -> list[str]:
    """A sentence on shares over 100 %, which no phase can reach."""
    found = [
        f"{inline(name)} {kind} {percent(value)}"
        for name, phase in block.phases.items()
        for kind, value in (("MFU", phase.mfu), ("MBU", phase.mbu))
        if value is not None and value > 1
    ]
    if not found:
        return []
    return [
        f"over 100 %: {', '.join(found)}. The peak is too low for this GPU, or the phase does less than was counted."
    ]


def _amount(value: float | None, unit: str, missing: str = NOT_APPLICABLE) -> str:
    """1234567 as "1.23 M" and *unit*."""
    if value is None:
        return missing
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{number(value / size)} {prefix}{unit}"
    return f"{number(value)} {unit}"


def _share(value: float | None) -> str:
    return NOT_APPLICABLE if value is None else percent(value)


def _peaks(block: Roofline) -> str:
    peaks = block.peaks or PeakTable()
    text = f"On {inline(block.card or 'the CPU')}"
    if peaks.flops is not None or peaks.bandwidth is not None:
        text += f", dense {inline(str(peaks.kind))} peak {_amount(peaks.flops, 'FLOP/s')}"
        text += f", memory {_amount(peaks.bandwidth, 'B/s')}"
    text += "."
    if peaks.reason:
        text += f" MFU, MBU and floors that need a missing peak are {NOT_APPLICABLE}: {inline(peaks.reason, 300)}."
    if peaks.source:
        text += f" Source: {inline(peaks.source, 600)}."
    return text + "\n"


def _table(block: Roofline) -> str:
    """FLOPs, bytes and times, and what the GPU's peaks make of them where there are any."""
    rows = [
        [
            phase_label(name, phase.parent),
            inline(phase.bound or NOT_APPLICABLE),
            _amount(phase.flops, "FLOP"),
            _amount(phase.bytes, "B"),
            *(number(value) for value in (phase.intensity, phase.ms, phase.floor_ms)),
            *(_share(value) for value in (phase.mfu, phase.mbu, phase.of_floor)),
        ]
        for name, phase in block.phases.items()
    ]
    head = ["Phase", "Bound", "FLOPs", "Bytes", "FLOP/B", "ms", "Floor ms", "MFU", "MBU", "Of the floor"]
    known = [index for index in range(len(head)) if any(row[index] != NOT_APPLICABLE for row in rows)]
    left = 2 if 1 in known else 1
    return table([head[index] for index in known], [[row[index] for index in known] for row in rows], left)


def _moved(block: Roofline) -> str:
    rows = [
        [phase_label(name, phase.parent), *(_amount(phase.parts.get(part), "B", "") for part in _PARTS)]
        for name, phase in block.phases.items()
        if any(part in phase.parts for part in _PARTS)
    ]
    return table(["Bytes of", "Weights", "Cache", "Activations"], rows)


def _step(block: Roofline) -> str:
    step = block.decode_step
    if step is None:
        return ""
    text = f"A decode step takes {_amount(step.flops, 'FLOP')} and {_amount(step.bytes, 'B')}"
    if step.ms is not None:
        text += f", and {number(step.ms)} ms"
    if step.floor_ms is not None:
        text += f"; its floor is {number(step.floor_ms)} ms, {number(step.floor_tokens_per_s)} tokens/s a page"
    return text + ".\n"


def _notes(block: Roofline) -> str:
    notes = [inline(note, 300) for note in block.notes]
    notes.append("FLOPs, bytes and times are sums over a round's batches, each at its median over rounds")
    return "".join(f"- {note}.\n" for note in notes)


def _csv(block: Roofline) -> str:
    rows = [
        [name, phase.parent, *(getattr(phase, column) for column in _COLUMNS), *map(phase.parts.get, _PARTS)]
        for name, phase in block.phases.items()
    ]
    return rows_csv(["phase", "parent", *_COLUMNS, *(f"{part}_bytes" for part in _PARTS)], rows, decimals=None)


_WIDTH, _HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 584, 24, 368
_COLOURS = ("#1d4ed8", "#d97706", "#15803d", "#9333ea", "#be123c", "#0891b2", "#4b5563")


def roofline_svg(block: Roofline) -> str:
    """FLOP/s over FLOP/byte, both logarithmic: the GPU's roof, and a dot for each measured phase."""
    peaks = block.peaks or PeakTable()
    peak, bandwidth = peaks.flops, peaks.bandwidth
    points = {
        name: (phase.intensity, 1e3 * phase.flops / phase.ms)
        for name, phase in block.phases.items()
        if phase.intensity and phase.ms and phase.flops
    }
    page = {"width": _WIDTH, "height": _HEIGHT, "left": _LEFT, "right": _RIGHT, "top": _TOP, "bottom": _BOTTOM}
    if not points:
        return render_template(_SVG, phases=[], **page)
    known = [(peak / bandwidth * 3, peak)] if peak and bandwidth else []
    xs, ys = (_decades([one[axis] for one in (*points.values(), *known)]) for axis in (0, 1))

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = (math.log10(x) - xs[0]) / (xs[1] - xs[0]), (math.log10(y) - ys[0]) / (ys[1] - ys[0])
        return round(_LEFT + across * (_RIGHT - _LEFT), 1), round(_BOTTOM - up * (_BOTTOM - _TOP), 1)

    roof = None
    if peak and bandwidth:
        ridge = peak / bandwidth
        # The slanted roof may leave the diagram at the bottom: begin it where it comes in.
        start = min(max(10.0 ** xs[0], 10.0 ** ys[0] / bandwidth), ridge)
        roof = {
            "begin": at(start, start * bandwidth),
            "corner": at(ridge, peak),
            "end": at(10.0 ** xs[1], peak),
            "peak": _amount(peak, "FLOP/s"),
            "bandwidth": _amount(bandwidth, "B/s"),
        }
    phases = [
        {
            "at": at(*point),
            "inner": block.phases[name].parent is not None,
            "colour": _COLOURS[index % len(_COLOURS)],
            "label": name + _reached(block.phases[name].of_floor),
        }
        for index, (name, point) in enumerate(points.items())
    ]
    return render_template(
        _SVG,
        phases=phases,
        roof=roof,
        x_ticks=[(at(10.0**decade, 10.0 ** ys[0])[0], _tick(decade)) for decade in range(xs[0], xs[1] + 1)],
        y_ticks=[(at(10.0 ** xs[0], 10.0**decade)[1], _tick(decade)) for decade in range(ys[0], ys[1] + 1)],
        **page,
    )


def _decades(values: list[float]) -> tuple[int, int]:
    """The whole decades that hold *values*, with room below the least."""
    low, high = math.floor(math.log10(min(values) / 1.5)), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _reached(share: float | None) -> str:
    return "" if share is None else f", {percent(share)} of floor"


def _tick(decade: int) -> str:
    """A power of ten: "0.01", "100", "10 G"."""
    if decade < 3:
        return f"{10.0**decade:g}"
    return f"{10 ** (decade % 3)} {('k', 'M', 'G', 'T', 'P', 'E')[min(decade // 3, 6) - 1]}"
