"""Traces of torch.profiler: any bytes are read to numbers that can be, or refused."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
from broken import LEAVES, ODD_NUMBERS, assert_one_line, json_values, mutated
from hypothesis import given
from hypothesis import strategies as st
from traces import GEMM, MAIN, STREAM, WORKER, Kineto, one_page

from pytest_llmprof.analysis.trace import Trace
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.records.metrics import Metrics
from pytest_llmprof.records.stage import StageRecords
from pytest_llmprof.stages.torch_profiler.json_reader import JsonReader
from pytest_llmprof.stages.torch_profiler.kineto import read_trace
from pytest_llmprof.stages.torch_profiler.section import profile_section
from pytest_llmprof.stages.torch_profiler.summary import profile_summary, write_tables

ONE_PAGE = one_page().text().encode()
CATEGORIES = ["cpu_op", "user_annotation", "cuda_runtime", "kernel", "gpu_memcpy", "gpu_memset", "Kernel", "Trace", "x"]
NAMES = ["aten::mm", "aten::item", "cudaLaunchKernel", "cudaStreamSynchronize", "cudaMemcpyAsync", "cudaGraphLaunch"]
NAMES += ["llmprof/decode", "llmprof/step", "llmprof/end", GEMM, "Memcpy DtoH (Device -> Pageable)", "", "a|b`\u202e"]


def check(trace: Trace) -> None:
    """Numbers that can be; and the summary, the tables and the report of any trace that was read."""
    operators, kernels, whole = trace.operators(), trace.kernels(), trace.totals()
    assert 0 <= trace.left_out <= trace.events
    assert trace.window_ms >= 0
    assert all(row.self_ms >= 0 and row.total_ms >= 0 and 0 <= row.share <= 1 + 1e-9 for row in operators)
    covered = 0
    for thread in np.unique(trace.host.thread):
        mine = trace.host.thread == thread
        begin, end = trace.host.start[mine], (trace.host.start + trace.host.dur)[mine]
        ends = np.maximum.accumulate(end)
        covered += int((end[0] - begin[0]) + np.maximum(ends[1:] - np.maximum(begin[1:], ends[:-1]), 0).sum())
    if trace.seen_on_host == len(trace.host):  # the profiler's own range at the end is no row
        assert sum(row.self_ms for row in operators) == pytest.approx(covered / 1e6, abs=2e-6 * len(trace.host) + 1e-9)
    assert sum(row.busy_ms for row in kernels) <= trace.window_ms * (1 + 1e-9) + 1e-9
    assert 0 <= whole.gpu_busy_ms <= trace.window_ms * (1 + 1e-9) + 1e-9
    assert all(value >= 0 for value in whole.idle_ms.values())
    assert whole.gpu_idle_share is None or 0 <= whole.gpu_idle_share <= 1
    assert all(row.host_ms >= 0 and row.gpu_span_ms >= 0 for row in trace.phase_rows())
    profile = profile_summary(trace, clean_step_ms=1.0)
    msgspec.json.encode(profile)
    metrics = Metrics(test="t", id="t", stage="torch_profiler", kind="pages", status="ok", rounds=1, pages=1)
    section = profile_section(StageRecords(metrics, {"profile": profile}))
    assert section is not None
    assert all(isinstance(part, str) for part in section.parts)
    with tempfile.TemporaryDirectory() as directory:
        write_tables(Path(directory), trace)


def read(data: bytes) -> Trace | None:
    try:
        trace = read_trace(data)
    except ArtifactError as error:
        assert_one_line(error)
        return None
    check(trace)
    return trace


@given(mutated(ONE_PAGE))
def test_broken_bytes(data: bytes) -> None:
    read(data)


@given(mutated(gzip.compress(ONE_PAGE)))
def test_broken_gzip(data: bytes) -> None:
    read(data)


@given(json_values(), st.booleans())
def test_json_of_any_shape(value: object, events: bool) -> None:
    read(json.dumps({"traceEvents": value} if events else value).encode())


_TIMES = st.one_of(st.integers(0, 300), st.floats(0, 300), st.sampled_from([-1, -0.0, 1e9, 4e12, 1e30, -1e30]), LEAVES)
_EVENT = st.fixed_dictionaries(
    {
        "ph": st.sampled_from(["X", "X", "X", "i", "s", "M", "?"]),
        "cat": st.sampled_from(CATEGORIES),
        "name": st.sampled_from(NAMES),
        "tid": st.sampled_from([1, 2, "stream 7"]),
        "ts": _TIMES,
        "dur": _TIMES,
    },
    optional={
        "args": st.fixed_dictionaries(
            {}, optional={"External id": st.integers(-2, 9), "correlation": st.integers(-2, 9) | ODD_NUMBERS}
        )
    },
)


@given(st.lists(_EVENT, max_size=25))
def test_events_with_odd_fields(events: list[dict[str, object]]) -> None:
    read(json.dumps({"traceEvents": events}).encode())


_GOOD = st.tuples(
    st.sampled_from(CATEGORIES[:7]), st.sampled_from(NAMES), st.integers(0, 200), st.integers(0, 60), st.integers(1, 9)
)


@st.composite
def traces(draw: st.DrawFn) -> Kineto:
    """Events with times that can be, in whole microseconds, crossing as they like."""
    trace = Kineto()
    for category, name, start, length, number in draw(st.lists(_GOOD, max_size=25)):
        thread = STREAM if category in CATEGORIES[3:7] else draw(st.sampled_from([MAIN, WORKER]))
        args = f'"External id": {number}, "correlation": {number}'
        trace.complete(category, name.replace("\\", ""), start, start + length, thread, args)
    return trace


@given(traces())
def test_crossing_events_in_whole_microseconds(trace: Kineto) -> None:
    found = read(trace.text().encode())
    assert found is not None
    assert found.left_out == 0


@given(traces(), st.integers(1, 3000))
def test_slices_of_any_size_give_the_same(trace: Kineto, size: int) -> None:
    data = trace.text().encode()
    whole = read_trace(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JsonReader, "slice_bytes", size)
        again = read_trace(data)
    assert again.operators() == whole.operators()
    assert again.kernels() == whole.kernels()
    assert again.events == whole.events
