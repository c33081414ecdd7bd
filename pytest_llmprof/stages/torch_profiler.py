"""The stage `torch_profiler`: the measured rounds without a profiler, then one bounded window under it."""

from __future__ import annotations

import gzip
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from pytest_llmprof.artifacts import write_bytes
from pytest_llmprof.config.stages import TORCH_PROFILER, Window
from pytest_llmprof.errors import StageError
from pytest_llmprof.measure.figures import figures_of
from pytest_llmprof.measure.phases import DOMAIN
from pytest_llmprof.stages.base import StageContext, StagePlugin
from pytest_llmprof.stages.direct_inference import clean_rounds

__all__ = ["plugin", "profile_window"]


def _run(context: StageContext) -> None:
    clean_rounds(context)
    if context.stage.enable and context.result.samples:
        context.result.profile = profile_window(context)


def _profiler(context: StageContext) -> Any:
    from torch.profiler import ProfilerActivity, profile

    options = context.stage.options
    activities = [ProfilerActivity.CPU]
    if context.workload.device.startswith("cuda"):
        activities.append(ProfilerActivity.CUDA)
    return profile(
        activities=activities,
        record_shapes=options.record_shapes,
        profile_memory=options.profile_memory,
        with_stack=options.with_stack,
    )


def _load_cupti(context: StageContext) -> None:
    """Pay the first start of the profiler (seconds on CUDA) on one discarded operation."""
    import torch

    with _profiler(context):
        torch.ones(8, device=context.workload.device).sum()
        if context.workload.device.startswith("cuda"):
            torch.cuda.synchronize(torch.device(context.workload.device))


def _one_trace(context: StageContext, batch: Iterator[None], path: Path) -> float:
    """Profile what lies between the first item of *batch* and its end. Returns the window's seconds."""
    import torch

    next(batch)  # runs up to the window's start
    profiler = _profiler(context)
    profiler.start()
    begin = time.perf_counter()
    try:
        for _ in batch:
            pass
        if context.workload.device.startswith("cuda"):
            torch.cuda.synchronize(torch.device(context.workload.device))
    finally:
        seconds = time.perf_counter() - begin
        profiler.stop()
    profiler.export_chrome_trace(str(path))
    return seconds


def _merged(paths: list[Path]) -> bytes:
    """One trace of several: the first one's header with the events of all."""
    if len(paths) == 1:
        return paths[0].read_bytes()
    whole: dict[str, Any] = {}
    events: list[msgspec.Raw] = []
    for path in paths:
        trace = msgspec.json.decode(path.read_bytes(), type=dict[str, msgspec.Raw])
        events += msgspec.json.decode(trace["traceEvents"], type=list[msgspec.Raw])
        whole = {**trace, **whole}
    return msgspec.json.encode({**whole, "traceEvents": events})


def profile_window(context: StageContext) -> dict[str, Any]:
    """Run the bounded window, write trace.json.gz and the tables, and return the profile's figures.

    Raises `StageError` where the trace holds no kernel (CUDA) or no operator (CPU).
    """
    from pytest_llmprof.analysis import profile_summary, read_trace, write_tables

    window: Window = context.stage.options.window
    cuda = context.workload.device.startswith("cuda")
    context.progress("profiled window")
    begin = time.perf_counter()
    _load_cupti(context)
    loaded = time.perf_counter()
    recorder = context.recorder(DOMAIN)
    seconds = 0.0
    with tempfile.TemporaryDirectory(prefix="llmprof-trace-") as scratch:
        paths: list[Path] = []
        for batch in context.workload.windows(window, recorder):
            paths.append(Path(scratch) / f"{len(paths)}.json")
            seconds += _one_trace(context, batch, paths[-1])
        recorder.take()
        if not paths:
            raise StageError("the profiled window saw no page: none could be read")
        raw = _merged(paths)
    trace = read_trace(raw)
    if cuda and not trace.totals().kernels:
        raise StageError(
            "the profiled window holds no CUDA kernel: the profiler (CUPTI) recorded nothing on the card. "
            "Another profiler may hold it, or this user may not use it"
        )
    if not trace.operators():
        raise StageError("the profiled window holds no operator: the profiler recorded nothing")
    write_bytes(context.out_dir / "trace.json.gz", gzip.compress(raw, compresslevel=1))
    write_tables(context.out_dir, trace, with_kernels=cuda)
    done = time.perf_counter()
    return {
        **profile_summary(trace, clean_step_ms=figures_of(context.result.samples, ()).tpot_ms),
        "window": {
            "pages": len(paths),
            "start_token": window.start_token,
            "decode_tokens": window.decode_tokens,
        },
        "window_s_profiled": seconds,
        "profiler_load_s": loaded - begin,
        "stage_cost_s": done - loaded,
        "trace_bytes": len(raw),
    }


def plugin() -> StagePlugin:
    """The stage as it is registered."""
    return StagePlugin(**vars(TORCH_PROFILER), run=_run)
