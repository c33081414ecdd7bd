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
from traces import GEMM, MAIN, OTHER_STREAM, STREAM, WORKER, Kineto, one_page

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


@st.composite
def nested_operators(draw: st.DrawFn, begin: int, end: int, deepest: int) -> list[tuple[int, int, int]]:
    """(start, end, own time) of operators on one thread, in the order in which they began."""
    found: list[tuple[int, int, int]] = []
    while begin < end and draw(st.booleans()):
        start = draw(st.integers(begin, end - 1))
        stop = draw(st.integers(start + 1, end))
        inner = draw(nested_operators(start, stop, deepest - 1)) if deepest else []
        covered = sum(one[1] - one[0] for one in _outermost(inner))
        found += [(start, stop, stop - start - covered), *inner]
        begin = stop
    return found


def _outermost(operators: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    found: list[tuple[int, int, int]] = []
    for one in operators:
        if not found or one[0] >= found[-1][1]:
            found.append(one)
    return found


def union(spans: list[tuple[int, int]]) -> int:
    """The length of all *spans* together, counted place by place."""
    return len({place for start, end in spans for place in range(start, end)})


@given(nested_operators(0, 400, 4), nested_operators(0, 400, 4))
def test_self_times_are_those_that_were_made(
    main: list[tuple[int, int, int]], worker: list[tuple[int, int, int]]
) -> None:
    trace, expected = Kineto(), {}
    for thread, operators in ((MAIN, main), (WORKER, worker)):
        for number, (start, end, own) in enumerate(operators):
            name = f"aten::op{thread}_{number}"
            trace.host(name, start, end, thread=thread)
            expected[name] = (1, (end - start) / 1000, own / 1000)
    found = read(trace.text().encode())
    assert found is not None
    rows = {row.name: (row.count, row.total_ms, row.self_ms) for row in found.operators()}
    assert rows == {name: pytest.approx(values, abs=1e-9) for name, values in expected.items()}


_STREAMS = [STREAM, OTHER_STREAM]
_KERNELS = st.lists(
    st.tuples(st.sampled_from([GEMM, "a"]), st.integers(0, 300), st.integers(1, 60), st.sampled_from(_STREAMS)),
    max_size=15,
)


@given(_KERNELS)
def test_busy_times_are_those_that_were_made(kernels: list[tuple[str, int, int, int]]) -> None:
    trace = Kineto()
    for number, (name, start, length, stream) in enumerate(kernels, 1):
        trace.call("cudaLaunchKernel", -10 * number, -10 * number + 5, number)
        trace.device(name, start, start + length, number, stream=stream)
    found = read(trace.text().encode())
    assert found is not None
    busy = union([(start, start + length) for _, start, length, _ in kernels])
    assert found.totals().gpu_busy_ms == pytest.approx(busy / 1000, abs=1e-9)
    assert found.totals().kernels == len(kernels)
    assert found.totals().host_launches == len(kernels)
    rows: dict[str, list[float]] = {}
    for row in found.kernels():
        sums = rows.setdefault(row.name, [0, 0.0])
        sums[0] += row.count
        sums[1] += row.total_ms
    assert sum(row.busy_ms for row in found.kernels()) == pytest.approx(busy / 1000, abs=1e-9)
    for name, (count, total_ms) in rows.items():
        mine = [length for other, _, length, _ in kernels if other == name]
        assert (count, total_ms) == (len(mine), pytest.approx(sum(mine) / 1000, abs=1e-9))


@given(_KERNELS, st.integers(0, 3))
def test_a_file_that_is_cut_off_is_refused(kernels: list[tuple[str, int, int, int]], missing: int) -> None:
    trace = one_page()
    for number, (name, start, length, stream) in enumerate(kernels, 100):
        trace.device(name, start, start + length, number, stream=stream)
    data = trace.text().encode()
    assert read(data[: len(data) // (missing + 2)]) is None
