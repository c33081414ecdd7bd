"""A torch callable as a workload. One that is short is called several times a round, as timeit and nvbench do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pytest_llmprof.config.schema import InferSettings
from pytest_llmprof.datasets.base import Page
from pytest_llmprof.errors import StageError
from pytest_llmprof.measure.compiles import CompileWatch, complaint
from pytest_llmprof.measure.memory import PeakMemory
from pytest_llmprof.measure.phases import CALL, PhaseRecorder
from pytest_llmprof.models.base import LoadedModel
from pytest_llmprof.records.catalogue import CALLABLE
from pytest_llmprof.records.metrics import Peak, Sample
from pytest_llmprof.stages.base import ShowProgress, Window
from pytest_llmprof.stages.failures import Failure, describe_error, free_memory_of, out_of_memory

LEAST_ROUND_MS = 10.0
"""The least length of a round whose calls are not set: a clock's step and an interrupt are small beside it."""
_FIRST_MS = 1000.0
"""A warm-up call that is longer, and compiled nothing, is not made again to see how long a call takes."""


class CallableWorkload:
    """A torch callable, run whole; one sample a round, named as the callable, with the mean time of one call."""

    kind = CALLABLE

    def __init__(
        self,
        call: Callable[[], Any],
        name: str,
        device: str,
        progress: ShowProgress,
        iterations: int | None = None,
    ) -> None:
        """*iterations* are the calls a round; None lets the warm-up choose them."""
        self.name = name
        self.device = device
        self.failures: list[Failure] = []
        self.deterministic: bool | None = None
        self.value: Any = None
        self.model: LoadedModel | None = None
        self.pages: Sequence[Page] = ()
        self.infer: InferSettings | None = None
        self.iterations = iterations or 1
        self._choose = iterations is None
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

    def _called(self, recorder: PhaseRecorder, doing: str, calls: int = 1) -> tuple[Any, float, CompileWatch]:
        """Call it and wait for the device, *calls* times: the last value, milliseconds, and what compiled meanwhile.

        An out-of-memory becomes one line, and what it held is freed.
        """
        try:
            with CompileWatch() as watch:
                begin = time.perf_counter_ns()
                with recorder.phase(CALL):
                    for _ in range(calls - 1):
                        self._call()
                        self._synchronise()
                    value = self._call()
                self._synchronise()
                total = (time.perf_counter_ns() - begin) / 1e6
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            text = f"{doing}: {describe_error(error, recorder, [self.name], self.device)}"
            free_memory_of(error, self.device)
            raise StageError(text) from None
        return value, total, watch

    def warmup(self, passes: int, recorder: PhaseRecorder) -> None:
        """Call it *passes* times; the last one that compiled nothing gives the peak memory.

        Then the calls a round are doubled until they take `LEAST_ROUND_MS`, where they are not set.
        """
        self._warmup = passes
        self._memory.release_cached()
        for number in range(passes):
            total, watch = self._called(recorder, "warm-up")[1:]
            peaks = recorder.take_peaks()
            if number + 1 < passes:
                continue
            # A first call may compile and initialise, so it does not tell how long the next one takes.
            if (peaks or self._choose) and (watch.seen or (self._choose and total < _FIRST_MS)):
                total = self._called(recorder, "warm-up")[1]
                peaks = recorder.take_peaks()
            self.phase_peaks = peaks
            # The shortest call so far: an interrupt does not end the doubling too early.
            while self._choose and total * self.iterations < LEAST_ROUND_MS:
                self.iterations *= 2
                total = min(total, self._called(recorder, "warm-up", self.iterations)[1] / self.iterations)
        recorder.take()
        recorder.take_peaks()

    def round(self, index: int, recorder: PhaseRecorder) -> tuple[list[Sample], float]:
        """Call it `iterations` times; a call ends when the device is done."""
        self._progress(f"round {index + 1}", index)
        self._synchronise()
        self.value = None  # the round before may not hold memory in this one
        self._memory.take()
        self.value, total, watch = self._called(recorder, f"round {index + 1}", self.iterations)
        if watch.seen:
            self.disturbed.append(complaint(f"round {index + 1}, {self.name}", watch.seen, self._warmup))
        phases = {name: spent / self.iterations for name, spent in recorder.take().items()}
        peak = self._memory.take()
        sample = Sample(
            round=index,
            page=self.name,
            batch_id=0,
            tokens=0,
            ttft_ms=None,
            tpot_ms=None,
            total_ms=total / self.iterations,
            other_ms=total / self.iterations - phases[CALL],
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
