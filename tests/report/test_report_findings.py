from __future__ import annotations

import dataclasses

import msgspec
import pytest
from msgspec.structs import replace
from report_helpers import notes, report, section, to_look_at

from pytest_llmprof.records.environment import Environment, Gpu, Workers
from pytest_llmprof.records.metrics import Metrics, RoundHost
from pytest_llmprof.records.stage import StageRecords
from pytest_llmprof.report.findings import findings, machine_warnings, page_notes, warnings
from pytest_llmprof.stages.torch_profiler.records import Profile, TopOperator


def test_the_weightiest_comes_first(records: StageRecords) -> None:
    weights = {
        finding.text: finding.weight for finding in (*findings(records.metrics), *section(records).findings)
    }
    texts = to_look_at(records)
    assert texts == sorted(weights, key=lambda text: -weights[text])
    assert texts[0].startswith("**In decode the GPU is busy 12.0 % of a step**, launch-bound")
    assert "770 launches by the host and 770 kernels" in texts[0]
    assert any("3.00 device-to-host copies a token" in text for text in texts)
    assert any("In vision the GPU is idle 78.0 %" in text and "44.2 % of the time to first" in text for text in texts)


def test_the_top_kernel_counts_by_its_share_of_a_page(records: StageRecords) -> None:
    found = next(finding for finding in section(records).findings if "gemv2T" in finding.text)
    assert found.text.startswith("**`gemv2T_kernel_val<…>` takes 50.0 % of the GPU's time in decode** (6,400 times")
    assert found.weight == pytest.approx(0.5 * 15_990 / 16_100 * 0.12)


def test_the_cause_of_idle_time_is_the_greatest(records: StageRecords, profile: Profile) -> None:
    profile.phases["decode"].idle_ms_profiled = {"launch": 1.0, "synchronisation": 300.0, "device": 2.0}
    assert "held up by synchronisation" in to_look_at(records)[0]


def test_the_given_busy_share_is_preferred(records: StageRecords, profile: Profile) -> None:
    row = "| GPU busy in a decode step (kernel time / clean step time) | {} % |"
    assert row.format("12.0") in report(records)
    profile.gpu_busy_share = 0.8
    assert row.format("80.0") in report(records)
    assert not any("In decode the GPU" in text for text in to_look_at(records))
    profile.gpu_busy_share = 1.25
    assert any("GPU busy came out as 125.0 %" in text for text in notes(records))


def test_a_healthy_run_has_nothing_to_look_at(records: StageRecords, profile: Profile) -> None:
    profile.gpu_busy_share = 0.9
    profile.d2h_copies_per_token = profile.synchronisations_per_token = 1.0
    profile.top_kernels = []
    for phase in profile.phases.values():
        phase.gpu_idle_share_profiled = 0.1
    records.metrics.figures["preprocess_ms"] = 1.0
    assert to_look_at(records) == []


def test_time_outside_phases_and_preprocessing(records: StageRecords) -> None:
    records.metrics.figures.update(total_ms=100.0, other_ms=20.0, preprocess_ms=40.0, decode_ms=30.0)
    texts = to_look_at(records)
    assert any("20.0 % of a page's time lies outside all phases" in text for text in texts)
    assert any("Preprocessing takes 40.0 % of a page**: work of the CPU before" in text for text in texts)
    assert records.metrics.model is not None
    records.metrics.model.details["preprocess"] = "Triton"
    assert any("Preprocessing takes 40.0 % of a page**: work before" in text for text in to_look_at(records))


def test_on_a_cpu_the_top_operator_is_named(records: StageRecords) -> None:
    profile = Profile(
        top_operators=[
            TopOperator("llmprof/decode", "range", "decode", 1, 1.0, 0.1, 0.2),
            TopOperator("aten::conv2d", "op", "sam", 20, 1.0, 0.1, 0.9),
            TopOperator("aten::addmm", "op", "decode", 400, 1.0, 0.1, 0.4),
        ]
    )
    records.metrics.figures["preprocess_ms"] = 1.0
    # Not the one with the greater share of its phase: decode is 99 % of a page.
    expected = ["**`aten::addmm` takes 40.0 % of decode**, 400 calls in the window."]
    assert to_look_at(dataclasses.replace(records, blocks={"profile": profile})) == expected


def test_a_single_call_is_one(records: StageRecords) -> None:
    profile = Profile(top_operators=[TopOperator("aten::mm", "op", "decode", 1, 1.0, 0.1, 0.9)])
    expected = "**`aten::mm` takes 90.0 % of decode**, 1 call in the window."
    assert expected in to_look_at(dataclasses.replace(records, blocks={"profile": profile}))


def test_python_between_operators_is_named(records: StageRecords, profile: Profile) -> None:
    profile.top_operators = [
        TopOperator("llmprof/step", "range", "decode", 32, 1.0, 0.1, 0.3),
        TopOperator("llmprof/decode", "range", "decode", 1, 1.0, 0.1, 0.1),
        TopOperator("llmprof/sam", "range", "sam", 1, 1.0, 0.1, 0.05),
    ]
    found = [text for text in to_look_at(records) if "Python" in text]
    assert len(found) == 1
    assert found[0].startswith("**40.0 % of decode is Python between operators**")


def test_python_outside_phases_has_no_line(records: StageRecords, profile: Profile) -> None:
    """Once "100.0 % of  is Python between operators" was said of a callable."""
    profile.top_operators = [TopOperator("llmprof/round", "range", "", 1, 1.0, 1.0, 1.0)]
    assert not any("Python" in text for text in to_look_at(records))


def test_a_profiler_before_matters_on_a_gpu_only(metrics: Metrics) -> None:
    metrics.profiler_ran_before = True
    assert len(warnings(metrics, None)) == 1
    metrics.fingerprint.device = "cpu"
    assert warnings(metrics, None) == []


def test_error_rates_by_block_are_a_warning(metrics: Metrics) -> None:
    assert metrics.quality is not None
    assert warnings(metrics, None) == []
    metrics.quality["by_block_pages"] = 2
    (text,) = warnings(metrics, None)
    assert text == "2 pages had too long a text to be compared as a whole: their error rates may be a little too high."


def test_loops_and_outliers(records: StageRecords) -> None:
    assert records.metrics.quality is not None
    records.metrics.quality["runaway_pages"] = 1
    records.metrics.spread["total_ms"].max = 60_000.0
    records.metrics.spread["total_ms"].p50 = 16_000.0
    texts = to_look_at(records)
    assert texts[0].startswith("**1 page ended in a loop**")
    assert any("3.75 times the median page" in text for text in texts)


def test_the_models_note_is_shown(metrics: Metrics) -> None:
    metrics.model = msgspec.structs.replace(metrics.model, note="preprocessing ran on the CPU: <one byte> differs")
    assert warnings(metrics, None) == ["preprocessing ran on the CPU: &lt;one byte&gt; differs"]
    assert page_notes(metrics) == ["preprocessing ran on the CPU: <one byte> differs"]


def test_warnings(metrics: Metrics, environment: Environment, gpu: Gpu) -> None:
    assert warnings(metrics, environment) == []
    busy = replace(gpu, other_processes=2, throttled=True, throttle_reasons=("thermal",))
    metrics.profiler_ran_before, metrics.deterministic = True, False
    metrics.rounds, metrics.round_seconds = 1, [40.2]
    assert metrics.model is not None
    metrics.model = replace(metrics.model, weights="random")
    metrics.spread["total_ms"].iqr = 4_000.0
    found = warnings(metrics, replace(environment, gpu=busy))
    for words in (
        "shared with 2 other processes",
        "throttled (thermal)",
        "profiler had run before",
        "not give equal tokens",
        "weights are random",
        "24.8 %",
        "one round",
    ):
        assert words in " ".join(found)
    assert notes(StageRecords(metrics, {}, replace(environment, gpu=busy))) == found


def test_a_contended_host_is_a_warning(metrics: Metrics, environment: Environment) -> None:
    quiet, busy = RoundHost(1.2, 1.9, 0.01, contended=False), RoundHost(7.9, 0.7, 0.634, contended=True)
    metrics.round_host = [quiet] * 10
    assert warnings(metrics, environment) == []
    metrics.round_host = [quiet] * 9 + [busy]  # one in ten does not reach a median
    assert warnings(metrics, environment) == []
    metrics.round_host = [quiet, busy]
    text = (
        "The host was contended in 1 of 2 rounds (a thread waited for a processor for up to 63.4 % of a round, "
        "load 7.90): on a quiet machine the same work is faster."
    )
    assert warnings(metrics, environment) == machine_warnings(metrics, None) == [text]
    metrics.round_host = [RoundHost(7.9, 0.7, None, contended=True)]
    assert machine_warnings(metrics, None) == [
        "The host was contended in 1 of 1 round (load 7.90): on a quiet machine the same work is faster."
    ]
    assert machine_warnings(metrics, None, brief=True) == [
        "The host was contended in 1 of 1 round: on a quiet machine the same work is faster."
    ]
    metrics.spread["total_ms"] = replace(metrics.spread["total_ms"], iqr=0.25 * metrics.figures["total_ms"])
    full, brief = warnings(metrics, None), warnings(metrics, None, brief=True)
    assert len(full) == len(brief)
    text = "Noisy: the total time of a page varies by {} from round to round (IQR over median)."
    assert text.format("25.0 %") in full
    assert text.format("more than 10.0 %") in brief


def test_the_gpu_around_and_during_the_rounds(metrics: Metrics, environment: Environment, gpu: Gpu) -> None:
    metrics.round_seconds = [4.0, 6.0]
    held = {"power": 90.0, "thermal": 0.0}
    environment = replace(environment, gpu_after=gpu, gpu_throttled_ms=held)
    assert machine_warnings(metrics, environment) == []  # 90 ms of 10 s is within 1 %
    held["thermal"] = 2_500.0
    (text,) = machine_warnings(metrics, environment)
    assert text == "The GPU was throttled (thermal for 2.50 s during 10.0 s of rounds): the same work can be faster."
    assert text in warnings(metrics, environment)
    assert "The GPU was throttled (thermal): the same work can be faster." in warnings(metrics, environment, brief=True)
    after = replace(gpu, throttled=True, throttle_reasons=("sw_power_cap",), other_processes=1)
    shared, throttled = machine_warnings(metrics, replace(environment, gpu_after=after))
    assert shared == "The GPU was shared with 1 other process."
    assert throttled.startswith("The GPU was throttled (sw_power_cap, thermal for 2.50 s")
    assert machine_warnings(metrics, None) == machine_warnings(metrics, Environment()) == []


def test_other_workers_of_the_run(metrics: Metrics, environment: Environment, gpu: Gpu) -> None:
    metrics.fingerprint.device = "cuda:0"
    assert machine_warnings(metrics, replace(environment, workers=Workers(2, 1))) == []
    shared = replace(environment, workers=Workers(3, 2), gpu=replace(gpu, other_processes=1))
    (text,) = machine_warnings(metrics, shared)
    assert text == "The GPU was shared with 1 other worker of this run: alone on it the same work is faster."
    metrics.fingerprint.device = "cpu"
    (text,) = machine_warnings(metrics, Environment(workers=Workers(3, 2)))
    assert text == "It ran beside 2 other workers of this run on the same host: alone the same work may be faster."
    assert "| Workers on the host | 3, 2 of them with this GPU |" in report(StageRecords(metrics, {}, shared))
