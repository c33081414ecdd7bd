"""Costs and times to a roofline: how near a phase comes to what the GPU allows.

    compute floor = FLOPs / peak FLOP/s        MFU = compute floor / time
    memory floor  = bytes / bandwidth          MBU = memory floor / time
    floor         = the longer of the two, which is the phase's bound
    intensity     = FLOPs / bytes

A phase's FLOPs, bytes and time are sums over the batches of a round; a batch's time is its median over rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from pytest_llmprof.measure.phases import SUB_PHASES
from pytest_llmprof.models.base import Costs
from pytest_llmprof.records.catalogue import Metric
from pytest_llmprof.records.metrics import Sample
from pytest_llmprof.stages.static_analysis.records import PeakTable, PhaseRoof

FIGURE_PHASES = ("vision", "prefill", "decode")
"""Phases whose MFU and MBU are metrics of a test."""
METRICS = tuple(
    Metric(
        f"{phase}_{kind}", "share", f"{kind.upper()} of {phase}", "higher", shown=("gate",), description=text
    )
    for kind, text in (
        ("mfu", "FLOPs of the phase / (its time x the GPU's dense peak)."),
        ("mbu", "Bytes of the phase / (its time x the GPU's memory bandwidth)."),
    )
    for phase in FIGURE_PHASES
)


def phase_roofs(costs: Mapping[int, Costs], samples: Sequence[Sample], peaks: PeakTable) -> dict[str, PhaseRoof]:
    """The roofs of each phase that *costs* (by batch number) name, in their order."""
    names = dict.fromkeys(name for one in costs.values() for name in one.phases)
    return {name: _roof(name, costs, samples, peaks) for name in names}


def _roof(name: str, costs: Mapping[int, Costs], samples: Sequence[Sample], peaks: PeakTable) -> PhaseRoof:
    found = {batch: one.phases[name] for batch, one in costs.items() if name in one.phases}
    flops = sum(one.flops for one in found.values())
    moved = sum(one.bytes for one in found.values())
    parts: dict[str, float] = {}
    for one in found.values():
        for part, amount in one.parts.items():
            parts[part] = parts.get(part, 0) + amount
    times = [_median(name, batch, samples) for batch in found]
    ms = None if None in times else sum(time for time in times if time is not None)
    compute = None if peaks.flops is None else 1e3 * flops / peaks.flops
    memory = None if peaks.bandwidth is None else 1e3 * moved / peaks.bandwidth
    floor = bound = None
    if compute is not None and memory is not None:
        floor, bound = (compute, "compute") if compute > memory else (memory, "memory")

    def share(least: float | None) -> float | None:
        return least / ms if least is not None and ms else None

    return PhaseRoof(
        flops=flops,
        bytes=moved,
        parts=parts,
        intensity=flops / moved if moved else None,
        ms=ms,
        compute_floor_ms=compute,
        memory_floor_ms=memory,
        floor_ms=floor,
        bound=bound,
        mfu=share(compute),
        mbu=share(memory),
        of_floor=share(floor),
        parent="vision" if name in SUB_PHASES else None,
    )


def _median(name: str, batch: int, samples: Sequence[Sample]) -> float | None:
    """A batch's time in a phase, in ms: all its pages' samples of a round carry the same one."""
    ours = [sample for sample in samples if sample.batch_id == batch and name in sample.phases]
    rounds = {sample.round: sample.phases[name] for sample in ours}
    return statistics.median(rounds.values()) if rounds else None


def figures(roofs: Mapping[str, PhaseRoof]) -> dict[str, float | None]:
    """`vision_mfu`, `vision_mbu` and so on: the metrics of a test."""
    return {
        f"{name}_{kind}": getattr(roofs[name], kind) if name in roofs else None
        for kind in ("mfu", "mbu")
        for name in FIGURE_PHASES
    }
