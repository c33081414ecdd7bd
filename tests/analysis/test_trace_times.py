"""Line 4 of issue 15: self times of traces whose times are coarse or wrong, and traces of older versions of torch."""

from __future__ import annotations

import json

import numpy as np
import pytest
from traces import BASE, GEMM, MAIN, STREAM, Kineto, one_page

from pytest_llmprof.analysis.trace import Trace
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.records.metrics import Metrics
from pytest_llmprof.records.stage import StageRecords
from pytest_llmprof.stages.torch_profiler.kineto import read_trace
from pytest_llmprof.stages.torch_profiler.section import profile_section
from pytest_llmprof.stages.torch_profiler.summary import profile_summary


def read(trace: Kineto) -> Trace:
    return read_trace(trace.text().encode())


def self_times(trace: Trace) -> dict[str, float]:
    return {row.name: row.self_ms for row in trace.operators()}


def test_a_call_that_ends_a_little_after_its_operator_takes_no_time_twice() -> None:
    trace = Kineto()
    trace.host("aten::item", 0, 80)
    trace.host("aten::_local_scalar_dense", 1, 79)
    trace.call("cudaStreamSynchronize", 2, 79.005, 1)
    found = self_times(read(trace))
    assert found["aten::item"] == pytest.approx(0.002, abs=1e-5)
    assert found["aten::_local_scalar_dense"] == pytest.approx(0.001, abs=1e-5)
    assert found["cudaStreamSynchronize"] == pytest.approx(0.077, abs=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_self_times_in_whole_microseconds_are_never_negative_and_sum_to_the_span(seed: int) -> None:
    """As public traces have them: starts rounded down, lengths rounded by themselves."""
    trace, random = Kineto(), np.random.default_rng(seed)

    def calls(begin: float, end: float, depth: int) -> None:
        while depth and begin + 3 < end:
            inner = begin + random.random() * (end - begin)
            trace.host(f"aten::op{depth}", np.floor(begin), np.floor(begin) + np.round(inner - begin))
            calls(begin, inner, depth - 1)
            begin = inner + random.random()

    for begin in range(0, 2000, 200):
        calls(begin, begin + 190, 6)
    rows = read(trace).operators()
    assert min(row.self_ms for row in rows) >= 0
    covered = np.zeros(3000, dtype=bool)
    for event in trace.events[1:]:
        found = json.loads(event)
        begin = round(found["ts"] - BASE)
        covered[begin : begin + round(found["dur"])] = True
    assert sum(row.self_ms for row in rows) == pytest.approx(covered.sum() / 1e3)


IMPOSSIBLE = {
    "ts of zero": (-BASE, 10.0),
    "negative length": (50.0, -40.0),
    "an hour and more before": (-3.7e9, 10.0),
    "years after": (1e14, 10.0),
    "longer than all": (50.0, 4e12),
    "beyond 64 bits": (1e200, 10.0),
    "a length beyond 64 bits": (50.0, 1e200),
}


@pytest.mark.parametrize("profiled", [False, True], ids=["bare", "with the profile's own event"])
@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_times_that_cannot_be_are_left_out_and_counted(what: str, profiled: bool) -> None:
    start, length = IMPOSSIBLE[what]
    trace = one_page()
    if profiled:
        trace.complete("Trace", "PyTorch Profiler (0)", -1, 1000, '"PyTorch Profiler"', '"Op count": 0')
    clean = read(trace)
    trace.complete("cpu_op", "aten::odd", start, start + length, MAIN, "")
    trace.complete("kernel", GEMM, start, start + length, STREAM, '"correlation": 77')
    for number in (-1, -2):  # a sum of two floats may lose the length
        head, tail = trace.events[number].split('"dur": ')
        trace.events[number] = f'{head}"dur": {length:.3f},{tail.partition(",")[2]}'
    odd = read(trace)
    assert (odd.left_out, clean.left_out) == (2, 0)
    assert odd.window_ms == clean.window_ms
    assert odd.totals() == clean.totals()
    assert odd.kernels() == clean.kernels()
    assert odd.operators() == clean.operators()


@pytest.mark.parametrize("ts", [30e6, -30e6])
def test_what_lies_outside_the_profile_is_left_out(ts: float) -> None:
    """The profile's own event says when it ran; without it an idle time of half a minute is one."""
    trace = one_page()
    trace.host("aten::late", ts, ts + 10)
    assert read(trace).left_out == 0
    trace.complete("Trace", "PyTorch Profiler (0)", -1, 1000, '"PyTorch Profiler"', '"Op count": 0')
    assert read(trace).left_out == 1


def test_a_profile_that_holds_nothing_is_not_believed() -> None:
    trace = one_page()
    trace.complete("Trace", "PyTorch Profiler (0)", 9e9, 9e9 + 5, '"PyTorch Profiler"', '"Op count": 0')
    assert read(trace).left_out == 0


def test_the_report_counts_what_was_left_out() -> None:
    trace = one_page()
    trace.host("aten::odd", 50, 40)
    profile = profile_summary(read(trace))
    assert profile.events_left_out == 1
    metrics = Metrics(test="t", id="t", stage="torch_profiler", kind="pages", status="ok", rounds=1, pages=1)
    section = profile_section(StageRecords(metrics, {"profile": profile}))
    assert section is not None
    assert section.warnings == ["1 event with impossible times left out of the profile's numbers."]


@pytest.mark.parametrize("args", ['{"correlation": 99999999999999999999}', '{"External id": 18446744073709551615}'])
def test_an_id_beyond_64_bits_is_refused(args: str) -> None:
    event = f'{{"ph": "X", "cat": "cpu_op", "name": "a", "tid": 1, "ts": 1.0, "dur": 2.0, "args": {args}}}'
    with pytest.raises(ArtifactError, match="not a whole torch"):
        read_trace(f'{{"traceEvents": [{event}]}}'.encode())


def test_capitalised_categories_of_older_traces_are_read() -> None:
    """Those of torch before 1.11, which wrote "external id" in small letters, too."""
    names = {
        "cpu_op": "Operator",
        "cuda_runtime": "Runtime",
        "kernel": "Kernel",
        "gpu_memcpy": "Memcpy",
        "gpu_memset": "Memset",
    }
    trace = one_page()
    trace.device("Memset (Device)", 690, 692, 900, "gpu_memset")
    text = trace.text()
    new = read_trace(text.encode())
    for name, old in names.items():
        text = text.replace(f'"cat": "{name}"', f'"cat": "{old}"')
    old_trace = read_trace(text.replace('"External id"', '"external id"').encode())
    assert old_trace.kernels() == new.kernels()
    assert old_trace.operators() == new.operators()
    assert len(new.kernels()) > 8
