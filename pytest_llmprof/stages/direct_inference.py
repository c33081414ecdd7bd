"""The stage `direct_inference`: the measured rounds, and nothing else."""

from __future__ import annotations

from pytest_llmprof.config.stages import DIRECT_INFERENCE
from pytest_llmprof.measure.phases import DOMAIN, WARMUP_DOMAIN
from pytest_llmprof.stages.base import StageContext, StagePlugin

__all__ = ["clean_rounds", "plugin"]


def clean_rounds(context: StageContext) -> None:
    """Warm up, then run `measure.rounds` measured passes with no profiler in the process's way."""
    measure = context.settings.measure
    workload = context.workload
    if measure.warmup:
        context.progress("warm-up")
        workload.warmup(measure.warmup, context.recorder(WARMUP_DOMAIN))
    recorder = context.recorder(DOMAIN)
    result = context.result
    for index in range(measure.rounds):
        samples, seconds = workload.round(index, recorder)
        result.samples += samples
        if samples:
            result.round_seconds.append(seconds)


def plugin() -> StagePlugin:
    """The stage as it is registered."""
    return StagePlugin(**vars(DIRECT_INFERENCE), run=clean_rounds)
