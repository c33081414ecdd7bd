"""The stage `torch_profiler`: the measured rounds without a profiler, then one bounded window under it."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmprof.analysis.metrics import TRACE_METRICS
from pytest_llmprof.errors import ArtifactError, StageError
from pytest_llmprof.measure.collector import frozen_garbage_collector
from pytest_llmprof.measure.figures import figures_of
from pytest_llmprof.measure.phases import DOMAIN
from pytest_llmprof.records.catalogue import Metric
from pytest_llmprof.records.checks import Check
from pytest_llmprof.records.files import write_bytes
from pytest_llmprof.stages.base import CheckContext, StageContext, StagePlugin, Window
from pytest_llmprof.stages.runner import clean_rounds
from pytest_llmprof.stages.torch_profiler.compress import GzipWriter
from pytest_llmprof.stages.torch_profiler.cupti import (
    Cupti,
    capture_messages,
    free_profiler,
    missing_kernels_reason,
    synchronise,
)
from pytest_llmprof.stages.torch_profiler.options import LEGACY, TorchProfilerOptions
from pytest_llmprof.stages.torch_profiler.records import Profile, ProfiledWindow
from pytest_llmprof.stages.torch_profiler.section import FILES, profile_section

if TYPE_CHECKING:
    from pytest_llmprof.analysis.trace import Trace

METRICS = (
    *TRACE_METRICS,
    Metric(
        "gpu_busy_share", "share", "GPU busy in a decode step", "higher", shown=("gate",),
        description="Kernel time of a profiled decode step / TPOT of the measured rounds. Null without a GPU.",
    ),
)


def _run(context: StageContext) -> None:
    clean_rounds(context)
    if context.stage.enable and context.result.samples:
        profile = context.result.profile = profile_window(context)
        context.result.figures |= {metric.name: getattr(profile, metric.name) for metric in METRICS}


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
        experimental_config=None if options.with_stack else _trace_only(),
    )


def _trace_only() -> Any:
    """Spares torch the events as objects of its own, which only `key_averages` and the like need; a third of the
    stop. None where this torch cannot leave them out."""
    from torch._C._profiler import _ExperimentalConfig

    try:
        return _ExperimentalConfig(trace_only=True)
    except TypeError:
        return None


class _Costs(dict[str, float]):
    """Where the stage's time went, in seconds."""

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self[name] = self.get(name, 0.0) + time.perf_counter() - begin


def _one_trace(context: StageContext, batch: Iterator[None], path: Path, costs: _Costs) -> None:
    """Profile what lies between the first item of *batch* and its end."""
    from torch.profiler import record_function

    from pytest_llmprof.analysis.nesting import WINDOW_END

    with closing(batch):  # type: ignore[type-var]
        with costs.of("reach"):
            next(batch)
        with costs.of("start"), capture_messages():
            profiler = _profiler(context)
            profiler.start()
        try:
            with costs.of("window"):
                for _ in batch:
                    pass
                with record_function(WINDOW_END):  # our own waiting is no step's
                    synchronise(context.workload.device)
        finally:
            with costs.of("stop"), capture_messages():
                profiler.stop()
    with costs.of("export"):
        profiler.export_chrome_trace(str(path))
    with costs.of("release"):
        free_profiler(profiler)


def _why_empty(trace: Trace, window: Window, *, cuda: bool) -> str | None:
    """What a trace without kernels (CUDA) or without operators lacks, and why; None of any other."""
    kernels = trace.totals().kernels if cuda else None
    if kernels != 0 and trace.seen_on_host:
        return None
    if not kernels and window.start_token and not trace.timeline.steps:
        return (
            f"the profiled window is empty: no decode step was launched after token {window.start_token} of the "
            "answer (pipeline.torch_profiler.window.start_token); an engine that works ahead launches its last "
            "steps earlier"
        )
    if kernels == 0:
        return f"the profiled window holds no CUDA kernel: {missing_kernels_reason()}"
    return "the profiled window holds no operator: the profiler recorded nothing"


@contextmanager
def _scratch() -> Iterator[str]:
    """A directory for the profiler's files. An error in writing there is a `StageError`."""
    try:
        with tempfile.TemporaryDirectory(prefix="llmprof-trace-") as scratch:
            yield scratch
    except OSError as error:
        raise StageError(f"the profiler's trace cannot be written (in TMPDIR): {error.strerror or error}") from error


@contextmanager
def _whole(scratch: str, free: int) -> Iterator[None]:
    """Add to a trace that cannot be read what the profiler doesn't tell: how much space it had."""
    try:
        yield
    except ArtifactError as error:
        raise StageError(
            f"the profiler's trace: {error}; {free / 1e6:,.0f} MB were free in {Path(scratch).parent} (TMPDIR)"
        ) from error


@frozen_garbage_collector(collect=False)  # a full collection inside would cost as much as the process is large
def profile_window(context: StageContext) -> Profile:
    """Run the bounded window, write trace.json.gz and the tables, and return the block `profile`.

    Raises `StageError` where the trace holds no kernel (CUDA) or no operator (CPU), with the cause where the profiler
    gave one.
    """
    from pytest_llmprof.analysis.lanes import write_timeline
    from pytest_llmprof.stages.torch_profiler.kineto import merged, read_trace
    from pytest_llmprof.stages.torch_profiler.summary import profile_summary, write_tables

    window: Window = context.stage.options.window
    device = context.workload.device
    cuda = device.startswith("cuda")
    context.progress("profiled window")
    cupti = Cupti(device, lambda: _profiler(context))
    costs = _Costs()
    with costs.of("load"):
        cupti.load()
    loaded = time.perf_counter()
    recorder = context.recorder(DOMAIN)
    with _scratch() as scratch:
        paths: list[Path] = []
        try:
            for batch in context.workload.windows(window, recorder):
                paths.append(Path(scratch) / f"{len(paths)}.json")
                _one_trace(context, batch, paths[-1], costs)
        finally:
            events = recorder.take()
            with costs.of("unload"):
                cupti.unload()
        if not paths:
            raise StageError("the profiled window saw no page: none could be read")
        free = shutil.disk_usage(scratch).free
        with costs.of("read"), _whole(scratch, free):
            raw = merged(paths)
    # zlib works without the interpreter's lock: packing goes on while the trace is read.
    with GzipWriter(raw) as packed:
        with costs.of("read"), _whole(scratch, free):
            trace = read_trace(raw)
        if empty := _why_empty(trace, window, cuda=cuda):
            raise StageError(empty)
        with costs.of("tables"):
            write_tables(context.out_dir, trace, with_kernels=cuda)
            write_timeline(context.out_dir, trace)
            profile = profile_summary(trace, clean_step_ms=figures_of(context.result.samples, ())["tpot_ms"])
        with costs.of("write"):
            write_bytes(context.out_dir / "trace.json.gz", packed.data())
    if cuda and window.start_token == 0:  # a window that starts late holds no whole phase
        for name, phase in profile.phases.items():
            phase.event_ms_profiled = events.get(name)
    profile.window = ProfiledWindow(len(paths), window.start_token, window.decode_tokens)
    profile.window_s_profiled = costs["window"]
    profile.profiler_load_s, unload_s = costs.pop("load"), costs.pop("unload")
    profile.profiler_unload_s = unload_s if cupti.ends else None
    profile.stage_cost_s = time.perf_counter() - loaded - unload_s
    profile.stage_costs_s = dict(costs)
    profile.trace_bytes = len(raw)
    return profile


def _checks(context: CheckContext) -> Iterable[Check]:
    from pytest_llmprof.stages.torch_profiler.checks import checks

    return checks(context)


def plugin() -> StagePlugin:
    """The stage as it is registered."""
    return StagePlugin(
        "torch_profiler",
        options=TorchProfilerOptions,
        output=True,
        metrics=METRICS,
        files=FILES,
        blocks={"profile": Profile},
        report=profile_section,
        legacy=LEGACY,
        checks=_checks,
        run=_run,
    )
