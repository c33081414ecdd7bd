"""Events of a trace as arrays, one entry for each event: what the readers of all profilers return."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["KERNEL", "MEMCPY", "MEMSET", "OP", "RANGE", "RUNTIME"]
__all__ += ["DeviceEvents", "HostEvents", "Ints", "Mask", "Numbers", "RawTrace"]

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

OP, RANGE, RUNTIME = 0, 1, 2
"""Kinds of host events: a torch operator, a `record_function` range, a CUDA runtime or driver call."""
KERNEL, MEMCPY, MEMSET = 0, 1, 2
"""Kinds of device events."""


class Numbers(dict[Any, int]):
    """Numbers values 0, 1, ... in the order in which they are first looked up."""

    def __missing__(self, value: Any) -> int:
        number = self[value] = len(self)
        return number


@dataclass(frozen=True, kw_only=True)
class _Events:
    name: Ints
    """Index into `RawTrace.names`."""
    kind: Ints
    start: Ints
    """Nanoseconds."""
    dur: Ints
    """Nanoseconds."""
    external: Ints
    """The profiler's id of the operator (of a runtime call or device event: its caller's); -1 without one."""
    correlation: Ints
    """Equal for a runtime call and the device events that it caused; -1 without one."""

    def __len__(self) -> int:
        return len(self.name)


@dataclass(frozen=True, kw_only=True)
class DeviceEvents(_Events):
    """What ran on the GPU (kind KERNEL, MEMCPY or MEMSET), in the order of its start."""


@dataclass(frozen=True, kw_only=True)
class HostEvents(_Events):
    """Host events (kind OP, RANGE or RUNTIME) in the order (thread, start, longest first)."""

    thread: Ints
    """0, 1, ...: which thread."""


@dataclass(frozen=True)
class RawTrace:
    """A decoded trace."""

    names: list[str]
    host: HostEvents
    device: DeviceEvents
    events: int
    """Events in the file, of every kind."""
    windows: Ints = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    """When each profile in the file began, nanoseconds; one for each batch of the profiled window."""
