from __future__ import annotations

from typing import Any

import pytest

from pytest_llmprof.report.findings import card_warnings, findings, gpu_busy_share, warnings


def _texts(metrics: dict[str, Any]) -> list[str]:
    return [finding.text for finding in findings(metrics)]


def test_the_weightiest_comes_first(metrics: dict[str, Any]) -> None:
    found = findings(metrics)
    weights = [finding.weight for finding in found]
    assert weights == sorted(weights, reverse=True)
    first = found[0].text
    assert first.startswith("**In decode the card is busy 12.0 % of a step**, launch-bound")
    assert "770 launches by the host and 770 kernels" in first
    assert any("3.00 device-to-host copies a token" in text for text in _texts(metrics))
    assert any("In vision the card is idle 78.0 %" in text and "44.2 % of the time to first" in text for text in
               _texts(metrics))


def test_the_top_kernel_counts_by_its_share_of_a_page(metrics: dict[str, Any]) -> None:
    found = next(finding for finding in findings(metrics) if "gemv2T" in finding.text)
    assert found.text.startswith("**`gemv2T_kernel_val<…>` takes 50.0 % of the card's time in decode** (6,400 times")
    assert found.weight == pytest.approx(0.5 * 15_990 / 16_100 * 0.12)


def test_the_cause_of_idle_time_is_the_greatest(metrics: dict[str, Any]) -> None:
    metrics["profile"]["phases"]["decode"]["idle_ms_profiled"] = {
        "launch": 1.0,
        "synchronisation": 300.0,
        "device": 2.0,
    }
    assert "held up by synchronisation" in _texts(metrics)[0]


def test_the_given_busy_share_is_preferred(metrics: dict[str, Any]) -> None:
    assert gpu_busy_share(metrics) == pytest.approx(0.12)
    metrics["profile"]["gpu_busy_share"] = 0.8
    assert gpu_busy_share(metrics) == 0.8
    assert not any("In decode the card" in text for text in _texts(metrics))


def test_a_healthy_run_has_nothing_to_look_at(metrics: dict[str, Any]) -> None:
    profile = metrics["profile"]
    profile.update(gpu_busy_share=0.9, d2h_copies_per_token=1.0, synchronisations_per_token=1.0, top_kernels=[])
    for phase in profile["phases"].values():
        phase["gpu_idle_share_profiled"] = 0.1
    metrics["figures"]["preprocess_ms"] = 1.0
    assert _texts(metrics) == []


def test_time_outside_phases_and_preprocessing(metrics: dict[str, Any]) -> None:
    metrics["figures"].update(total_ms=100.0, other_ms=20.0, preprocess_ms=40.0, decode_ms=30.0)
    texts = _texts(metrics)
    assert any("20.0 % of a page's time lies outside all phases" in text for text in texts)
    assert any("Preprocessing takes 40.0 % of a page" in text for text in texts)


def test_on_a_cpu_the_top_operator_is_named(metrics: dict[str, Any]) -> None:
    metrics["profile"] = {
        "kernels": None,
        "top_operators": [
            {"name": "llmprof/decode", "kind": "range", "phase": "decode", "count": 1, "phase_share": 0.2},
            {"name": "aten::conv2d", "kind": "op", "phase": "sam", "count": 20, "phase_share": 0.9},
            {"name": "aten::addmm", "kind": "op", "phase": "decode", "count": 400, "phase_share": 0.4},
        ],
        "top_kernels": [],
    }
    metrics["figures"]["preprocess_ms"] = 1.0
    # Not the one with the greater share of its phase: decode is 99 % of a page.
    assert _texts(metrics) == ["**`aten::addmm` takes 40.0 % of decode**, 400 calls in the window."]


def test_python_between_operators_is_named(metrics: dict[str, Any]) -> None:
    metrics["profile"]["top_operators"] = [
        {"name": "llmprof/step", "kind": "range", "phase": "decode", "count": 32, "phase_share": 0.3},
        {"name": "llmprof/decode", "kind": "range", "phase": "decode", "count": 1, "phase_share": 0.1},
        {"name": "llmprof/sam", "kind": "range", "phase": "sam", "count": 1, "phase_share": 0.05},
    ]
    found = [text for text in _texts(metrics) if "Python" in text]
    assert len(found) == 1
    assert found[0].startswith("**40.0 % of decode is Python between operators**")


def test_a_profiler_before_matters_on_a_card_only(metrics: dict[str, Any]) -> None:
    metrics["profiler_ran_before"] = True
    assert len(warnings(metrics, {})) == 1
    metrics["fingerprint"]["device"] = "cpu"
    assert warnings(metrics, {}) == []


def test_loops_and_outliers(metrics: dict[str, Any]) -> None:
    metrics["quality"]["runaway_pages"] = 1
    metrics["spread"]["total_ms"].update(max=60_000.0, p50=16_000.0)
    texts = _texts(metrics)
    assert texts[0].startswith("**1 page ended in a loop**")
    assert any("3.75 times the median page" in text for text in texts)


def test_warnings(metrics: dict[str, Any], environment: dict[str, Any]) -> None:
    assert warnings(metrics, environment) == []
    environment["gpu"].update(other_processes=2, throttled=True, throttle_reasons=["thermal"])
    metrics.update(profiler_ran_before=True, deterministic=False, rounds=1)
    metrics["model"]["weights"] = "random"
    metrics["spread"]["total_ms"]["iqr"] = 4_000.0
    found = " ".join(warnings(metrics, environment))
    for words in (
        "shared with 2 other processes",
        "throttled (thermal)",
        "profiler had run before",
        "not give equal tokens",
        "weights are random",
        "24.8 %",
        "one round",
    ):
        assert words in found


def test_the_card_around_and_during_the_rounds(metrics: dict[str, Any], environment: dict[str, Any]) -> None:
    metrics["round_seconds"] = [4.0, 6.0]
    environment["gpu_after"] = {**environment["gpu"], "throttled": False, "throttle_reasons": [], "other_processes": 0}
    environment["gpu_throttled_ms"] = {"power": 90.0, "thermal": 0.0}
    assert card_warnings(metrics, environment) == []  # 90 ms of 10 s is within 1 %
    environment["gpu_throttled_ms"]["thermal"] = 2_500.0
    (text,) = card_warnings(metrics, environment)
    assert text == "The card was throttled (thermal for 2.50 s during 10.0 s of rounds): the same work can be faster."
    assert text in warnings(metrics, environment)
    environment["gpu_after"].update(throttled=True, throttle_reasons=["sw_power_cap"], other_processes=1)
    shared, throttled = card_warnings(metrics, environment)
    assert shared == "The card was shared with 1 other process."
    assert throttled.startswith("The card was throttled (sw_power_cap, thermal for 2.50 s")
    assert card_warnings({}, {}) == []
