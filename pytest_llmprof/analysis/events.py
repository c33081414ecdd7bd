"""Events of a trace as arrays, one entry for each event: what the readers of all profilers return."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

KINDS = ("op", "range", "runtime", "kernel", "memcpy", "memset")
"""A torch operator, a `record_function` range, a CUDA runtime or driver call; and what ran on the GPU."""
OP, RANGE, RUNTIME, KERNEL, MEMCPY, MEMSET = range(6)


class Numbers(dict[Any, int]):
    """Numbers values 0, 1, ... in the order in which they are first looked up."""

    def __missing__(self, value: Any) -> int:
        number = self[value] = len(self)
        return number


@dataclass(frozen=True, kw_only=True)
class Events:
    """Events of the host or of the GPU."""

    name: Ints
    """Index into `RawTrace.names`."""
    kind: Ints
    """Index into `KINDS`."""
    thread: Ints
    """0, 1, ...: which thread, or which stream of the GPU."""
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

    def __getitem__(self, rows: Ints | Mask) -> Events:
        return Events(**{name: column[rows] for name, column in vars(self).items()})


@dataclass(frozen=True)
class RawTrace:
    """A decoded trace. Times are from its first event on."""

    names: list[str]
    host: Events
    """In the order (thread, start, longest first)."""
    device: Events
    """In the order of start."""
    events: int
    """Events in the file, of every kind."""
    windows: Ints
    """When each profile in the file began, nanoseconds; one for each batch of the profiled window."""


def raw_trace(names: list[str], events: Events, windows: Ints, total: int) -> RawTrace:
    """Sort *events*; *total* is the number of those in the file, *windows* when its profiles began."""
    begin = events.start.min() if len(events) else 0
    events = replace(events, start=events.start - begin)
    host, device = events[events.kind < KERNEL], events[events.kind >= KERNEL]
    device = device[np.argsort(device.start, kind="stable")]
    return RawTrace(names, host[_outer_first(host)], device, total, np.sort(windows - begin))


def _outer_first(host: Events) -> Ints:
    """The order (thread, start, longest first), fast where starts are nearly in order, as kineto writes them."""
    thread, start, dur = host.thread, host.start, host.dur
    order = np.argsort(start, kind="stable")
    order = order[np.argsort(thread[order], kind="stable")]
    same = (np.diff(thread[order]) == 0) & (np.diff(start[order]) == 0)
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
    rows = order[tied]
    order[tied] = rows[np.lexsort((-dur[rows], start[rows], thread[rows]))]
    return order
