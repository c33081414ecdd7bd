"""An A/B job: processes of both sides in turns, or beside each other, until each gated metric is decided or time is up.

Pairs come in the order ABBA BAAB (`sequential.order`); who runs a process is up to the caller.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from pytest_llmprof.compare.compare import Terms, compare
from pytest_llmprof.compare.pairs import NO_PAIR
from pytest_llmprof.compare.result import Comparison, Job, Row
from pytest_llmprof.compare.rules import Rule
from pytest_llmprof.compare.saved import CONTENDED
from pytest_llmprof.compare.sequential import Plan, order
from pytest_llmprof.compare.table import change, interval
from pytest_llmprof.compare.verdicts import Verdict
from pytest_llmprof.records.baseline import SavedRun
from pytest_llmprof.records.catalogue import Declaration
from pytest_llmprof.text.numbers import count, duration

_NAMED = 3
"""Gated rows that a line of progress shows one by one; it counts more."""
Measure = Callable[[str, int, float], Sequence[SavedRun]]
"""Runs a process, or two at the same time: the sides ("A", or "BA"), the number of the first in the job, from 1, the
seconds that they may take. Gives what each measured; raises `OutOfTime` where it took too long."""


class OutOfTime(Exception):
    """A process was ended because the job's time was up."""


@dataclass
class Alternation:
    """The loop of an A/B job. What it has measured stays in it, however `run` ends."""

    measure: Measure
    rules: Callable[[Sequence[Declaration]], tuple[Rule, ...]]
    """The limits, given the catalogue of metrics that the first pair measured."""
    seconds: float
    """What all processes together may take."""
    terms: Terms = field(default_factory=Terms)
    duet: bool = False
    """Whether both processes of a pair run at the same time."""
    progress: Callable[[str], None] = lambda line: None
    clock: Callable[[], float] = time.monotonic
    before: list[SavedRun] = field(default_factory=list)
    after: list[SavedRun] = field(default_factory=list)
    sides: str = ""
    """Of the processes that have ended well."""
    _plan: Plan = field(default_factory=Plan)
    _rules: tuple[Rule, ...] = ()
    _begin: float = 0.0
    _end: float = 0.0
    _pair_seconds: list[float] = field(default_factory=list)

    def run(self) -> str:
        """Measure until it is decided. Gives why it stopped; call it once.

        Raises `ArtifactError` or `ConfigError` after the first pair where both sides cannot be compared or a rule
        names no metric, and whatever `measure` raises.
        """
        self._plan = self.terms.plan or Plan()
        self._begin = self.clock()
        try:
            return self._until_stopped()
        finally:
            self._end = self.clock()

    def _until_stopped(self) -> str:
        while len(self.before) < self._plan.max_pairs:
            if not self._another_fits():
                return f"out of time, after {duration(self.clock() - self._begin)}"
            try:
                self._measure_pair()
            except OutOfTime:
                return f"out of time, after {duration(self.clock() - self._begin)}; its last process was ended"
            pairs = len(self.before)
            if pairs == 1:
                self._rules = self.rules(_metrics((*self.before, *self.after)))
                self._compare()
            if pairs == self._plan.first:
                self._plan = replace(self._plan, max_pairs=self._most())
            self._report_pair()
            if pairs in self._plan.looks() and (settled := self._look()):
                return settled
        whole = count(len(self.before), "pair")
        if len(self.before) < (self.terms.plan or Plan()).max_pairs:
            return f"out of time for more than {whole}"
        return f"{whole} are all that were planned"

    def result(self, stopped: str) -> Comparison | None:
        """What was measured; None without a whole pair. Raises `ArtifactError` where it cannot be compared."""
        if not self.after:
            return None
        del self.before[len(self.after) :]  # an interrupt may come between the sides of a pair
        comparison = self._compare()
        comparison.job = Job(
            pairs=len(self.before),
            most=self._plan.max_pairs,
            contended=sum(map(_contended, self.before, self.after)),
            duet=self.duet,
            order=self.sides,
            seconds=round(self._end - self._begin, 1),
            stopped=stopped,
        )
        return comparison

    def _measure_pair(self) -> None:
        pair = len(self.before)
        begin = self.clock()
        runs: dict[str, SavedRun] = {}
        pair_order = order(2 * pair + 2)[-2:]
        for sides in [pair_order] if self.duet else pair_order:
            measured = self.measure(sides, len(self.sides) + 1, self._patience())
            runs.update(zip(sides, measured, strict=True))
            self.sides += sides
        self.before.append(runs["A"])
        self.after.append(runs["B"])
        self._pair_seconds.append(self.clock() - begin)

    def _left(self) -> float:
        return self._begin + self.seconds - self.clock()

    def _patience(self) -> float:
        """The seconds that a process may take: one that began in time and is as fast as others is not ended."""
        return max(self._left(), max(self._pair_seconds, default=0.0), 0.0)

    def _another_fits(self) -> bool:
        return self._left() > (median(self._pair_seconds) if self._pair_seconds else 0.0)

    def _most(self) -> int:
        """Pairs that fit into the time: looks that never come must not have a part of the error set aside."""
        blocks = int(max(self._left(), 0.0) / (self._plan.step * median(self._pair_seconds)))
        return min(self._plan.max_pairs, len(self.before) + self._plan.step * blocks)

    def _compare(self) -> Comparison:
        return compare(self.before, self.after, replace(self.terms, rules=self._rules, plan=self._plan))

    def _report_pair(self) -> None:
        pairs, left = len(self.before), self._left()
        line = f"pair {pairs} of at most {self._plan.max_pairs} took {duration(self._pair_seconds[-1])}"
        missing = (self._plan.first - pairs) * median(self._pair_seconds)
        if pairs == self._plan.first - 4 and missing > left:
            line += f"; the first look, at {self._plan.first} pairs, needs {duration(missing)} more"
        self.progress(f"{line}, {duration(max(left, 0.0))} left")

    def _look(self) -> str | None:
        """Why nothing more needs to be measured; None where it does."""
        gated = [row for row in self._compare().rows if row.limit is not None]
        found = {verdict: sum(row.verdict is verdict for row in gated) for verdict in Verdict}
        if len(gated) <= _NAMED:
            said = ", ".join(_row_text(row) for row in gated)
        else:
            said = ", ".join(f"{number} {verdict}" for verdict, number in found.items() if number)
        self.progress(f"look at {count(len(self.before), 'pair')}: {said}")
        if any(row.failed for row in gated):
            names = ", ".join(dict.fromkeys(f"{row.metric} is {row.verdict}" for row in gated if row.failed))
            return f"{names}, which no further pair can change"
        if any(row.verdict is Verdict.UNCLEAR or row.how == NO_PAIR for row in gated):
            return None
        if all(row.verdict is Verdict.NOT_MEASURED for row in gated):
            return "no gated metric can be measured"
        return f"every gated metric {'that can be measured ' if found[Verdict.NOT_MEASURED] else ''}is decided"


def _row_text(row: Row) -> str:
    """ "tpot_ms slower, +2.1 % (+1.2 to +3.0 %)"."""
    parts = change(row), f"({interval(row)})" if row.low is not None else ""
    numbers = " ".join(filter(None, parts))
    return f"{row.metric} {row.verdict}{numbers and ', '}{numbers}"


def _contended(before: SavedRun, after: SavedRun) -> bool:
    return any(doubt.startswith(CONTENDED) for run in (before, after) for test in run.tests for doubt in test.doubts)


def _metrics(runs: Sequence[SavedRun]) -> list[Declaration]:
    found: dict[str, Declaration] = {}
    for run in runs:
        for metric in run.metrics:
            found.setdefault(metric.name, metric)
    return list(found.values())
