"""The stage `direct_inference`: the measured rounds, and nothing else."""

from __future__ import annotations

from pytest_llmprof.measure.collector import settled
from pytest_llmprof.measure.energy import EnergyMeter
from pytest_llmprof.measure.gpu import Card, CardReader
from pytest_llmprof.measure.phases import DOMAIN, WARMUP_DOMAIN
from pytest_llmprof.stages.base import StageContext, StagePlugin

__all__ = ["clean_rounds", "plugin"]


def clean_rounds(context: StageContext) -> None:
    """Warm up, then run `measure.rounds` measured passes with no profiler in the process's way.

    The card is read before the first pass and after the last, its energy counter around each: all of it while
    the device is idle and the clock stands.
    """
    measure = context.settings.measure
    workload = context.workload
    result = context.result
    if measure.warmup:
        context.progress("warm-up")
    workload.warmup(measure.warmup, context.recorder(WARMUP_DOMAIN))
    recorder = context.recorder(DOMAIN)
    with settled(), CardReader(workload.device) as reader:
        result.card_before, result.card_reason = reader.card(), reader.reason
        result.energy_reason = _why_no_energy(result.card_before, result.card_reason)
        meter = EnergyMeter(reader.energy_mj) if result.energy_reason is None else None
        for index in range(measure.rounds):
            if meter is not None:
                meter.begin()
            with recorder.round():
                samples, seconds = workload.round(index, recorder)
            if index + 1 == measure.rounds:
                result.card_after = reader.card()  # at once, while clocks and heat are still those of the work
            if meter is not None:
                result.energy.append(meter.end(seconds))
                result.energy_update_s = meter.update_s
            result.samples += samples
            if samples:
                result.round_seconds.append(seconds)
    if result.energy and (late := _why_no_energy(result.card_after, None)) is not None:
        result.energy_reason, result.energy = late, []


def _why_no_energy(card: Card | None, reason: str | None) -> str | None:
    if card is None or card.energy_mj is None:
        return reason or "the card or its driver has no energy counter"
    if card.mig:
        return "the counter is the whole card's, and this is a part of it (MIG)"
    if card.shared:
        return "another process used the card, and the counter counts both"
    return None


def plugin() -> StagePlugin:
    """The stage as it is registered."""
    return StagePlugin("direct_inference", output=True, run=clean_rounds)
