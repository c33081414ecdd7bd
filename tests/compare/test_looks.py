"""Looks at a process that measures more rounds: how often their intervals miss, and when they end."""

from __future__ import annotations

import math
import random
from statistics import median

import pytest

from pytest_llmprof.compare.looks import Noise, Rounds, Sides, planned
from pytest_llmprof.measure.figures import percentile

ALPHA = 0.05
"""Larger than a gate's, so that few simulations tell it from a slip."""


def process(source: random.Random, noise: float, rounds: int, deviation: float) -> list[float]:
    middle = math.exp(source.gauss(0, deviation))
    return [middle * math.exp(source.gauss(0, noise)) for _ in range(rounds)]


def seen(values: list[float]) -> tuple[float, Noise]:
    spread = percentile(values, 0.75) - percentile(values, 0.25)
    return math.log(median(values)), Noise(spread / median(values), len(values))


@pytest.mark.parametrize(("first", "most"), [(2, 20), (5, 20), (10, 10)])
@pytest.mark.parametrize(
    ("noise", "deviation", "saved"), [((0.01, 0.01), 0.005, 10), ((0.001, 0.03), 0.005, 20), ((0.02, 0.02), 0.001, 2)]
)
def test_all_looks_together_miss_no_more_than_they_may(first, most, noise, deviation, saved):
    source = random.Random(7)
    looks = planned(first, most)
    missed, number = 0, 1500
    for _ in range(number):
        old, old_noise = seen(process(source, noise[0], saved, deviation))
        rounds = process(source, noise[1], most, deviation)
        for look in looks:
            new, new_noise = seen(rounds[:look])
            sides = Sides([old], [new], [old_noise, new_noise], deviation)
            interval = sides.interval(sides.within(), len(looks), ALPHA)
            if not interval.low <= 0 <= interval.high:
                missed += 1
                break
    assert missed <= 1.3 * ALPHA * number


def test_the_plan_doubles_up_to_the_most():
    assert planned(2, 20) == [2, 4, 8, 16, 20]
    assert planned(20, 20) == [20]
    assert planned(30, 20) == [30]


def test_more_rounds_narrow_their_own_part_alone():
    def half(rounds, deviation):
        sides = Sides([0.0], [0.0], [Noise(0.01, rounds), Noise(0.01, rounds)], deviation)
        return sides.interval(sides.within(), 1, 0.002).half

    assert half(1000, 0.0) < 0.2 * half(10, 0.0)
    assert half(1000, 0.005) > 3.1 * math.sqrt(2) * 0.005


def test_single_rounds_have_no_interval_but_may_get_one():
    sides = Sides([0.0], [0.0], [Noise(0.0, 1), Noise(0.0, 1)], 0.005)
    assert sides.within() is None
    assert sides.may_settle(Rounds(5, 16), 0.002, 0.1, lambda *_: False)
    assert not sides.may_settle(Rounds(1, 1), 0.002, 0.1, lambda *_: True)


def test_a_spread_of_processes_that_is_too_wide_ends_it():
    def settled(change, equality):
        return change.low > 0 or abs(equality.high) < 0.02

    for deviation, more in ((0.15, False), (0.005, True)):
        sides = Sides([0.0], [0.0], [Noise(0.01, 10), Noise(0.01, 5)], deviation)
        assert sides.may_settle(Rounds(3, 20), 0.002, 0.1, settled) is more
