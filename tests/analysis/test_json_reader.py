"""A trace in slices gives what it gives at once, in every layout that kineto has had."""

from __future__ import annotations

import pytest
from traces import GEMM, MAIN, STREAM, Kineto, one_page

from pytest_llmprof.analysis.events import RawTrace
from pytest_llmprof.stages.torch_profiler.json_reader import JsonReader
from pytest_llmprof.stages.torch_profiler.kineto import decode


def in_lines(text: str) -> str:
    """The layout of Kineto since 2026-04: a line for each field of a complete event."""
    for name in ("cat", "name", "pid", "tid", "dur"):
        text = text.replace(f', "{name}": ', f',\n    "{name}": ')
    return text.replace(',\n    "args": {', '\n    ,\n    "args": {')


def assert_equal(one: RawTrace, other: RawTrace) -> None:
    assert one.events == other.events
    for mine, theirs in ((one.host, other.host), (one.device, other.device)):
        assert [one.names[name] for name in mine.name] == [other.names[name] for name in theirs.name]
        for column in ("kind", "start", "dur", "external", "correlation"):
            assert (getattr(mine, column) == getattr(theirs, column)).all(), column
    assert (one.host.thread == other.host.thread).all()


def mixed() -> Kineto:
    """Numbers of every length, a thread more, names with anything in them, events without an id."""
    trace = one_page()
    for digits in range(1, 8):
        start = 1000.0 + 10**digits
        trace.host("aten::mm", start, start + 10**digits * 0.123)
        trace.call("cudaLaunchKernel", start + 0.001, start + 0.002, 10 ** (digits - 1) + 1)
        trace.device(GEMM, start + 0.5, start + 0.75, 10 ** (digits - 1) + 1)
    trace.host('odd }, {\\n \\"args\\": {, \\"ph\\": \\"X\\" \\u00e9 name', 900.0, 910.0, thread=77)
    trace.complete("kernel", "graph {lambda()#1}", 20, 30, STREAM, '"queued": 0,\n      "correlation": 4')
    trace.complete("cuda_runtime", "cudaEventQuery", 20.5, 21, MAIN, '"cbid": 3')
    for start in (21, 22):
        trace.complete("overhead", "Buffer Flush", start, start + 0.5, -1, "")
        trace.events[-1] = without_arguments(trace.events[-1])
    trace.host("aten::mul", 23, 24)
    return trace


def without_arguments(event: str) -> str:
    return event[: event.index(',\n    "args"')] + "\n  }"


@pytest.mark.parametrize("lines", [False, True])
def test_both_layouts_give_in_slices_what_they_give_at_once(lines: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    text = mixed().text()
    data = (in_lines(text) if lines else text).encode()
    at_once = decode(data)  # less than a slice
    monkeypatch.setattr(JsonReader, "slice_bytes", 2000)
    assert_equal(decode(data), at_once)
