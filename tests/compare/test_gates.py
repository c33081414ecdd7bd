"""Limits on metrics."""

import pytest

from pytest_llmprof.compare.gates import judge, parse_gates
from pytest_llmprof.errors import ConfigError
from pytest_llmprof.records.catalogue import Catalogue

CATALOGUE = Catalogue()


@pytest.mark.parametrize(
    ("limit", "figure", "outcome"),
    [
        ("<=0.05", 0.05, "passed"),
        ("<=0.05", 0.0501, "failed"),
        ("< 0.05", 0.05, "failed"),
        (">=100", 100.0, "passed"),
        (" >1e2 ", 100.0, "failed"),
        ("==0", 0.0, "passed"),
        ("<=0.05", None, "not applicable"),
    ],
)
def test_a_limit_is_held_against_the_metric(limit, figure, outcome):
    (verdict,) = judge(parse_gates({"cer": limit}, "test_x", CATALOGUE), {"cer": figure})
    assert (verdict.name, verdict.figure, verdict.outcome) == ("cer", figure, outcome)


@pytest.mark.parametrize("limit", ["0.05", "=<0.05", "<=", "<=five", "", 0.05, None, "<=0.05 ms"])
def test_a_limit_that_is_none_is_refused(limit):
    with pytest.raises(ConfigError, match=r"llmprof_gate\(cer=.*test_x.*<=0.05"):
        parse_gates({"cer": limit}, "test_x", CATALOGUE)


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(ConfigError, match=r"ttft_m=.*did you mean 'ttft_ms'"):
        parse_gates({"ttft_m": "<=1"}, "test_x", CATALOGUE)
