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
from typing import Any

__all__ = ["DOMAIN", "STEP", "SUB_PHASES", "TOP_PHASES", "WARMUP_DOMAIN", "PhaseRecorder"]

DOMAIN = "llmprof"
WARMUP_DOMAIN = "llmprof.warmup"
STEP = "step"
TOP_PHASES = ("preprocess", "vision", "prefill", "decode")
"""Phases that follow one another; `other_ms` is the total less their sum."""
SUB_PHASES = ("sam", "clip", "projector")
"""Parts of `vision`; a part's calls are summed."""


class PhaseRecorder:
    """Implements `pytest_llmprof.models.base.Phases` for one device.

    One recorder serves a whole test; `take` hands over what was recorded since the last call.
    """

    def __init__(self, device: str, *, domain: str = DOMAIN) -> None:
        import nvtx
        import torch

        self._cuda = device.startswith("cuda")
        self._device = torch.device(device)
        self._torch = torch
        self._profiling = torch.autograd._profiler_enabled  # type: ignore[attr-defined]
        self._record_function = torch.profiler.record_function
        self._domain = nvtx.get_domain(domain)
        self._attributes: dict[str, Any] = {}
        self._spans: list[tuple[str, Any, Any]] = []
        self._open: list[str] = []
        self._last: str | None = None

    @property
    def where(self) -> str | None:
        """The innermost open phase, else the last one that was left by an error (for error messages)."""
        return self._open[-1] if self._open else self._last

    def _push(self, name: str) -> None:
        attributes = self._attributes.get(name)
        if attributes is None:
            attributes = self._attributes[name] = self._domain.get_event_attributes(message=name)
        self._domain.push_range(attributes)

    @contextmanager
    def _range(self, name: str) -> Iterator[None]:
        self._push(name)
        try:
            if self._profiling():
                with self._record_function(f"{DOMAIN}/{name}"):
                    yield
            else:
                yield
        finally:
            self._domain.pop_range()

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter_ns()
        event = self._torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._torch.cuda.current_stream(self._device))
        return event

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Open the phase *name*."""
        self._open.append(name)
        self._last = None
        with self._range(name):
            start = self._now()
            try:
                yield
            except GeneratorExit:
                raise
            except BaseException:
                self._last = self._last or name
                raise
            finally:
                self._spans.append((name, start, self._now()))
                self._open.pop()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Open one decode step: ranges only, a step has no time of its own."""
        with self._range(STEP):
            yield

    def take(self) -> dict[str, float]:
        """Milliseconds per phase since the last call, calls of one phase summed; waits for the device."""
        if self._cuda and self._spans:
            self._torch.cuda.synchronize(self._device)
        times: dict[str, float] = {}
        for name, start, end in self._spans:
            span = start.elapsed_time(end) if self._cuda else (end - start) / 1e6
            times[name] = times.get(name, 0.0) + span
        self._spans.clear()
        return times
