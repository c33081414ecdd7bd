"""What a trace says, as plain rows: operators, kernels, phases, steps."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KernelRow", "OperatorRow", "PhaseRow", "StepFigures"]


@dataclass(frozen=True)
class OperatorRow:
    """One operator (or range, or runtime call) in one phase. Times in milliseconds."""

    name: str
    kind: str
    """op | range (a `record_function` range; its self time is Python between operators) | runtime."""
    phase: str
    count: int
    total_ms: float
    """Inclusive: with what it calls."""
    self_ms: float
    mean_ms: float
    """total_ms / count."""
    share: float
    """self_ms of all self time in the trace (0..1)."""
    phase_share: float
    """self_ms of all self time in its phase (0..1)."""
    device_ms: float
    """Kernels, copies and fills that it launched itself."""


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
    """What it added to the time in which the card was busy, event by event in the order of their starts. Less than
    total_ms where kernels overlap: one that starts early and waits for the one in front of it is there, but adds
    nothing yet."""
    mean_us: float
    min_us: float
    max_us: float
    share: float
    """busy_ms of the card's busy time, copies and fills included (0..1)."""
    phase_share: float
    """busy_ms of what its phase's kernels, copies and fills added (0..1)."""


@dataclass(frozen=True)
class PhaseRow:
    """One phase. Sub-phases (`parent` names theirs) are included in the phase they lie in."""

    name: str
    parent: str
    count: int
    """How often it was opened."""
    host_ms: float
    """Sum of its ranges on the host."""
    gpu_busy_ms: float
    """Union of the intervals of its kernels."""
    gpu_span_ms: float
    """From the start of its first kernel to the end of its last one, summed over the times it was opened."""
    kernels: int
    host_launches: int
    """Kernel and graph launches by the host."""
    d2h_copies: int
    synchronisations: int
    idle_ms: dict[str, float]
    """Time in which the card waited for work of this phase, by cause (see `gaps.IDLE_CAUSES`)."""

    @property
    def gpu_idle_share(self) -> float | None:
        """Idle over idle + busy under the profiler (0..1); None where nothing ran on the card."""
        idle = sum(self.idle_ms.values())
        return idle / (idle + self.gpu_busy_ms) if self.gpu_busy_ms else None


@dataclass(frozen=True)
class StepFigures:
    """Figures of the decode steps, per step (= per token of each page of the batch)."""

    steps: int
    step_ms: float
    gpu_busy_ms: float
    host_launches: float
    kernels: float
    d2h_copies: float
    synchronisations: float
