"""Which host event lies in which: callers of operators, and the phase that was open at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pytest_llmprof.analysis.events import RANGE, HostEvents, Ints

__all__ = ["NO_PHASE", "WINDOW_END", "Phase", "Timeline", "parents"]

# The file's doubles hold a start to about half a nanosecond, so ends and starts that met may overlap by two.
_TOLERANCE_NS = 2
_ROUNDS = 8

PREFIX = "llmprof/"
WINDOW_END = PREFIX + "end"
"""What ends the last step of a window that opened inside a decode phase: the profiler's own waiting is no step's."""
STEP = "step"
DECODE = "decode"
NO_PHASE = ""
"""The phase of what ran outside every `llmprof/<phase>` range."""


def parents(host: HostEvents) -> Ints:
    """Index of the innermost event of the same thread that encloses each event; -1 where none does.

    As in torch: an event that ends after one in which it began is not inside it.
    """
    if not len(host):
        return np.empty(0, dtype=np.int64)
    # Threads are laid one after the other on one axis of time.
    length = int((host.start + host.dur).max()) + 16
    start = host.start + host.thread * length
    end = np.maximum(start + host.dur - _TOLERANCE_NS, start + 1)
    limit = start + host.dur
    shown = end.copy()
    for _ in range(_ROUNDS):
        parent = _enclosing(start, shown)
        inner = np.flatnonzero(parent >= 0)
        crossing = inner[end[inner] > limit[parent[inner]]]
        if not len(crossing):
            return parent
        # What an event crosses ends for it and all later ones where that event begins.
        np.minimum.at(shown, parent[crossing], start[crossing])
    return _parents_of_crossing(start, end, limit)


def _enclosing(start: Ints, end: Ints) -> Ints:
    """The parents where no event crosses another."""
    count = len(start)
    depth = np.arange(count) - np.searchsorted(np.sort(end), start, side="right")
    parent = np.full(count, -1, dtype=np.int64)
    above = np.flatnonzero(depth == 0)
    for level in range(1, int(depth.max()) + 1):
        here = np.flatnonzero(depth == level)
        parent[here] = above[np.searchsorted(above, here) - 1]
        above = here
    return parent


def _parents_of_crossing(start: Ints, end: Ints, limit: Ints) -> Ints:
    """The same by a stack, where many events cross many (a runtime call's clock may differ from torch's)."""
    found: list[int] = []
    stack: list[int] = []
    ends, limits = end.tolist(), limit.tolist()
    for index, begin in enumerate(start.tolist()):
        while stack and (begin >= ends[stack[-1]] or ends[index] > limits[stack[-1]]):
            stack.pop()
        found.append(stack[-1] if stack else -1)
        stack.append(index)
    return np.array(found, dtype=np.int64)


@dataclass(frozen=True)
class Phase:
    """One phase as the ranges `llmprof/<name>` show it."""

    name: str
    parent: str
    """The phase it lies in; "" at the top."""
    count: int
    """How often it was opened; 0 where only its steps are in the trace."""
    host_ns: int
    """Sum of its ranges on the host, what lies in them included."""


@dataclass
class _Open:
    """An open range while a timeline is made."""

    end: int
    phase: str
    step: int = -1
    label: str = ""


class Timeline:
    """Phases and decode steps over time.

    A step lasts until the next one begins or its phase ends, so that what follows its range (the token's way
    to the host) is its own.

    A thread without ranges of its own (a data loader, say) takes the phase that the main thread was in.
    """

    def __init__(self, host: HostEvents, names: Sequence[str]) -> None:
        self.phases: list[Phase] = []
        """In the order of their first start. Phase number n of `phase_of` is `phases[n - 1]`, 0 is none."""
        self.steps = 0
        """Number of `llmprof/step` ranges."""
        self.step_ns = 0
        """Sum of their lengths."""
        self.openings: dict[str, list[tuple[int, int]]] = {}
        """Start and end (ns) of each phase's ranges on the host; of none where only its steps are in the trace."""
        self._numbers = {NO_PHASE: 0}
        self._lines: dict[int, tuple[Ints, Ints, Ints]] = {}
        ours = np.array([name.startswith(PREFIX) for name in names], dtype=bool)
        rows = np.flatnonzero((host.kind == RANGE) & ours[host.name]) if len(host) else host.name
        by_thread: dict[int, list[tuple[int, int, str]]] = {}
        for row in rows:
            label = names[host.name[row]].removeprefix(PREFIX)
            start = int(host.start[row])
            by_thread.setdefault(int(host.thread[row]), []).append((start, start + int(host.dur[row]), label))
        self._found: dict[str, list[int]] = {}  # name -> [count, nanoseconds]
        self._parent: dict[str, str] = {}
        for thread, ranges in by_thread.items():
            self._lines[thread] = self._line(ranges)
        self._main = max(by_thread, key=lambda thread: len(by_thread[thread]), default=None)
        self.phases = [
            Phase(name, self._parent[name], count, total)
            for name, (count, total) in self._found.items()
        ]

    def _number(self, name: str) -> int:
        return self._numbers.setdefault(name, len(self._numbers))

    def _line(self, ranges: list[tuple[int, int, str]]) -> tuple[Ints, Ints, Ints]:
        """Times at which the innermost phase or the step changes, with the phase and step from then on."""
        times, phases, steps = [np.iinfo(np.int64).min], [0], [-1]
        bottom = _Open(np.iinfo(np.int64).max, NO_PHASE)
        stack = [bottom]

        def mark(time: int) -> None:
            times.append(time)
            phases.append(self._number(stack[-1].phase))
            steps.append(stack[-1].step)

        def close(until: int) -> None:
            while stack[-1].end <= until:
                closed = stack.pop()
                if closed.label == STEP:
                    # Until the next one begins: the token may reach the host after the step's own range.
                    stack[-1].step = closed.step
                    if stack[-1] is bottom:
                        bottom.phase = DECODE
                mark(closed.end)

        for start, end, label in ranges:
            close(start)
            outer = stack[-1]
            if PREFIX + label == WINDOW_END:
                bottom.phase, bottom.step = NO_PHASE, -1
                mark(start)
                continue
            end = min(end, outer.end)
            if label == STEP:
                # A window that starts late opens inside a decode phase whose own range began before it.
                stack.append(_Open(end, outer.phase or DECODE, self.steps, STEP))
                if not outer.phase or outer is bottom:
                    self._count(DECODE, NO_PHASE, end - start, times=0)
                self.steps += 1
                self.step_ns += end - start
            else:
                if outer is bottom:
                    bottom.phase, bottom.step = NO_PHASE, -1
                if label not in (entry.phase for entry in stack):
                    self._count(label, outer.phase, end - start)
                    self.openings.setdefault(label, []).append((start, end))
                stack.append(_Open(end, label, outer.step, label))
            mark(start)
        close(bottom.end - 1)
        return (
            np.array(times, dtype=np.int64),
            np.array(phases, dtype=np.int64),
            np.array(steps, dtype=np.int64),
        )

    def _count(self, name: str, parent: str, length: int, times: int = 1) -> None:
        self._number(name)
        entry = self._found.setdefault(name, [0, 0])
        entry[0] += times
        entry[1] += length
        self._parent.setdefault(name, parent)

    def at(self, thread: Ints, time: Ints) -> tuple[Ints, Ints]:
        """Phase number (0 = none) and step number (-1 = none) at *time* (ns) on *thread*."""
        phase = np.zeros(len(time), dtype=np.int64)
        step = np.full(len(time), -1, dtype=np.int64)
        if self._main is None:
            return phase, step
        for number in np.unique(thread):
            times, phases, steps = self._lines.get(int(number), self._lines[self._main])
            mine = thread == number
            place = np.searchsorted(times, time[mine], side="right") - 1
            phase[mine], step[mine] = phases[place], steps[place]
        return phase, step
