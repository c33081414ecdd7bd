"""Peak device memory, as torch's allocator counts it: on the host, without waiting for the GPU.

A reading takes tens of microseconds (the allocator's statistics become a Python dictionary). So the measured
rounds read between batches only, with the clock stopped, and the phases' peaks come from the warm-up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytest_llmprof.records.metrics import Peak


class PeakMemory:
    """The peaks of one device since they were last taken; None on a CPU."""

    def __init__(self, device: str) -> None:
        self._device: Any = None
        if device.startswith("cuda"):
            import torch

            self._torch = torch
            self._device = torch.device(device)

    def take(self) -> Peak | None:
        """The peaks since the last call; the counters start anew from what is in use now."""
        if self._device is None:
            return None
        stats = self._torch.cuda.memory_stats_as_nested_dict(self._device)
        if not stats:
            return Peak(0, 0)  # nothing was ever allocated on this GPU, and its counters cannot be reset
        self._torch.cuda.reset_peak_memory_stats(self._device)
        return Peak(stats["allocated_bytes"]["all"]["peak"], stats["reserved_bytes"]["all"]["peak"])

    def release_cached(self) -> None:
        """Give what is only cached back to the GPU, so that a test's reserved memory is its own."""
        if self._device is not None:
            self._torch.cuda.empty_cache()


class PhasePeaks:
    """Peaks by phase. The counters have one reset for all, so each reading counts for every phase that is open:
    what a sub-phase reached, its phase has reached too."""

    def __init__(self, memory: PeakMemory) -> None:
        self._memory = memory
        self._peaks: dict[str, Peak] = {}

    def read(self, open_phases: Sequence[str]) -> None:
        """Call where a phase opens (before it is among *open_phases*) and where one ends (while it still is)."""
        peak = self._memory.take()
        if peak is not None:
            for name in open_phases:
                self._peaks[name] = peak.union(self._peaks.get(name))

    def take(self) -> dict[str, Peak]:
        """Peaks since the last call."""
        peaks, self._peaks = self._peaks, {}
        return peaks
