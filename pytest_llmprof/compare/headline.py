"""A comparison in one line: slower, faster, the same or unclear, and by how much."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from pytest_llmprof.compare.result import Comparison, Row
from pytest_llmprof.compare.verdicts import BAD, Verdict
from pytest_llmprof.text.escape import one_line
from pytest_llmprof.text.numbers import change, change_range, count, number

_LEADING = {
    Verdict.SLOWER: "Slower than",
    Verdict.WORSE: "Worse than",
    Verdict.FASTER: "Faster than",
    Verdict.UNCLEAR: "Unclear against",
    Verdict.NOT_MEASURED: "Not measured against",
    Verdict.BETTER: "Better than",
    Verdict.CHANGED: "Changed against",
    Verdict.SAME: "The same as",
}
"""How the line begins: with the first of these verdicts that a row has. What was not shown to be the same comes before
what is better in another way."""


def headline(comparison: Comparison) -> str:
    """The comparison as one line of plain text.

    Gated rows decide it where there are any, else those that tables show; a broken gate comes first.
    "Slower than main: Decode (ms) of test_it[free] +5.1 % (+3.2 to +7.0 %), 540 → 567; 1 of 2 metrics slower, 1 same"
    """
    before = one_line(comparison.before.name)
    gated = [row for row in comparison.rows if row.limit is not None]
    rows = gated or [row for row in comparison.rows if row.shown]
    missing = len(comparison.only_before)
    absent = f"; {count(missing, 'test')} of {before} {'was' if missing == 1 else 'were'} not run" if missing else ""
    if not rows:
        return f"Not compared with {before}: no metric is on both sides{absent}"
    broken = [row for row in rows if row.failed]
    there = {row.verdict for row in broken or rows}
    verdict = next(verdict for verdict in _LEADING if verdict in there)
    begin = f"{_LEADING[verdict]} {before}"
    beside = _beside(comparison.rows) if gated else ""
    if verdict is Verdict.SAME:
        what = f" within {100 * comparison.margin:g} %: {count(len(rows), 'metric')}"
        return f"{begin}{what}{' with a gate' if gated else ''}{beside}{absent}"
    row = max((row for row in broken or rows if row.verdict is verdict), key=_size)
    counts = Counter(one.verdict for one in rows)
    others = ", ".join(
        f"{counts[verdict]} of {count(len(rows), 'metric')} {verdict}" if not place else f"{counts[verdict]} {verdict}"
        for place, verdict in enumerate(sorted(counts, key=list(_LEADING).index))
    )
    return f"{begin}: {_row(row)}; {others}{beside}{absent}"


def _size(row: Row) -> float:
    """How large a change is, to show the largest."""
    return abs(math.log(row.ratio)) if row.ratio else 0.0


def _row(row: Row) -> str:
    """ "Decode (ms) of test_pages[free] +5.1 % (+3.2 to +7.0 %), 540 → 567"."""
    parts = f"{one_line(row.title)} of {one_line(row.test)}"
    if row.ratio is not None:
        parts += f" {change(row.ratio)}"
    if row.low is not None and row.high is not None:
        parts += f" ({change_range(row.low, row.high)})"
    parts += f", {number(row.before)} → {number(row.after)}"
    if row.limit is not None:
        parts += f", limit {row.limit}"
    return parts + (f" ({one_line(row.note)})" if row.note and row.verdict is Verdict.NOT_MEASURED else "")


def _beside(rows: Sequence[Row]) -> str:
    """What is slower or worse among the rows that have no gate and are shown."""
    found = Counter(row.verdict for row in rows if row.limit is None and row.shown and row.verdict in BAD)
    return "".join(f"; without a gate: {found[verdict]} {verdict}" for verdict in found)
