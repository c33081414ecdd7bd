"""A row of an A/B job: the processes of both sides are pairs that ran next to each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median

from pytest_llmprof.compare.intervals import Interval, ratio_of
from pytest_llmprof.compare.result import Row
from pytest_llmprof.compare.rules import is_speed
from pytest_llmprof.compare.saved import CONTENDED
from pytest_llmprof.compare.sequential import Plan, SequentialDecision
from pytest_llmprof.compare.verdicts import Verdict
from pytest_llmprof.records.baseline import SavedTest
from pytest_llmprof.records.catalogue import Declaration
from pytest_llmprof.text.numbers import count

NO_PAIR = "no pair that can be trusted"
"""How a row was judged that later pairs may still settle."""

TestPair = tuple[SavedTest | None, SavedTest | None]
"""One test in the processes of a pair, before and after."""


def judge_pairs(row: Row, tests: Sequence[TestPair], metric: Declaration, plan: Plan, *, force: bool = False) -> None:
    """Set the verdict of *row* from the sequential decision; with *force* also from values that cannot be trusted."""
    decision = SequentialDecision(plan, metric.better, is_speed(metric))
    pairs, left_out = _trusted(tests, metric, force)
    for before, after in pairs:
        decision.add(before, after)
    if left_out:
        others = " and others" if len(set(left_out)) > 1 else ""
        row.note = f"{count(len(left_out), 'pair')} left out: {left_out[0]}{others}"
    if not pairs:
        row.how = NO_PAIR
        return
    row.before, row.after = map(median, zip(*pairs, strict=True))
    row.verdict = decision.verdict
    row.how = count(len(pairs) if decision.verdict is Verdict.UNCLEAR else decision.looked, "pair")
    if decision.interval is None or decision.control is None:
        row.ratio = ratio_of(math.fsum(math.log(after) - math.log(before) for before, after in pairs) / len(pairs))
        row.how += f", the first look has {plan.first}"
        return
    if decision.verdict is Verdict.UNCLEAR and decision.looked < len(pairs):
        row.how += f", last look at {decision.looked}"
    row.control = math.expm1(min(decision.control.half, 700.0))
    show_interval(row, decision.interval)


def _trusted(
    tests: Iterable[TestPair], metric: Declaration, force: bool
) -> tuple[list[tuple[float, float]], list[str]]:
    """The pairs whose processes both have a value that can be trusted; why each other pair is left out."""
    found, left_out = [], []
    for pair in tests:
        whys = [why for test in pair if (why := _why_not(test, metric, force))]
        if whys:
            left_out.append(whys[0])
        else:
            before, after = (value_of(test, metric) for test in pair if test)
            assert before is not None
            assert after is not None
            found.append((before, after))
    return found, left_out


def _why_not(test: SavedTest | None, metric: Declaration, force: bool) -> str | None:
    """Why the value of a test's metric cannot be used; None where it can."""
    if test is None:
        return "missing"
    value = value_of(test, metric)
    if test.problem or value is None:
        return test.problem or "missing"
    if value <= 0:
        return "a value that is not above 0 has no ratio"
    doubts = [doubt for doubt in test.doubts if not doubt.startswith(CONTENDED)]
    return doubts[0] if doubts and not force else None


def value_of(test: SavedTest, metric: Declaration) -> float | None:
    """What *test* has of *metric*; None for nothing, or for what is no finite number."""
    found = (test.quality if metric.section == "quality" else test.figures).get(metric.name)
    return found if found is not None and math.isfinite(found) else None


def show_interval(row: Row, interval: Interval) -> None:
    """Put *interval*, of log(after / before), into *row*."""
    row.ratio, row.low, row.high = map(ratio_of, (interval.estimate, interval.low, interval.high))
    row.level = interval.level
