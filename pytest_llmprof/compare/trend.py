"""A metric over the runs of a store: its change points, and a small SVG.

Change points are found by E-divisive (Matteson & James 2014, J. Am. Stat. Assoc. 109:334), which splits a series where
the energy distance of the two parts is largest. A split is kept where Welch's t-test finds it significant, instead of
the slow and random permutation test, as in Hunter (Fleming et al. 2023, ICPE; now Apache Otava); its p-value is
multiplied by the number of places where the split could have been.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from msgspec import Struct

from pytest_llmprof.compare.intervals import t_tail
from pytest_llmprof.compare.verdicts import DEFAULT_MARGIN
from pytest_llmprof.records.baseline import SavedRun
from pytest_llmprof.records.catalogue import Declaration
from pytest_llmprof.text.escape import visible

LONGEST = 400
"""Runs that are looked at: the latest ones. The work grows with their square."""
SHORTEST = 3
"""Runs on each side of a change point."""
SIGNIFICANT = 0.01
"""Error of one split, all its possible places together."""


class ChangePoint(Struct, frozen=True):
    """Where a series changed its level."""

    index: int
    """The first run of the new level."""
    started: str
    """When that run began."""
    commit: str | None
    before: float
    """Median of the level before."""
    after: float


class Series(Struct):
    """One metric of one test over the runs."""

    test: str
    metric: str
    title: str
    better: str | None
    started: list[str]
    """When each run began."""
    values: list[float]
    changes: list[ChangePoint]


def series(
    runs: Sequence[SavedRun], names: Sequence[str] | None = None, margin: float = DEFAULT_MARGIN
) -> list[Series]:
    """The series of *runs*, the oldest first, for each test and metric (*names*; None: those of the report)."""
    metrics: dict[str, Declaration] = {metric.name: metric for run in runs for metric in run.metrics}
    chosen = [
        metric
        for name, metric in metrics.items()
        if (name in names if names is not None else "report" in metric.shown or name == "cer")
    ]
    runs = runs[-LONGEST:]
    ids = dict.fromkeys(test.id for run in runs for test in run.tests)
    by_run = [{test.id: test for test in run.tests} for run in runs]
    found = []
    for test_id in ids:
        for metric in chosen:
            values, places, kind = [], [], None
            for run, tests in zip(runs, by_run, strict=True):
                test = tests.get(test_id)
                if test is None or test.problem or test.doubts:
                    continue
                value = (test.quality if metric.section == "quality" else test.figures).get(metric.name)
                if value is not None and math.isfinite(value):
                    values.append(value)
                    places.append(run)
                    kind = test.kind
            if values:
                changes = _described(values, places, change_points(values, margin))
                started = [run.started for run in places]
                title = metric.title_for(kind)
                found.append(Series(test_id, metric.name, title, metric.better, started, values, changes))
    return found


def _described(values: Sequence[float], runs: Sequence[SavedRun], places: Sequence[int]) -> list[ChangePoint]:
    edges = [0, *places, len(values)]
    levels = [median(values[start:end]) for start, end in pairwise(edges)]
    found = []
    for place, (before, after) in zip(places, pairwise(levels), strict=True):
        run = runs[place]
        found.append(ChangePoint(place, run.started, run.git.commit if run.git else None, before, after))
    return found


def change_points(values: Sequence[float], margin: float = DEFAULT_MARGIN) -> list[int]:
    """The first index of each new level. Levels that differ by less than *margin* (relative) are one."""
    scaled = [math.log(value) for value in values] if min(values, default=0) > 0 else list(values)
    limit = math.log1p(margin) if min(values, default=0) > 0 else margin * max(map(abs, values), default=0)
    found: list[int] = []
    _split(scaled, 0, len(scaled), found)
    found.sort()
    # A level between two splits may turn out to be its neighbour's: the weakest split goes first.
    while found:
        levels = [scaled[start:end] for start, end in pairwise([0, *found, len(scaled)])]
        checks = [
            (_p_value(left, right), abs(_mean(left) - _mean(right)), place)
            for place, (left, right) in enumerate(pairwise(levels))
        ]
        weak = [check for check in checks if check[0] > SIGNIFICANT or check[1] < limit]
        if not weak:
            break
        del found[max(weak)[2]]
    return found


def _split(values: Sequence[float], start: int, end: int, found: list[int]) -> None:
    place = _best_split(values[start:end])
    if place is None:
        return
    left, right = values[start : start + place], values[start + place : end]
    places = len(left) + len(right) - 2 * SHORTEST + 1
    if _p_value(left, right) * places > SIGNIFICANT:
        return
    found.append(start + place)
    _split(values, start, start + place, found)
    _split(values, start + place, end, found)


def _best_split(values: Sequence[float]) -> int | None:
    """Where the scaled energy distance of the two parts is largest; None for too short a series."""
    size = len(values)
    if size < 2 * SHORTEST:
        return None
    left = 0.0
    cross = 0.0
    right = math.fsum(abs(one - other) for index, one in enumerate(values) for other in values[:index])
    best, place = -math.inf, None
    for cut in range(1, size - SHORTEST + 1):
        moved = values[cut - 1]
        to_left = math.fsum(abs(moved - other) for other in values[: cut - 1])
        to_right = math.fsum(abs(moved - other) for other in values[cut:])
        left += to_left
        right -= to_right
        cross += to_right - to_left
        if cut < SHORTEST:
            continue
        rest = size - cut
        distance = 2 * cross / (cut * rest) - 2 * left / (cut * (cut - 1)) - 2 * right / (rest * (rest - 1))
        scaled = cut * rest / size * distance
        if scaled > best:
            best, place = scaled, cut
    return place


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _p_value(left: Sequence[float], right: Sequence[float]) -> float:
    """Welch's t-test."""
    parts = []
    for side in (left, right):
        middle = _mean(side)
        parts.append(math.fsum((one - middle) ** 2 for one in side) / (len(side) * (len(side) - 1)))
    error, change = sum(parts), abs(_mean(left) - _mean(right))
    if error == 0:
        return 0.0 if change else 1.0
    freedom = error**2 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, (left, right), strict=True))
    return t_tail(change / math.sqrt(error), freedom)


def svg(one: Series, width: int = 640, height: int = 160) -> str:
    """A line with a dot for each run, the levels between change points, and a mark at each change point."""
    left, top, bottom = 60, 28, 24
    low, high = min(one.values), max(one.values)
    span = (high - low) or abs(high) or 1.0

    def x(index: float) -> float:
        return left + (width - left - 16) * (index + 0.5) / len(one.values)

    def y(value: float) -> float:
        return top + (height - top - bottom) * (1 - (value - low + 0.05 * span) / (1.1 * span))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="8" y="16">{_safe(one.title)} · {_safe(one.test)}</text>',
        f'<text x="{left - 6}" y="{y(high) + 4:.1f}" text-anchor="end">{high:.4g}</text>',
    ]
    if high > low:
        parts.append(f'<text x="{left - 6}" y="{y(low) + 4:.1f}" text-anchor="end">{low:.4g}</text>')
    points = " ".join(f"{x(index):.1f},{y(value):.1f}" for index, value in enumerate(one.values))
    parts.append(f'<polyline points="{points}" fill="none" stroke="#9ab" stroke-width="1"/>')
    for index, value in enumerate(one.values):
        label = f"<title>{_safe(one.started[index])}: {value:.6g}</title>"
        parts.append(f'<circle cx="{x(index):.1f}" cy="{y(value):.1f}" r="2" fill="#246">{label}</circle>')
    edges = [0, *(change.index for change in one.changes), len(one.values)]
    for start, end in pairwise(edges):
        level = y(median(one.values[start:end]))
        parts.append(
            f'<line x1="{x(start - 0.5):.1f}" x2="{x(end - 0.5):.1f}" y1="{level:.1f}" y2="{level:.1f}" stroke="#246"/>'
        )
    for change in one.changes:
        worse = one.better is not None and (change.after > change.before) == (one.better == "lower")
        colour = "#c22" if worse else "#282" if one.better else "#666"
        place = x(change.index - 0.5)
        ratio = f"{100 * (change.after / change.before - 1):+.1f} %" if change.before else "changed"
        parts.append(
            f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{top}" y2="{height - bottom}" stroke="{colour}" '
            f'stroke-dasharray="3 2"/><text x="{place:.1f}" y="{height - 8}" text-anchor="middle" '
            f'fill="{colour}">{ratio}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _safe(text: str) -> str:
    return html.escape(visible(text))
