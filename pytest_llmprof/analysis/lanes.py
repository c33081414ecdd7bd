"""A trace as the lanes of timeline.json."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pytest_llmprof.analysis.events import Events, Ints, Kind, Mask, Numbers
from pytest_llmprof.analysis.gaps import IDLE_CAUSES
from pytest_llmprof.analysis.kernel_names import short_name
from pytest_llmprof.analysis.nesting import PREFIX, WINDOW_END
from pytest_llmprof.analysis.trace import Trace
from pytest_llmprof.records.files import encode_json, write_bytes
from pytest_llmprof.records.timeline import TIMELINE, Lane, Timeline

HOST_EVENTS = 60_000
"""At most so many events of the host are kept, the longest: a trace on a CPU may hold millions."""
_NAME = 90
"""Letters of a kernel's short name."""


def timeline_of(trace: Trace) -> Timeline:
    """The phases, the host's outermost calls, the GPU's work by stream, and the times in which the GPU was idle."""
    names = Numbers()
    host = trace.host
    ours = host.of(Kind.RANGE) & _named(trace, PREFIX)
    lanes = list(_phase_lanes(trace, ours, names))
    calls, left_out = _host_calls(trace, ours)
    for thread in np.unique(host.thread[calls]):
        mine = calls[host.thread[calls] == thread]
        lanes.append(_lane(f"Host thread {thread + 1}", "host", host, mine, _labels(trace, host, mine, names)))
    device = trace.device
    for number, stream in enumerate(_in_order(device.thread), 1):
        mine = np.flatnonzero(device.thread == stream)
        lanes.append(_lane(f"GPU stream {number}", "gpu", device, mine, _labels(trace, device, mine, names)))
    start, length, cause = trace.idle()
    if len(start):
        causes = [names[IDLE_CAUSES[one]] for one in cause.tolist()]
        lanes.append(Lane("GPU idle", "idle", start.tolist(), length.tolist(), causes))
    ends = [start + dur for lane in lanes for start, dur in zip(lane.start[-1:], lane.dur[-1:], strict=True)]
    return Timeline(names=list(names), lanes=lanes, window_ns=max(ends, default=0), left_out=left_out)


def write_timeline(out_dir: Path, trace: Trace) -> None:
    """Write timeline.json to *out_dir*."""
    write_bytes(out_dir / TIMELINE, encode_json(timeline_of(trace)))


def _named(trace: Trace, prefix: str) -> Mask:
    return np.array([name.startswith(prefix) for name in trace.names], dtype=bool)[trace.host.name]


def _phase_lanes(trace: Trace, ours: Mask, names: Numbers) -> Iterator[Lane]:
    """One lane for each depth of our ranges: phases, and the parts and steps inside them."""
    host = trace.host
    rows = np.flatnonzero(ours & ~_named(trace, WINDOW_END))
    depths = _depths(trace, rows)
    for depth in range(int(depths.max(initial=-1)) + 1):
        mine = rows[depths == depth]
        mine = mine[np.argsort(host.start[mine], kind="stable")]
        labels = [names[trace.names[one].removeprefix(PREFIX)] for one in host.name[mine].tolist()]
        yield _lane("Phases" if depth == 0 else "Parts and steps", "phases", host, mine, labels)


def _depths(trace: Trace, rows: Ints) -> Ints:
    """How many others of *rows* enclose each."""
    inside = set(rows.tolist())
    parent = trace.parent
    depths = []
    for row in rows.tolist():
        depth, above = 0, int(parent[row])
        while above >= 0:
            depth += above in inside
            above = int(parent[above])
        depths.append(depth)
    return np.array(depths, dtype=np.int64)


def _host_calls(trace: Trace, ours: Mask) -> tuple[Ints, int]:
    """The calls into the driver where there is a GPU, else the outermost operators; and how many are left out."""
    host = trace.host
    if len(trace.device):
        wanted = host.of(Kind.RUNTIME)
    else:
        parent = trace.parent
        outermost = (parent < 0) | ours[np.maximum(parent, 0)]
        wanted = host.of(Kind.OP) & outermost
    rows = np.flatnonzero(wanted)
    left_out = max(0, len(rows) - HOST_EVENTS)
    if left_out:
        rows = np.sort(rows[np.argsort(-host.dur[rows], kind="stable")[:HOST_EVENTS]])
    return rows, left_out


def _labels(trace: Trace, events: Events, rows: Ints, names: Numbers) -> list[int]:
    """The number of each event's name; kernels' are shortened."""
    numbers = {
        one: names[short_name(trace.names[one], _NAME) if events is trace.device else trace.names[one][:_NAME]]
        for one in np.unique(events.name[rows]).tolist()
    }
    return [numbers[one] for one in events.name[rows].tolist()]


def _lane(name: str, kind: str, events: Events, rows: Ints, label: list[int]) -> Lane:
    return Lane(name, kind, events.start[rows].tolist(), events.dur[rows].tolist(), label)


def _in_order(values: Ints) -> list[int]:
    """The distinct *values* in the order in which they first come."""
    return list(dict.fromkeys(values.tolist()))
