"""From samples to metrics: the medians of metrics.json, and the spread that they hide.

A metric is the median over pages of each page's median over rounds, so a slow round or a long page does not carry it
away; what the pages of a batch share is the median over batches. The catalogue says which is which.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

from pytest_llmprof.records.catalogue import Catalogue, Metric
from pytest_llmprof.records.metrics import RoundEnergy, Sample, Spread


def percentile(values: Sequence[float], share: float) -> float:
    """Linear-interpolated percentile; *share* in 0..1 (the `linear` method of numpy.percentile)."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def _batch(sample: Sample) -> Hashable:
    return sample.page if sample.batch_total_ms is None else sample.batch_id


def _rounds(metric: Metric, samples: Sequence[Sample]) -> list[list[float]]:
    """The metric's values over the rounds of each page, or of each batch where its pages share it."""
    by_batch = metric.reduce.startswith("batch")
    if by_batch:  # each batch counts once a round, however many pages it has
        samples = list({(sample.round, _batch(sample)): sample for sample in reversed(samples)}.values())
    groups: dict[Hashable, list[float]] = {}
    for sample in samples:
        value = metric.of(sample)
        if value is not None:
            groups.setdefault(_batch(sample) if by_batch else sample.page, []).append(value)
    return list(groups.values())


def _median(metric: Metric, rounds: Sequence[float]) -> float:
    """A page's median; of a rate that of its median time, as the mean of two rates would hide the slower round."""
    if metric.reduce.endswith("_rate") and all(rounds):
        return 1 / statistics.median(1 / rate for rate in rounds)
    return statistics.median(rounds)


def figures_of(
    samples: Sequence[Sample],
    round_seconds: Sequence[float],
    energy: Sequence[RoundEnergy] = (),
    catalogue: Catalogue | None = None,
    iterations: int = 1,
) -> dict[str, float | None]:
    """The metrics of the object `figures` of metrics.json: of all rounds' *samples*, of the seconds of each whole
    round (of a callable: of one call) and of its *energy*, which is that of *iterations* calls. None where one cannot
    be known."""
    catalogue = catalogue or Catalogue()
    values: dict[str, float | None] = dict.fromkeys(catalogue.names("figures"))
    for metric in catalogue:
        if metric.reduce == "max":
            known = [value for sample in samples if (value := metric.of(sample)) is not None]
            values[metric.name] = max(known, default=None)
        elif metric.reduce.startswith(("page", "batch")):
            groups = _rounds(metric, samples)
            values[metric.name] = statistics.median(_median(metric, rounds) for rounds in groups) if groups else None
    if round_seconds and samples:
        values["round_s"] = statistics.median(round_seconds)
        values["pages_per_s"] = _pages_per_s(samples, round_seconds)
    values["joules_per_page"] = _joules(samples, energy, lambda _: iterations)
    values["joules_per_token"] = _joules(samples, energy, lambda sample: sample.tokens)
    return values


def _pages_per_s(samples: Sequence[Sample], round_seconds: Sequence[float]) -> float | None:
    pages = Counter(number for number, _ in {(sample.round, sample.page) for sample in samples})
    # A page that failed is missing in the rounds after; where all have, a stage may count rounds without samples.
    rounds = zip(round_seconds, (pages[number] for number in sorted(pages)), strict=False)
    seconds_a_page = statistics.median(seconds / count for seconds, count in rounds)
    return 1 / seconds_a_page if seconds_a_page else None


def _joules(
    samples: Sequence[Sample], energy: Sequence[RoundEnergy], units: Callable[[Sample], int]
) -> float | None:
    """Joules for each of the *units* of a sample: the median over the rounds whose energy is known."""
    found = []
    for index, taken in enumerate(energy):
        amount = sum(units(sample) for sample in samples if sample.round == index)
        if taken.energy_j is not None and amount:
            found.append(taken.energy_j / amount)
    return statistics.median(found) if found else None


def spread_of(
    samples: Sequence[Sample], round_seconds: Sequence[float], catalogue: Catalogue | None = None
) -> dict[str, Spread]:
    """The spread of each metric that is a median over pages or batches, and of `round_s`."""
    spread = {
        metric.name: _spread([_median(metric, rounds) for rounds in groups], groups)
        for metric in catalogue or Catalogue()
        if metric.reduce.startswith(("page", "batch")) and (groups := _rounds(metric, samples))
    }
    if round_seconds:
        spread["round_s"] = _spread([statistics.median(round_seconds)], [round_seconds])
    return spread


def _spread(medians: Sequence[float], groups: Sequence[Sequence[float]]) -> Spread:
    ranges = [percentile(rounds, 0.75) - percentile(rounds, 0.25) for rounds in groups if len(rounds) > 1]
    spread = Spread(
        min=min(medians),
        max=max(medians),
        p50=percentile(medians, 0.5),
        p90=percentile(medians, 0.9),
        iqr=statistics.median(ranges) if ranges else None,
    )
    if len(medians) >= 100:
        spread.p99 = percentile(medians, 0.99)
    return spread
