"""Limits on metrics."""

from dataclasses import replace

import pytest

from pytest_llmprof.compare.gates import Gate, judge, of_marker, read_gate
from pytest_llmprof.errors import ConfigError
from pytest_llmprof.records.catalogue import Catalogue
from pytest_llmprof.records.metrics import Energy, Fingerprint, Metrics

CATALOGUE = Catalogue()


def gates(limits: dict[str, object]) -> list[Gate]:
    return [read_gate(given, CATALOGUE) for given in of_marker(limits, "test_x", CATALOGUE)]


def metrics(quality: dict[str, float | None] | None = None, **more: object) -> Metrics:
    fields = {"kind": "pages", "stage": "nsys", "quality": quality, "fingerprint": Fingerprint(device="cpu"), **more}
    return Metrics(test="test_x", id="test_x", status="ok", **fields)


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
    (verdict,) = judge(gates({"cer": limit}), metrics({"cer": figure}))
    assert (verdict.name, verdict.figure, verdict.outcome) == ("cer", figure, outcome)


@pytest.mark.parametrize("limit", ["0.05", "=<0.05", "<=", "<=five", "", 0.05, None, "<=0.05 ms"])
def test_a_limit_that_is_none_is_refused(limit):
    with pytest.raises(ConfigError, match=r"llmprof_gate\(cer=.*test_x.*<=0.05"):
        gates({"cer": limit})


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(ConfigError, match=r"ttft_m=.*did you mean 'ttft_ms'"):
        gates({"ttft_m": "<=1"})


@pytest.mark.parametrize(
    ("name", "stages", "found", "outcome", "reason"),
    [
        ("cer", None, metrics({"cer": None}, quality_reason="random weights"), "not applicable", "random weights"),
        ("box_iou", None, metrics({"box_iou": None}), "not applicable", "no page has a truth for it"),
        ("tpot_ms", None, metrics({}), "not applicable", "not known for these pages on cpu"),
        ("cer", ("nsys",), metrics(kind="callable"), "not applicable", "not known for a callable on cpu"),
        (
            "joules_per_page",
            None,
            metrics(energy=Energy(reason="no counter"), figures={"joules_per_page": None}),
            "not applicable",
            "no counter",
        ),
        ("ttft_ms", ("a", "b"), metrics(), "measured in another stage", "a, b"),
        ("ttft_ms", (), metrics(), "not measured", "no stage of this run measures it"),
        ("cer", None, metrics({"cer": 0.0, "pages": 3, "truth_pages": 2}), "passed", "only 2 of 3 pages have truth"),
        ("repetition", None, metrics({"repetition": 0.0, "pages": 3, "truth_pages": 2}), "passed", None),
        ("cer", None, metrics({"cer": 0.0, "pages": 3, "truth_pages": 3}), "passed", None),
    ],
)
def test_why_a_gate_has_no_value(name, stages, found, outcome, reason):
    (verdict,) = judge([replace(gate, stages=stages) for gate in gates({name: "<=0.05"})], found)
    assert (verdict.outcome, verdict.reason) == (outcome, reason)
