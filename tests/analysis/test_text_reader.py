"""Kineto's text read in bulk gives what the general decoder gives, and leaves to it what is laid out otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from traces import GEMM, MAIN, STREAM, TO_HOST, Kineto, one_page

from pytest_llmprof.analysis.events import RawTrace
from pytest_llmprof.stages.torch_profiler import kineto
from pytest_llmprof.stages.torch_profiler.columns import Heads
from pytest_llmprof.stages.torch_profiler.kineto import decode
from pytest_llmprof.stages.torch_profiler.text_reader import TextReader


def in_lines(text: str) -> str:
    """The layout of Kineto since 2026-04: a line for each field of a complete event."""
    for name in ("cat", "name", "pid", "tid", "dur"):
        text = text.replace(f', "{name}": ', f',\n    "{name}": ')
    return text.replace(',\n    "args": {', '\n    ,\n    "args": {')


def pieces(trace: Kineto) -> list[str]:
    """The events without the first, which names the process."""
    return trace.events[1:]


def in_bulk(events: list[str], lines: bool = False) -> int | None:
    """How many events are read in bulk; None where they are left to the decoder."""
    text = ",\n".join(events)
    data = ("[\n" + (in_lines(text) if lines else text) + ",\n" + " " * 32).encode()
    found = TextReader(data, Heads()).read(1, len(data) - 34)
    return None if found is None else found[1]


def assert_equal(one: RawTrace, other: RawTrace) -> None:
    assert one.events == other.events
    for mine, theirs in ((one.host, other.host), (one.device, other.device)):
        assert len(mine) == len(theirs)
        assert [one.names[name] for name in mine.name] == [other.names[name] for name in theirs.name]
        for column in ("kind", "external", "correlation"):
            assert (getattr(mine, column) == getattr(theirs, column)).all(), column
        # The decoder's doubles hold a time of this size to about half a nanosecond.
        for column in ("start", "dur"):
            assert np.abs(getattr(mine, column) - getattr(theirs, column)).max(initial=0) <= 1, column
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
def test_both_layouts_give_what_the_decoder_gives(lines: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    text = mixed().text()
    data = (in_lines(text) if lines else text).encode()
    at_once = decode(data)  # less than a stretch: msgspec reads it all
    monkeypatch.setattr(TextReader, "slice_bytes", 2000)
    monkeypatch.setattr(kineto, "TAIL", 32)
    assert_equal(decode(data), at_once)


@pytest.mark.parametrize("lines", [False, True])
def test_kinetos_own_layouts_are_read_in_bulk(lines: bool) -> None:
    events = pieces(mixed())
    assert in_bulk(events, lines) == len(events)


def odd_events() -> dict[str, str]:
    def event(args: str = '"External id": 1', thread: int | str = MAIN, name: str = "aten::mm") -> str:
        trace = Kineto()
        trace.complete("cpu_op", name, 10, 20, thread, args)
        return trace.events[-1]

    fine = event()
    return {
        "no arguments": without_arguments(fine),
        "a thread with a name": event(thread='"worker"'),
        "an id of eight digits": event('"External id": 12345678'),
        "a negative id": event('"External id": -1'),
        "two decimals": fine.replace('"dur": 10.000', '"dur": 10.00'),
        "no decimals": fine.replace('"dur": 10.000', '"dur": 10'),
        "a negative duration": fine.replace('"dur": 10.000', '"dur": -10.000'),
        "another order": fine.replace('"ph": "X", "cat": "cpu_op"', '"cat": "cpu_op", "ph": "X"'),
        "compact": fine.replace("\n    ", "").replace("\n  ", ""),
        "a bare quote": event(name='aten"mm'),
        "another field": fine.replace('"dur"', '"tts": 1.000, "dur"'),
    }


@pytest.mark.parametrize("name", odd_events())
def test_what_is_laid_out_otherwise_is_left_to_the_decoder(name: str) -> None:
    odd = odd_events()[name]
    assert in_bulk([odd]) is None
    if name != "compact":  # which no writer mixes with the other
        assert in_bulk([*pieces(one_page()), odd]) is None


def test_torch_as_installed_is_read_in_bulk(tmp_path: Path) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        ones = torch.ones(8)
        for _ in range(50):
            with torch.profiler.record_function("llmprof/step"):
                ones = ones + 1
    path = tmp_path / "trace.json"
    profiler.export_chrome_trace(str(path))
    data = path.read_bytes()
    begin, end = data.index(b'"aten::ones"'), data.rindex(b'"aten::add"')
    begin, end = data.rindex(b"{", 0, begin), data.rindex(b"{", 0, end)
    found = TextReader(data, Heads()).read(begin, end)
    assert found is not None
    columns, events = found
    assert len(columns.head) == events >= 100
    assert (columns.external >= 0).all()


def test_a_stretch_may_end_in_an_event_without_arguments() -> None:
    trace = Kineto()
    trace.call("cudaLaunchKernel", 10, 20, 1)  # and a flow event behind it
    trace.device(TO_HOST, 15, 20, 1, "gpu_memcpy")
    assert in_bulk(pieces(trace)) == 4
    assert in_bulk([trace.events[2]]) == 1
