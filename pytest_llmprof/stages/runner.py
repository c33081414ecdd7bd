"""The measured loop, from the rounds of a stage down to the clock around one batch.

`clean_rounds` -> `PagesWorkload.round` -> `run_batch`: the whole of what is timed is between the two readings of the
clock in `run_batch`. Reading images, decoding tokens to text, scoring and writing files happen between batches.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING

from pytest_llmprof.datasets.base import Page
from pytest_llmprof.errors import LlmprofError, ModelError, PageError, StageError
from pytest_llmprof.measure.collector import frozen_garbage_collector
from pytest_llmprof.measure.compiles import CompileWatch, complaint
from pytest_llmprof.measure.energy import EnergyMeter
from pytest_llmprof.measure.gpu import GpuReader
from pytest_llmprof.measure.host import HostMeter
from pytest_llmprof.measure.memory import PeakMemory
from pytest_llmprof.measure.phases import DOMAIN, TOP_PHASES, WARMUP_DOMAIN, PhaseRecorder
from pytest_llmprof.models.base import LoadedModel
from pytest_llmprof.records.environment import Gpu
from pytest_llmprof.records.metrics import Peak, Sample
from pytest_llmprof.stages.base import ShowProgress, StageContext, Window
from pytest_llmprof.stages.contract import Answer, read_answers
from pytest_llmprof.stages.failures import Failure, describe_error, free_memory_of, out_of_memory
from pytest_llmprof.text.numbers import count

if TYPE_CHECKING:
    from PIL.Image import Image

    from pytest_llmprof.config.schema import InferSettings


def clean_rounds(context: StageContext) -> None:
    """Warm up, then run `measure.rounds` measured passes without a profiler, and those that unclear gates need.
    In a duet the number is even, and gates get no more rounds.

    The GPU is read before the first pass and after the last, its energy counter around each, while the device is idle
    and the clock is stopped.
    """
    measure = context.settings.measure
    workload = context.workload
    result = context.result
    if measure.warmup:
        context.progress("warm-up")
    workload.warmup(measure.warmup, context.recorder(WARMUP_DOMAIN))
    recorder = context.recorder(DOMAIN)
    energy = result.energy
    duet = context.duet
    with frozen_garbage_collector(), GpuReader(workload.device, beside=0 if duet is None else 1) as reader:
        result.gpu_before, result.gpu_reason = reader.gpu(), reader.reason
        energy.reason = _why_no_energy(result.gpu_before, result.gpu_reason)
        meter = EnergyMeter(reader.energy_mj) if energy.reason is None else None
        host = HostMeter(None if duet is None else duet.processors)
        wanted, index = measure.rounds, 0
        if duet is not None:
            wanted += wanted % 2  # as many on each half of the processors, or in each order of turns
        while index < wanted:
            if duet is not None:
                duet.begin_round(context.test_id, index + 1, wanted, workload.device)
            if meter is not None:
                meter.begin()
            host.begin()
            with recorder.round():
                samples, seconds = workload.round(index, recorder)
            result.round_host.append(host.end())
            index += 1
            if index == wanted:
                result.gpu_after = reader.gpu()  # at once, while clocks and heat are still those of the work
            if meter is not None:
                energy.rounds.append(meter.end(seconds))
                energy.update_s = meter.update_s
            if duet is not None:
                duet.end_round()
            result.samples += samples
            if samples:
                result.round_seconds.append(seconds)
            if index == wanted and duet is None:  # the process beside this one would not measure them
                wanted += context.more_rounds()
    if energy.rounds and (late := _why_no_energy(result.gpu_after, None)) is not None:
        energy.reason, energy.rounds = late, []


def _why_no_energy(gpu: Gpu | None, reason: str | None) -> str | None:
    if gpu is None or gpu.energy_mj is None:
        return reason or "the GPU or its driver has no energy counter"
    if gpu.mig:
        return "the counter is the whole GPU's, and this is a part of it (MIG)"
    if gpu.shared:
        return "another process used the GPU, and the counter counts both"
    return None


class PagesWorkload:
    """Pages through a model. The first measured round's answers go to *on_answer*, page by page."""

    kind = "pages"
    iterations = 1

    def __init__(
        self,
        model: LoadedModel,
        pages: Sequence[Page],
        infer: InferSettings,
        *,
        max_failed_pages: int | None = None,
        on_answer: Callable[[Page, Image, Answer, Sample], None],
        on_failure: Callable[[Page, int, int, str], None],
        progress: ShowProgress,
    ) -> None:
        self.model: LoadedModel | None = model
        self._model = model
        self.pages = pages
        self.infer: InferSettings | None = infer
        self._infer = infer
        self.device = model.info.device
        self.failures: list[Failure] = []
        self.deterministic: bool | None = None
        self.value = None
        self._max_failed_pages = max_failed_pages
        self._on_answer = on_answer
        self._on_failure = on_failure
        self._progress = progress
        self.disturbed: list[str] = []
        self.phase_peaks: dict[str, Peak] = {}
        self._memory = PeakMemory(self.device)
        self._warmup = 0
        self._first: dict[str, object] = {}
        self._failed: set[str] = set()
        self._compiled = False

    def _images(self, batch_id: int, batch: Sequence[Page]) -> list[tuple[Page, Image]]:
        """Read a batch's images; a page that cannot be read fails once, and is left out from then on."""
        read = []
        for page in batch:
            if page.name in self._failed:
                continue
            try:
                read.append((page, page.load()))
            except PageError as error:
                self._fail([page], batch_id, error.beside(page.name))
        return read

    def _fail(self, pages: Sequence[Page], batch_id: int, text: str, details: str | None = None) -> None:
        for page in pages:
            self._failed.add(page.name)
            self.failures.append(Failure(page.name, text, details))
            self._on_failure(page, batch_id, len(pages), text)
        allowed = self._max_failed_pages
        if allowed is not None and len(self.failures) > allowed:
            raise StageError(
                f"ended early: {count(len(self.failures), 'page')} failed, measure.max_failed_pages={allowed}; "
                f"the last is {self.failures[-1].page}: {self.failures[-1].error}"
            )

    def _give_up(self, error: Exception, pages: Sequence[Page], batch_id: int, recorder: PhaseRecorder) -> None:
        """Fail a batch's pages by what the model raised, and free what it held."""
        text = describe_error(error, recorder, [page.name for page in pages], self.device)
        known = isinstance(error, LlmprofError) or out_of_memory(error)
        details = None if known else "".join(traceback.format_exception(error))
        recorder.drop()
        free_memory_of(error, self.device)
        self._fail(pages, batch_id, text, details)

    def _run(
        self, index: int, batch_id: int, batch: Sequence[Page], recorder: PhaseRecorder
    ) -> tuple[list[tuple[Page, Image, Answer, Sample]], float]:
        """Run a batch. Gives its pages, less those that failed, and its seconds."""
        loaded = self._images(batch_id, batch)
        if not loaded:
            return [], 0.0
        names = [page.name for page, _ in loaded]
        error: Exception | None = None
        with CompileWatch() as watch:
            try:
                rows, seconds = run_batch(
                    self._model,
                    names,
                    [image for _, image in loaded],
                    self._infer,
                    recorder,
                    round_index=index,
                    batch_id=batch_id,
                    memory=self._memory,
                )
            # Whatever a model raises fails its pages by name; the others go on and the test fails at its end.
            except Exception as found:  # noqa: BLE001
                error = found
        self._compiled = bool(watch.seen)
        if error is not None:
            refused = isinstance(error, ModelError) and len(loaded) > 1
            if refused and len(self._shape_keys(loaded, batch_id, recorder)) < len(loaded):
                return self._run(index, batch_id, batch, recorder)  # the others
            self._give_up(error, [page for page, _ in loaded], batch_id, recorder)
            return [], 0.0
        if watch.seen and index >= 0:
            self.disturbed.append(complaint(f"round {index + 1}, {_pages(names)}", watch.seen, self._warmup))
        good = []
        for (page, image), (answer, sample) in zip(loaded, rows, strict=True):
            if sample is not None:
                good.append((page, image, answer, sample))
            else:
                self._fail([page], batch_id, str(answer.fault))
        return good, seconds

    def _shape_keys(
        self, loaded: Sequence[tuple[Page, Image]], batch_id: int, recorder: PhaseRecorder
    ) -> list[object]:
        """The shapes of pages that the model takes; one that it refuses fails by its name."""
        keys = []
        for page, image in loaded:
            try:
                key = self._model.shape_key(image, self._infer)
                hash(key)
                keys.append(key)
            except Exception as error:  # noqa: BLE001 - as in _run
                self._give_up(error, [page], batch_id, recorder)
        return keys

    def warmup(self, passes: int, recorder: PhaseRecorder) -> None:
        """Run one batch of each distinct input shape, *passes* times, each to its answer's end.

        The last pass gives the phases' peak memory. A batch that compiled something there runs once more, as
        compilers and tuners use memory of their own.
        """
        self._warmup = passes
        self._memory.release_cached()
        for number in range(passes):
            seen: set[object] = set()
            for batch_id, batch in _batches(self.pages, self._infer.batch_size):
                key = tuple(self._shape_keys(self._images(batch_id, batch), batch_id, recorder))
                if not key or key in seen:
                    continue
                seen.add(key)
                self._run(-1, batch_id, batch, recorder)
                peaks = recorder.take_peaks()
                if number + 1 < passes:
                    continue
                if peaks and self._compiled:
                    self._run(-1, batch_id, batch, recorder)
                    peaks = recorder.take_peaks()
                for name, peak in peaks.items():
                    self.phase_peaks[name] = peak.union(self.phase_peaks.get(name))

    def round(self, index: int, recorder: PhaseRecorder) -> tuple[list[Sample], float]:
        """One pass over the pages."""
        samples: list[Sample] = []
        seconds = 0.0
        for batch_id, batch in _batches(self.pages, self._infer.batch_size):
            done = batch_id * self._infer.batch_size
            text = f"round {index + 1}, page {done + 1} of {len(self.pages)}"
            self._progress(text, index + done / len(self.pages))
            rows, batch_seconds = self._run(index, batch_id, batch, recorder)
            seconds += batch_seconds
            for page, image, answer, sample in rows:
                samples.append(sample)
                if page.name not in self._first:
                    self._first[page.name] = answer.key
                    try:
                        self._on_answer(page, image, answer, sample)
                    except PageError as error:
                        self._fail([page], batch_id, str(error), "".join(traceback.format_exception(error)))
                else:
                    same = self._first[page.name] == answer.key
                    self.deterministic = same and self.deterministic is not False
        return samples, seconds

    def windows(self, window: Window, recorder: PhaseRecorder) -> Iterator[Iterator[None]]:
        """One iterator for each of the first `window.pages` batches that can be read."""
        given = 0
        for batch_id, batch in _batches(self.pages, self._infer.batch_size):
            if given == window.pages:
                return
            loaded = self._images(batch_id, batch)
            if loaded:
                given += 1
                names = [page.name for page, _ in loaded]
                yield self._window(names, [image for _, image in loaded], window, recorder)

    def _window(
        self, names: list[str], images: list[Image], window: Window, recorder: PhaseRecorder
    ) -> Iterator[None]:
        """The window's batch; running out of memory in it becomes one line, and what it held is freed."""
        watch = CompileWatch()
        try:
            yield from self._steps(images, window, recorder, watch)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            text = f"the profiled window: {describe_error(error, recorder, names, self.device)}"
            free_memory_of(error, self.device)
            raise StageError(text) from None
        if watch.seen:
            self.disturbed.append(complaint(f"the profiled window, {_pages(names)}", watch.seen, self._warmup))

    def _steps(
        self, images: list[Image], window: Window, recorder: PhaseRecorder, watch: CompileWatch
    ) -> Iterator[None]:
        tokens = self._model.generate(images, self._infer, recorder)
        counts: Counter[int] = Counter()  # tokens a row; a batch's step is its furthest row's
        with closing(tokens):  # type: ignore[type-var]
            while window.start_token and max(counts.values(), default=0) < window.start_token:
                token = next(tokens, None)
                if token is None:
                    raise StageError(
                        f"the profiled window never opened: the answer ended after {max(counts.values())} tokens, "
                        f"before the window's start_token={window.start_token}"
                    )
                counts[token.row] += 1
            yield
            # A window from the start holds the first token, then its decode steps.
            last = (window.start_token or 1) + window.decode_tokens
            with watch:
                for token in tokens:
                    counts[token.row] += 1
                    if max(counts.values()) >= last:
                        return


def _pages(names: Sequence[str]) -> str:
    return f"page {names[0]}" if len(names) == 1 else f"pages {names[0]} ... {names[-1]}"


def _batches(pages: Sequence[Page], size: int) -> Iterator[tuple[int, Sequence[Page]]]:
    """Consecutive groups of *size* pages with their number."""
    for batch_id, start in enumerate(range(0, len(pages), size)):
        yield batch_id, pages[start : start + size]


def run_batch(
    model: LoadedModel,
    names: Sequence[str],
    images: Sequence[Image],
    infer: InferSettings,
    recorder: PhaseRecorder,
    *,
    round_index: int,
    batch_id: int,
    memory: PeakMemory,
) -> tuple[list[tuple[Answer, Sample | None]], float]:
    """Time one batch. Returns each page's answer and sample (None for an answer with a `fault`), and its seconds.

    *memory* is read outside the clock. A model that does not stop is stopped at the first token too many.
    """
    memory.take()
    recorder.take()
    most = infer.max_new_tokens
    begin = time.perf_counter_ns()
    at_most = min(most * len(images) + 1, sys.maxsize)
    tokens = list(islice(model.generate(images, infer, recorder), at_most))
    end = time.perf_counter_ns()
    answers = read_answers(tokens, len(images), most, begin, end)
    phases = recorder.take()
    peak = memory.take()
    total = (end - begin) / 1e6
    arrivals = [answer.times_ns for answer in answers if answer.fault is None]
    last = max((times[-1] for times in arrivals), default=end)
    rate = batch_rate(arrivals)

    def sample(name: str, times: Sequence[int]) -> Sample:
        return Sample(
            round=round_index,
            page=name,
            batch_id=batch_id,
            tokens=len(times),
            ttft_ms=(times[0] - begin) / 1e6,
            tpot_ms=time_per_token(times),
            total_ms=(times[-1] - begin) / 1e6 if times[-1] < last else total,
            other_ms=total - sum(phases.get(phase, 0.0) for phase in TOP_PHASES),
            phases=dict(phases),
            peak_bytes=None if peak is None else peak.allocated_bytes,
            peak_reserved_bytes=None if peak is None else peak.reserved_bytes,
            batch_total_ms=total,
            batch_size=len(names),
            batch_tokens_per_s=rate,
        )

    rows = [
        (answer, sample(name, answer.times_ns) if answer.fault is None else None)
        for name, answer in zip(names, answers, strict=True)
    ]
    return rows, total / 1e3


def time_per_token(times_ns: Sequence[int]) -> float | None:
    """Milliseconds a token after the first arrival; None where all tokens came at once.

    Tokens that an engine hands over in one block arrive together: of those that came with the first one the time
    is not known, so they don't count.
    """
    after = sum(time > times_ns[0] for time in times_ns)
    return (times_ns[-1] - times_ns[0]) / 1e6 / after if after else None


def batch_rate(rows_ns: Sequence[Sequence[int]]) -> float | None:
    """Tokens a second of all rows together, after each row's first arrival; None where no row had a second one."""
    rows = [times for times in rows_ns if times]
    after = sum(time > times[0] for times in rows for time in times)
    if not after:
        return None
    return after / (max(times[-1] for times in rows) - min(times[0] for times in rows)) * 1e9
