"""The host's processors: what this process got of them in a round."""

from __future__ import annotations

import glob
import os
import time
from pathlib import Path

from pytest_llmprof.records.metrics import RoundHost

SCHEDSTATS = "/proc/self/task/*/schedstat"
"""Linux: for each thread its time on a processor and its time in the queue for one, in nanoseconds."""
CONTENDED = 0.1
"""A round is contended where a thread waited for a processor for a larger share of its time."""
LEAST_WAIT_NS = 4_000_000
"""A shorter wait is a usual turn of the scheduler: in a short round it says nothing of other work."""
CONTENDED_LOAD = 1.5
"""Where that is not known: where more processes than this ran or waited, for each processor."""


class HostMeter:
    """What a round got of the host's processors."""

    def __init__(self, processors: int | None = None) -> None:
        """*processors*: those for this process and what is meant to run beside it; by default all that it may use."""
        self._processors = processors or usable_processors()

    def begin(self) -> None:
        """Begin a round."""
        self._waited, self._cpu, self._wall = _waited_ns(), time.process_time(), time.perf_counter()

    def end(self) -> RoundHost:
        """End it."""
        wall = max(time.perf_counter() - self._wall, 1e-9)
        cpu = time.process_time() - self._cpu
        longest = max((ns - self._waited.get(thread, 0) for thread, ns in _waited_ns().items()), default=None)
        # What a thread waited before the round is counted when its turn comes, so the sum may be too large.
        waited = None if longest is None else min(longest / 1e9 / wall, 1.0)
        load = _load()
        if longest is not None and waited is not None:
            contended = waited > CONTENDED and longest > LEAST_WAIT_NS
        else:
            contended = load is not None and load > CONTENDED_LOAD * self._processors
        return RoundHost(load=load, cpu_share=cpu / wall, waited_share=waited, contended=contended)


def usable_processors() -> int:
    """Logical processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None  # Windows, and some sandboxes


def _waited_ns() -> dict[str, int]:
    """Nanoseconds that each thread of this process could run but had no processor; empty where no kernel counts it."""
    found = {}
    for path in glob.glob(SCHEDSTATS):
        try:
            found[path] = int(Path(path).read_text(encoding="ascii").split()[1])
        except (OSError, ValueError, IndexError):
            continue  # the thread has ended
    return found
