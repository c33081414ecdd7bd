"""Record processes that `replay.py` makes gates of: the harness's own measured rounds, without and with a known delay.

    python benchmarks/gates/record.py OUT [--device cuda] [--minutes 9] [--engine fast] [--processes 64]
        [--levels 0,1] [--rounds 20] [--duet]

Each process is new: it loads the model, warms up and runs `clean_rounds`, the measured loop of every test. Its rounds
go in turn through the levels (no delay, and shares of this process's own decode step), 0 1 2 5, 5 2 1 0, ... A gate
takes one level of a process only, so its two sides are different processes, as in a real gate.

The delay is work on the clock, once in each decode step. On a CPU, and with `reference`, whose step waits for the host,
the host spins. With `fast` and `compiled` a spinning kernel is captured at the end of the step's CUDA graph, and its
length is corrected until the GPU's own clock shows the wanted share; side A runs the untouched graph.

Processes are forked from one that has imported torch but never used CUDA. With `--ahead 8` eight are prepared at once,
then measured one after the other while the others wait, as loading takes longer than measuring. With eight models in a
GPU's memory processes of `fast` differed more (SD 0.89 %, not 0.74 %); the default is one. Compiler caches on
the disk are shared, as on any machine; a first process fills them and is not recorded.

With `--duet` two processes measure beside each other, as in `llmprof ab --duet`: on a CPU at the same time, each on its
own half of the processors, on a GPU in turns, round by round. The first of a pair begins on the first half, or is the
first to measure. So ABBA over their order in the file changes that of A and B from pair to pair.

OUT/<engine>.jsonl gets a line as each process ends, so an interrupted call loses nothing; a further call adds to it.
`gzip -9nc OUT/fast.jsonl > benchmarks/gates/pools/h100_fast.jsonl.gz` makes a pool of it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

import msgspec
import torch
import torch._inductor.config as inductor
from transformers import AutoModelForImageTextToText, UnlimitedOcrForConditionalGeneration  # noqa: F401 - for the forks

from pytest_llmprof.config.compose import Composer, ConfigSources
from pytest_llmprof.config.registry import Registry
from pytest_llmprof.config.schema import Settings
from pytest_llmprof.datasets import builtin, load_pages
from pytest_llmprof.datasets.base import Page
from pytest_llmprof.errors import ConfigError
from pytest_llmprof.measure.duet import VARIABLE as DUET
from pytest_llmprof.measure.duet import Duet
from pytest_llmprof.measure.environment import environment
from pytest_llmprof.measure.figures import figures_of
from pytest_llmprof.measure.memory import PeakMemory, PhasePeaks
from pytest_llmprof.measure.phases import WARMUP_DOMAIN, PhaseRecorder
from pytest_llmprof.models import packaged_models
from pytest_llmprof.models.deepseek_ocr import loader, random_weights  # noqa: F401 - for the forks
from pytest_llmprof.records.metrics import Sample
from pytest_llmprof.stages import packaged_stages
from pytest_llmprof.stages.base import StageContext, StageResult
from pytest_llmprof.stages.runner import PagesWorkload, clean_rounds

ROOT = Path(__file__).resolve().parents[2]
STAGE = "direct_inference"
BEGUN, IMPORT_S = time.monotonic(), time.process_time()
"""When the imports were done, and what they took of the processor."""
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # does not start CUDA, which cannot be forked
PREPARE_S, MEASURE_S = 240.0, 120.0
"""A process that takes longer is ended."""
WARM_S = 25.0
"""What is expected of the next preparation when the first one has filled the compilers' caches."""
CALIBRATION_ROUNDS = 2
REPLAYS = 32
"""Decode steps that the GPU's clock times together."""
PRECISION = 0.0005
"""How far a kernel's delay may lie from what is wanted, as a share of the step."""


@dataclass(frozen=True)
class Work:
    """What the processes of one engine do."""

    overrides: tuple[str, ...]
    levels: tuple[float, ...]
    """Delays as shares of a decode step; the first is 0."""
    repeats: int
    """Rounds at each level."""
    processes: int
    share: int
    """Its part of the time, in proportion to those of the other engines."""
    on_device: bool = False
    """Whether the delay is a kernel in the decode step's CUDA graph."""


_FULL = ("model=deepseek_ocr_random", "model.device=cuda", "dataset.limit=1", "infer.ignore_eos=true")
_TINY = ("dataset.limit=1", "infer.ignore_eos=true", "infer.max_new_tokens=97", "model.device=cpu")
WORK = {
    "cuda": {
        "fast": Work((*_FULL, "infer=fast", "infer.max_new_tokens=129"), (0, 0.01, 0.02, 0.05), 5, 64, 50, True),
        "compiled": Work(
            (*_FULL, "infer=compiled", "infer.max_new_tokens=129"), (0, 0.01, 0.02, 0.05), 4, 64, 35, True
        ),
        "reference": Work((*_FULL, "infer=reference", "infer.max_new_tokens=33"), (0, 0.05), 2, 24, 15),
    },
    "cpu": {"reference": Work((*_TINY, "infer=reference"), (0, 0.02, 0.05, 0.1), 4, 200, 1)},
}


def shares(text: str) -> tuple[float, ...]:
    """Percentages as shares; raises `ValueError` where the first is not 0."""
    levels = tuple(float(percent) / 100 for percent in text.split(","))
    if levels[0] != 0:
        raise ValueError("the first level is the one without a delay")
    return levels


def configuration(work: Work, *, duet: bool = False) -> tuple[Settings, tuple[Page, ...]]:
    """The settings and the pages that a test with these overrides has."""
    models, stages, datasets = packaged_models(), packaged_stages(), builtin()
    sources = ConfigSources(ROOT, ROOT, cli_overrides=work.overrides, stages=(STAGE,))
    try:
        settings = Composer(sources, Registry.of(models, stages, datasets)).for_test((), "", "gates", STAGE)
    except ConfigError as error:
        raise SystemExit(f"record.py: {error}") from None
    rounds = len(schedule(len(work.levels), work.repeats, 0 if duet else None))
    settings = replace(settings, measure=replace(settings.measure, rounds=rounds, warmup=1))
    plugin = next(plugin for plugin in datasets if plugin.name == settings.dataset.name)
    return settings, tuple(load_pages(plugin, settings.dataset))


def schedule(levels: int, repeats: int, place: int | None = None) -> list[int]:
    """The level of each round: 0 1 2, 2 1 0, ... A steady drift within the process adds as much to each.

    In a duet, where *place* is 0 or 1, one of the two has no delay in each round, as in a gate; in one round of a turn
    neither has.
    """
    there = list(range(levels))
    if place is not None:
        both = [(0, 0), *(pair for level in there[1:] for pair in ((0, level), (level, 0)))]
        there = [pair[place] for pair in both]
    return [level for repeat in range(repeats) for level in (there if repeat % 2 == 0 else reversed(there))]


def spin(seconds: float) -> None:
    """Keep the host busy."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


class SpinningRecorder(PhaseRecorder):
    """Spins at the begin of each decode step, inside it."""

    seconds = 0.0

    def step(self) -> Any:
        found = super().step()
        if self.seconds:
            spin(self.seconds)
        return found


class DelayedGraphs:
    """An engine's CUDA graphs. With *cycles*, that of the decode step ends with a kernel that spins so long.

    On a CPU, where nothing is captured, *cycles* are nanoseconds of the host.
    """

    def __init__(self, graphs: Any, device: torch.device) -> None:
        self.cycles = 0
        self.step: tuple[Hashable, Callable[[], None]] | None = None
        """Key and function of the decode step that ran last, without a delay."""
        self._graphs, self._cuda = graphs, device.type == "cuda"

    def has(self, key: Any) -> bool:
        return bool(self._graphs.has(self._key(key)))

    def run(self, key: Any, function: Any, *inputs: Any) -> Any:
        if key[0] == "step":
            self.step = key, function
            if self.cycles:
                function = partial(self._delayed, function, self.cycles)
        return self._graphs.run(self._key(key), function, *inputs)

    def run_step(self) -> None:
        """Run the last decode step again."""
        assert self.step is not None
        self.run(*self.step)

    def close(self) -> None:
        self._graphs.close()

    def _key(self, key: Any) -> Any:
        return (*key, "delayed", self.cycles) if self.cycles and key[0] == "step" else key

    def _delayed(self, function: Callable[[], None], cycles: int) -> None:
        function()
        self.spin(cycles)

    def spin(self, cycles: int) -> None:
        if self._cuda:
            torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]
        else:
            spin(cycles / 1e9)


class DelayedPages(PagesWorkload):
    """The pages of a test; each round has the delay of its level."""

    def __init__(self, model: Any, pages: tuple[Page, ...], settings: Settings, work: Work, place: int | None) -> None:
        def failed(page: Page, _batch: int, _size: int, text: str) -> NoReturn:
            raise RuntimeError(f"page {page.name}: {text}")

        super().__init__(
            model, pages, settings.infer,
            on_answer=lambda *_: None, on_failure=failed, progress=lambda *_: None,
        )  # fmt: skip
        self.work = work
        self.duet: Duet | None = None
        self.levels = schedule(len(work.levels), work.repeats, place)
        self.at: list[float] = []
        """When each measured round began, seconds of the epoch."""
        self.step_ms = math.nan
        """The decode step without a delay, as the harness times it."""
        self.injected = [0.0] * len(work.levels)
        """Each level's delay as a share of the step: what the GPU's clock shows, or what the host spins."""
        self.delays: list[float] = [0.0] * len(work.levels)
        """Each level's delay: cycles of the GPU, or seconds of the host."""
        self.beside_ms = 0.0
        """What a kernel takes beside its cycles."""
        self.graphs: Any = None
        if work.on_device:
            self.graphs = model.engine.graphs = DelayedGraphs(model.engine.graphs, torch.device(self.device))

    def warmup(self, passes: int, recorder: PhaseRecorder) -> None:
        """Warm up and find the delays; run each level with a graph of its own once. On a GPU the other process of a
        duet waits meanwhile."""
        if self.duet is not None and self.device != "cpu":
            self.duet.begin_round("the warm-up", 1, 1, self.device)
            self._warmup_alone(passes, recorder)
            self.duet.end_round()
        else:
            self._warmup_alone(passes, recorder)

    def _warmup_alone(self, passes: int, recorder: PhaseRecorder) -> None:
        super().warmup(passes, recorder)
        plain = SpinningRecorder(self.device, domain=WARMUP_DOMAIN)
        rounds = [super(DelayedPages, self).round(-1, plain)[0] for _ in range(CALIBRATION_ROUNDS)]
        step_ms = figures_of([sample for samples in rounds for sample in samples], [])["tpot_ms"]
        assert step_ms is not None
        self.step_ms = step_ms
        for level, share in enumerate(self.work.levels):
            if not share:
                continue
            if not self.work.on_device:
                self.delays[level], self.injected[level] = share * step_ms / 1e3, share
                continue
            self.delays[level], self.injected[level] = self._kernel(share)
            with self._delay(level, plain):
                super().warmup(1, plain)

    def round(self, index: int, recorder: PhaseRecorder) -> tuple[list[Sample], float]:
        """One measured pass at the level of its turn."""
        self.at.append(time.time())
        with self._delay(self.levels[index], recorder):
            return super().round(index, recorder)

    @contextmanager
    def _delay(self, level: int, recorder: PhaseRecorder) -> Iterator[None]:
        assert isinstance(recorder, SpinningRecorder)
        if self.work.on_device:
            self.graphs.cycles = int(self.delays[level])
        else:
            recorder.seconds = self.delays[level]
        yield
        recorder.seconds = 0.0
        if self.work.on_device:
            self.graphs.cycles = 0

    @torch.inference_mode()  # as in an answer: torch.compile would compile the step again without it
    def _kernel(self, share: float) -> tuple[int, float]:
        """Cycles that lengthen the step by *share*, and the share that the GPU's clock then shows."""
        wanted = share * self.step_ms
        short, long = 100_000, 400_000
        a_cycle = (self._spun(long) - self._spun(short)) / (long - short)
        most = 2 * wanted / a_cycle
        cycles, tried = max(int((wanted - self.beside_ms) / a_cycle), 1), {}
        for _ in range(4):
            tried[cycles] = self._added(cycles)
            if abs(tried[cycles] - wanted) <= PRECISION * self.step_ms:
                break
            cycles = int(min(max(cycles + (wanted - tried[cycles]) / a_cycle, 1), most))
        best = min(tried, key=lambda cycles: abs(tried[cycles] - wanted))
        self.beside_ms = tried[best] - best * a_cycle
        return best, tried[best] / self.step_ms

    def _spun(self, cycles: int) -> float:
        self.graphs.spin(cycles)
        return min(self._clocked(partial(self.graphs.spin, cycles), 8) for _ in range(3)) / 8

    def _added(self, cycles: int) -> float:
        """Milliseconds that a kernel of *cycles* adds to a step: the GPU's clock around steps in a row, in turn."""
        times: tuple[list[float], list[float]] = [], []
        for turn in range(3):
            for side, chosen in enumerate((0, cycles)):
                self.graphs.cycles = chosen
                self._clear()
                self.graphs.run_step()  # captures at the first turn
                self._clear()
                taken = self._clocked(self.graphs.run_step, REPLAYS) / REPLAYS
                if turn:
                    times[side].append(taken)
        self.graphs.cycles = 0
        return median(with_it - without for without, with_it in zip(*times, strict=True))

    def _clear(self) -> None:
        """Empty the caches: each step takes a place in them."""
        for cache in self._model.engine.caches.values():  # type: ignore[attr-defined]
            cache.clear()

    def _clocked(self, call: Callable[[], None], times: int) -> float:
        """Milliseconds of *times* calls in a row, by the GPU's clock; on a CPU by the host's."""
        if not self.device.startswith("cuda"):
            begin = time.perf_counter()
            for _ in range(times):
                call()
            return (time.perf_counter() - begin) * 1e3
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start.record()
        for _ in range(times):
            call()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end))


# -- one process


def process(
    work: Work, settings: Settings, pages: tuple[Page, ...], pipe: Pipe, *, cold: bool, place: int | None = None
) -> None:
    """Load and warm up, say so, wait for the turn, measure, send what was measured. *place*: 0 or 1 of a duet."""
    begin = time.perf_counter()
    if settings.model.device != "cpu" and getattr(torch.cuda, "_is_in_bad_fork", lambda: False)():
        raise RuntimeError("CUDA was used before the fork")
    # As many workers of compilers for each of the processes prepared at once would outnumber the cores.
    inductor.compile_threads = max((os.cpu_count() or 2) // 2, 1) if cold else 1
    plugin = next(plugin for plugin in packaged_models() if plugin.name == settings.model.name)
    loaded = plugin.load(settings.model, settings.infer)
    load_s = time.perf_counter() - begin
    workload = DelayedPages(loaded, pages, settings, work, place)
    if workload.device != "cpu":  # compiles and captures; on a CPU there is nothing to make before the turn
        PagesWorkload.warmup(workload, 1, SpinningRecorder(workload.device, domain=WARMUP_DOMAIN))
    pipe.send({"ready": True, "load_s": load_s, "prepare_s": time.perf_counter() - begin})
    if pipe.receive(math.inf) is None:
        return
    measure_begin, moment = time.perf_counter(), time.time()
    duet = workload.duet = Duet.from_environment(os.environ)
    if duet is not None:
        duet.greet()

    def recorder(domain: str) -> PhaseRecorder:
        peaks = PhasePeaks(PeakMemory(workload.device)) if domain == WARMUP_DOMAIN else None
        return SpinningRecorder(workload.device, domain=domain, peaks=peaks)

    context = StageContext(
        settings=settings, out_dir=Path(), workload=workload, recorder=recorder, progress=lambda *_: None,
        result=StageResult(), duet=duet,
    )  # fmt: skip
    clean_rounds(context)
    if workload.disturbed:
        raise RuntimeError(workload.disturbed[0])
    result = context.result
    place = environment(
        workload.device, ROOT, before=result.gpu_before, after=result.gpu_after, duet=duet is not None
    )
    pipe.send(
        {
            "environment": msgspec.to_builtins(place),
            "model": msgspec.to_builtins(loaded.info),
            "record": record(workload, result, moment, time.perf_counter() - measure_begin, load_s),
        }
    )
    pipe.receive(math.inf)  # leave when all of this batch have been measured: freeing memory keeps the GPU busy


def record(workload: DelayedPages, result: StageResult, moment: float, seconds: float, load_s: float) -> dict[str, Any]:
    """The line of one process."""
    of_round: dict[int, list[Sample]] = {}
    for sample in result.samples:
        of_round.setdefault(sample.round, []).append(sample)
    rounds = [
        [
            workload.levels[index],
            round(workload.at[index] - moment, 2),
            [[rounded(part) for part in (one.tpot_ms, one.ttft_ms, one.phases.get("decode"))] for one in samples],
        ]
        for index, samples in sorted(of_round.items())
    ]
    injected = workload.injected
    if not workload.work.on_device:
        step_s = level_median(rounds, 0) / 1e3
        injected = [delay / step_s for delay in workload.delays]
    return {
        "at": round(moment, 2),
        "seconds": round(seconds, 2),
        "load_s": round(load_s, 2),
        "step_ms": rounded(workload.step_ms),
        "delays": [rounded(delay) for delay in workload.delays],
        "injected": [rounded(share) for share in injected],
        "gpu": [gpu_state(result.gpu_before), gpu_state(result.gpu_after)],
        "rounds": rounds,
    }


def rounded(value: float | None) -> float | None:
    """Five significant digits."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def gpu_state(gpu: Any) -> dict[str, Any] | None:
    if gpu is None:
        return None
    names = ("sm_clock_mhz", "memory_clock_mhz", "temperature_c", "throttle_reasons", "throttled", "other_processes")
    return {name: getattr(gpu, name) for name in names}


# -- the processes' parent


class Pipe:
    """Lines of JSON between two processes."""

    def __init__(self, read: int, write: int) -> None:
        self.read, self.write = read, write
        self._kept = b""

    @property
    def ends(self) -> tuple[int, int]:
        return self.read, self.write

    def send(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self.write, data) :]

    def receive(self, timeout: float) -> dict[str, Any] | None:
        """The next message; None where the other side is gone. Raises `TimeoutError`."""
        until = time.monotonic() + timeout
        while b"\n" not in self._kept:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.read], [], [], None if math.isinf(left) else left)[0]:
                raise TimeoutError
            if not (data := os.read(self.read, 1 << 16)):
                return None
            self._kept += data
        line, self._kept = self._kept.split(b"\n", 1)
        found: dict[str, Any] = json.loads(line)
        return found


class Child:
    """One process, forked; with *fresh* it then starts a new interpreter."""

    def __init__(
        self, recorder: Recorder, others: list[Child], *, cold: bool, ends: tuple[socket.socket, ...] = ()
    ) -> None:
        """*others* are alive; it keeps none of their pipes open, so that each sees where the parent closes its own.

        With *ends*, the two of a socket, it is in a duet: the first child has the first, and closes the other.
        """
        (down_read, down_write), (up_read, up_write) = os.pipe(), os.pipe()
        self.pipe = Pipe(up_read, down_write)
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            for end in (down_write, up_read, *(end for other in others for end in other.pipe.ends)):
                os.close(end)
            if ends:
                recorder.place = len(others)
                ends[1 - recorder.place].close()
                os.environ[DUET] = f"{ends[recorder.place].detach()},{recorder.place}"
                torch.set_num_threads(len(os.sched_getaffinity(0)) // 2)
            recorder.become(Pipe(down_read, up_write), cold=cold)
        os.close(down_read)
        os.close(up_write)

    def ask(self, timeout: float) -> dict[str, Any]:
        """Its next message. Raises `RuntimeError` with what went wrong, and ends it."""
        try:
            message = self.pipe.receive(timeout)
        except TimeoutError:
            message = {"error": f"no answer within {timeout:.0f} s"}
        if message is None:
            message = {"error": "it ended without a message; see the log"}
        if "error" in message:
            os.kill(self.pid, signal.SIGKILL)
            raise RuntimeError(message["error"])
        return message

    def leave(self) -> None:
        """Close the pipe from which it reads: it ends then."""
        os.close(self.pipe.write)

    def wait(self, until: float) -> None:
        """Wait until it has ended; at *until* (time.monotonic) end it."""
        while os.waitpid(self.pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.01)
        os.close(self.pipe.read)


class Recorder:
    """Records the processes of one engine."""

    def __init__(
        self, out: Path, device: str, engine: str, work: Work, ahead: int, *, fresh: bool, duet: bool = False
    ) -> None:
        self.out, self.device, self.engine, self.work = out, device, engine, work
        self.ahead, self.fresh, self.duet = 2 if duet else ahead, fresh, duet
        self.place: int | None = None
        """In the child of a duet: whether it is the first or the second."""
        self.settings, self.pages = configuration(work, duet=duet)
        self.file, self.log = out / f"{engine}.jsonl", out / f"{engine}.log"
        self.count = 0
        self.prepare_s, self.measure_s = 0.0, 0.0
        """Seconds of the last batch's preparation, and of a process's measurement."""
        self._head = False
        self._ratios: list[list[float]] = [[] for _ in work.levels]

    def become(self, pipe: Pipe, *, cold: bool) -> NoReturn:
        """In the child: do the work of one process, and leave."""
        code = 1
        try:
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if self.fresh:
                for end in (pipe.read, pipe.write):
                    os.set_inheritable(end, True)
                words = [f"--child={pipe.read},{pipe.write},{self.engine},{int(cold)}"]
                words += [f"--override={one}" for one in self.work.overrides]
                command = [sys.executable, __file__, str(self.out), "--device", self.device, *words]
                os.execv(sys.executable, command)
            code = guarded(self, pipe, cold=cold)
        finally:
            os._exit(code)

    def run(self, processes: int, deadline: float) -> None:
        """Record until there are *processes*, or the next batch would not end by *deadline* (time.monotonic)."""
        say(f"{self.engine}: up to {processes} processes until {deadline - time.monotonic():.0f} s from now")
        failed = 0
        if self.device == "cuda":
            fresh = self.fresh = self.fresh or torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
            self._batch(1, deadline, cold=True)
            if self.fresh is not fresh:  # it could not be forked
                self._batch(1, deadline, cold=True)
        while self.count < processes and failed < 3:
            left = deadline - time.monotonic() - self.prepare_s
            size = min(self.ahead, processes - self.count)
            if self.measure_s:
                size = min(size, int(left / self.measure_s))
            if left <= 0 or size <= 0:
                break
            before = self.count
            self._batch(size, deadline, cold=False)
            failed = failed + 1 if self.count == before else 0
        say(f"{self.engine}: {self.count} processes recorded; {self.rises()}")

    def rises(self) -> str:
        """By how much TPOT really rose at each level."""
        if not self.count:
            return "nothing was measured"
        found = zip(self.work.levels[1:], self._ratios[1:], strict=True)
        return "TPOT with a delay of " + ", ".join(f"{share:.0%}: {median(seen) - 1:+.2%}" for share, seen in found)

    def _batch(self, size: int, deadline: float, *, cold: bool) -> None:
        """Prepare *size* processes at once, then measure them one by one; a duet's two at the same time."""
        children: list[Child] = []
        ends = socket.socketpair() if self.duet else ()
        try:
            for _ in range(2 if self.duet else size):
                children.append(Child(self, children, cold=cold, ends=ends))
            for end in ends:
                end.close()
            self._measure(children, deadline, cold=cold)
        finally:
            for child in children:
                child.leave()
            until = time.monotonic() + 10
            for child in children:
                child.wait(until)

    def _measure(self, children: list[Child], deadline: float, *, cold: bool) -> None:
        ready = []
        begin = time.monotonic()
        for child in children:
            try:
                left = max(deadline - time.monotonic(), 1)
                ready.append((child, child.ask(min(PREPARE_S, left))))
            except RuntimeError as error:
                self._failed(error, cold=cold)
        self.prepare_s = min(time.monotonic() - begin, WARM_S) if cold else time.monotonic() - begin
        if 0 < len(ready) < len(children):  # a GPU that takes one process at a time, or that is full
            self.ahead = len(ready)
        if self.duet:
            self._measure_both(ready, deadline, cold=cold)
            return
        for child, facts in ready:
            if time.monotonic() > deadline:
                say(f"{self.engine}: out of time")
                return
            begin = time.monotonic()
            try:
                child.pipe.send({"go": True})
                message = child.ask(min(MEASURE_S, max(deadline - begin, 0) + 15))
            except (RuntimeError, BrokenPipeError) as error:
                self._failed(error, cold=cold)
                continue
            self.measure_s = time.monotonic() - begin
            found = message["record"] | {"prepare_s": round(facts["prepare_s"], 2)}
            if cold:
                say(f"{self.engine}: a first process, not recorded: prepared in {facts['prepare_s']:.1f} s")
            else:
                self._keep(found, message)

    def _measure_both(self, ready: list[tuple[Child, dict[str, Any]]], deadline: float, *, cold: bool) -> None:
        """Measure the two of a duet. Neither is kept without the other, or where they are the first ones."""
        begin = time.monotonic()
        if len(ready) < 2 or begin > deadline:
            return
        try:
            for child, _ in ready:
                child.pipe.send({"go": True})
            messages = [child.ask(min(MEASURE_S, deadline - begin + 15)) for child, _ in ready]
        except (RuntimeError, BrokenPipeError) as error:
            self._failed(error, cold=cold)
            return
        self.measure_s = (time.monotonic() - begin) / 2
        if cold:
            say(f"{self.engine}: a first pair, not recorded: prepared in {self.prepare_s:.1f} s")
            return
        for (_, facts), message in zip(ready, messages, strict=True):
            self._keep(message["record"] | {"prepare_s": round(facts["prepare_s"], 2)}, message)

    def _failed(self, error: Exception, *, cold: bool) -> None:
        say(f"{self.engine}: a process failed: {error}")
        if not self.fresh and (cold or not self.count):
            say(f"{self.engine}: from now on each process starts its own interpreter")
            self.fresh = True

    def _keep(self, found: dict[str, Any], message: dict[str, Any]) -> None:
        with self.file.open("a", encoding="utf-8") as stream:
            if not self._head:
                self._head = True
                print(json.dumps(self._header(message), separators=(",", ":")), file=stream)
            print(json.dumps(found, separators=(",", ":")), file=stream)
        self.count += 1
        medians = [level_median(found["rounds"], level) for level in range(len(self.work.levels))]
        for seen, value in zip(self._ratios, medians, strict=True):
            seen.append(value / medians[0])
        clock = found["gpu"][1] and found["gpu"][1]["sm_clock_mhz"]
        say(
            f"{self.engine} {self.count}: TPOT {medians[0]:.4f} ms, "
            f"{', '.join(f'{value / medians[0] - 1:+.2%}' for value in medians[1:])}; prepared in "
            f"{found['prepare_s']:.1f} s, measured in {found['seconds']:.1f} s{f', {clock} MHz' if clock else ''}"
        )

    def _header(self, message: dict[str, Any]) -> dict[str, Any]:
        work = self.work
        return {
            "session": f"{time.time():.0f}",
            "engine": self.engine,
            "columns": ["tpot_ms", "ttft_ms", "decode_ms"],
            "levels": work.levels,
            "repeats": work.repeats,
            "delay": "kernel" if work.on_device else "host",
            "overrides": work.overrides,
            "ahead": self.ahead,
            "duet": self.duet,
            "forked": not self.fresh,
            "import_s": round(IMPORT_S, 1),
            "model": message["model"],
            "environment": message["environment"],
        }


def level_median(rounds: list[Any], level: int) -> float:
    """A level's median of its pages' TPOT."""
    return float(median(page[0] for which, _, pages in rounds if which == level for page in pages))


def guarded(recorder: Recorder, pipe: Pipe, *, cold: bool) -> int:
    """One process, its error sent as a message."""
    try:
        process(recorder.work, recorder.settings, recorder.pages, pipe, cold=cold, place=recorder.place)
    except BaseException as error:  # noqa: BLE001 - the parent says what went wrong; the log has the traceback
        traceback.print_exc()
        sys.stderr.flush()
        pipe.send({"error": " ".join(f"{type(error).__name__}: {error}".split())[:500]})
        return 1
    return 0


def say(text: str) -> None:
    """A line of progress with the seconds since the begin."""
    print(f"[{time.monotonic() - BEGUN:6.1f} s] {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="directory of the recordings")
    parser.add_argument("--device", choices=sorted(WORK), default="cpu")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for all (default: %(default)s)")
    parser.add_argument("--engine", action="append", help="only this one; may be repeated")
    parser.add_argument("--processes", type=int, help="processes of each engine")
    parser.add_argument("--levels", type=shares, help="delays in percent of a decode step: 0,1,2,5; the first is 0")
    parser.add_argument("--rounds", type=int, help="rounds of a process at each level")
    parser.add_argument("--ahead", type=int, default=1, help="processes prepared at once (default: 1)")
    parser.add_argument("--duet", action="store_true", help="two processes beside each other (see above)")
    parser.add_argument("--fresh", action="store_true", help="start a new interpreter for each process: no fork server")
    parser.add_argument("--override", action="append", default=[], help="a further key, such as model.size=tiny")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    known = WORK[options.device]
    if unknown := set(options.engine or ()) - set(known):
        parser.error(f"no engine {', '.join(sorted(unknown))} on {options.device}; there are {', '.join(known)}")
    alone = options.fresh or options.ahead != 1 or len(os.sched_getaffinity(0)) < 2
    if options.duet and alone:
        parser.error("--duet needs two or more processors, and goes without --fresh and --ahead")
    options.out.mkdir(parents=True, exist_ok=True)
    out = options.out.resolve()
    if options.child:
        read, write, engine, cold = options.child.split(",")
        work = replace(known[engine], overrides=tuple(options.override))
        recorder = Recorder(out, options.device, engine, work, 1, fresh=True)
        os._exit(guarded(recorder, Pipe(int(read), int(write)), cold=cold == "1"))
    chosen = {engine: known[engine] for engine in options.engine or known}
    chosen = {
        engine: replace(work, levels=options.levels or work.levels, repeats=options.rounds or work.repeats)
        for engine, work in chosen.items()
    }
    if options.duet and any(work.repeats % 2 for work in chosen.values()):
        parser.error("--duet needs an even number of --rounds: each level is measured on both halves of the processors")
    passed, whole = 0, sum(work.share for work in chosen.values())
    fresh, counts = options.fresh, {}
    for engine, work in chosen.items():
        work = replace(work, overrides=(*work.overrides, *options.override))
        recorder = Recorder(out, options.device, engine, work, options.ahead, fresh=fresh, duet=options.duet)
        passed += work.share
        recorder.run(options.processes or work.processes, BEGUN + 60 * options.minutes * passed / whole)
        fresh, counts[engine] = recorder.fresh, recorder.count
    say(", ".join(f"{engine} {count}" for engine, count in counts.items()) + f" processes in {out}")
    sys.exit(0 if all(counts.values()) else 1)


if __name__ == "__main__":
    main()
