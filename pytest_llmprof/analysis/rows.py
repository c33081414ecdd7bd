"""Rows computed from a trace: operators, kernels, phases, steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_OF_HOST = ("count", "host_ms", "steps", "step_ms")


def profiled(record: type, row: object, *, gpu: bool = True) -> dict[str, Any]:
    """The fields of the Struct *record* that *row* has a value for; `x_profiled`, a time under a profiler, takes `x`.

    Without a *gpu* only what is of the host.
    """
    return {
        name: getattr(row, source)
        for name in record.__struct_fields__  # type: ignore[attr-defined]
        if hasattr(row, source := name.removesuffix("_profiled")) and (gpu or source in _OF_HOST)
    }


@dataclass(frozen=True)
class OperatorRow:
    """One operator (or range, or runtime call) in one phase. Times in milliseconds."""

    name: str
    kind: str
    """op | range (`record_function`; its self time is Python between operators) | runtime."""
    phase: str
    count: int
    total_ms: float
    """Including what it calls."""
    self_ms: float
    mean_ms: float
    """total_ms / count."""
    share: float
    """self_ms / all self time in the trace (0..1)."""
    phase_share: float
    """self_ms / all self time in its phase (0..1)."""
    device_ms: float
    """Time on the GPU of the kernels, copies and fills that it launched itself."""


@dataclass(frozen=True)
class KernelRow:
    """One kernel (or copy, or fill) in one phase, launched by one operator."""

    name: str
    kind: str
    """kernel | memcpy | memset."""
    phase: str
    operator: str
    """The innermost operator around its launch, else the launching call (cudaGraphLaunch); "" unknown."""
    count: int
    total_ms: float
    busy_ms: float
    """What it added to the time in which the GPU was busy, event by event in the order of their starts. Less than
    total_ms where kernels overlap: a kernel that starts early and waits for the one before it adds nothing yet."""
    mean_us: float
    min_us: float
    max_us: float
    share: float
    """busy_ms / the GPU's busy time, copies and fills included (0..1)."""
    phase_share: float
    """busy_ms / that of all kernels, copies and fills of its phase (0..1)."""


@dataclass(frozen=True)
class PhaseRow:
    """One phase, its sub-phases (those whose `parent` it is) included."""

    name: str
    parent: str
    count: int
    """The number of its ranges."""
    host_ms: float
    """Total length of its ranges on the host."""
    gpu_busy_ms: float
    """Union of the intervals of its kernels."""
    gpu_span_ms: float
    """From the start of the first kernel to the end of the last one of each range, summed."""
    kernels: int
    host_launches: int
    """Kernel and graph launches by the host."""
    d2h_copies: int
    synchronisations: int
    idle_ms: dict[str, float]
    """Time in which the GPU was idle before work of this phase, by cause (see `gaps.IDLE_CAUSES`)."""

    @property
    def gpu_idle_ms(self) -> float:
        """Idle time of all causes."""
        return sum(self.idle_ms.values())

    @property
    def gpu_idle_share(self) -> float | None:
        """Idle over idle + busy under the profiler (0..1); None where nothing ran on the GPU."""
        return self.gpu_idle_ms / (self.gpu_idle_ms + self.gpu_busy_ms) if self.gpu_busy_ms else None

    @property
    def gpu_busy_share(self) -> float | None:
        """Busy over idle + busy; None where nothing ran on the GPU."""
        return None if self.gpu_idle_share is None else 1 - self.gpu_idle_share


@dataclass(frozen=True)
class StepFigures:
    """Means of a decode step (= of a token of each page of the batch)."""

    steps: int
    step_ms: float
    gpu_busy_ms_per_step: float
    host_launches_per_token: float
    kernels_per_token: float
    d2h_copies_per_token: float
    synchronisations_per_token: float
