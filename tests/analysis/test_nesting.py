"""Parents found level by level are those that a stack finds event by event."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_llmprof.analysis import nesting
from pytest_llmprof.analysis.events import Events


@pytest.mark.parametrize("seed", range(200))
def test_crossing_events_get_the_parents_of_the_stack(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 40))
    thread = random.integers(0, 2, count)
    start = random.integers(0, 200, count) * 10
    dur = random.integers(0, 60, count) * random.integers(1, 20, count)
    order = np.lexsort((-dur, start, thread))
    thread, start, dur = thread[order], start[order], dur[order]
    nothing = np.zeros(count, dtype=np.int64)
    same = dict.fromkeys(("name", "kind", "external", "correlation"), nothing)
    found = nesting.parents(Events(thread=thread, start=start, dur=dur, **same))
    start = start + thread * 100_000
    end = np.maximum(start + dur - nesting._TOLERANCE_NS, start + 1)
    assert (found == nesting._parents_of_crossing(start, end, start + dur)).all()
