"""Intervals against scipy's own tests and known tables."""

import math

import pytest
from saved_runs import noisy

from pytest_llmprof.compare.intervals import assumed, centre, normal_quantile, t_quantile, t_tail, unpaired

scipy_stats = pytest.importorskip("scipy.stats")


def logs(values):
    return [math.log(value) for value in values]


def test_quantiles_are_those_of_the_tables():
    assert t_quantile(0.975, 10) == pytest.approx(2.2281, abs=1e-4)
    assert t_quantile(0.9995, 5) == pytest.approx(6.8688, abs=1e-4)
    assert t_quantile(0.05, 7) == pytest.approx(-1.8946, abs=1e-4)
    assert normal_quantile(0.995) == pytest.approx(2.5758, abs=1e-4)
    assert t_tail(2.2281, 10) == pytest.approx(0.05, abs=1e-5)


def test_a_few_pairs_have_the_plain_t_interval():
    values = [0.01, 0.02, 0.015, 0.018, 0.011, 0.022]
    interval = centre(values).interval(0.05)
    low, high = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))


def test_many_pairs_have_the_trimmed_mean_of_yuen():
    values = [value - 1 for value in noisy(1, 0.01, 20)]
    found = centre(values)
    assert found.value == pytest.approx(scipy_stats.trim_mean(values, 0.2))
    assert found.error == pytest.approx(scipy_stats.mstats.trimmed_stde(values, limits=(0.2, 0.2)), rel=0.05)
    assert found.freedom == 11


def test_an_outlier_hardly_moves_many_pairs():
    values = [value - 1 for value in noisy(1, 0.01, 20)]
    moved = centre([*values[:-1], 3.0]).interval(0.05)
    assert abs(moved.estimate - centre(values).interval(0.05).estimate) < 0.005
    assert moved.half < 0.02


@pytest.mark.parametrize("number", [5, 20])
def test_unpaired_sides_have_welchs_interval(number):
    before, after = logs(noisy(1, 0.01, number, 1)), logs(noisy(1.05, 0.03, number + 3, 2))
    interval = unpaired(before, after, 0.05)
    trim = 0.2 if number >= 10 else 0
    result = scipy_stats.ttest_ind(after, before, equal_var=False, trim=trim)
    low, high = result.confidence_interval(0.95) if not trim else (None, None)
    if not trim:
        assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))
    else:
        freedom, error = result.df, interval.half / t_quantile(0.975, result.df)
        assert interval.estimate / error == pytest.approx(result.statistic, rel=1e-6)
        assert freedom > 0


def test_one_process_against_several_has_the_prediction_interval():
    before = logs([1.0, 1.01, 0.99, 1.02, 0.98])
    interval = unpaired(before, logs([1.1]), 0.05)
    spread = math.sqrt(sum((one - sum(before) / 5) ** 2 for one in before) / 4)
    assert interval.half == pytest.approx(t_quantile(0.975, 4) * spread * math.sqrt(1 + 1 / 5))
    assert interval.estimate == pytest.approx(math.log(1.1) - sum(before) / 5)
    turned = unpaired(logs([1.1]), before, 0.05)
    assert (turned.low, turned.high) == (pytest.approx(-interval.high), pytest.approx(-interval.low))
    with pytest.raises(ValueError, match="3 processes"):
        unpaired([0.0, 0.1], [0.0], 0.05)


def test_an_assumed_spread_adds_that_of_the_rounds():
    interval = assumed([0.0], [0.02], 0.003, (0.004, 0.0), 0.05)
    assert interval.half == pytest.approx(normal_quantile(0.975) * math.sqrt(2 * 0.003**2 + 0.004**2))
    assert interval.estimate == 0.02
