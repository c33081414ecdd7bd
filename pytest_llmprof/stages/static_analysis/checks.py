"""Checks for `llmprof doctor`: whether the GPU's peaks are known."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_llmprof.records.checks import Check, ok, warning
from pytest_llmprof.stages.base import CheckContext
from pytest_llmprof.stages.static_analysis.hardware import find_gpu

_NAME = "Peaks"


def checks(context: CheckContext) -> Iterator[Check]:
    """The table of GPUs, or the user's own numbers."""
    options = context.settings.current.options
    if options.peak_tflops is not None and options.bandwidth_gbs is not None:
        yield ok(_NAME, f"yours: {options.peak_tflops:g} TFLOP/s, {options.bandwidth_gbs:g} GB/s")
        return
    name = None
    if context.device.startswith("cuda"):
        import torch

        name = torch.cuda.get_device_name(context.device)
        if find_gpu(name) is not None:
            yield ok(_NAME, f"{name} is in the table")
            return
    yield warning(
        _NAME,
        f"{name or 'the CPU'} is not in the table: MFU and MBU are null, FLOPs and bytes are counted",
        "set pipeline.static_analysis.peak_tflops and .bandwidth_gbs to what you measured",
    )
