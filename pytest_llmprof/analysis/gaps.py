"""When the card was busy, when it waited, and for what."""

from __future__ import annotations

import numpy as np

from pytest_llmprof.analysis.events import DeviceEvents, Ints

__all__ = ["DEVICE", "HOST_LATE", "IDLE_CAUSES", "WAITED", "added_ns", "gaps", "union_ns"]

HOST_LATE, WAITED, DEVICE = 0, 1, 2
IDLE_CAUSES = {
    "launch": "the host had not launched the next piece of work yet (launch-bound)",
    "synchronisation": "the host had waited for the card (synchronise, blocking copy), so nothing was queued",
    "device": "the next piece of work was queued already (gaps between kernels, dependencies)",
}
"""Why the card was idle before a piece of work."""


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
    device: DeviceEvents, launched: Ints, returned: Ints, wait_start: Ints, wait_end: Ints
) -> tuple[Ints, Ints, Ints]:
    """The gaps in the card's work: (index of the device event after it, length in ns, cause).

    *launched* and *returned* are when the call that launched each device event began and was done (-1 unknown): work
    was queued when its call was done. *wait_start* and *wait_end* are the calls in which the host waited for
    the card, on any thread. A gap belongs to what follows it. The time before the first piece of work is no gap.
    """
    end = np.maximum.accumulate(device.start + device.dur) if len(device) else device.start
    after = np.flatnonzero(device.start[1:] > end[:-1]) + 1
    begin = end[after - 1]
    length = device.start[after] - begin
    late = (launched[after] > begin) | (returned[after] > begin)
    order = np.argsort(wait_start, kind="stable")
    # The latest end among the waits that had begun by then: still waiting when the card ran dry?
    ends = np.maximum.accumulate(wait_end[order]) if len(order) else wait_end
    place = np.searchsorted(wait_start[order], begin, side="right") - 1
    waiting = place >= 0
    if len(ends):
        waiting &= ends[np.maximum(place, 0)] >= begin
    cause = np.where(late, np.where(waiting, WAITED, HOST_LATE), DEVICE)
    return after, length, cause
