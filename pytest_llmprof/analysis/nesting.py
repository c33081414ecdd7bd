"""Which host event encloses which: callers of operators, and the phase that is open at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pytest_llmprof.analysis.events import Events, Ints, Kind

# A file's doubles hold times to about half a nanosecond, so an end and an equal start may overlap by two.
_TOLERANCE_NS = 2

PREFIX = "llmprof/"
WINDOW_END = PREFIX + "end"
"""Range after the last step of a profiled window: the profiler's own waiting is not part of that step."""
STEP = "step"
DECODE = "decode"
NO_PHASE = ""
"""The phase of events outside every `llmprof/<phase>` range."""


def nested(host: Events) -> tuple[Ints, Ints]:
    """(index of the innermost event of the same thread that encloses each event, -1 without; its self time in ns).

    As in torch, an event that ends after another one is not inside it, even if it began inside. Each moment is self
    time of the event that began last among those of its thread that have not ended, so self times are never negative
    and their sum is the time in which the threads were in any event, also where events cross.
    """
    if not len(host):
        return host.start, host.start
    # All threads on one axis of time, one after the other; a last event closes all others.
    length = int((host.start + host.dur).max()) + _TOLERANCE_NS
    starts = host.start + host.thread * length
    ends = [*(starts + host.dur).tolist(), 0]
    parent, own = [-1] * len(ends), [0] * len(ends)
    stack: list[int] = []
    now = 0
    for index, begin in enumerate([*starts.tolist(), max(ends) + _TOLERANCE_NS]):
        limit = ends[index] - _TOLERANCE_NS
        while stack:
            last = stack[-1]
            end = ends[last]
            if end - _TOLERANCE_NS > begin:
                own[last] += begin - now
                parent[index] = last if limit <= end else next((one for one in stack[::-1] if limit <= ends[one]), -1)
                break
            stack.pop()
            if end > now:
                end = min(end, begin)
                own[last] += end - now
                now = end
        now = begin
        stack.append(index)
    return np.array(parent[:-1], dtype=np.int64), np.array(own[:-1], dtype=np.int64)


@dataclass(frozen=True)
class Phase:
    """One phase, from its ranges `llmprof/<name>`."""

    name: str
    parent: str
    """The phase that encloses it; "" at the top."""
    count: int
    """The number of its ranges; 0 where only its steps are in the trace."""
    host_ns: int
    """Total length of its ranges on the host."""


@dataclass
class _Open:
    """An open range while a timeline is made."""

    end: int
    phase: str
    step: int = -1
    label: str = ""


class Timeline:
    """Phases and decode steps over time.

    A step lasts until the next one begins or its phase ends, so it includes what follows its range (the copy of the
    token to the host). A thread without ranges (a data loader, for example) has the phases of the main thread.
    """

    def __init__(self, host: Events, names: Sequence[str]) -> None:
        self.phases: list[Phase] = []
        """In the order of their first start. Phase number n of `phase_of` is `phases[n - 1]`, 0 is none."""
        self.steps = 0
        """Number of `llmprof/step` ranges."""
        self.step_ns = 0
        """Their total length."""
        self.openings: dict[str, list[tuple[int, int]]] = {}
        """Start and end (ns) of each phase's ranges on the host; no entry where only its steps are in the trace."""
        self._numbers = {NO_PHASE: 0}
        self._lines: dict[int, tuple[Ints, Ints, Ints]] = {}
        is_ours = np.array([name.startswith(PREFIX) for name in names], dtype=bool)
        rows = np.flatnonzero((host.kind == Kind.RANGE) & is_ours[host.name]) if len(host) else host.name
        by_thread: dict[int, list[tuple[int, int, str]]] = {}
        for row in rows:
            label = names[host.name[row]].removeprefix(PREFIX)
            start = int(host.start[row])
            by_thread.setdefault(int(host.thread[row]), []).append((start, start + int(host.dur[row]), label))
        self._totals: dict[str, list[int]] = {}  # name -> [count, nanoseconds]
        self._parent: dict[str, str] = {}
        for thread, ranges in by_thread.items():
            self._lines[thread] = self._line(ranges)
        self._main = max(by_thread, key=lambda thread: len(by_thread[thread]), default=None)
        self.phases = [
            Phase(name, self._parent[name], count, total)
            for name, (count, total) in self._totals.items()
        ]

    def _number(self, name: str) -> int:
        return self._numbers.setdefault(name, len(self._numbers))

    def _line(self, ranges: list[tuple[int, int, str]]) -> tuple[Ints, Ints, Ints]:
        """Times at which the innermost phase or the step changes, and the phase and step from then on."""
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
                    # The step lasts until the next one begins: its token may reach the host after its range.
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
                # A window that starts late opens inside a decode phase whose range began before it.
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
        entry = self._totals.setdefault(name, [0, 0])
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
            index = np.searchsorted(times, time[mine], side="right") - 1
            phase[mine], step[mine] = phases[index], steps[index]
        return phase, step
