"""A decision that looks at the data as pairs of processes come, with the errors spent over its looks.

Each look's interval has the part of the error that was set aside for it (Lan & DeMets 1983, Biometrika 70:659; the
spending function is that of Kim & DeMets 1987, Biometrika 74:149). The parts add up to the whole, so by the union bound
the error holds for all looks together, whatever their dependence. The shown interval is the look's own: a repeated
confidence interval (Jennison & Turnbull 1989, J. R. Stat. Soc. B 51:305), valid at whichever look the data stop.

Two processes of one side, of neighbouring pairs, differ by noise alone: an A/A control inside the A/B job. A change
must show against the larger of both errors, that of the A/B and that of the A/A differences: where a machine drifts,
pairs may agree by chance. Where both sides measure beside each other (a duet) the error of A/B alone counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from pytest_llmprof.compare.intervals import Centre, Interval, centre
from pytest_llmprof.compare.verdicts import DEFAULT_MARGIN, Verdict, decide
from pytest_llmprof.records.catalogue import Better

ALPHA = 0.002
"""How often two equal sides may be called different, both directions and all looks together."""
BETA = 0.05
"""How often a change as large as the margin may be called the same, all looks together."""
ORDER = "ABBABAAB"
"""The order of processes: a steady drift of the machine adds as much to A as to B."""


def order(processes: int) -> str:
    """The sides of the first *processes* processes, in their order: ABBA BAAB ABBA ..."""
    return (ORDER * (processes // len(ORDER) + 1))[:processes]


@dataclass(frozen=True)
class Plan:
    """When to look and what each look may spend."""

    margin: float = DEFAULT_MARGIN
    """The smallest relative change that matters."""
    alpha: float = ALPHA
    beta: float = BETA
    max_pairs: int = 24
    """Where the last look is."""
    first: int = 6
    """Pairs of the first look. Fewer could all differ the same way by chance where a machine has two speeds."""
    step: int = 2
    """Pairs between looks: whole ABBA blocks."""
    family: int = 1
    """How many metrics are decided together: `alpha` is shared among them (Bonferroni)."""
    control: bool = True
    """Whether a change must show against the A/A control, too. Not where the sides of a pair run at the same time: what
    the machine does from pair to pair is in the control, but not in their ratios. Without it nothing is trimmed: pairs
    of two kinds, such as +10 and -10 %, must not look like one kind with outliers."""

    def __post_init__(self) -> None:
        if not 2 <= self.first <= self.max_pairs:
            raise ValueError(f"a plan has 2 pairs at least before its first look, and no more than {self.max_pairs}")

    def looks(self) -> list[int]:
        """The numbers of pairs at which it looks; the last is `max_pairs`."""
        return [*range(self.first, self.max_pairs, self.step), self.max_pairs]

    def spent(self, error: float, pairs: int, power: float) -> float:
        """What of *error* may be spent up to *pairs*."""
        return float(error * min(pairs / self.max_pairs, 1.0) ** power)


DUET_PLAN = Plan(first=10, control=False)
"""Where both sides of a pair measure beside each other. Without a control more pairs must agree: 6 of two kinds are all
of one kind in 3 % of cases, 10 in 0.2 %."""
_CHANGE_POWER = 1.5
"""Spends early on changes: a large one is found at the first looks."""
_EQUAL_POWER = 5.0
"""Spends late on equality, which needs many pairs anyway."""


@dataclass
class SequentialDecision:
    """One metric of two sides, fed pair by pair.

    ::

        decision = SequentialDecision(Plan(margin=0.005), better="lower")
        while not decision.done:
            decision.add(before, after)   # one process of each side
        decision.verdict, decision.interval
    """

    plan: Plan = field(default_factory=Plan)
    better: Better | None = "lower"
    speed: bool = True
    before: list[float] = field(default_factory=list)
    """The values of the pairs, in their order."""
    after: list[float] = field(default_factory=list)
    interval: Interval | None = None
    """Of the last look, at the level that decided; None before the first one."""
    control: Interval | None = None
    """Of the A/A differences at the last look, in a plan without a control of the change; half its width is what this
    machine can see."""
    verdict: Verdict = Verdict.UNCLEAR
    looked: int = 0
    """Pairs at the last look."""

    @property
    def done(self) -> bool:
        """Whether a verdict is there, or no look is left."""
        return self.verdict is not Verdict.UNCLEAR or self.looked >= self.plan.max_pairs

    def add(self, before: float, after: float) -> Verdict:
        """Add one pair; at a planned look, decide. Values that are not above 0 raise `ValueError`."""
        if not (0 < before < math.inf and 0 < after < math.inf):
            raise ValueError(f"a pair has two positive values, not {before} and {after}")
        if self.done:
            return self.verdict
        self.before.append(before)
        self.after.append(after)
        if len(self.before) in self.plan.looks():
            self._look()
        return self.verdict

    def _look(self) -> None:
        plan, pairs = self.plan, len(self.before)
        alpha = plan.spent(plan.alpha, pairs, _CHANGE_POWER) - plan.spent(plan.alpha, self.looked, _CHANGE_POWER)
        beta = plan.spent(plan.beta, pairs, _EQUAL_POWER) - plan.spent(plan.beta, self.looked, _EQUAL_POWER)
        ratios = [math.log(after / before) for before, after in zip(self.before, self.after, strict=True)]
        found = centre(ratios, plain=not plan.control)
        noise = centre(control_differences(self.before, self.after)) if plan.control else found
        larger = Centre(found.value, max(found.error, noise.error), found.freedom)
        change = larger.interval(alpha / plan.family)
        equality = found.interval(2 * beta)  # one-sided on each side
        self.control = noise.interval(alpha / plan.family)
        self.looked = pairs
        self.verdict = decide(change, equality, plan.margin, self.better, speed=self.speed)
        self.interval = equality if self.verdict is Verdict.SAME else change


def control_differences(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """A/A differences inside an A/B job: of two neighbouring pairs log(a2 / a1) and log(b2 / b1).

    The sides are the values of the pairs in their order. Signs alternate from block to block, so that a steady drift
    cancels as it does between A and B.
    """
    found: list[float] = []
    for block in range(min(len(before), len(after)) // 2):
        sign = 1 if block % 2 == 0 else -1
        found += [sign * math.log(side[2 * block + 1] / side[2 * block]) for side in (before, after)]
    return found
