"""The sequential decision: its looks, what they spend, and its error rates in a short simulation."""

import math
import random

import pytest
from saved_runs import noisy

from pytest_llmprof.compare.sequential import DUET_PLAN, Plan, SequentialDecision, control_differences, order
from pytest_llmprof.compare.verdicts import Verdict


def run(before, after, plan=None, **more):
    decision = SequentialDecision(plan or Plan(), **more)
    for pair in zip(before, after, strict=True):
        if decision.done:
            break
        decision.add(*pair)
    return decision


def test_order_is_abba_baab():
    assert order(10) == "ABBABAABAB"
    assert order(8).count("A") == 4


def test_the_parts_of_the_error_add_up_to_the_whole():
    plan = Plan(alpha=0.01, max_pairs=20)
    looks = plan.looks()
    assert looks == [6, 8, 10, 12, 14, 16, 18, 20]
    spent = [plan.spent(plan.alpha, look, 1.5) for look in looks]
    assert spent == sorted(spent)
    assert spent[-1] == pytest.approx(0.01)
    with pytest.raises(ValueError, match="a plan has 2 pairs"):
        Plan(first=8, max_pairs=6)


@pytest.mark.parametrize(
    ("slowdown", "verdict"), [(0.05, Verdict.SLOWER), (-0.05, Verdict.FASTER), (0.0, Verdict.SAME)]
)
def test_verdicts(slowdown, verdict):
    decision = run(noisy(0.54, 0.002, 24, 1), noisy(0.54 * (1 + slowdown), 0.002, 24, 2))
    assert (decision.verdict, decision.done) == (verdict, True)
    assert decision.interval.low <= math.log1p(slowdown) <= decision.interval.high


def test_a_rate_is_slower_where_it_is_lower():
    decision = run(noisy(100, 0.002, 24, 1), noisy(95, 0.002, 24, 2), better="higher")
    assert decision.verdict == Verdict.SLOWER


def test_in_a_duet_only_what_differs_within_pairs_is_noise():
    speed, own = noisy(1, 0.07, 24, 1), noisy(1.05, 0.01, 24, 2)
    values = speed, [one * change for one, change in zip(speed, own, strict=True)]
    assert run(*values).verdict == Verdict.UNCLEAR
    decision = run(*values, DUET_PLAN)
    assert (decision.verdict, decision.looked) == (Verdict.SLOWER, 10)
    assert decision.control == decision.interval


def test_in_a_duet_two_kinds_of_pairs_are_not_one_with_outliers():
    """8 of 10 pairs are 10 % slower, 2 are 10 % faster: trimming would leave these two out."""
    values = [1.0] * 10, [*noisy(1.1, 0.002, 5), 0.9, 0.9, *noisy(1.1, 0.002, 3)]
    assert run(*values, DUET_PLAN).verdict == Verdict.UNCLEAR


def test_noise_is_unclear_to_the_end():
    decision = run(noisy(1, 0.2, 24, 1), noisy(1, 0.2, 24, 2))
    assert (decision.verdict, decision.looked, decision.done) == (Verdict.UNCLEAR, 24, True)
    assert decision.add(1.0, 2.0) == Verdict.UNCLEAR  # nothing is added after the last look
    assert len(decision.before) == 24


def test_it_looks_only_where_it_planned_to():
    decision = SequentialDecision(Plan(first=6))
    for pair in range(5):
        assert decision.add(1.0, 1.5 + pair / 100) == Verdict.UNCLEAR
        assert decision.interval is None
    assert decision.add(1.0, 1.5) == Verdict.SLOWER


@pytest.mark.parametrize("pair", [(0.0, 1.0), (1.0, -1.0), (math.nan, 1.0), (1.0, math.inf)])
def test_a_pair_without_two_positive_values_is_refused(pair):
    with pytest.raises(ValueError, match="two positive values"):
        SequentialDecision().add(*pair)


def test_several_metrics_share_the_error():
    values = noisy(0.54, 0.002, 6, 1), noisy(0.55, 0.002, 6, 2)
    alone = run(*values, Plan(first=6, max_pairs=6))
    shared = run(*values, Plan(first=6, max_pairs=6, family=10))
    assert shared.interval.half > alone.interval.half


def test_a_steady_drift_cancels_between_the_sides_and_in_the_control():
    values = [1.0 + 0.01 * place for place in range(48)]
    sides = {side: [value for value, at in zip(values, order(48), strict=True) if at == side] for side in "AB"}
    decision = run(sides["A"], sides["B"])
    assert decision.verdict in (Verdict.SAME, Verdict.UNCLEAR)
    assert decision.control.low < 0 < decision.control.high
    control = control_differences(sides["A"], sides["B"])
    assert len(control) == 24
    assert abs(sum(control) / 24) < 0.005


def test_error_rates_with_normal_noise():
    """`benchmarks/gates/simulate.py` has the real numbers; this catches a slip."""
    source = random.Random(5)

    def gates(slowdown, share, number=150):
        found = []
        for _ in range(number):
            decision = SequentialDecision()
            while not decision.done:
                decision.add(math.exp(source.gauss(0, share)), (1 + slowdown) * math.exp(source.gauss(0, share)))
            found.append(decision.verdict)
        return found

    equal = gates(0.0, 0.004)
    assert equal.count(Verdict.SAME) >= 0.9 * len(equal)
    assert equal.count(Verdict.SLOWER) + equal.count(Verdict.FASTER) <= 2
    assert gates(0.01, 0.004).count(Verdict.SLOWER) >= 0.9 * 150
    loud = gates(0.0, 0.1)
    assert loud.count(Verdict.UNCLEAR) >= 0.98 * len(loud)
