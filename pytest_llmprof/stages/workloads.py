"""The two kinds of work a test can ask for: pages through a model, or a torch callable."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from pytest_llmprof.config.stages import Window
from pytest_llmprof.datasets.base import Page
from pytest_llmprof.errors import LlmprofError, PageError, StageError
from pytest_llmprof.measure.phases import PhaseRecorder
from pytest_llmprof.measure.rounds import Answer, Failure, Sample, batches, describe_error, run_batch
from pytest_llmprof.models.base import LoadedModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

    from pytest_llmprof.config.schema import InferSettings

__all__ = ["CallableWorkload", "PagesWorkload"]


def peak_memory(device: str) -> Callable[[], int | None]:
    """A function that gives the device's peak allocated bytes since it was last called, and resets them."""
    if not device.startswith("cuda"):
        return lambda: None
    import torch

    card = torch.device(device)

    def read() -> int:
        peak = torch.cuda.max_memory_allocated(card)
        torch.cuda.reset_peak_memory_stats(card)
        return peak

    return read


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
        self._memory = peak_memory(self.device)
        self._first: dict[str, object] = {}
        self._failed: set[str] = set()

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

    def _run(
        self, index: int, batch_id: int, batch: Sequence[Page], recorder: PhaseRecorder
    ) -> tuple[list[tuple[Page, Image]], list[Answer], list[Sample], float] | None:
        loaded = self._images(batch_id, batch)
        if not loaded:
            return None
        names = [page.name for page, _ in loaded]
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
        except Exception as error:  # noqa: BLE001
            text = describe_error(error, recorder, names, self.device)
            recorder.take()
            details = None if isinstance(error, LlmprofError) else "".join(traceback.format_exception(error))
            self._fail([page for page, _ in loaded], batch_id, text, details)
            error.__traceback__ = None  # it holds the batch's tensors
            if self.device.startswith("cuda"):
                import torch

                torch.cuda.empty_cache()
            return None
        return loaded, answers, samples, seconds

    def warmup(self, passes: int, recorder: PhaseRecorder) -> None:
        """Run one batch of each distinct input shape, *passes* times."""
        for _ in range(passes):
            seen: set[object] = set()
            for batch_id, batch in batches(self.pages, self.infer.batch_size):
                loaded = self._images(batch_id, batch)
                key = tuple(self.model.shape_key(image, self.infer) for _, image in loaded)
                if key and key not in seen:
                    seen.add(key)
                    self._run(-1, batch_id, batch, recorder)

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
                    self._on_answer(page, image, answer, sample)
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
                yield self._window([image for _, image in loaded], window, recorder)

    def _window(self, images: list[Image], window: Window, recorder: PhaseRecorder) -> Iterator[None]:
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
            for token in tokens:
                counts[token.row] += 1
                if max(counts.values()) >= last:
                    return


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
        self._memory = peak_memory(device)

    def _synchronise(self) -> None:
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize(torch.device(self.device))

    def warmup(self, passes: int, recorder: PhaseRecorder) -> None:
        """Call it *passes* times."""
        for _ in range(passes):
            with recorder.phase("call"):
                self._call()
        self._synchronise()
        recorder.take()

    def round(self, index: int, recorder: PhaseRecorder) -> tuple[list[Sample], float]:
        """Call it once; the total ends when the device is done."""
        self._progress(f"round {index + 1}")
        self._memory()
        self._synchronise()
        begin = time.perf_counter_ns()
        with recorder.phase("call"):
            self.result = self._call()
        self._synchronise()
        total = (time.perf_counter_ns() - begin) / 1e6
        phases = recorder.take()
        sample = Sample(
            round=index,
            page=self.name,
            batch_id=0,
            tokens=0,
            ttft_ms=None,
            tpot_ms=None,
            total_ms=total,
            other_ms=total - phases["call"],
            phases=phases,
            peak_bytes=self._memory(),
        )
        return [sample], total / 1e3

    def windows(self, window: Window, recorder: PhaseRecorder) -> Iterator[Iterator[None]]:
        """`window.pages` calls."""
        for _ in range(window.pages):
            yield self._window(recorder)

    def _window(self, recorder: PhaseRecorder) -> Iterator[None]:
        yield
        with recorder.phase("call"):
            self._call()
