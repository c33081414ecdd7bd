"""The two kinds of work a test can ask for: pages through a model, or a torch callable."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from pytest_llmprof.datasets.base import Page
from pytest_llmprof.errors import LlmprofError, PageError, StageError
from pytest_llmprof.measure.compiles import CompileWatch, complaint
from pytest_llmprof.measure.memory import Peak, PeakMemory
from pytest_llmprof.measure.phases import CALL, PhaseRecorder
from pytest_llmprof.models.base import LoadedModel
from pytest_llmprof.stages.base import Window
from pytest_llmprof.stages.runner import (
    Answer,
    Failure,
    Sample,
    batches,
    describe_error,
    let_go,
    out_of_memory,
    run_batch,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from pytest_llmprof.config.schema import InferSettings

__all__ = ["CallableWorkload", "PagesWorkload"]


class PagesWorkload:
    """Pages through a model. The first measured round's answers go to *on_answer*, page by page."""

    kind = "pages"

    def __init__(
        self,
        model: LoadedModel,
        pages: Sequence[Page],
        infer: InferSettings,
        *,
        on_answer: Callable[[Page, Image, Answer, Sample], None],
        on_failure: Callable[[Page, int, int, str], None],
        progress: Callable[[str], None],
    ) -> None:
        self.model = model
        self.pages = pages
        self.infer = infer
        self.device = model.info.device
        self.failures: list[Failure] = []
        self.deterministic: bool | None = None
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
        """Read a batch's pictures; a page that cannot be read fails once, and is left out from then on."""
        read = []
        for page in batch:
            if page.name in self._failed:
                continue
            try:
                read.append((page, page.load()))
            except PageError as error:
                self._fail([page], batch_id, str(error))
        return read

    def _fail(self, pages: Sequence[Page], batch_id: int, text: str, details: str | None = None) -> None:
        for page in pages:
            self._failed.add(page.name)
            self.failures.append(Failure(page.name, text, details))
            self._on_failure(page, batch_id, len(pages), text)

    def _give_up(self, error: Exception, pages: Sequence[Page], batch_id: int, recorder: PhaseRecorder) -> None:
        """Fail a batch's pages by what the model raised, and free what it held."""
        text = describe_error(error, recorder, [page.name for page in pages], self.device)
        known = isinstance(error, LlmprofError) or out_of_memory(error)
        self._fail(pages, batch_id, text, None if known else "".join(traceback.format_exception(error)))
        recorder.drop()
        let_go(error, self.device)

    def _run(
        self, index: int, batch_id: int, batch: Sequence[Page], recorder: PhaseRecorder
    ) -> tuple[list[tuple[Page, Image]], list[Answer], list[Sample], float] | None:
        loaded = self._images(batch_id, batch)
        if not loaded:
            return None
        names = [page.name for page, _ in loaded]
        error: Exception | None = None
        with CompileWatch() as watch:
            try:
                answers, samples, seconds = run_batch(
                    self.model,
                    names,
                    [image for _, image in loaded],
                    self.infer,
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
            self._give_up(error, [page for page, _ in loaded], batch_id, recorder)
            return None
        if watch.seen and index >= 0:
            self.disturbed.append(complaint(f"round {index + 1}, {_pages(names)}", watch.seen, self._warmup))
        return loaded, answers, samples, seconds

    def warmup(self, passes: int, recorder: PhaseRecorder) -> None:
        """Run one batch of each distinct input shape, *passes* times, each to its answer's end.

        The last pass gives the phases' peak memory. A batch that compiled something there runs once more, as
        compilers and tuners use memory of their own.
        """
        self._warmup = passes
        self._memory.release_cached()
        for number in range(passes):
            seen: set[object] = set()
            for batch_id, batch in batches(self.pages, self.infer.batch_size):
                loaded = self._images(batch_id, batch)
                try:
                    key = tuple(self.model.shape_key(image, self.infer) for _, image in loaded)
                except Exception as error:  # noqa: BLE001 - as in _run
                    self._give_up(error, [page for page, _ in loaded], batch_id, recorder)
                    continue
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
        for batch_id, batch in batches(self.pages, self.infer.batch_size):
            done = batch_id * self.infer.batch_size
            self._progress(f"round {index + 1}, page {done + 1} of {len(self.pages)}")
            ran = self._run(index, batch_id, batch, recorder)
            if ran is None:
                continue
            loaded, answers, batch_samples, batch_seconds = ran
            samples += batch_samples
            seconds += batch_seconds
            for (page, image), answer, sample in zip(loaded, answers, batch_samples, strict=True):
                if page.name not in self._first:
                    self._first[page.name] = answer.key()
                    try:
                        self._on_answer(page, image, answer, sample)
                    except PageError as error:
                        self._fail([page], batch_id, str(error), "".join(traceback.format_exception(error)))
                else:
                    same = self._first[page.name] == answer.key()
                    self.deterministic = same and self.deterministic is not False
        return samples, seconds

    def windows(self, window: Window, recorder: PhaseRecorder) -> Iterator[Iterator[None]]:
        """One iterator for each of the first `window.pages` batches that can be read."""
        given = 0
        for batch_id, batch in batches(self.pages, self.infer.batch_size):
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
            let_go(error, self.device)
            raise StageError(text) from None
        if watch.seen:
            self.disturbed.append(complaint(f"the profiled window, {_pages(names)}", watch.seen, self._warmup))

    def _steps(
        self, images: list[Image], window: Window, recorder: PhaseRecorder, watch: CompileWatch
    ) -> Iterator[None]:
        tokens = self.model.generate(images, self.infer, recorder)
        counts: Counter[int] = Counter()  # tokens a row; a batch's step is its furthest row's
        with closing(tokens):  # type: ignore[type-var]
            while window.start_token and max(counts.values(), default=0) < window.start_token:
                token = next(tokens, None)
                if token is None:
                    raise StageError(
                        f"the profiled window never opened: the answer ended after {max(counts.values())} tokens, "
                        f"before pipeline.torch_profiler.window.start_token={window.start_token}"
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


class CallableWorkload:
    """A torch callable, run whole; one sample a round, named as the callable."""

    kind = "callable"

    def __init__(
        self, call: Callable[[], Any], name: str, device: str, progress: Callable[[str], None]
    ) -> None:
        self.name = name
        self.device = device
        self.failures: list[Failure] = []
        self.deterministic: bool | None = None
        self.result: Any = None
        self._call = call
        self._progress = progress
        self.disturbed: list[str] = []
        self.phase_peaks: dict[str, Peak] = {}
        self._memory = PeakMemory(device)
        self._warmup = 0

    def _synchronise(self) -> None:
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize(torch.device(self.device))

    def _called(self, recorder: PhaseRecorder, doing: str) -> tuple[Any, float, CompileWatch]:
        """Call it and wait for the device: its value, milliseconds, and what compiled meanwhile.

        An out-of-memory becomes one line, and what it held is freed.
        """
        try:
            with CompileWatch() as watch:
                begin = time.perf_counter_ns()
                with recorder.phase(CALL):
                    value = self._call()
                self._synchronise()
                total = (time.perf_counter_ns() - begin) / 1e6
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            text = f"{doing}: {describe_error(error, recorder, [self.name], self.device)}"
            let_go(error, self.device)
            raise StageError(text) from None
        return value, total, watch

    def warmup(self, passes: int, recorder: PhaseRecorder) -> None:
        """Call it *passes* times; the last one that compiled nothing gives the peak memory."""
        self._warmup = passes
        self._memory.release_cached()
        for number in range(passes):
            watch = self._called(recorder, "warm-up")[2]
            peaks = recorder.take_peaks()
            if number + 1 == passes:
                if peaks and watch.seen:
                    self._called(recorder, "warm-up")
                    peaks = recorder.take_peaks()
                self.phase_peaks = peaks
        recorder.take()

    def round(self, index: int, recorder: PhaseRecorder) -> tuple[list[Sample], float]:
        """Call it once; the total ends when the device is done."""
        self._progress(f"round {index + 1}")
        self._synchronise()
        self.result = None  # the round before may not hold memory in this one
        self._memory.take()
        self.result, total, watch = self._called(recorder, f"round {index + 1}")
        if watch.seen:
            self.disturbed.append(complaint(f"round {index + 1}, {self.name}", watch.seen, self._warmup))
        phases = recorder.take()
        peak = self._memory.take()
        sample = Sample(
            round=index,
            page=self.name,
            batch_id=0,
            tokens=0,
            ttft_ms=None,
            tpot_ms=None,
            total_ms=total,
            other_ms=total - phases[CALL],
            phases=phases,
            peak_bytes=None if peak is None else peak.allocated_bytes,
            peak_reserved_bytes=None if peak is None else peak.reserved_bytes,
        )
        return [sample], total / 1e3

    def windows(self, window: Window, recorder: PhaseRecorder) -> Iterator[Iterator[None]]:
        """`window.pages` calls."""
        for _ in range(window.pages):
            yield self._window(recorder)

    def _window(self, recorder: PhaseRecorder) -> Iterator[None]:
        yield
        watch = self._called(recorder, "the profiled window")[2]
        if watch.seen:
            self.disturbed.append(complaint(f"the profiled window, {self.name}", watch.seen, self._warmup))
