"""Checks for `llmprof doctor`: whether torch.profiler records anything on the device."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_llmprof.records.checks import Check, ok, problem
from pytest_llmprof.stages.base import CheckContext
from pytest_llmprof.stages.torch_profiler.cupti import capture_messages, missing_kernels_reason, synchronise

_NAME = "Profiler"


def checks(context: CheckContext) -> Iterator[Check]:
    """Profile one small operation."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    cuda = context.device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with capture_messages(), profile(activities=activities) as profiler:
        torch.ones(8, device=context.device).sum()
        synchronise(context.device)
    events = profiler.events() or []
    kernels = sum(event.device_type.name == "CUDA" for event in events)
    if cuda and not kernels:
        mend = "end other profilers, run as root, or load the driver with NVreg_RestrictProfilingToAdminUsers=0"
        yield problem(_NAME, f"no kernel was recorded: {missing_kernels_reason()}", mend)
    elif not events:
        yield problem(_NAME, "torch.profiler recorded no operator", "install another build of torch")
    else:
        yield ok(_NAME, f"recorded {kernels} kernels (CUPTI)" if cuda else f"recorded {len(events)} operators")
