"""timeline.json: lanes of events whose sums are those of the tables."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import pytest
from traces import one_page

from pytest_llmprof.analysis import lanes
from pytest_llmprof.analysis.kernel_names import short_name
from pytest_llmprof.analysis.lanes import timeline_of
from pytest_llmprof.analysis.trace import Trace
from pytest_llmprof.records.timeline import Timeline


@pytest.fixture
def timeline(page: Trace) -> Timeline:
    return msgspec.json.decode(msgspec.json.encode(timeline_of(page)), type=Timeline)


def of_kind(timeline: Timeline, kind: str) -> list[tuple[str, int, int]]:
    """(name, start, length) of every event in the lanes of *kind*."""
    return [
        (timeline.names[label], start, dur)
        for lane in timeline.lanes
        if lane.kind == kind
        for label, start, dur in zip(lane.label, lane.start, lane.dur, strict=True)
    ]


def test_kernels_add_up_to_the_table(timeline: Timeline, page: Trace) -> None:
    shown: Counter[str] = Counter()
    for name, _, dur in of_kind(timeline, "gpu"):
        shown[name] += dur
    table: Counter[str] = Counter()
    for row in page.kernels():
        table[short_name(row.name, 90)] += round(row.total_ms * 1e6)
    assert shown == table
    assert len(of_kind(timeline, "gpu")) == sum(row.count for row in page.kernels())


def test_idle_times_add_up_to_the_totals(timeline: Timeline, page: Trace) -> None:
    idle: Counter[str] = Counter()
    for cause, _, dur in of_kind(timeline, "idle"):
        idle[cause] += dur
    assert {cause: idle[cause] / 1e6 for cause in page.totals().idle_ms} == pytest.approx(page.totals().idle_ms)
    assert sum(idle.values()) > 0


def test_phases_are_where_their_ranges_are(timeline: Timeline, page: Trace) -> None:
    lengths: Counter[str] = Counter()
    for name, _, dur in of_kind(timeline, "phases"):
        lengths[name] += dur
    for row in page.phase_rows():
        assert lengths[row.name] / 1e6 == pytest.approx(row.host_ms), row.name
    top = [lane for lane in timeline.lanes if lane.name == "Phases"]
    assert [timeline.names[label] for label in top[0].label] == ["preprocess", "vision", "prefill", "decode"]


def test_lanes_are_in_order_and_inside_the_window(timeline: Timeline) -> None:
    for lane in timeline.lanes:
        assert lane.start == sorted(lane.start)
        assert len(lane.start) == len(lane.dur) == len(lane.label) > 0
        assert all(0 <= start <= timeline.window_ns for start in lane.start)
    assert len(set(timeline.names)) == len(timeline.names)


def test_a_long_window_keeps_the_longest_host_events(page: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = of_kind(timeline_of(page), "host")
    monkeypatch.setattr(lanes, "HOST_EVENTS", 3)
    cut = timeline_of(page)
    kept = of_kind(cut, "host")
    assert cut.left_out == len(whole) - 3
    assert min(dur for *_, dur in kept) >= max(dur for one in whole if one not in kept for dur in one[2:])
    assert len(of_kind(cut, "gpu")) == len(of_kind(timeline_of(page), "gpu"))


def test_a_trace_of_a_cpu_shows_outermost_operators(tmp_path: Path) -> None:
    from pytest_llmprof.stages.torch_profiler.kineto import read_trace

    events = [one for one in one_page().events if '"cuda_runtime"' not in one and '"stream"' not in one]
    trace = read_trace(one_page().text(events).encode())
    names = {name for name, *_ in of_kind(timeline_of(trace), "host")}
    assert "aten::conv2d" in names
    assert "aten::convolution" not in names  # inside conv2d
    assert not of_kind(timeline_of(trace), "gpu")
