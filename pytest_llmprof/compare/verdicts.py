"""Slower, faster, same, unclear or not measured: the rule that chooses one, and the limits that users write."""

from __future__ import annotations

import math
import re
from enum import StrEnum

from pytest_llmprof.compare.intervals import Interval
from pytest_llmprof.errors import ConfigError
from pytest_llmprof.records.catalogue import Better

DEFAULT_MARGIN = 0.006
"""The smallest relative change that matters. Chosen by benchmarks/gates so that slowdowns of 1 % are found."""


class Verdict(StrEnum):
    """What can be said of one metric of two sides."""

    SLOWER = "slower"
    FASTER = "faster"
    WORSE = "worse"
    """As slower, for a metric that is no time or rate: memory, energy, CER."""
    BETTER = "better"
    CHANGED = "changed"
    """It differs, and neither way is better."""
    SAME = "same"
    """Shown to be equal within the margin."""
    UNCLEAR = "unclear"
    """The interval is too wide to say: more processes can settle it."""
    NOT_MEASURED = "not measured"
    """A value is missing or cannot be trusted. This never passes as the same."""


BAD = frozenset((Verdict.SLOWER, Verdict.WORSE))
GOOD = frozenset((Verdict.FASTER, Verdict.BETTER))


def decide(
    change: Interval, equality: Interval, margin: float, better: Better | None, *, speed: bool = True
) -> Verdict:
    """The verdict on a relative change, whose intervals are of log(after / before).

    A change is shown where *change* lies on one side of zero and its estimate reaches *margin*. Both sides are the same
    where *equality* lies within the margin (two one-sided tests: Schuirmann 1987, J. Pharmacokinet. Biopharm. 15:657).
    """
    limit = math.log1p(margin)
    if (change.low > 0 or change.high < 0) and abs(change.estimate) >= limit:
        if better is None:
            return Verdict.CHANGED
        if (change.estimate > 0) == (better == "lower"):
            return Verdict.SLOWER if speed else Verdict.WORSE
        return Verdict.FASTER if speed else Verdict.BETTER
    if -limit < equality.low and equality.high < limit:
        return Verdict.SAME
    return Verdict.UNCLEAR


_SHARE = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*%\s*")
_AMOUNT = re.compile(r"\s*((?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")


def parse_share(text: object, where: str) -> float:
    """ "2%" as 0.02. Raises `ConfigError` naming *where* it stands unless it is a percentage above 0."""
    match = _SHARE.fullmatch(text) if isinstance(text, str) else None
    value = float(match[1]) / 100 if match else 0.0
    if not 0 < value <= 10:
        raise ConfigError(f'{where}: {text!r} is not allowed; a threshold is a percentage above 0, such as "2%"')
    return value


def parse_amount(text: object, where: str) -> float:
    """ "0.005" as a number of 0 or more. Raises `ConfigError` naming *where* it stands."""
    match = _AMOUNT.fullmatch(text) if isinstance(text, str) else None
    if match is None or not math.isfinite(float(match[1])):
        raise ConfigError(f'{where}: {text!r} is not allowed; the limit is an amount of 0 or more, such as "0.005"')
    return float(match[1])
