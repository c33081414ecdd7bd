"""From samples to figures. The names here are the words of metrics.json, of gates and of `run.*`.

A figure is the median over pages of each page's median over rounds, so a slow round or a long page does not
carry it away; what the pages of a batch share is the median over batches. `spread` keeps what the medians hide.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields

from pytest_llmprof.measure.energy import RoundEnergy
from pytest_llmprof.stages.runner import Sample

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
    batch_tokens_per_s: float | None = None
    """Decode rate of all pages of a batch together."""
    pages_per_s: float | None = None
    """Pages of a round / the median round's seconds."""
    total_ms: float | None = None
    """One page, from picture to its last token."""
    batch_total_ms: float | None = None
    """One batch, from pictures to the last token of all."""
    preprocess_ms: float | None = None
    vision_ms: float | None = None
    sam_ms: float | None = None
    clip_ms: float | None = None
    projector_ms: float | None = None
    prefill_ms: float | None = None
    decode_ms: float | None = None
    other_ms: float | None = None
    """Batch total - (preprocess + vision + prefill + decode)."""
    round_s: float | None = None
    """Median seconds of a round: the sum of its batches on our clock."""
    tokens: float | None = None
    """Generated tokens of a page, EOS included."""
    peak_memory_gib: float | None = None
    """Peak device memory in tensors, in GiB (None on a CPU)."""
    peak_reserved_gib: float | None = None
    """Peak device memory that torch had taken from the card, in GiB (None on a CPU)."""
    joules_per_page: float | None = None
    """The card's energy in a round / its pages (None where its counter cannot tell)."""
    joules_per_token: float | None = None
    """The card's energy in a round / its generated tokens, vision and prefill included."""
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


_Getter = Callable[[Sample], float | None]


def _page_getters() -> dict[str, _Getter]:
    """What each page of a batch has of its own."""
    return {
        "ttft_ms": lambda sample: sample.ttft_ms,
        "tpot_ms": lambda sample: sample.tpot_ms,
        "tokens_per_s": lambda sample: 1000.0 / sample.tpot_ms if sample.tpot_ms else None,
        "total_ms": lambda sample: sample.total_ms,
        # An answer without a token has 0 of them; a callable has none to count.
        "tokens": lambda sample: float(sample.tokens) if sample.tokens or sample.batch_total_ms is not None else None,
    }


def _batch_getters() -> dict[str, _Getter]:
    """What the pages of a batch share: each batch counts once, however many pages it has."""

    def phase(name: str) -> _Getter:
        return lambda sample: sample.phases.get(name)

    return {
        "batch_tokens_per_s": lambda sample: sample.batch_tokens_per_s,
        "batch_total_ms": lambda sample: sample.batch_total_ms,
        "other_ms": lambda sample: sample.other_ms,
        **{f"{name}_ms": phase(name) for name in _PHASE_NAMES},
    }


def _series(samples: Sequence[Sample]) -> dict[str, list[list[float]]]:
    """For each figure the rounds of each page, or of each batch where pages share it."""
    found: dict[str, list[list[float]]] = {}

    def put(name: str, get: _Getter, group: Callable[[Sample], Hashable], items: Iterable[Sample]) -> None:
        groups: dict[Hashable, list[float]] = {}
        for sample in items:
            value = get(sample)
            if value is not None:
                groups.setdefault(group(sample), []).append(value)
        if groups:
            found[name] = list(groups.values())

    def batch(sample: Sample) -> Hashable:
        return sample.page if sample.batch_total_ms is None else sample.batch_id

    one_of_each = {(sample.round, batch(sample)): sample for sample in reversed(samples)}.values()
    for name, get in _page_getters().items():
        put(name, get, lambda sample: sample.page, samples)
    for name, get in _batch_getters().items():
        put(name, get, batch, one_of_each)
    return found


_RATES = ("tokens_per_s", "batch_tokens_per_s")


def _middle(name: str, rounds: Sequence[float]) -> float:
    """A page's median; of a rate that of its median time, as the mean of two rates would hide the slower round."""
    if name in _RATES and all(rounds):
        return 1 / statistics.median(1 / rate for rate in rounds)
    return statistics.median(rounds)


def figures_of(
    samples: Sequence[Sample], round_seconds: Sequence[float], energy: Sequence[RoundEnergy] = ()
) -> Figures:
    """Derive the figures of *samples* (all rounds), of the seconds of each whole round and of its *energy*."""
    values: dict[str, float | None] = {
        name: statistics.median(_middle(name, rounds) for rounds in series)
        for name, series in _series(samples).items()
    }
    if round_seconds and samples:
        values["round_s"] = statistics.median(round_seconds)
        pages = Counter(number for number, _ in {(sample.round, sample.page) for sample in samples})
        # A page that failed is missing in the rounds after; where all have, a stage may count rounds without samples.
        rounds = zip(round_seconds, (pages[number] for number in sorted(pages)), strict=False)
        a_page_s = statistics.median(seconds / count for seconds, count in rounds)
        values["pages_per_s"] = 1 / a_page_s if a_page_s else None
    for name, peaks in (
        ("peak_memory_gib", [sample.peak_bytes for sample in samples]),
        ("peak_reserved_gib", [sample.peak_reserved_bytes for sample in samples]),
    ):
        known = [peak for peak in peaks if peak is not None]
        values[name] = max(known) / 2**30 if known else None
    a_page, a_token = [], []
    for index, taken in enumerate(energy):
        of_round = [sample for sample in samples if sample.round == index]
        if taken.energy_j is None or not of_round:
            continue
        a_page.append(taken.energy_j / len(of_round))
        tokens = sum(sample.tokens for sample in of_round)
        if tokens:
            a_token.append(taken.energy_j / tokens)
    values["joules_per_page"] = statistics.median(a_page) if a_page else None
    values["joules_per_token"] = statistics.median(a_token) if a_token else None
    return Figures(**values)


def spread_of(samples: Sequence[Sample], round_seconds: Sequence[float]) -> dict[str, dict[str, float | None]]:
    """What the medians hide, per figure.

    min, max, p50, p90 (p99 from 100 on) over the medians of pages (of batches, for what a batch's pages share);
    `iqr` is the noise: the median over them of the interquartile range of the rounds (None for a single round).
    """
    spread: dict[str, dict[str, float | None]] = {}

    def put(name: str, series: Sequence[Sequence[float]]) -> None:
        medians = [_middle(name, rounds) for rounds in series]
        ranges = [percentile(rounds, 0.75) - percentile(rounds, 0.25) for rounds in series if len(rounds) > 1]
        spread[name] = {
            "min": min(medians),
            "max": max(medians),
            "p50": percentile(medians, 0.5),
            "p90": percentile(medians, 0.9),
            "iqr": statistics.median(ranges) if ranges else None,
        }
        if len(medians) >= 100:
            spread[name]["p99"] = percentile(medians, 0.99)

    for name, series in _series(samples).items():
        put(name, series)
    if round_seconds:
        put("round_s", [round_seconds])
    return spread


def as_dict(figures: Figures) -> dict[str, float | None]:
    """The figures as a plain mapping, in their order."""
    return asdict(figures)
