"""When the GPU was busy, when it was idle, and why."""

from __future__ import annotations

import numpy as np

from pytest_llmprof.analysis.events import Events, Ints

_LAUNCH, _SYNCHRONISATION, _DEVICE = range(3)
IDLE_CAUSES = ("launch", "synchronisation", "device")
"""Why the GPU was idle. launch: the host had not launched the next work yet (launch-bound); synchronisation: the host
had waited for the GPU (synchronise, blocking copy), so nothing was queued; device: the next work was already queued
(gaps between kernels, dependencies)."""


def added_ns(start: Ints, dur: Ints) -> Ints:
    """What each interval adds to the union of those before it, in the unit given. *start* ascends."""
    if not len(start):
        return start
    end = np.maximum.accumulate(start + dur)
    begin = np.maximum(start, np.concatenate(([start[0]], end[:-1])))
    added: Ints = np.maximum(end - begin, 0)
    return added


def union_ns(start: Ints, dur: Ints) -> int:
    """Length of the union of intervals, in the unit given. *start* ascends."""
    return int(added_ns(start, dur).sum())


def gaps(
    device: Events, launched: Ints, returned: Ints, wait_start: Ints, wait_end: Ints
) -> tuple[Ints, Ints, Ints]:
    """The idle times of the GPU: (index of the device event after each, length in ns, index of the cause).

    *launched* and *returned* are when the call that launched each device event began and ended (-1 unknown); the event
    was queued when the call ended. *wait_start* and *wait_end* are the calls in which the host waited for the GPU, on
    any thread. The time before the first event is no gap.
    """
    end = np.maximum.accumulate(device.start + device.dur) if len(device) else device.start
    after = np.flatnonzero(device.start[1:] > end[:-1]) + 1
    begin = end[after - 1]
    length = device.start[after] - begin
    late = (launched[after] > begin) | (returned[after] > begin)
    order = np.argsort(wait_start, kind="stable")
    # The latest end among the waits that had begun by then: did one still wait when the GPU became idle?
    ends = np.maximum.accumulate(wait_end[order]) if len(order) else wait_end
    place = np.searchsorted(wait_start[order], begin, side="right") - 1
    waiting = place >= 0
    if len(ends):
        waiting &= ends[np.maximum(place, 0)] >= begin
    cause = np.where(late, np.where(waiting, _SYNCHRONISATION, _LAUNCH), _DEVICE)
    return after, length, cause
