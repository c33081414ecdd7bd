"""Energy of a round, from the GPU's own counter.

The counter stands still between its updates (every 20 to 100 ms, by GPU and driver), and it does not stop while
the host scores a page. So a round's energy is read over the whole round, from an update of the counter to the
first one after its end, and given only where that says something about the model: the span holds enough updates
and the model worked for nearly all of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pytest_llmprof.records.metrics import RoundEnergy

LEAST_SECONDS = 0.5
"""A shorter round has no energy."""
LEAST_UPDATES = 10
"""Nor has one of fewer updates of the counter: the span ends up to one update after the round, at idle power."""
LEAST_WORK = 0.9
"""Nor one in which the model worked for a smaller share of the span: the rest is idle power, or another page's
scoring, and cannot be told apart."""
_PATIENCE_S = 0.3
"""A counter that has not moved for so long does not count."""
_PAUSE_S = 0.001


class EnergyMeter:
    """Reads a counter of millijoules around rounds. *read* gives it, or None where there is none."""

    def __init__(
        self,
        read: Callable[[], int | None],
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._read = read
        self._clock = clock
        self._sleep = sleep
        self._start: tuple[int, float] | None = None
        self.update_s: float | None = None
        """Seconds between two updates of the counter, as seen before the first round."""

    def begin(self) -> None:
        """Wait for an update (the device is idle), and start from there."""
        self._start = first = self._next()
        if self.update_s is None and first is not None:
            self._start = self._next()
            self.update_s = self._start[1] - first[1] if self._start is not None else None

    def end(self, work_s: float) -> RoundEnergy:
        """Wait for the first update after the round (the device is idle). *work_s*: seconds that the model worked."""
        stop = self._next() if self._start is not None else None
        if self._start is None or self.update_s is None or stop is None:
            return RoundEnergy(None, None, f"the GPU's energy counter did not move in {_PATIENCE_S:g} s")
        joules, span = (stop[0] - self._start[0]) / 1000, stop[1] - self._start[1]
        least = max(LEAST_SECONDS, LEAST_UPDATES * self.update_s)
        reason = None
        if span < least:
            reason = (
                f"a round of {span:.2f} s is too short: the GPU's counter moves every {self.update_s * 1000:.0f} ms, "
                f"which asks for {least:.1f} s"
            )
        elif work_s < LEAST_WORK * span:
            reason = f"the model worked for {work_s / span:.0%} of the round; below {LEAST_WORK:.0%} idle power counts"
        return RoundEnergy(joules if reason is None else None, span, reason)

    def _next(self) -> tuple[int, float] | None:
        """The counter and the time at its next update; None where none came."""
        before, begin = self._read(), self._clock()
        while before is not None and self._clock() - begin < _PATIENCE_S:
            self._sleep(_PAUSE_S)
            now = self._read()
            if now is not None and now != before:
                return now, self._clock()
        return None
