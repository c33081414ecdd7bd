"""Metrics are declared once: names, values, and what is made of them."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from pytest_llmprof.errors import ConfigError
from pytest_llmprof.measure.figures import figures_of, spread_of
from pytest_llmprof.records.catalogue import BUILTIN, Catalogue, Declaration, Metric, of_calls
from pytest_llmprof.records.metrics import Sample, Spread
from pytest_llmprof.stages import packaged_stages


def sample(page: str = "a", round_: int = 0, **changes: Any) -> Sample:
    values: dict[str, Any] = {
        "round": round_,
        "page": page,
        "batch_id": 0,
        "tokens": 5,
        "ttft_ms": 10.0,
        "tpot_ms": 4.0,
        "total_ms": 30.0,
        "other_ms": 1.0,
        "phases": {"decode": 20.0},
        "peak_bytes": None,
    }
    return Sample(**{**values, **changes})


def metric(name: str) -> Metric:
    return Catalogue()[name]


def test_two_plugins_with_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^two plugins declare the metric 'hits': names must differ$"):
        Catalogue((*BUILTIN, Metric("hits"), Metric("hits", "%")))
    with pytest.raises(ConfigError, match="two plugins declare the metric 'ttft_ms'"):
        Catalogue((*BUILTIN, Metric("ttft_ms", "ms")))


def test_stages_may_share_one_metric() -> None:
    shared = Metric("hits")
    assert [found.name for found in Catalogue((shared, Metric("misses"), shared))] == ["hits", "misses"]
    Catalogue((*BUILTIN, *(own for stage in packaged_stages() for own in stage.metrics)))


@pytest.mark.parametrize("name", ["", "Hits", "cache-hits", "cache hits", "1st", "hits\n", "_hits"])
def test_a_name_that_cannot_be_a_key_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"the metric name {name!r} cannot be a key")):
        Catalogue((Metric(name),))


def test_an_unknown_name_tells_the_nearest_and_all_that_are_allowed() -> None:
    catalogue = Catalogue((Metric("cache_hits"), Metric("cache_misses")))
    assert catalogue.unknown("cache_hit") == (
        "unknown metric cache_hit (did you mean 'cache_hits'?); allowed: cache_hits, cache_misses"
    )
    assert catalogue.unknown("zzz", ["cache_hits"]) == "unknown metric zzz; allowed: cache_hits"


def test_names_and_places() -> None:
    own = (Metric("hits", shown=("terminal",)), Metric("likes", section="quality", shown=("quality",)))
    catalogue = Catalogue((*BUILTIN, *own))
    assert "hits" in catalogue
    assert "misses" not in catalogue
    assert catalogue.names("figures")[-1] == "hits"
    assert catalogue.names("quality")[-1] == "likes"
    assert [found.name for found in catalogue.shown_in("terminal")] == [
        "ttft_ms", "tokens_per_s", "total_ms", "cer", "hits"
    ]  # fmt: skip
    assert "hits" not in [found.name for found in catalogue.shown_in("gate")]


def test_titles_and_headings() -> None:
    assert metric("ttft_ms").title == "Time to first token (ms)"
    assert (metric("ttft_ms").column, metric("tpot_ms").column) == ("TTFT ms", "TPOT ms")
    assert (Metric("busy", "share", "Busy").title, Metric("hits").title, Metric("hits").column) == (
        "Busy", "hits", "hits"
    )  # fmt: skip


def test_a_declaration_is_the_metric_without_code() -> None:
    own = Metric("hits", "1/s", "Hits", "higher", "page_rate", description="Of the cache.", value=lambda _: 1.0)
    assert type(own.declaration) is Declaration
    encoded = msgspec.json.encode(own.declaration)
    assert msgspec.json.decode(encoded, type=Declaration) == own.declaration
    assert "value" not in msgspec.json.decode(encoded)


def test_a_value_is_by_default_the_samples_field_or_its_phase() -> None:
    assert metric("ttft_ms").of(sample()) == 10.0
    assert metric("other_ms").of(sample()) == 1.0  # a field, not a phase
    assert metric("decode_ms").of(sample()) == 20.0
    assert metric("vision_ms").of(sample()) is None
    assert Metric("draft_ms").of(sample(phases={"draft": 3.0})) == 3.0
    assert Metric("total_ms", value=lambda one: one.total_ms * 2).of(sample()) == 60.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_json_cannot_hold_is_none(value: float) -> None:
    catalogue = Catalogue((Metric("odd", reduce="page", value=lambda one: value if one.page == "a" else 2.0),))
    assert catalogue["odd"].of(sample()) is None
    samples = [sample("a"), sample("b")]
    assert figures_of(samples, [1.0], catalogue=catalogue)["odd"] == 2.0
    assert spread_of(samples, [1.0], catalogue)["odd"].max == 2.0


def test_values_of_builtin_metrics() -> None:
    assert metric("tokens_per_s").of(sample()) == 250.0
    assert metric("tokens_per_s").of(sample(tpot_ms=None)) is None
    assert metric("peak_memory_gib").of(sample(peak_bytes=3 * 2**29)) == 1.5
    assert metric("peak_memory_gib").of(sample()) is None
    # A page's answer may have no token; a callable has none to count.
    assert metric("tokens").of(sample(tokens=0, batch_total_ms=30.0)) == 0.0
    assert metric("tokens").of(sample(tokens=0)) is None


def test_a_callable_has_calls() -> None:
    titles = {name: metric(name).title_for("callable") for name in ("total_ms", "pages_per_s", "round_s", "ttft_ms")}
    assert titles == {
        "total_ms": "Total a call (ms)",
        "pages_per_s": "Throughput (calls/s)",
        "round_s": "Call (s)",
        "ttft_ms": "Time to first token (ms)",
    }
    assert metric("total_ms").title_for("pages") == metric("total_ms").title_for(None) == "Total a page (ms)"
    assert of_calls("page ms", {"callable"}) == "call ms"
    assert of_calls("page ms", {"callable", "pages"}) == "page/call ms"
    assert of_calls("page ms", {"pages"}) == of_calls("page ms", ()) == "page ms"


OWN = (
    Metric("double_ms", "ms", reduce="page", value=lambda one: 2 * one.total_ms),
    Metric("draft_ms", "ms", reduce="batch"),
    Metric("pages_a_minute", "", better="higher", reduce="page_rate", value=lambda one: 60_000 / one.total_ms),
    Metric("longest_ms", "ms", reduce="max", value=lambda one: one.total_ms),
    Metric("hits"),
    Metric("likes", reduce="mean", section="quality"),
)


@pytest.fixture
def samples() -> list[Sample]:
    """Pages a and b are a batch, c is one: three rounds."""
    return [
        sample(page, index, total_ms=total * (1 + index), batch_id=batch, batch_total_ms=90.0, phases={"draft": draft})
        for index in range(3)
        for page, total, batch, draft in (("a", 10.0, 0, 4.0), ("b", 30.0, 0, 4.0), ("c", 90.0, 1, 8.0))
    ]


def test_metrics_of_a_third_party(samples: list[Sample]) -> None:
    figures = figures_of(samples, [1.0] * 3, catalogue=Catalogue((*BUILTIN, *OWN)))
    assert list(figures) == Catalogue((*BUILTIN, *OWN)).names("figures")
    assert "likes" not in figures
    assert figures["double_ms"] == 2 * figures["total_ms"] == 120.0  # the median page, in its median round
    assert figures["draft_ms"] == 6.0  # of two batches, not of three pages
    assert figures["longest_ms"] == 270.0
    assert figures["hits"] is None  # the stage sets it
    assert figures["ttft_ms"] == figures_of(samples, [1.0] * 3)["ttft_ms"]


def test_a_rate_is_that_of_the_median_time(samples: list[Sample]) -> None:
    catalogue = Catalogue((*BUILTIN, *OWN))
    two = [one for one in samples if one.page == "a" and one.round < 2]  # 10 and 20 ms
    figures = figures_of(two, [1.0] * 2, catalogue=catalogue)
    assert figures["total_ms"] == 15.0
    assert figures["pages_a_minute"] == pytest.approx(60_000 / 15)  # not the mean of 6,000 and 3,000
    spread = spread_of(two, [1.0] * 2, catalogue)["pages_a_minute"]
    assert spread.p50 == pytest.approx(4_000)
    assert spread.iqr == pytest.approx(1_500)


def test_a_rate_of_zero_is_no_time() -> None:
    own = Metric("hits_per_s", reduce="page_rate", value=lambda one: float(one.tokens))
    samples = [sample("a", index, tokens=tokens) for index, tokens in enumerate((0, 2, 4))]
    assert figures_of(samples, [1.0] * 3, catalogue=Catalogue((own,)))["hits_per_s"] == 2.0


def test_the_spread_of_a_third_partys_metric(samples: list[Sample]) -> None:
    spread = spread_of(samples, [1.0] * 3, Catalogue((*BUILTIN, *OWN)))
    # Medians of the pages: 40, 120, 360. Rounds of a page spread by 2 x its first time.
    assert spread["double_ms"] == Spread(min=40.0, max=360.0, p50=120.0, p90=312.0, iqr=60.0)
    assert spread["draft_ms"] == Spread(min=4.0, max=8.0, p50=6.0, p90=pytest.approx(7.6), iqr=0.0)
    assert {"longest_ms", "hits", "likes", "pages_per_s"}.isdisjoint(spread)
    assert {"round_s", "total_ms", "pages_a_minute"} <= set(spread)
