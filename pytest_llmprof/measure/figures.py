"""From samples to figures. The names here are the words of metrics.json, of gates and of `run.*`.

A figure is the median over pages of each page's median over rounds, so a slow round or a long page does not
carry it away. `spread` keeps what the medians hide.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from pytest_llmprof.measure.rounds import Sample

__all__ = ["FIGURE_NAMES", "Figures", "figures_of", "percentile", "spread_of"]


@dataclass(frozen=True)
class Figures:
    """Figures of one test in one stage; None where one cannot be known."""

    ttft_ms: float | None = None
    """Time to first token, preprocess included."""
    tpot_ms: float | None = None
    """Time per output token after the first."""
    tokens_per_s: float | None = None
    """1000 / TPOT: decode rate of one page."""
    pages_per_s: float | None = None
    """Pages of a round / the median round's seconds."""
    total_ms: float | None = None
    """One page, from picture to last token (in a batch: the batch)."""
    preprocess_ms: float | None = None
    vision_ms: float | None = None
    sam_ms: float | None = None
    clip_ms: float | None = None
    projector_ms: float | None = None
    prefill_ms: float | None = None
    decode_ms: float | None = None
    other_ms: float | None = None
    """total - (preprocess + vision + prefill + decode)."""
    round_s: float | None = None
    """Median seconds of a round: the sum of its batches on our clock."""
    tokens: float | None = None
    """Generated tokens of a page, EOS included."""
    peak_memory_gib: float | None = None
    """Peak device memory in GiB (None on a CPU)."""
    vision_mfu: float | None = None
    """FLOPs of vision / its time / the card's dense peak; these six come from the stage `static_analysis` alone."""
    prefill_mfu: float | None = None
    decode_mfu: float | None = None
    vision_mbu: float | None = None
    """Bytes of vision / its time / the card's memory bandwidth."""
    prefill_mbu: float | None = None
    decode_mbu: float | None = None


FIGURE_NAMES = tuple(item.name for item in fields(Figures))

_PHASE_NAMES = ("preprocess", "vision", "sam", "clip", "projector", "prefill", "decode")


def percentile(values: Sequence[float], share: float) -> float:
    """Linear-interpolated percentile; *share* in 0..1 (the `linear` method of numpy.percentile)."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def _getters() -> dict[str, Callable[[Sample], float | None]]:
    def phase(name: str) -> Callable[[Sample], float | None]:
        return lambda sample: sample.phases.get(name)

    getters: dict[str, Callable[[Sample], float | None]] = {
        "ttft_ms": lambda sample: sample.ttft_ms,
        "tpot_ms": lambda sample: sample.tpot_ms,
        "tokens_per_s": lambda sample: 1000.0 / sample.tpot_ms if sample.tpot_ms else None,
        "total_ms": lambda sample: sample.total_ms,
        "other_ms": lambda sample: sample.other_ms,
        "tokens": lambda sample: float(sample.tokens) if sample.tokens else None,
    }
    getters.update({f"{name}_ms": phase(name) for name in _PHASE_NAMES})
    return getters


def _by_page(samples: Sequence[Sample], get: Callable[[Sample], float | None]) -> dict[str, list[float]]:
    pages: dict[str, list[float]] = {}
    for sample in samples:
        value = get(sample)
        if value is not None:
            pages.setdefault(sample.page, []).append(value)
    return pages


def figures_of(samples: Sequence[Sample], round_seconds: Sequence[float]) -> Figures:
    """Derive the figures of *samples* (all rounds) and the seconds of each whole round."""
    values: dict[str, float | None] = {}
    for name, get in _getters().items():
        medians = [statistics.median(page) for page in _by_page(samples, get).values()]
        values[name] = statistics.median(medians) if medians else None
    if round_seconds and samples:
        values["round_s"] = statistics.median(round_seconds)
        pages = len({sample.page for sample in samples})
        values["pages_per_s"] = pages / values["round_s"] if values["round_s"] else None
    peaks = [sample.peak_bytes for sample in samples if sample.peak_bytes is not None]
    values["peak_memory_gib"] = max(peaks) / 2**30 if peaks else None
    return Figures(**values)


def spread_of(samples: Sequence[Sample], round_seconds: Sequence[float]) -> dict[str, dict[str, float | None]]:
    """What the medians hide, per figure.

    min, max, p50, p90 (p99 from 100 pages on) over the pages' medians; `iqr` is the noise: the median over pages
    of the interquartile range of that page's rounds (None for a single round).
    """
    spread: dict[str, dict[str, float | None]] = {}

    def put(name: str, pages: Mapping[str, Sequence[float]]) -> None:
        if not pages:
            return
        medians = [statistics.median(page) for page in pages.values()]
        ranges = [percentile(page, 0.75) - percentile(page, 0.25) for page in pages.values() if len(page) > 1]
        spread[name] = {
            "min": min(medians),
            "max": max(medians),
            "p50": percentile(medians, 0.5),
            "p90": percentile(medians, 0.9),
            "iqr": statistics.median(ranges) if ranges else None,
        }
        if len(medians) >= 100:
            spread[name]["p99"] = percentile(medians, 0.99)

    for name, get in _getters().items():
        put(name, _by_page(samples, get))
    if round_seconds:
        put("round_s", {"round": round_seconds})
    return spread


def as_dict(figures: Figures) -> dict[str, float | None]:
    """The figures as a plain mapping, in their order."""
    return asdict(figures)
