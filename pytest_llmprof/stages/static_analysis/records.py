"""The block `static_analysis` of metrics.json: what the phases took against what the GPU allows."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class PhaseRoof(Struct):
    """One phase of a round against the GPU. Shares are 0..1; null where a peak or the time is not known."""

    flops: float
    bytes: float
    parts: dict[str, float]
    """What the bytes consist of."""
    intensity: float | None
    """FLOPs a byte; null where no byte is counted."""
    ms: float | None
    """Measured; null where the phase was not."""
    compute_floor_ms: float | None
    memory_floor_ms: float | None
    floor_ms: float | None
    bound: str | None
    """"compute" or "memory": which floor is the longer one."""
    mfu: float | None
    mbu: float | None
    of_floor: float | None
    """floor / time: the larger of MFU and MBU."""
    parent: str | None = None
    """The phase that it is a part of."""


class PeakTable(Struct):
    """The peaks that a run is held against; one that is not known is null, and `reason` says why."""

    flops: float | None = None
    """Dense FLOP a second in the run's dtype."""
    bandwidth: float | None = None
    """Bytes a second."""
    kind: str | None = None
    """One of `hardware.DTYPES`, or the dtype's own name where the table has no such kind."""
    source: str | None = None
    reason: str | None = None


class PhaseCosts(Struct):
    """FLOPs and bytes of one phase of one batch."""

    flops: float
    bytes: float


class BatchCosts(Struct):
    """One batch as the model counts it."""

    batch_id: int
    pages: list[str]
    tokens: list[int]
    """Generated tokens of each page."""
    phases: dict[str, PhaseCosts]
    details: dict[str, Any]


class DecodeStep(Struct):
    """The mean decode step: a token of each page of its batch."""

    steps: int
    flops: float
    bytes: float
    ms: float | None
    floor_ms: float | None
    floor_tokens_per_s: float | None


class Roofline(Struct, kw_only=True):
    """All of the block."""

    applicable: bool
    reason: str | None = None
    """Why it is not applicable."""
    card: str | None = None
    """The GPU's name; null on a CPU."""
    peaks: PeakTable | None = None
    phases: dict[str, PhaseRoof] = {}
    decode_step: DecodeStep | None = None
    notes: list[str] = []
    batches: list[BatchCosts] = []
