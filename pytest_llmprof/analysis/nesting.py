"""Which host event encloses which: callers of operators, and the phase that is open at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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


@dataclass
class Phase:
    """One phase, from its ranges `llmprof/<name>`."""

    name: str
    parent: str
    """The phase that encloses it; "" at the top."""
    number: int
    """1, 2, ... in the order of their first start."""
    count: int = 0
    """The number of its ranges; 0 where only its steps are in the trace."""
    host_ns: int = 0
    """Total length of its ranges on the host."""
    openings: list[tuple[int, int]] = field(default_factory=list)
    """Start and end (ns) of its ranges."""


@dataclass
class _Open:
    """An open range while a timeline is made."""

    end: int
    phase: Phase | None
    step: int = -1
    is_step: bool = False


class Timeline:
    """Phases and decode steps over time.

    A step lasts until the next one begins or its phase ends, so it includes what follows its range (the copy of the
    token to the host). A thread without ranges (a data loader, for example) has the phases of the main thread.
    """

    def __init__(self, host: Events, names: Sequence[str]) -> None:
        self.phases: dict[str, Phase] = {}
        """By name, in the order of their first start."""
        self.steps = 0
        """Number of `llmprof/step` ranges."""
        self.step_ns = 0
        """Their total length."""
        is_ours = np.array([name.startswith(PREFIX) for name in names], dtype=bool)
        by_thread: dict[int, list[tuple[int, int, str]]] = {}
        for row in np.flatnonzero(host.of(Kind.RANGE) & is_ours[host.name]).tolist():
            start, label = int(host.start[row]), names[host.name[row]].removeprefix(PREFIX)
            by_thread.setdefault(int(host.thread[row]), []).append((start, start + int(host.dur[row]), label))
        self._lines = {thread: self._line(ranges) for thread, ranges in by_thread.items()}
        self._main = max(by_thread, key=lambda thread: len(by_thread[thread]), default=None)

    def _phase(self, name: str, parent: Phase | None) -> Phase:
        new = Phase(name, parent.name if parent else NO_PHASE, len(self.phases) + 1)
        return self.phases.setdefault(name, new)

    def _line(self, ranges: list[tuple[int, int, str]]) -> Ints:
        """Rows: times at which the innermost phase or the step changes; number of the phase and step from then on."""
        marks = [(np.iinfo(np.int64).min, 0, -1)]
        bottom = _Open(np.iinfo(np.int64).max, None)
        stack = [bottom]

        def mark(time: int) -> None:
            phase = stack[-1].phase
            marks.append((time, phase.number if phase else 0, stack[-1].step))

        def close(until: int) -> None:
            while stack[-1].end <= until:
                closed = stack.pop()
                if closed.is_step:
                    # The step lasts until the next one begins: its token may reach the host after its range.
                    stack[-1].step = closed.step
                    if stack[-1] is bottom:
                        bottom.phase = closed.phase
                mark(closed.end)

        for start, end, label in ranges:
            close(start)
            outer = stack[-1]
            end = min(end, outer.end)
            if PREFIX + label == WINDOW_END or (label != STEP and outer is bottom):
                bottom.phase, bottom.step = None, -1
            if label == STEP:
                phase = outer.phase
                if phase is None or outer is bottom:
                    # A window that starts late opens inside a decode phase whose range began before it.
                    phase = self._phase(DECODE, None)
                    phase.host_ns += end - start
                stack.append(_Open(end, phase, self.steps, is_step=True))
                self.steps += 1
                self.step_ns += end - start
            elif PREFIX + label != WINDOW_END:
                phase = self._phase(label, outer.phase)
                if all(entry.phase is not phase for entry in stack):
                    phase.count += 1
                    phase.host_ns += end - start
                    phase.openings.append((start, end))
                stack.append(_Open(end, phase, outer.step))
            mark(start)
        close(bottom.end - 1)
        return np.array(marks, dtype=np.int64).T

    def at(self, thread: Ints, time: Ints) -> tuple[Ints, Ints]:
        """Phase number (0 = none) and step number (-1 = none) at *time* (ns) on *thread*."""
        phase = np.zeros(len(time), dtype=np.int64)
        step = np.full(len(time), -1, dtype=np.int64)
        if self._main is None:
            return phase, step
        for number in np.unique(thread):
            line = self._lines.get(int(number), self._lines[self._main])
            mine = thread == number
            _, phase[mine], step[mine] = line[:, np.searchsorted(line[0], time[mine], side="right") - 1]
        return phase, step
