"""The roofline of `static_analysis`: its tables, its picture and its section of the report.

All of it reads the block `static_analysis` of metrics.json.
"""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pytest_llmprof.records.files import write_text
from pytest_llmprof.text.escape import inline
from pytest_llmprof.text.markdown import percent, table
from pytest_llmprof.text.numbers import NOT_APPLICABLE, at, number, numeric

__all__ = ["over_peak", "roofline_section", "roofline_svg", "write_roofline"]

_COLUMNS = (
    "flops",
    "bytes",
    "intensity",
    "ms",
    "compute_floor_ms",
    "memory_floor_ms",
    "floor_ms",
    "bound",
    "mfu",
    "mbu",
    "of_floor",
)
_PARTS = ("weights", "cache", "activations")


def write_roofline(stage_dir: Path, block: Mapping[str, Any]) -> None:
    """Write roofline.csv, roofline.md and roofline.svg into *stage_dir*."""
    write_text(stage_dir / "roofline.csv", _csv(block))
    write_text(stage_dir / "roofline.md", "\n".join(["# Roofline\n", *roofline_section({"static_analysis": block})]))
    write_text(stage_dir / "roofline.svg", roofline_svg(block))


def roofline_section(metrics: Mapping[str, Any]) -> list[str]:
    """Paragraphs and tables of the report; empty where the stage did not run."""
    block = at(metrics, "static_analysis")
    if not isinstance(block, Mapping):
        return []
    if not at(block, "applicable"):
        return [f"{NOT_APPLICABLE}: {inline(str(at(block, 'reason') or 'no reason given'), 300)}.\n"]
    parts = [_peaks(block), _table(block), _moved(block), _step(block), _notes(block), "![roofline](roofline.svg)\n"]
    return [part for part in parts if part]


def over_peak(metrics: Mapping[str, Any]) -> str | None:
    """One sentence on shares over 100 %, which no phase can reach; None where there are none."""
    found = [
        f"{inline(name)} {kind.upper()} {percent(value)}"
        for name, phase in _phases(at(metrics, "static_analysis"))
        for kind in ("mfu", "mbu")
        if (value := numeric(at(phase, kind))) is not None and value > 1
    ]
    if not found:
        return None
    return (
        f"over 100 %: {', '.join(found)}. The peak is too low for this card, or the phase does less than was counted."
    )


def _phases(block: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    phases = at(block, "phases")
    for name, phase in phases.items() if isinstance(phases, Mapping) else ():
        if isinstance(phase, Mapping):
            yield str(name), phase


def _amount(value: Any, unit: str) -> str:
    """1234567 as "1.23 M" and *unit*."""
    found = numeric(value)
    if found is None:
        return NOT_APPLICABLE
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if found >= 0.9995 * size:
            return f"{number(found / size)} {prefix}{unit}"
    return f"{number(found)} {unit}"


def _share(value: Any) -> str:
    found = numeric(value)
    return NOT_APPLICABLE if found is None else percent(found)


def _peaks(block: Mapping[str, Any]) -> str:
    card = inline(str(at(block, "card") or "the CPU"))
    reason, source = at(block, "peaks", "reason"), at(block, "peaks", "source")
    flops, bandwidth = at(block, "peaks", "flops"), at(block, "peaks", "bandwidth")
    text = f"On {card}"
    if flops is not None or bandwidth is not None:
        kind = inline(str(at(block, "peaks", "kind")))
        text += f", dense {kind} peak {_amount(flops, 'FLOP/s')}, memory {_amount(bandwidth, 'B/s')}"
    text += "."
    if reason:
        text += f" MFU, MBU and floors that need more are {NOT_APPLICABLE}: {inline(str(reason), 300)}."
    if source:
        text += f" Source: {inline(str(source), 600)}."
    return text + "\n"


def _table(block: Mapping[str, Any]) -> str:
    """FLOPs, bytes and times, and what the card's peaks make of them where there are any."""
    rows = []
    for name, phase in _phases(block):
        floor = numeric(at(phase, "floor_ms"))
        rows.append(
            [
                f"– {inline(name)}" if at(phase, "parent") else inline(name),
                inline(str(at(phase, "bound") or NOT_APPLICABLE)),
                _amount(at(phase, "flops"), "FLOP"),
                _amount(at(phase, "bytes"), "B"),
                number(at(phase, "intensity")),
                number(at(phase, "ms")),
                number(floor),
                _share(at(phase, "mfu")),
                _share(at(phase, "mbu")),
                _share(at(phase, "of_floor")),
            ]
        )
    head = ["Phase", "Bound", "FLOPs", "Bytes", "FLOP/B", "ms", "Floor ms", "MFU", "MBU", "Of the floor"]
    known = [index for index in range(len(head)) if any(row[index] != NOT_APPLICABLE for row in rows)]
    left = 2 if 1 in known else 1
    return table([head[index] for index in known], [[row[index] for index in known] for row in rows], left)


def _moved(block: Mapping[str, Any]) -> str:
    rows = []
    for name, phase in _phases(block):
        amounts = [numeric(at(phase, "parts", part)) for part in _PARTS]
        if any(amount is not None for amount in amounts):
            label = f"– {inline(name)}" if at(phase, "parent") else inline(name)
            rows.append([label, *("" if amount is None else _amount(amount, "B") for amount in amounts)])
    return table(["Bytes of", "Weights", "Cache", "Activations"], rows) if rows else ""


def _step(block: Mapping[str, Any]) -> str:
    step = at(block, "decode_step")
    if not isinstance(step, Mapping):
        return ""
    text = f"A decode step takes {_amount(at(step, 'flops'), 'FLOP')} and {_amount(at(step, 'bytes'), 'B')}"
    if numeric(at(step, "ms")) is not None:
        text += f", and {number(at(step, 'ms'))} ms"
    if numeric(at(step, "floor_ms")) is not None:
        text += f"; its floor is {number(at(step, 'floor_ms'))} ms, {number(at(step, 'floor_tokens_per_s'))} tokens/s"
        text += " a page"
    return text + ".\n"


def _notes(block: Mapping[str, Any]) -> str:
    notes = [inline(str(note), 300) for note in at(block, "notes") or ()]
    said = [*notes, "FLOPs, bytes and times are sums over a round's batches, each at its median over rounds"]
    return "".join(f"- {note}.\n" for note in said)


def _csv(block: Mapping[str, Any]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["phase", "parent", *_COLUMNS, *(f"{part}_bytes" for part in _PARTS)])
    for name, phase in _phases(block):
        cells = [name, at(phase, "parent"), *(at(phase, column) for column in _COLUMNS)]
        cells += [at(phase, "parts", part) for part in _PARTS]
        writer.writerow(["" if cell is None else cell for cell in cells])
    return stream.getvalue()


# -- the picture

_WIDTH, _HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 176, 24, 52
_INK, _GREY, _LINE = "#1f2430", "#5b6472", "#d6d9df"
_COLOURS = ("#1d4ed8", "#d97706", "#15803d", "#9333ea", "#be123c", "#0891b2", "#4b5563")
_LEGEND = 20
"""Pixels from one line of the legend to the next."""


class _Axes:
    """Two logarithmic axes over whole decades."""

    def __init__(self, xs: list[float], ys: list[float]) -> None:
        self.x = _decades(xs)
        self.y = _decades(ys)

    def at(self, x: float, y: float) -> tuple[float, float]:
        wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        across = (math.log10(x) - self.x[0]) / (self.x[1] - self.x[0])
        up = (math.log10(y) - self.y[0]) / (self.y[1] - self.y[0])
        return _LEFT + across * wide, _TOP + (1 - up) * high


def _decades(values: list[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def roofline_svg(block: Mapping[str, Any]) -> str:
    """FLOP/s over FLOP/byte, both logarithmic: the card's roof, and a dot for each measured phase."""
    points = [
        (name, bool(at(phase, "parent")), intensity, 1e3 * flops / ms)
        for name, phase in _phases(block)
        if (intensity := numeric(at(phase, "intensity"))) and (ms := numeric(at(phase, "ms")))
        if (flops := numeric(at(phase, "flops")))
    ]
    peak, bandwidth = numeric(at(block, "peaks", "flops")), numeric(at(block, "peaks", "bandwidth"))
    if not points:
        return _svg([_text(_WIDTH / 2, _HEIGHT / 2, "no phase was measured", anchor="middle")])
    xs, ys = [point[2] for point in points], [point[3] for point in points]
    if peak and bandwidth:
        xs += [peak / bandwidth * 3]
        ys += [peak]
    axes = _Axes([min(xs) / 1.5, *xs], [min(ys) / 1.5, *ys])
    drawn = [*_grid(axes)]
    if peak and bandwidth:
        drawn += _roof(axes, peak, bandwidth)
    for index, (name, inner, x, y) in enumerate(points):
        colour = _COLOURS[index % len(_COLOURS)]
        line = (_WIDTH - _RIGHT + 28, _TOP + 10 + index * _LEGEND)
        drawn += [_dot(*axes.at(x, y), inner, colour), _dot(*line, inner, colour)]
        share = numeric(at(block, "phases", name, "of_floor"))
        reached = "" if share is None else f", {percent(share)} of floor"
        drawn.append(_text(line[0] + 12, line[1] + 4, f"{name}{reached}", anchor="start", colour=_INK))
    return _svg(drawn)


def _grid(axes: _Axes) -> Iterator[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    for decade in range(axes.x[0], axes.x[1] + 1):
        x, _ = axes.at(10.0**decade, 10.0 ** axes.y[0])
        yield _line(x, _TOP, x, bottom, _LINE, 1)
        yield _text(x, bottom + 18, _tick(decade), anchor="middle")
    for decade in range(axes.y[0], axes.y[1] + 1):
        _, y = axes.at(10.0 ** axes.x[0], 10.0**decade)
        yield _line(_LEFT, y, right, y, _LINE, 1)
        yield _text(_LEFT - 8, y + 4, _tick(decade), anchor="end")
    yield _text((_LEFT + right) / 2, _HEIGHT - 10, "FLOP / byte", anchor="middle")
    yield (
        f'<text x="16" y="{(_TOP + bottom) / 2:.1f}" fill="{_GREY}" text-anchor="middle" '
        f'transform="rotate(-90 16 {(_TOP + bottom) / 2:.1f})">FLOP / s</text>'
    )


def _roof(axes: _Axes, peak: float, bandwidth: float) -> Iterator[str]:
    low, high = 10.0 ** axes.x[0], 10.0 ** axes.x[1]
    ridge = peak / bandwidth
    # The slanted roof may leave the picture at the bottom: begin it where it comes in.
    start = min(max(low, 10.0 ** axes.y[0] / bandwidth), ridge)
    corner = axes.at(ridge, peak)
    begin, end = axes.at(start, start * bandwidth), axes.at(high, peak)
    yield _line(*begin, *corner, _INK, 2)
    yield _line(*corner, *end, _INK, 2)
    yield _text(end[0] - 4, end[1] - 7, f"{_amount(peak, 'FLOP/s')}", anchor="end", colour=_INK)
    middle = ((begin[0] + corner[0]) / 2, (begin[1] + corner[1]) / 2)
    yield _text(middle[0] - 8, middle[1] - 6, f"{_amount(bandwidth, 'B/s')}", anchor="end", colour=_INK)


def _dot(x: float, y: float, inner: bool, colour: str) -> str:
    """A phase's dot; a ring for a part of another phase."""
    fill = "#ffffff" if inner else colour
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{4 if inner else 5.5}" fill="{fill}" stroke="{colour}" '
        'stroke-width="2"/>'
    )


def _tick(decade: int) -> str:
    """A power of ten: "0.01", "100", "10 G"."""
    if decade < 3:
        return f"{10.0**decade:g}"
    return f"{10 ** (decade % 3)} {('k', 'M', 'G', 'T', 'P', 'E')[min(decade // 3, 6) - 1]}"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'
    )


def _text(x: float, y: float, text: str, *, anchor: str, colour: str = _GREY) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _svg(drawn: list[str]) -> str:
    body = "\n".join(drawn)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="sans-serif" font-size="12" role="img" aria-label="roofline">\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>\n{body}\n</svg>\n'
    )
