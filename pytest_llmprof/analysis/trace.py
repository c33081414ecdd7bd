"""Operators, kernels, phases and steps of one profiled window, computed from its events.

* The **phase** of a host event is the innermost `llmprof/<phase>` range that was open when it began; that of
  a kernel, copy or fill is the phase of the call that launched it (linked by the correlation id; all kernels
  of a CUDA graph have the phase of its launch). "" is outside every range.
* **Self time** of an operator is its time less that of the events inside it on its thread (see `nested`). Counts
  and totals are those of torch's `key_averages()`: an operator that only calls another of the same name counts once.
* **GPU busy** is the length of the union of kernel intervals, so kernels that run at the same time count once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from pytest_llmprof.analysis.calls import GRAPH_LAUNCH, LAUNCH, PLAIN_COPY, SYNCHRONISE, copy_direction
from pytest_llmprof.analysis.events import KINDS, Events, Ints, Kind, Mask, RawTrace
from pytest_llmprof.analysis.gaps import IDLE_CAUSES, added_ns, gaps, union_ns
from pytest_llmprof.analysis.nesting import WINDOW_END, Phase, Timeline, nested
from pytest_llmprof.analysis.rows import KernelRow, OperatorRow, PhaseRow, StepFigures

_Item = TypeVar("_Item", bound=np.generic)
_Row = TypeVar("_Row")


class Trace:
    """A profiled window."""

    def __init__(self, raw: RawTrace) -> None:
        self.names = raw.names
        self.host = raw.host
        self.device = raw.device
        self.events = raw.events
        """Events in the file."""
        self.left_out = raw.left_out
        """Events of the kinds above whose times cannot be."""
        self.windows = raw.windows
        """When each profile began; nothing is recorded between two profiles."""
        self.timeline = Timeline(raw.host, raw.names)
        self.parent, self._own = nested(raw.host)
        """`parent`: index of the innermost host event around each one; -1 without."""
        self._phase, self._step = self.timeline.at(raw.host.thread, raw.host.start)

    @property
    def phases(self) -> list[str]:
        """Names of the phases by number; number 0 ("") is outside every phase."""
        return ["", *self.timeline.phases]

    @property
    def seen_on_host(self) -> int:
        """The number of host events without the profiler's own at the end of a window."""
        return len(self.host) - int(self._window_ends.sum())

    def _named(self, events: Events, test: Callable[[str], object]) -> Mask:
        """Which of *events* have names that pass *test*."""
        return np.array([bool(test(name)) for name in self.names], dtype=bool)[events.name]

    @cached_property
    def _window_ends(self) -> Mask:
        return self._named(self.host, WINDOW_END.__eq__)

    @cached_property
    def window_ms(self) -> float:
        """From the first event's start to the last one's end, host and device, summed over the profiles."""
        start = np.concatenate((self.host.start, self.device.start))
        end = start + np.concatenate((self.host.dur, self.device.dur))
        window = self._window(start)
        profiles = [window == number for number in np.unique(window)]
        return sum(int(end[mine].max() - start[mine].min()) for mine in profiles) / 1e6

    def _window(self, time: Ints) -> Ints:
        """The number of the profile that each time lies in."""
        number: Ints = np.searchsorted(self.windows[1:], time, side="right")
        return number

    @cached_property
    def _launcher(self) -> Ints:
        """Index of the host event that launched each device event; -1 unknown."""
        calls = np.flatnonzero(self.host.of(Kind.RUNTIME) & (self.host.correlation >= 0))
        found = _lookup(self.host.correlation[calls], calls, self.device.correlation)
        # Without the call (before the window, or lost by the profiler) the operator's id is still there.
        return found if (found >= 0).all() else np.where(found >= 0, found, self._by_external)

    @cached_property
    def _by_external(self) -> Ints:
        """Index of the operator with the external id of each device event; -1 without one."""
        operators = np.flatnonzero(self.host.of(Kind.OP) & (self.host.external >= 0))
        return _lookup(self.host.external[operators], operators, self.device.external)

    @cached_property
    def _operator(self) -> Ints:
        """Name index of the launching operator of each device event; -1 unknown."""
        launcher = self._launcher
        operator = self._ancestor(~self.host.of(Kind.OP))
        operator = np.where(operator >= 0, operator, self._by_external)
        name = _take(self.host.name, operator, -1)
        graph = _take(self._calls(GRAPH_LAUNCH), launcher, False)
        return np.where((launcher >= 0) & ((name < 0) | graph), _take(self.host.name, launcher, -1), name)

    def _ancestor(self, skipped: Mask) -> Ints:
        """Index of the innermost host event around each device event's launch that is not *skipped*; -1 without."""
        index = self._launcher.copy()
        while (climbing := _take(skipped, index, False)).any():
            index[climbing] = self.parent[index[climbing]]
        return index

    def _calls(self, pattern: re.Pattern[str]) -> Mask:
        """Which host events are runtime calls whose names begin with *pattern*."""
        return self.host.of(Kind.RUNTIME) & self._named(self.host, pattern.match)

    @cached_property
    def _blocking_copies(self) -> Mask:
        """Calls that return when their copy is done: those into pageable memory, and those that are not Async."""
        copies = np.zeros(len(self.host), dtype=bool)
        pageable = self._named(self.device, re.compile("pageable", re.IGNORECASE).search)
        launcher = self._launcher[self._copies_to_host & pageable]
        copies[launcher[launcher >= 0]] = True
        return (copies & self.host.of(Kind.RUNTIME)) | self._calls(PLAIN_COPY)

    @cached_property
    def _waits(self) -> Mask:
        """Host events that wait for the GPU, without the profiler's own at the end of its window.

        A blocking copy and the synchronise that torch calls right after it are one wait.
        """
        waits, copies = self._calls(SYNCHRONISE), self._blocking_copies.copy()
        calls = np.flatnonzero(self.host.of(Kind.RUNTIME))
        after = np.append(calls[1:], -1)[copies[calls]]
        rows = calls[copies[calls]]
        same = (after >= 0) & (self.host.thread[after] == self.host.thread[rows])
        copies[rows[same & waits[after] & (self.parent[after] == self.parent[rows])]] = False
        counted: Mask = waits | copies
        for began in self.host.start[self._window_ends]:
            last = self._window(self.host.start) == self._window(began)
            counted &= ~(last & (self.host.start >= began))
        return counted

    @cached_property
    def _device_phase(self) -> Ints:
        return _take(self._phase, self._launcher, 0)

    @cached_property
    def _device_step(self) -> Ints:
        return _take(self._step, self._launcher, -1)

    @cached_property
    def _copies_to_host(self) -> Mask:
        return self.device.of(Kind.MEMCPY) & self._named(self.device, lambda name: copy_direction(name) == "DtoH")

    def operators(self) -> list[OperatorRow]:
        """Host events by name and phase, longest total first; without the profiler's own range at a window's end."""
        host, parent = self.host, self.parent
        seen = np.flatnonzero(~self._window_ends)
        if not len(seen):
            return []
        inside = parent >= 0
        children = np.bincount(parent[inside], minlength=len(host))
        # Merged as torch's _remove_dup_nodes does: the only child of a caller of the same name.
        again = inside & (host.name[parent] == host.name) & (children[parent] == 1)
        groups = _Groups(host.name[seen], host.kind[seen], self._phase[seen])
        count, total_ms = groups.sum((~again)[seen]), groups.sum(np.where(again, 0, host.dur)[seen]) / 1e6
        self_ms = groups.sum(self._own[seen]) / 1e6
        name, kind, phase = groups.keys()
        share, phase_share = _shares(self_ms, phase)
        rows = _rows(
            OperatorRow,
            name=map(self.names.__getitem__, name),
            kind=map(KINDS.__getitem__, kind),
            phase=map(self.phases.__getitem__, phase),
            count=count,
            total_ms=total_ms,
            self_ms=self_ms,
            mean_ms=total_ms / np.maximum(count, 1),
            share=share,
            phase_share=phase_share,
            device_ms=groups.sum(self._launched_ns()[seen]) / 1e6,
        )
        return sorted(rows, key=lambda row: (-row.total_ms, row.name, row.phase))

    def _launched_ns(self) -> Ints:
        """Device time that each operator or range launched itself, in nanoseconds."""
        launched = np.zeros(len(self.host), dtype=np.int64)
        caller = self._ancestor(self.host.of(Kind.RUNTIME))
        np.add.at(launched, caller[caller >= 0], self.device.dur[caller >= 0])
        return launched

    def kernels(self) -> list[KernelRow]:
        """Device events by name, phase and launching operator, those first that kept the GPU busy longest."""
        device = self.device
        if not len(device):
            return []
        groups = _Groups(device.name, device.kind, self._device_phase, self._operator)
        count = groups.sum(np.ones(len(device), dtype=bool))
        total_ms, busy_ms = groups.sum(device.dur) / 1e6, groups.sum(added_ns(device.start, device.dur)) / 1e6
        shortest, longest = groups.extremes(device.dur)
        name, kind, phase, caller = groups.keys()
        share, phase_share = _shares(busy_ms, phase)
        rows = _rows(
            KernelRow,
            name=map(self.names.__getitem__, name),
            kind=map(KINDS.__getitem__, kind),
            phase=map(self.phases.__getitem__, phase),
            operator=(self.names[number] if number >= 0 else "" for number in caller),
            count=count,
            total_ms=total_ms,
            busy_ms=busy_ms,
            mean_us=total_ms / count * 1e3,
            min_us=shortest / 1e3,
            max_us=longest / 1e3,
            share=share,
            phase_share=phase_share,
        )
        return sorted(rows, key=lambda row: (-row.busy_ms, row.name, row.phase, row.operator))

    def copies(self) -> dict[str, int]:
        """Number of device copies by direction (HtoD, DtoH, DtoD, ...)."""
        copies = self.device.name[self.device.of(Kind.MEMCPY)].tolist()
        return dict(sorted(Counter(copy_direction(self.names[name]) for name in copies).items()))

    def totals(self) -> PhaseRow:
        """The whole window as one row named ""."""
        return self._row(Phase("", "", 0, count=1, host_ns=round(self.window_ms * 1e6)), None)

    def phase_rows(self) -> list[PhaseRow]:
        """The phases in the order in which they first began."""
        phases = list(self.timeline.phases.values())
        rows = []
        for phase in phases:
            inside = {phase.name}
            for other in phases:  # a parent comes before its sub-phases
                if other.parent in inside:
                    inside.add(other.name)
            numbers = [other.number for other in phases if other.name in inside]
            # Of a phase whose own range is not in the trace count the profiles that have some of it.
            seen = self._window(self.host.start[np.isin(self._phase, numbers)])
            rows.append(self._row(replace(phase, count=phase.count or len(np.unique(seen))), numbers))
        return rows

    def _row(self, phase: Phase, numbers: list[int] | None) -> PhaseRow:
        """*phase* with all work of the phases of *numbers* (None: everything)."""
        on_host, on_device = (
            np.ones(len(of), dtype=bool) if numbers is None else np.isin(of, numbers)
            for of in (self._phase, self._device_phase)
        )
        kernels = on_device & self.device.of(Kind.KERNEL)
        after, length, cause = self._gaps
        counted = on_device[after]
        return PhaseRow(
            name=phase.name,
            parent=phase.parent,
            count=phase.count,
            host_ms=phase.host_ns / 1e6,
            gpu_span_ms=self._span_ns(kernels, phase.openings) / 1e6,
            **self._counts(on_host, on_device),
            idle_ms={
                label: float(length[counted & (cause == number)].sum()) / 1e6
                for number, label in enumerate(IDLE_CAUSES)
            },
        )

    def _counts(self, on_host: Mask, on_device: Mask) -> dict[str, Any]:
        """Fields that `PhaseRow` and `StepFigures` share, of these events."""
        kernels = on_device & self.device.of(Kind.KERNEL)
        return {
            "gpu_busy_ms": union_ns(self.device.start[kernels], self.device.dur[kernels]) / 1e6,
            "kernels": int(kernels.sum()),
            "host_launches": int((on_host & self._calls(LAUNCH)).sum()),
            "d2h_copies": int((on_device & self._copies_to_host).sum()),
            "synchronisations": int((on_host & self._waits).sum()),
        }

    def _span_ns(self, kernels: Mask, openings: list[tuple[int, int]]) -> int:
        """From the start of the first to the end of the last of *kernels* that each of *openings* launched, summed.

        Without openings, those of each profile.
        """
        chosen = np.flatnonzero(kernels)
        if not len(chosen):
            return 0
        start, end = self.device.start[chosen], (self.device.start + self.device.dur)[chosen]
        if openings:
            launched = self.host.start[self._launcher[chosen]]
            groups = [(launched >= begin) & (launched < until) for begin, until in openings]
        else:
            window = self._window(start)
            groups = [window == number for number in np.unique(window)]
        return sum(int(end[one].max() - start[one].min()) for one in groups if one.any())

    @cached_property
    def _gaps(self) -> tuple[Ints, Ints, Ints]:
        """As `gaps` returns them, without those between two profiles."""
        ends = self.host.start + self.host.dur
        launched = _take(self.host.start, self._launcher, -1)
        # Of all that a call launched (the nodes of a CUDA graph) only the first was queued when the call returned. A
        # blocking copy returns after what it launched.
        queued = _first_of_each(self._launcher) & ~_take(self._blocking_copies, self._launcher, False)
        returned = np.where(queued, _take(ends, self._launcher, -1), -1)
        # The GPU runs out of work inside a blocking copy, not in the synchronise after it.
        waits = np.flatnonzero(self._calls(SYNCHRONISE) | self._blocking_copies)
        after, length, cause = gaps(self.device, launched, returned, self.host.start[waits], ends[waits])
        start = self.device.start[after]
        seen = self._window(start) == self._window(start - length)
        return after[seen], length[seen], cause[seen]

    def idle(self) -> tuple[Ints, Ints, Ints]:
        """The times in which the GPU was idle: start and length (ns), index of the cause in `IDLE_CAUSES`."""
        after, length, cause = self._gaps
        return self.device.start[after] - length, length, cause

    def steps(self) -> StepFigures | None:
        """Figures of a decode step; None where the trace has no `llmprof/step` range."""
        steps = self.timeline.steps
        if not steps:
            return None
        counts = self._counts(self._step >= 0, self._device_step >= 0)
        busy_ms = counts.pop("gpu_busy_ms")
        means = {f"{name}_per_token": value / steps for name, value in counts.items()}
        return StepFigures(steps, self.timeline.step_ns / 1e6 / steps, busy_ms / steps, **means)

    def graph_launches(self) -> int:
        """Number of CUDA graph launches."""
        return int(self._calls(GRAPH_LAUNCH).sum())


def _take(values: npt.NDArray[_Item], index: Ints, missing: Any) -> npt.NDArray[_Item]:
    """The value at each index; *missing* where it is -1."""
    taken = np.full(len(index), missing, dtype=values.dtype)
    taken[index >= 0] = values[index[index >= 0]]
    return taken


def _first_of_each(values: Ints) -> Mask:
    """Which entries are the first of their value."""
    first = np.zeros(len(values), dtype=bool)
    first[np.unique(values, return_index=True)[1]] = True
    return first


def _lookup(keys: Ints, values: Ints, wanted: Ints) -> Ints:
    """For each of *wanted* the value of the equal key (the last one where keys repeat); -1 without one."""
    if not len(keys):
        return np.full(len(wanted), -1, dtype=np.int64)
    order = np.argsort(keys, kind="stable")
    keys, values = keys[order], values[order]
    place = np.searchsorted(keys, wanted, side="right") - 1
    return np.where((place >= 0) & (keys[place] == wanted) & (wanted >= 0), values[place], -1)


class _Groups:
    """Rows that agree in all columns, with sums over them."""

    def __init__(self, *columns: Ints) -> None:
        self._columns = columns
        code = np.zeros(len(columns[0]), dtype=np.int64)
        for column in columns:
            low = int(column.min())
            code = code * (int(column.max()) - low + 1) + (column - low)
        _, self._first, self._group = np.unique(code, return_index=True, return_inverse=True)

    def sum(self, values: Ints | Mask) -> Ints:
        # bincount adds doubles, which hold whole numbers below 2**53 exactly.
        return np.bincount(self._group, values, len(self._first)).astype(np.int64)

    def extremes(self, values: Ints) -> tuple[Ints, Ints]:
        order = np.argsort(self._group, kind="stable")
        starts = np.searchsorted(self._group[order], np.arange(len(self._first)))
        ordered = values[order]
        return np.minimum.reduceat(ordered, starts), np.maximum.reduceat(ordered, starts)

    def keys(self) -> list[list[int]]:
        """The values of each column, one for each group."""
        return [column[self._first].tolist() for column in self._columns]


def _shares(values: npt.NDArray[np.float64], phase: list[int]) -> tuple[Any, Any]:
    """Each value's share of all values, and of those of its phase; 0 where these are."""
    in_phase = np.bincount(phase, values)[phase]
    return values / (values.sum() or 1.0), values / np.where(in_phase, in_phase, 1.0)


def _rows(row: type[_Row], **columns: Any) -> list[_Row]:
    """One *row* for each entry of the columns, arrays or iterables."""
    values = (column.tolist() if isinstance(column, np.ndarray) else column for column in columns.values())
    return [row(**dict(zip(columns, cells, strict=True))) for cells in zip(*values, strict=True)]
