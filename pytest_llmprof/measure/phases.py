"""Phases: NVTX ranges, profiler ranges and times of what a model does, with no synchronisation inside a phase.

Each phase is at once an NVTX push/pop range in the domain ``llmprof`` (warm-up: ``llmprof.warmup``), a
``record_function`` range ``llmprof/<phase>`` while a torch profiler runs, and a time: on CUDA between two
events recorded in the current stream, on a CPU on the host's clock. Event times are read after the batch, when
the clock stands.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_llmprof.measure.memory import PhasePeaks
    from pytest_llmprof.records.metrics import Peak

DOMAIN = "llmprof"
WARMUP_DOMAIN = "llmprof.warmup"
STEP = "step"
CALL = "call"
"""The one phase of a callable."""
ROUND = "round"
"""The NVTX range around one measured pass: what a tool captures where it is to see a whole round."""
TOP_PHASES = ("preprocess", "vision", "prefill", "decode")
"""Phases that follow one another; `other_ms` is the total less their sum."""
SUB_PHASES = ("sam", "clip", "projector")
"""Parts of `vision`; a part's calls are summed."""


class _Range:
    """A range in NVTX, and in a torch profiler that runs.

    A class, as a step costs 1 us this way and 5 us as a generator: much, where a token takes 600.
    """

    __slots__ = ("_name", "_profiled", "_recorder")

    def __init__(self, recorder: PhaseRecorder, name: str) -> None:
        self._recorder = recorder
        self._name = name
        self._profiled: Any = None

    def __enter__(self) -> None:
        recorder = self._recorder
        recorder._push(self._name)
        if recorder._profiling():
            self._profiled = recorder._record_function(f"{DOMAIN}/{self._name}")
            self._profiled.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self._profiled is not None:
            self._profiled.__exit__(*error)
        self._recorder._domain.pop_range()


class _Phase(_Range):
    """A range with a time."""

    __slots__ = ("_start",)

    def __enter__(self) -> None:
        recorder = self._recorder
        if recorder._peaks is not None:
            recorder._peaks.read(recorder._open)
        recorder._open.append(self._name)
        recorder._last = None
        super().__enter__()
        self._start = recorder._now()

    def __exit__(self, *error: Any) -> None:
        recorder = self._recorder
        recorder._spans.append((self._name, self._start, recorder._now()))
        if recorder._peaks is not None:
            recorder._peaks.read(recorder._open)
        recorder._open.pop()
        if error[0] is not None and error[0] is not GeneratorExit:
            recorder._last = recorder._last or self._name
        super().__exit__(*error)


class PhaseRecorder:
    """Implements `pytest_llmprof.models.base.Phases` for one device.

    One recorder serves a whole test; `take` hands over what was recorded since the last call.
    """

    def __init__(self, device: str, *, domain: str = DOMAIN, peaks: PhasePeaks | None = None) -> None:
        """*peaks* takes the phases' peak memory: for passes that no clock times."""
        import nvtx
        import torch

        self._cuda = device.startswith("cuda")
        self._device = torch.device(device)
        self._torch = torch
        self._profiling = torch.autograd._profiler_enabled  # type: ignore[attr-defined]
        self._record_function = torch.profiler.record_function
        self._domain = nvtx.get_domain(domain)
        if not hasattr(self._domain, "push_range"):  # nvtx before 0.2.12, which old Nsight Systems need
            self._domain = _OldDomain(nvtx, domain)
        self._attributes: dict[str, Any] = {}
        self._spans: list[tuple[str, Any, Any]] = []
        self._open: list[str] = []
        self._last: str | None = None
        self._peaks = peaks
        self._events: list[Any] = []
        self._used = 0

    @property
    def where(self) -> str | None:
        """The innermost open phase, else the last one that was left by an error (for error messages)."""
        return self._open[-1] if self._open else self._last

    def _push(self, name: str) -> None:
        attributes = self._attributes.get(name)
        if attributes is None:
            attributes = self._attributes[name] = self._domain.get_event_attributes(message=name)
        self._domain.push_range(attributes)

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter_ns()
        # Events are used again after each `take`: making one costs the driver more than recording it.
        if self._used == len(self._events):
            self._events.append(self._torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
        event = self._events[self._used]
        self._used += 1
        event.record(self._torch.cuda.current_stream(self._device))
        return event

    def phase(self, name: str) -> _Phase:
        """Open the phase *name*."""
        return _Phase(self, name)

    @contextmanager
    def round(self) -> Iterator[None]:
        """Open one measured pass: an NVTX range alone."""
        self._push(ROUND)
        try:
            yield
        finally:
            self._domain.pop_range()

    def step(self) -> _Range:
        """Open one decode step: ranges only, a step has no time of its own."""
        return _Range(self, STEP)

    def take(self) -> dict[str, float]:
        """Milliseconds per phase since the last call, calls of one phase summed; waits for the device."""
        if self._cuda and self._spans:
            self._torch.cuda.synchronize(self._device)
        times: dict[str, float] = {}
        for name, start, end in self._spans:
            span = start.elapsed_time(end) if self._cuda else (end - start) / 1e6
            times[name] = times.get(name, 0.0) + span
        self.drop()
        return times

    def drop(self) -> None:
        """Forget what was recorded since the last `take`, without waiting for a device that may have failed."""
        self._spans.clear()
        self._used = 0

    def take_peaks(self) -> dict[str, Peak]:
        """Peak memory per phase since the last call; empty on a CPU, and where none is read."""
        return self._peaks.take() if self._peaks is not None else {}


class _OldDomain:
    """An NVTX domain by the functions of nvtx before 0.2.12, whose domains have no ranges of their own."""

    def __init__(self, nvtx: Any, name: str) -> None:
        self._nvtx, self._name = nvtx, name

    def get_event_attributes(self, message: str) -> str:
        return message

    def push_range(self, message: str) -> None:
        self._nvtx.push_range(message, domain=self._name)

    def pop_range(self) -> None:
        self._nvtx.pop_range(domain=self._name)
