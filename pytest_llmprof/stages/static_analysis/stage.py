"""The stage `static_analysis`: the measured rounds, then what they took against what the card allows.

FLOPs and bytes come from the model, which counts them by its shapes (`pytest_llmprof.models.base.Costed`), outside
the clock. Peaks come from a table of cards (`measure/hardware.yaml`) or from the user.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pytest_llmprof.errors import StageError
from pytest_llmprof.measure.hardware import Peaks, peaks_of
from pytest_llmprof.measure.phases import SUB_PHASES
from pytest_llmprof.models.base import Costed, Costs
from pytest_llmprof.stages.base import StageContext, StagePlugin
from pytest_llmprof.stages.direct_inference import clean_rounds
from pytest_llmprof.stages.runner import Sample
from pytest_llmprof.stages.static_analysis.options import StaticAnalysisOptions
from pytest_llmprof.stages.static_analysis.roofline import PhaseRoof, figures, phase_roofs

if TYPE_CHECKING:
    from pytest_llmprof.stages.workloads import PagesWorkload

__all__ = ["plugin"]


def _run(context: StageContext) -> None:
    clean_rounds(context)
    if context.stage.enable and context.result.samples:
        context.result.blocks["static_analysis"] = _analyse(context)


def _analyse(context: StageContext) -> dict[str, Any]:
    """The block of metrics.json; writes the roofline's files and gives the result its figures."""
    from pytest_llmprof.stages.static_analysis.section import write_roofline
    from pytest_llmprof.stages.workloads import PagesWorkload

    workload = context.workload
    if not isinstance(workload, PagesWorkload):
        return _not_applicable("the FLOPs and bytes of a callable are not known, only those of a model's pages")
    model = workload.model
    if not isinstance(model, Costed):
        return _not_applicable(f"the model {model.info.name} does not tell its costs (models.base.Costed)")
    costs, batches = {}, []
    for batch, samples in _batches(context.result.samples):
        context.progress(f"counting FLOPs and bytes, batch {batch + 1}")
        costs[batch] = _costs(model, workload, samples)
        batches.append(_batch_row(batch, samples, costs[batch]))
    card, peaks = _peaks(context, model.info.device, model.info.dtype)
    roofs = phase_roofs(costs, context.result.samples, peaks)
    context.result.figures |= figures(roofs)
    block = {
        "applicable": True,
        "reason": None,
        "card": card,
        "peaks": asdict(peaks),
        "phases": {name: {"parent": _parent(name), **asdict(roof)} for name, roof in roofs.items()},
        "decode_step": _decode_step(roofs.get("decode"), batches),
        "notes": list(dict.fromkeys(one.note for one in costs.values() if one.note)),
        "batches": batches,
    }
    write_roofline(context.out_dir, block)
    return block


def _not_applicable(reason: str) -> dict[str, Any]:
    return {
        "applicable": False,
        "reason": reason,
        "card": None,
        "peaks": None,
        "phases": {},
        "decode_step": None,
        "notes": [],
        "batches": [],
    }


def _batches(samples: Sequence[Sample]) -> Iterator[tuple[int, list[Sample]]]:
    """Each batch's number and its pages' samples in the first round that measured it."""
    for batch in sorted({sample.batch_id for sample in samples}):
        ours = [sample for sample in samples if sample.batch_id == batch]
        yield batch, [sample for sample in ours if sample.round == ours[0].round]


def _costs(model: Costed, workload: PagesWorkload, samples: Sequence[Sample]) -> Costs:
    pages = {page.name: page for page in workload.pages}
    images = [pages[sample.page].load() for sample in samples]
    costs = model.costs(images, workload.infer, [sample.tokens for sample in samples])
    for name, one in costs.phases.items():
        if not (math.isfinite(one.flops) and math.isfinite(one.bytes)):
            raise StageError(
                f"the model {workload.model.info.name} counts {one.flops} FLOPs and {one.bytes} bytes in phase {name}: "
                "costs() must give finite numbers, or leave the phase out"
            )
    return costs


def _batch_row(batch: int, samples: Sequence[Sample], costs: Costs) -> dict[str, Any]:
    return {
        "batch_id": batch,
        "pages": [sample.page for sample in samples],
        "tokens": [sample.tokens for sample in samples],
        "phases": {name: {"flops": one.flops, "bytes": one.bytes} for name, one in costs.phases.items()},
        "details": dict(costs.details),
    }


def _peaks(context: StageContext, device: str, dtype: str) -> tuple[str | None, Peaks]:
    """The card's name (None on a CPU) and its peaks."""
    import torch

    card = torch.cuda.get_device_name(torch.device(device)) if device.startswith("cuda") else None
    options = context.stage.options
    return card, peaks_of(
        card,
        dtype,
        tf32=dtype == "float32" and _tf32(),
        peak_tflops=options.peak_tflops,
        bandwidth_gbs=options.bandwidth_gbs,
    )


def _tf32() -> bool:
    """Whether float32 products are done in TF32. Since torch 2.9 the old question is an error once the new way of
    setting it was used."""
    import torch

    precision = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    return precision == "tf32" if precision not in (None, "none") else torch.get_float32_matmul_precision() != "highest"


def _parent(name: str) -> str | None:
    return "vision" if name in SUB_PHASES else None


def _decode_step(decode: PhaseRoof | None, batches: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The mean decode step: a token of each page of its batch."""
    steps = sum(max(max(batch["tokens"]) - 1, 0) for batch in batches if "decode" in batch["phases"])
    if decode is None or not steps:
        return None
    floor = None if decode.floor_ms is None else decode.floor_ms / steps
    return {
        "steps": steps,
        "flops": decode.flops / steps,
        "bytes": decode.bytes / steps,
        "ms": None if decode.ms is None else decode.ms / steps,
        "floor_ms": floor,
        "floor_tokens_per_s": 1000.0 / floor if floor else None,
    }


def plugin() -> StagePlugin:
    """The stage as it is registered."""
    return StagePlugin("static_analysis", options=StaticAnalysisOptions, run=_run)
