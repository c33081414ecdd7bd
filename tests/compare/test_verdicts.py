"""The rule that chooses a verdict, and the thresholds that users write."""

import math

import pytest

from pytest_llmprof.compare.intervals import Interval
from pytest_llmprof.compare.verdicts import Verdict, decide, parse_amount, parse_share
from pytest_llmprof.errors import ConfigError


def interval(low, high):
    return Interval((low + high) / 2, low, high, 0.99)


@pytest.mark.parametrize(
    ("low", "high", "better", "verdict"),
    [
        (0.01, 0.03, "lower", Verdict.SLOWER),
        (-0.03, -0.01, "lower", Verdict.FASTER),
        (0.01, 0.03, "higher", Verdict.FASTER),
        (-0.03, -0.01, "higher", Verdict.SLOWER),
        (0.01, 0.03, None, Verdict.CHANGED),
        (-0.004, 0.004, "lower", Verdict.SAME),
        (0.001, 0.004, "lower", Verdict.SAME),
        (-0.004, 0.006, "lower", Verdict.UNCLEAR),
        (0.001, 0.008, "lower", Verdict.UNCLEAR),  # shown to be slower, but not by what matters
        (-0.01, 0.03, "lower", Verdict.UNCLEAR),
    ],
)
def test_rule(low, high, better, verdict):
    found = interval(low, high)
    assert decide(found, found, math.expm1(0.005), better) == verdict


def test_what_is_no_time_is_worse_or_better():
    assert decide(interval(0.01, 0.03), interval(0.01, 0.03), 0.005, "lower", speed=False) == Verdict.WORSE
    assert decide(interval(-0.03, -0.01), interval(-0.03, -0.01), 0.005, "lower", speed=False) == Verdict.BETTER


@pytest.mark.parametrize(("text", "share"), [("2%", 0.02), (" .5 % ", 0.005), ("150%", 1.5)])
def test_share(text, share):
    assert parse_share(text, "here") == pytest.approx(share)


@pytest.mark.parametrize("text", ["5", "-1%", "0%", "", "%", "two%", "2%%", "nan%", "1e3%", 2, None, "99999%"])
def test_a_threshold_that_is_none_is_refused_in_one_line(text):
    with pytest.raises(ConfigError, match=r"^gate at x: .* not allowed; a threshold is a percentage above 0") as found:
        parse_share(text, "gate at x")
    assert "\n" not in str(found.value)


def test_amount():
    assert parse_amount("0.005", "here") == 0.005
    for text in ("-1", "1%", "", None, "nan", 0.005):
        with pytest.raises(ConfigError, match=r"here: .* is not allowed"):
            parse_amount(text, "here")
