"""The script of benchmarks/gates with fewer gates: what docs/statistics.md promises of recorded noise."""

import importlib.util
import sys
from pathlib import Path

import pytest

from pytest_llmprof.compare.sequential import DUET_PLAN, Plan
from pytest_llmprof.compare.verdicts import Verdict

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gates" / "simulate.py"
NUMBER = 300


@pytest.fixture(scope="module")
def simulate():
    spec = importlib.util.spec_from_file_location("simulate", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulate"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["simulate"]


@pytest.mark.parametrize("case", ["fast", "compiled"])
def test_recorded_noise(simulate, case):
    source, slowdowns = simulate.CASES[case]
    for slowdown, found in zip(slowdowns, (0.9, 0.95, 0.99, 0.99), strict=True):
        outcome = simulate.gates(source, slowdown, NUMBER, Plan(), seed=11)
        right = Verdict.SLOWER if slowdown else Verdict.SAME
        assert outcome.count(right) >= found * NUMBER, slowdown
        assert outcome.count(Verdict.FASTER, *(() if slowdown else (Verdict.SLOWER,))) <= 1


@pytest.mark.parametrize("case", ["eager, walk 10 %", "eager, two speeds", "ttft of fast"])
def test_a_drifting_host_is_unclear_not_slower(simulate, case):
    outcome = simulate.gates(simulate.CASES[case][0], 0.0, NUMBER, Plan(), seed=11)
    assert outcome.count(Verdict.UNCLEAR) >= 0.98 * NUMBER
    assert outcome.count(Verdict.SLOWER, Verdict.FASTER) <= 1


def test_in_a_duet_5_percent_are_found_where_the_machine_differs_by_7(simulate):
    for case, found in (("duet 2 %", 0.99), ("duet, heavy tails", 0.95), ("duet, 1 in 20 disturbed", 0.95)):
        source, _ = simulate.DUETS[case]
        outcome = simulate.gates(source, 0.05, NUMBER, DUET_PLAN, seed=11)
        assert outcome.count(Verdict.SLOWER) >= found * NUMBER, case
        assert outcome.count(Verdict.FASTER) == 0
    source, _ = simulate.DUETS["duet 2 %"]
    assert simulate.gates(source, 0.05, NUMBER, Plan(), seed=11).count(Verdict.SLOWER) <= 0.3 * NUMBER


def test_in_a_duet_equal_sides_are_not_called_different(simulate):
    """Also where each pair differs by 10 %, one way or the other: more pairs must agree than could do so by chance."""
    for case, (source, _) in simulate.DUETS.items():
        outcome = simulate.gates(source, 0.0, 2 * NUMBER, DUET_PLAN, seed=11)
        assert outcome.count(Verdict.SLOWER, Verdict.FASTER) <= 0.01 * NUMBER, case


def test_the_binomial_interval_is_that_of_the_tables(simulate):
    assert simulate.clopper_pearson(0, 300) == (0.0, pytest.approx(0.01222, abs=1e-5))
    assert simulate.clopper_pearson(3, 100) == (pytest.approx(0.00623, abs=1e-5), pytest.approx(0.08518, abs=1e-5))
