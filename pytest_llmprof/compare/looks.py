"""Looks at a process that measures more rounds until a gate on it is clear.

Rounds are nested in their process. More of them make the rounds' own error smaller; what processes differ by stays.
That is drawn once and is the same at each look, so its part of the error is spent once; that of the rounds is shared
among the looks. By the union bound the intervals of all looks together miss the change in `alpha` of cases at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pytest_llmprof.compare.intervals import Interval, normal_quantile, t_quantile

BETWEEN_SHARE = 0.8
"""The part of the error that is spent on what processes differ by."""


@dataclass(frozen=True)
class Rounds:
    """The planned looks of the process that runs."""

    looks: int
    most: int
    """Rounds at the last look."""


def planned(first: int, most: int) -> list[int]:
    """The numbers of rounds to look at: *first*, then doubled up to *most*."""
    looks = [first]
    while looks[-1] < most:
        looks.append(min(2 * looks[-1], most))
    return looks


@dataclass(frozen=True)
class Noise:
    """The rounds of one process."""

    spread: float
    """Their interquartile range over their median; nothing for a single round."""
    rounds: int

    @property
    def variance(self) -> float:
        """Of one round (relative), for normal noise: an interquartile range is 1.349 standard deviations.

        Of n rounds it is smaller, by 1 - 1.16 / n, and as sure of the variance as 0.4 (n - 1) degrees of freedom.
        """
        return (self.spread / 1.349 / (1 - 1.16 / self.rounds)) ** 2 if self.rounds > 1 else 0.0


@dataclass(frozen=True)
class Within:
    """The rounds' own part of the error of log(after / before)."""

    error: float
    freedom: float


@dataclass(frozen=True)
class Sides:
    """One metric of two sides of one or two processes, the second of which measures more rounds."""

    before: Sequence[float]
    """Logarithms of the processes' values."""
    after: Sequence[float]
    noise: Sequence[Noise]
    """Of all processes, those of *before* first."""
    deviation: float
    """The standard deviation between processes (relative)."""

    def within(self) -> Within | None:
        """The rounds' error. None where no process has two.

        A process's rounds are taken to be as noisy as they were, and not less than all processes' were together: few
        rounds may agree by chance. A median's error is 1.2533 of a mean's for normal noise.
        """
        known = [one for one in self.noise if one.rounds > 1]
        if not known:
            return None
        freedom = sum(one.rounds - 1 for one in known)
        pooled = sum((one.rounds - 1) * one.variance for one in known) / freedom
        sizes = [len(self.before)] * len(self.before) + [len(self.after)] * len(self.after)
        variance = sum(
            max(pooled, one.variance) / (one.rounds * size**2) for one, size in zip(self.noise, sizes, strict=True)
        )
        return Within(1.2533 * math.sqrt(variance), max(1.0, 0.4 * freedom))

    def interval(self, within: Within, looks: int, alpha: float) -> Interval:
        """The interval of one of *looks* looks, of error *alpha* for all of them."""
        between = self.deviation * math.sqrt(1 / len(self.before) + 1 / len(self.after))
        change = math.fsum(self.after) / len(self.after) - math.fsum(self.before) / len(self.before)
        half = normal_quantile(1 - BETWEEN_SHARE * alpha / 2) * between
        if within.error:
            half += t_quantile(1 - (1 - BETWEEN_SHARE) * alpha / looks / 2, within.freedom) * within.error
        return Interval(change, change - half, change + half, 1 - alpha)

    def may_settle(
        self, rounds: Rounds, alpha: float, beta: float, settled: Callable[[Interval, Interval], bool]
    ) -> bool:
        """Whether more rounds may make it clear: not where what processes differ by is too much by itself.

        The value with more rounds is taken to be within two standard errors of what it is now.
        """
        now = self.within()
        if self.noise[-1].rounds >= rounds.most:
            return False
        if now is None:
            return True
        for shift in (0.0, 2 * now.error, -2 * now.error):
            moved = replace(self, after=[value + shift for value in self.after])
            if settled(*(moved.interval(Within(0.0, 1.0), rounds.looks, error) for error in (alpha, beta))):
                return True
        return False
