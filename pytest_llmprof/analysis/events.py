"""Events of a trace as arrays, one entry for each event: what the readers of all profilers return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

NEVER = 1 << 61
"""No time is so large (73 years, in nanoseconds); sums of two below it fit into 64 bits."""
_CLOCKS, _HOUR = 100_000_000, 3600 * 1_000_000_000

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]



class Kind(IntEnum):
    """A torch operator, a `record_function` range, a CUDA runtime or driver call; and from KERNEL on what a GPU did."""

    OP, RANGE, RUNTIME, KERNEL, MEMCPY, MEMSET = range(6)


KINDS = [kind.name.lower() for kind in Kind]


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

    def of(self, kind: Kind) -> Mask:
        """Which of them are of this kind."""
        found: Mask = self.kind == kind
        return found

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
    left_out: int
    """Events whose times cannot be."""


def raw_trace(names: list[str], events: Events, windows: Ints, total: int, left_out: int = 0) -> RawTrace:
    """Sort *events*; *total* is the number of those in the file, *windows* when its profiles began."""
    begin = events.start.min() if len(events) else 0
    events = replace(events, start=events.start - begin)
    host, device = events[events.kind < Kind.KERNEL], events[events.kind >= Kind.KERNEL]
    device = device[np.argsort(device.start, kind="stable")]
    return RawTrace(names, host[_outer_first(host)], device, total, np.sort(windows - begin), left_out)


def possible(start: Ints, dur: Ints, profiles: Sequence[tuple[int, int]] = ()) -> Mask:
    """Which events can have been recorded: those with a length of zero or more, within what was profiled.

    *profiles* are starts and lengths of the file's profiles, whose clocks may differ by 0.1 s. Where they hold less
    than half of the events (or none is given), what counts is the largest group of events with less than an hour
    between two starts, and an hour behind it.
    """
    real = (dur >= 0) & (dur < NEVER) & (np.abs(start) < NEVER)
    begin, end = np.where(real, start, 0), np.where(real, start + dur, 0)
    inside = np.zeros(len(start), dtype=bool)
    for first, length in profiles:
        inside |= real & (begin >= first - _CLOCKS) & (end <= first + length + _CLOCKS)
    if 2 * inside.sum() < real.sum():
        starts = np.sort(start[real])
        largest = max(np.split(starts, np.flatnonzero(np.diff(starts) > _HOUR) + 1), key=len)
        inside = real & (begin >= largest[0]) & (end <= largest[-1] + _HOUR)
    return inside


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
