"""Confidence intervals for the change between two sides.

The unit is the process: one value of each metric for each. Rounds inside a process are not replicates of it. Values are
compared as logarithms, so an interval of the difference is one of the ratio. Sources: docs/statistics.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

TRIM = 0.2
"""Share of the values that a centre leaves out at each end."""
TRIM_FROM = 10
"""With fewer values the centre is the plain mean."""
SURE_FROM = 6
"""With fewer processes their spread may be small by chance: all at one of two clocks, say."""


@dataclass(frozen=True)
class Interval:
    """An estimate of log(after / before) with its confidence interval."""

    estimate: float
    low: float
    high: float
    level: float
    """Confidence, 0.999 for an error of 0.1 %."""

    @property
    def half(self) -> float:
        """Half of its width."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Centre:
    """Where values lie."""

    value: float
    error: float
    """Its standard error."""
    freedom: float
    """Degrees of freedom of the error."""

    def interval(self, alpha: float) -> Interval:
        """The t interval of two-sided error *alpha*."""
        half = t_quantile(1 - alpha / 2, self.freedom) * self.error
        return Interval(self.value, self.value - half, self.value + half, 1 - alpha)


@lru_cache(maxsize=4096)
def t_quantile(share: float, freedom: float) -> float:
    """The quantile of Student's t distribution."""
    from scipy.special import stdtrit

    # The lower tail is exact where the upper one would be 1 - tiny.
    return -float(stdtrit(freedom, 1 - share)) if share > 0.5 else float(stdtrit(freedom, share))


def t_tail(value: float, freedom: float) -> float:
    """The two-sided p-value of *value* in Student's t distribution."""
    from scipy.special import stdtr

    return 2 * float(stdtr(freedom, -abs(value)))


@lru_cache(maxsize=256)
def normal_quantile(share: float) -> float:
    """The quantile of the normal distribution."""
    from scipy.special import ndtri

    return float(ndtri(share))


def centre(values: Sequence[float], *, plain: bool = False) -> Centre:
    """The mean without the outer fifths, its error from the winsorised variance (Yuen 1974, Biometrika 61:165).

    Below `TRIM_FROM` values, or with *plain*, the mean of all. Two values at least.
    """
    ordered = sorted(values)
    count = len(ordered)
    cut = int(TRIM * count) if count >= TRIM_FROM and not plain else 0
    kept = ordered[cut : count - cut]
    size = len(kept)
    value = math.fsum(kept) / size
    winsorised = [kept[0]] * cut + kept + [kept[-1]] * cut
    middle = math.fsum(winsorised) / count
    squares = math.fsum((one - middle) ** 2 for one in winsorised)
    return Centre(value, math.sqrt(squares / (size * (size - 1))), size - 1)


def ratio_of(change: float) -> float:
    """The ratio of a difference of logarithms, kept within what a float holds."""
    return math.exp(max(-700.0, min(change, 700.0)))


def unpaired(before: Sequence[float], after: Sequence[float], alpha: float, least: float = 0.0) -> Interval:
    """The interval of the change between two sets of processes, given as logarithms of their values.

    Both with 3 or more: Welch 1947, Biometrika 34:28, on trimmed means. One with fewer: a prediction interval, which
    takes the spread of the other side for both. The standard deviation of fewer than `SURE_FROM` processes is taken as
    *least* at least. Raises `ValueError` where neither has 3.
    """
    if min(len(before), len(after)) >= 3:
        first, second = _believed(before, least), _believed(after, least)
        parts = [(one.error**2, one.freedom) for one in (first, second)]
        error = sum(part for part, _ in parts)
        freedom = error**2 / sum(part**2 / free for part, free in parts) if error else min(f for _, f in parts)
        return Centre(second.value - first.value, math.sqrt(error), freedom).interval(alpha)
    many = max(before, after, key=len)
    if len(many) < 3:
        raise ValueError("3 processes at least on one side")
    few = min(before, after, key=len)
    known = _believed(many, least, plain=True)  # a single process may be one of those that trimming leaves out
    spread = known.error * math.sqrt(len(many))
    error_of_few = spread / math.sqrt(len(few))
    change = math.fsum(few) / len(few) - known.value
    joint = Centre(
        change if many is before else -change, math.hypot(known.error, error_of_few), known.freedom
    )
    return joint.interval(alpha)


def _believed(values: Sequence[float], least: float, *, plain: bool = False) -> Centre:
    found = centre(values, plain=plain)
    if len(values) >= SURE_FROM:
        return found
    return Centre(found.value, max(found.error, least / math.sqrt(len(values))), found.freedom)


def assumed(
    before: Sequence[float], after: Sequence[float], deviation: float, rounds: tuple[float, float], alpha: float
) -> Interval:
    """The interval where too few processes show their spread: it takes *deviation* as the SD between processes.

    *rounds* has each side's standard error from the rounds within a process (relative).
    """
    error = math.sqrt(
        sum(
            (deviation**2 + within**2) / len(values)
            for values, within in zip((before, after), rounds, strict=True)
        )
    )
    change = math.fsum(after) / len(after) - math.fsum(before) / len(before)
    half = normal_quantile(1 - alpha / 2) * error
    return Interval(change, change - half, change + half, 1 - alpha)
