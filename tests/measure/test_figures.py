"""From samples to metrics."""

import pytest
from msgspec import UNSET

from pytest_llmprof.measure.figures import figures_of, percentile, spread_of
from pytest_llmprof.records.metrics import RoundEnergy, Sample


def sample(page, round_, total, **changes):
    values = {
        "round": round_,
        "page": page,
        "batch_id": 0,
        "tokens": 5,
        "ttft_ms": total / 10,
        "tpot_ms": total / 5,
        "total_ms": total,
        "other_ms": 1.0,
        "phases": {"preprocess": 1.0, "decode": total / 2},
        "peak_bytes": None,
    }
    return Sample(**{**values, **changes})


def test_a_rate_is_that_of_the_median_time():
    """Two rounds, one of them slow: the mean of two rates would hide it."""
    samples = [sample("a", i, 100.0, tpot_ms=tpot) for i, tpot in enumerate((67.7, 1.57))]
    figures = figures_of(samples, [0.1, 0.1])
    assert figures["tokens_per_s"] == pytest.approx(1000 / figures["tpot_ms"])
    spread = spread_of(samples, [0.1, 0.1])["tokens_per_s"]
    assert spread.min == spread.max == pytest.approx(figures["tokens_per_s"])


def test_a_figure_is_the_median_of_page_medians():
    # Page a: 10, 30, 1000 -> 30. Page b: 50, 50, 50 -> 50. A slow round does not carry the figure away.
    samples = [sample("a", i, total) for i, total in enumerate((10.0, 30.0, 1000.0))]
    samples += [sample("b", i, 50.0) for i in range(3)]
    figures = figures_of(samples, [0.06, 0.08, 1.05])
    assert figures["total_ms"] == 40.0
    assert figures["ttft_ms"] == 4.0
    assert figures["decode_ms"] == 20.0
    assert figures["tokens_per_s"] == pytest.approx((1000 / 6 + 1000 / 10) / 2)
    assert figures["round_s"] == 0.08
    assert figures["pages_per_s"] == pytest.approx(2 / 0.08)
    assert figures["vision_ms"] is None
    assert figures["peak_memory_gib"] is None


def test_a_page_that_fails_later_makes_the_others_no_faster():
    samples = [sample("a", 0, 1000.0), sample("b", 0, 1000.0), sample("a", 1, 1000.0), sample("a", 2, 1000.0)]
    assert figures_of(samples, [2.0, 1.0, 1.0])["pages_per_s"] == pytest.approx(1.0)
    # A stage of one's own that counts a round in which every page had failed.
    assert figures_of(samples, [2.0, 1.0, 1.0, 0.0])["pages_per_s"] == pytest.approx(1.0)


def test_one_token_has_no_rate():
    figures = figures_of([sample("a", 0, 10.0, tokens=1, tpot_ms=None)], [0.01])
    assert figures["tpot_ms"] is None
    assert figures["tokens_per_s"] is None
    assert figures["tokens"] == 1


def test_peak_memory_is_the_highest_of_all():
    samples = [sample("a", 0, 1.0, peak_bytes=2**30), sample("b", 0, 1.0, peak_bytes=3 * 2**30)]
    assert figures_of(samples, [0.002])["peak_memory_gib"] == 3.0


def test_noise_is_taken_across_rounds_page_by_page():
    # Pages differ by 100 times, rounds of one page do not differ at all: no noise.
    samples = [sample(page, i, total) for page, total in (("a", 1.0), ("b", 100.0)) for i in range(4)]
    spread = spread_of(samples, [0.1] * 4)["total_ms"]
    assert spread.iqr == 0.0
    assert (spread.min, spread.max) == (1.0, 100.0)
    assert spread.p99 is UNSET


def test_p99_needs_a_hundred_pages():
    samples = [sample(f"p{i}", 0, float(i)) for i in range(100)]
    spread = spread_of(samples, [1.0])["total_ms"]
    assert spread.p99 == pytest.approx(98.01)
    assert spread.iqr is None


def test_percentile_interpolates():
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert percentile([7.0], 0.9) == 7.0


def test_no_samples_give_no_figures():
    assert set(figures_of([], []).values()) == {None}


def test_a_batch_counts_once_and_a_page_for_itself():
    # A full batch of three pages and a last one of a single page: two batches, four pages.
    full = {"batch_total_ms": 90.0, "batch_tokens_per_s": 300.0, "phases": {"decode": 80.0}, "other_ms": 2.0}
    rest = {"batch_total_ms": 30.0, "batch_tokens_per_s": 100.0, "phases": {"decode": 20.0}, "other_ms": 4.0}
    samples = [
        sample(page, round_, total, batch_id=batch_id, **values)
        for round_ in range(2)
        for page, total, batch_id, values in (
            ("a", 50.0, 0, full),
            ("b", 70.0, 0, full),
            ("c", 90.0, 0, full),
            ("d", 30.0, 1, rest),
        )
    ]
    figures = figures_of(samples, [0.12, 0.12])
    assert figures["total_ms"] == 60.0
    assert figures["batch_total_ms"] == 60.0
    assert figures["decode_ms"] == 50.0
    assert figures["other_ms"] == 3.0
    assert figures["batch_tokens_per_s"] == 200.0
    assert figures["tokens_per_s"] == pytest.approx((1000 / 10 + 1000 / 14) / 2)
    assert figures["pages_per_s"] == pytest.approx(4 / 0.12)
    spread = spread_of(samples, [0.12, 0.12])
    assert (spread["decode_ms"].min, spread["decode_ms"].max, spread["decode_ms"].iqr) == (20.0, 80.0, 0.0)
    assert (spread["total_ms"].min, spread["total_ms"].max) == (30.0, 90.0)


def test_energy_is_a_rounds_over_its_pages_and_tokens():
    pages = (("a", 10), ("b", 30))
    samples = [sample(page, round_, 10.0, tokens=tokens) for round_ in range(3) for page, tokens in pages]
    energy = [
        RoundEnergy(None, 1.0, "the model worked for 50% of the round"),
        RoundEnergy(400.0, 2.0, None),
        RoundEnergy(600.0, 2.0, None),
    ]
    figures = figures_of(samples, [1.0] * 3, energy)
    assert figures["joules_per_page"] == 250.0
    assert figures["joules_per_token"] == 12.5
    assert figures_of(samples, [1.0] * 3, energy[:1])["joules_per_page"] is None


def test_reserved_memory_is_the_highest_of_all():
    samples = [sample("a", 0, 1.0, peak_bytes=1, peak_reserved_bytes=peak * 2**30) for peak in (3, 5, 4)]
    assert figures_of(samples, [0.003])["peak_reserved_gib"] == 5.0
