"""The stage `static_analysis`: the measured rounds, then what they took against what the GPU allows.

FLOPs and bytes come from the model, which counts them by its shapes (`pytest_llmprof.models.base.Costed`), outside
the clock. Peaks come from a table of GPUs (`hardware.yaml`) or from the user.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from pytest_llmprof.errors import StageError
from pytest_llmprof.models.base import Costed, Costs
from pytest_llmprof.records.checks import Check
from pytest_llmprof.records.metrics import Sample
from pytest_llmprof.stages.base import CheckContext, StageContext, StagePlugin
from pytest_llmprof.stages.runner import clean_rounds
from pytest_llmprof.stages.static_analysis.hardware import peaks_of
from pytest_llmprof.stages.static_analysis.options import StaticAnalysisOptions
from pytest_llmprof.stages.static_analysis.records import (
    BatchCosts,
    DecodeStep,
    PeakTable,
    PhaseCosts,
    PhaseRoof,
    Roofline,
)
from pytest_llmprof.stages.static_analysis.roofline import METRICS, figures, phase_roofs
from pytest_llmprof.stages.static_analysis.section import FILES, roofline_section, write_roofline


def _run(context: StageContext) -> None:
    clean_rounds(context)
    if context.stage.enable and context.result.samples:
        context.result.blocks["static_analysis"] = _analyse(context)


def _analyse(context: StageContext) -> Roofline:
    """The block of metrics.json; writes the roofline's files and gives the result its metrics."""
    workload = context.workload
    model, infer = workload.model, workload.infer
    if model is None or infer is None:
        reason = "the FLOPs and bytes of a callable are not known, only those of a model's pages"
        return Roofline(applicable=False, reason=reason)
    if not isinstance(model, Costed):
        reason = f"the model {model.info.name} does not count its costs (models.base.Costed)"
        return Roofline(applicable=False, reason=reason)
    pages = {page.name: page for page in workload.pages}
    costs, batches = {}, []
    for batch, samples in _batches(context.result.samples):
        context.progress(f"counting FLOPs and bytes, batch {batch + 1}")
        images = [pages[sample.page].load() for sample in samples]
        costs[batch] = model.costs(images, infer, [sample.tokens for sample in samples])
        _check(costs[batch], model.info.name)
        batches.append(_batch_row(batch, samples, costs[batch]))
    gpu, peaks = _peaks(context, model.info.device, model.info.dtype)
    roofs = phase_roofs(costs, context.result.samples, peaks)
    context.result.figures |= figures(roofs)
    block = Roofline(
        applicable=True,
        card=gpu,
        peaks=peaks,
        phases=roofs,
        decode_step=_decode_step(roofs.get("decode"), batches),
        notes=list(dict.fromkeys(one.note for one in costs.values() if one.note)),
        batches=batches,
    )
    write_roofline(context.out_dir, block)
    return block


def _batches(samples: Sequence[Sample]) -> Iterator[tuple[int, list[Sample]]]:
    """Each batch's number and its pages' samples in the first round that measured it."""
    for batch in sorted({sample.batch_id for sample in samples}):
        ours = [sample for sample in samples if sample.batch_id == batch]
        yield batch, [sample for sample in ours if sample.round == ours[0].round]


def _check(costs: Costs, model: str) -> None:
    for name, one in costs.phases.items():
        if not (math.isfinite(one.flops) and math.isfinite(one.bytes)):
            raise StageError(
                f"the model {model} counts {one.flops} FLOPs and {one.bytes} bytes in phase {name}: "
                "costs() must give finite numbers, or leave the phase out"
            )


def _batch_row(batch: int, samples: Sequence[Sample], costs: Costs) -> BatchCosts:
    return BatchCosts(
        batch_id=batch,
        pages=[sample.page for sample in samples],
        tokens=[sample.tokens for sample in samples],
        phases={name: PhaseCosts(one.flops, one.bytes) for name, one in costs.phases.items()},
        details=dict(costs.details),
    )


def _peaks(context: StageContext, device: str, dtype: str) -> tuple[str | None, PeakTable]:
    """The GPU's name (None on a CPU) and its peaks."""
    import torch

    gpu = torch.cuda.get_device_name(torch.device(device)) if device.startswith("cuda") else None
    options = context.stage.options
    return gpu, peaks_of(
        gpu,
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


def _decode_step(decode: PhaseRoof | None, batches: Sequence[BatchCosts]) -> DecodeStep | None:
    steps = sum(max(max(batch.tokens) - 1, 0) for batch in batches if "decode" in batch.phases)
    if decode is None or not steps:
        return None
    floor = None if decode.floor_ms is None else decode.floor_ms / steps
    return DecodeStep(
        steps=steps,
        flops=decode.flops / steps,
        bytes=decode.bytes / steps,
        ms=None if decode.ms is None else decode.ms / steps,
        floor_ms=floor,
        floor_tokens_per_s=1000.0 / floor if floor else None,
    )


def _checks(context: CheckContext) -> Iterable[Check]:
    from pytest_llmprof.stages.static_analysis.checks import checks

    return checks(context)


def plugin() -> StagePlugin:
    """The stage as it is registered."""
    return StagePlugin(
        "static_analysis",
        options=StaticAnalysisOptions,
        metrics=METRICS,
        files=FILES,
        blocks={"static_analysis": Roofline},
        report=roofline_section,
        checks=_checks,
        run=_run,
    )
