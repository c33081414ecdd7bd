"""Reading stays fast and within a few times the trace's size."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from traces import GEMM, Kineto

from pytest_llmprof.stages.torch_profiler.kineto import read_trace
from pytest_llmprof.stages.torch_profiler.summary import profile_summary


@pytest.fixture(scope="module")
def long_trace() -> bytes:
    """About 50,000 events: 50 decode steps of 125 operators with a launch and a kernel each."""
    trace = Kineto()
    for step in range(50):
        begin = step * 2000.0
        trace.phase("step", begin, begin + 1990)
        for index in range(125):
            start = begin + 10 + index * 15
            trace.host("aten::mm", start, start + 14)
            trace.host("aten::empty", start + 1, start + 2)
            trace.host("aten::as_strided", start + 3, start + 4)
            trace.call("cudaLaunchKernel", start + 5, start + 9, 1 + step * 125 + index)
            trace.device(GEMM, start + 10, start + 13, 1 + step * 125 + index)
    return trace.text().encode()


def test_reading_speed(long_trace: bytes) -> None:
    read_trace(long_trace)
    begin = time.process_time()
    trace = read_trace(long_trace)
    summary = profile_summary(trace)
    seconds = time.process_time() - begin
    assert summary.kernels_per_token == 125
    # Docs name a million a second on a quiet machine; this only catches a reader that became slow at heart.
    assert trace.events / seconds > 150_000


def test_memory_stays_below_six_times_the_trace(long_trace: bytes) -> None:
    tracemalloc.start()
    try:
        profile_summary(read_trace(long_trace))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * len(long_trace)
