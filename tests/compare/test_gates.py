"""Limits on metrics."""

from dataclasses import replace

import pytest
from msgspec import structs
from saved_runs import DECLARATIONS, H100, saved_run, saved_test

from pytest_llmprof.compare.compare import Terms
from pytest_llmprof.compare.gates import Gate, Reference, judge, judge_changes, of_marker, read_gate
from pytest_llmprof.compare.looks import Rounds
from pytest_llmprof.errors import ConfigError
from pytest_llmprof.records.baseline import SavedPage
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


@pytest.mark.parametrize("limit", ["0.05", "=<0.05", "<=", "<=five", "", 0.05, None, "<=0.05 ms", "<=1e999"])
def test_a_limit_that_is_none_is_refused(limit):
    with pytest.raises(ConfigError, match=r"llmprof_gate\(cer=.*test_x.*<=0.05"):
        gates({"cer": limit})


@pytest.mark.parametrize(
    "arguments",
    [
        {"slower": {"tpot_ms": "50%"}, "tpot_ms_worse": "2%"},
        {"cer_worse": "0.001", "worse": {"cer": "0.5"}},
        {"slower": {"tpot_ms": "50%"}, "worse": {"tpot_ms": "2%"}},
    ],
)
def test_two_limits_on_one_change_in_a_mark_are_refused(arguments):
    with pytest.raises(ConfigError, match=r"llmprof_gate\(.*at test_x: (tpot_ms|cer) has another limit on its change"):
        gates(arguments)


@pytest.mark.parametrize(("written", "limit"), [(1e-5, 1e-5), ("1e-5", 1e-5), (0.1234567891, 0.1234567891), (0, 0)])
def test_an_amount_is_taken_as_it_is_written(written, limit):
    (gate,) = gates({"cer_worse": written})
    assert (gate.limit, gate.text) == (limit, f"{written} worse")


@pytest.mark.parametrize("written", [10**400, "9" * 400, float("inf"), float("nan"), True, -1, [1], {"a": 1}])
def test_an_amount_that_is_none_is_refused(written):
    with pytest.raises(ConfigError, match="the limit is an amount of 0 or more"):
        gates({"cer_worse": written})


@pytest.mark.parametrize("written", ["<=1234567", ">=0.1234567", "<200", "==1e-07"])
def test_a_limit_is_shown_with_all_its_digits(written):
    (given,) = of_marker({"ttft_ms": written}, "here", Catalogue())
    assert read_gate(given, Catalogue()).text == written


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


def against(runs, test, **given):
    """The results of the gates *given* for *test* against *runs*, by metric."""
    found = Metrics(
        test="test_x",
        id=test.id,
        stage=test.stage,
        kind="pages",
        status="ok",
        figures=test.figures,
        quality=test.quality,
        fingerprint=Fingerprint(device="cuda:0"),
    )
    terms = Terms(rounds=Rounds(1, test.rounds))
    results, _ = judge_changes(gates(given), found, test, Reference("main", runs), terms, DECLARATIONS)
    return {result.name: result for result in results}


@pytest.mark.parametrize(
    ("figures", "gate", "outcome", "verdict"),
    [
        ({"tpot_ms": 0.60}, {"slower": {"tpot_ms": "2%"}}, "failed", "slower"),
        ({"tokens_per_s": 1500.0}, {"slower": {"tokens_per_s": "2%"}}, "failed", "slower"),
        ({"tokens_per_s": 2200.0}, {"slower": {"tokens_per_s": "2%"}}, "passed", "faster"),
        ({"tpot_ms": 0.53}, {"slower": {"tpot_ms": "3%"}}, "passed", "not slower"),
        ({"peak_memory_gib": 8.0}, {"slower": {"peak_memory_gib": "2%"}}, "failed", "worse"),
        ({"peak_memory_gib": 7.6}, {"peak_memory_gib_worse": "2%"}, "passed", "same"),
    ],
)
def test_a_change_is_held_against_its_limit(figures, gate, outcome, verdict):
    test = saved_test(rounds=20, figures=figures)
    (result,) = against([saved_run(saved_test(rounds=20))], test, **gate).values()
    assert (result.outcome, result.verdict) == (outcome, verdict)


@pytest.mark.parametrize(("cer", "outcome"), [(0.03, "passed"), (0.034, "passed"), (0.036, "failed"), (0.01, "passed")])
def test_quality_may_be_worse_by_an_amount(cer, outcome):
    result = against([saved_run()], saved_test(quality={"cer": cer}), cer_worse="0.005")["cer"]
    assert (result.outcome, result.limit) == (outcome, "0.005 worse")


def test_other_work_is_not_measured():
    test = saved_test(pages={"a": SavedPage(1), "c": SavedPage(1)})
    result = against([saved_run()], test, slower={"tpot_ms": "2%"}, cer_worse="1")
    assert {one.outcome for one in result.values()} == {"not measured"}
    assert result["cer"].text == "cer 1 worse is not measured: other pages (only before: b; only after: c)"


def test_only_runs_of_this_machine_count_where_there_are_any():
    here, there = saved_test(), saved_test(machine=replace_limit(H100, 350.0), figures={"tpot_ms": 0.3})
    runs = [saved_run(here, key="1"), saved_run(there, key="2"), saved_run(there, key="3")]
    assert against(runs, saved_test(), slower={"tpot_ms": "2%"})["tpot_ms"].baseline == 0.54
    result = against(runs[1:], saved_test(), slower={"tpot_ms": "2%"})["tpot_ms"]
    assert (result.outcome, result.reason) == (
        "not measured",
        "another power limit of the GPU (350 against 700 W)",
    )


def replace_limit(machine, watts):
    return structs.replace(machine, power_limit_w=watts)


def test_a_changed_text_is_told_with_the_failure():
    test = saved_test(rounds=20, figures={"tpot_ms": 0.60}, pages={"a": SavedPage(256, "x"), "b": SavedPage(256, "y")})
    text = against([saved_run(saved_test(rounds=20))], test, slower={"tpot_ms": "2%"})["tpot_ms"].text
    assert text.startswith("tpot_ms is slower: 0.540 → 0.600, +11.1 % (+")
    assert "text of 2 of 2 pages differs" in text
