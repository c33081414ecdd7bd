"""What a metric is for a comparison, and the limits that `--fail-on` sets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_llmprof.compare.verdicts import parse_amount, parse_share
from pytest_llmprof.errors import ConfigError, nearest
from pytest_llmprof.records.catalogue import Declaration

_TIMES = frozenset(("s", "ms", "us", "µs", "ns"))
_SLOWER = "slower"


def is_speed(metric: Declaration) -> bool:
    """Whether it is a time or a rate: slower and faster, not worse and better."""
    return metric.unit in _TIMES or metric.unit.endswith("/s")


def is_statistical(metric: Declaration) -> bool:
    """Whether it has noise: a time, a rate, energy, a share of time. Counts and memory are exact."""
    return metric.section == "figures" and (is_speed(metric) or metric.unit in ("J", "W", "share"))


@dataclass(frozen=True)
class Rule:
    """A limit for one metric, or for all main times (`metric` is None)."""

    metric: str | None
    limit: float
    """Relative; for a metric of quality the amount by which it may become worse."""
    text: str


def parse_rules(given: Iterable[str], metrics: Sequence[Declaration], where: str = "--fail-on") -> tuple[Rule, ...]:
    """Read "slower:2%", "tpot_ms:2%", "cer:0.005", also several with commas.

    Raises `ConfigError` naming *where* they stand for an unknown metric, one named twice, or a threshold that is none.
    """
    known = {metric.name: metric for metric in metrics}
    rules: list[Rule] = []

    def add(metric: str | None, limit: float, text: str) -> None:
        if any(rule.metric == metric for rule in rules):
            raise ConfigError(f"{where} {metric or _SLOWER}:{text}: {metric or _SLOWER} has a limit already; give one")
        rules.append(Rule(metric, limit, text))

    for text in (part.strip() for one in given for part in one.split(",")):
        name, colon, limit = (part.strip() for part in text.rpartition(":"))
        if not colon or not name:
            raise ConfigError(f'{where} {text!r} is not allowed: give WHAT:LIMIT, such as "slower:2%" or "cer:0.005"')
        place = f"{where} {text}"
        if name == _SLOWER:
            add(None, parse_share(limit, place), limit)
            continue
        metric = known.get(name)
        if metric is None:
            allowed = [_SLOWER, *known]
            raise ConfigError(
                f"{place}: unknown metric {name}{nearest(name, allowed)}; allowed: {', '.join(allowed)}"
            )
        if metric.better is None:
            raise ConfigError(f"{place}: neither way of {name} is worse, so it cannot be gated")
        quality = metric.section == "quality"
        add(name, parse_amount(limit, place) if quality else parse_share(limit, place), limit)
    return tuple(rules)


def rule_for(metric: Declaration, rules: Sequence[Rule]) -> Rule | None:
    """The rule of *metric*: its own, else that of the main times (those of the report; rates are their inverse)."""
    own = next((rule for rule in rules if rule.metric == metric.name), None)
    if own is not None:
        return own
    if metric.unit in _TIMES and metric.better == "lower" and "report" in metric.shown:
        return next((rule for rule in rules if rule.metric is None), None)
    return None
