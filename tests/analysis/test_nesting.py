"""Parents and self times of host events, against a slow and plain reckoning of the same."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_llmprof.analysis import nesting
from pytest_llmprof.analysis.events import Events


def events(thread: np.ndarray, start: np.ndarray, dur: np.ndarray) -> Events:
    order = np.lexsort((-dur, start, thread))
    nothing = np.zeros(len(start), dtype=np.int64)
    same = dict.fromkeys(("name", "kind", "external", "correlation"), nothing)
    return Events(thread=thread[order], start=start[order], dur=dur[order], **same)


@pytest.mark.parametrize("seed", range(200))
def test_each_moment_belongs_to_the_event_that_began_last(seed: int) -> None:
    """Line 4 of issue 15. Times are ten nanoseconds apart, above the tolerance of the files."""
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 40))
    thread = random.integers(0, 2, count)
    host = events(thread, random.integers(0, 60, count) * 10, random.integers(0, 30, count) * 10)
    parent, own = nesting.nested(host)
    rows = list(zip(host.thread.tolist(), host.start.tolist(), (host.start + host.dur).tolist(), strict=True))
    for index, (where, begin, end) in enumerate(rows):
        outer = [
            other
            for other, (place, start, stop) in enumerate(rows[:index])
            if place == where and start <= begin < stop and end <= stop
        ]
        assert parent[index] == (outer[-1] if outer else -1)
    expected = np.zeros(count, dtype=np.int64)
    for where in (0, 1):
        for moment in range(0, 900, 10):
            there = [i for i, (place, start, stop) in enumerate(rows) if place == where and start <= moment < stop]
            if there:
                expected[there[-1]] += 10
    assert own.tolist() == expected.tolist()
