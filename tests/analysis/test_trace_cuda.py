"""A CUDA trace whose every figure can be worked out by hand (see `traces.one_page`)."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from traces import GEMM, SCALE, TO_HOST, Kineto, one_page

from pytest_llmprof.analysis.trace import Trace
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.stages.torch_profiler.json_reader import JsonReader
from pytest_llmprof.stages.torch_profiler.kineto import decode, merged, read_trace
from pytest_llmprof.stages.torch_profiler.records import Profile
from pytest_llmprof.stages.torch_profiler.summary import profile_summary


def test_kernels_carry_phase_launcher_and_times(page: Trace) -> None:
    rows = {(row.name, row.phase, row.operator): row for row in page.kernels()}
    assert set(rows) == {
        ("Memcpy HtoD (Pageable -> Device)", "preprocess", "aten::copy_"),
        (GEMM, "sam", "aten::convolution"),
        (GEMM, "clip", "aten::mm"),
        (SCALE, "clip", "aten::mul"),
        (GEMM, "prefill", "aten::addmm"),
        (GEMM, "decode", "cudaGraphLaunch"),
        (SCALE, "decode", "cudaGraphLaunch"),
        (TO_HOST, "decode", "aten::_local_scalar_dense"),
    }
    graph = rows[GEMM, "decode", "cudaGraphLaunch"]
    assert (graph.count, graph.kind) == (4, "kernel")
    assert graph.total_ms == pytest.approx(0.040)
    assert (graph.mean_us, graph.min_us, graph.max_us) == pytest.approx((10, 10, 10))
    # 8 + 30 + 20 + 20 + 60 + 2 * (10 + 14 + 10 + 2) microseconds on the card, 10 of which two kernels share
    assert graph.share == pytest.approx(40 / 200)
    late = rows[SCALE, "clip", "aten::mul"]
    assert (late.total_ms, late.busy_ms) == pytest.approx((0.020, 0.010))
    assert sum(row.total_ms for row in rows.values()) == pytest.approx(0.210)
    assert sum(row.busy_ms for row in rows.values()) == pytest.approx(0.200)
    assert graph.phase_share == pytest.approx(40 / 72)
    assert sum(row.share for row in page.kernels()) == pytest.approx(1)
    totals = [row.total_ms for row in page.kernels()]
    assert totals == sorted(totals, reverse=True)


def test_operators_hold_self_time_and_what_they_launched(page: Trace) -> None:
    rows = {(row.name, row.phase): row for row in page.operators()}
    conv = rows["aten::conv2d", "sam"]
    assert (conv.total_ms, conv.self_ms, conv.device_ms) == pytest.approx((0.030, 0.010, 0))
    inner = rows["aten::convolution", "sam"]
    assert (inner.total_ms, inner.self_ms, inner.device_ms) == pytest.approx((0.020, 0.015, 0.030))
    assert rows["cudaLaunchKernel", "sam"].kind == "runtime"
    item = rows["aten::_local_scalar_dense", "decode"]
    assert (item.count, item.kind) == (2, "op")
    assert item.self_ms == pytest.approx(2 * (22 - 4 - 7.5) / 1e3)
    assert item.device_ms == pytest.approx(0.004)
    assert rows["llmprof/vision", "vision"].self_ms == pytest.approx((190 - 80 - 45) / 1e3)
    assert sum(row.share for row in rows.values()) == pytest.approx(1)
    in_sam = [row.phase_share for row in rows.values() if row.phase == "sam"]
    assert sum(in_sam) == pytest.approx(1)


def test_a_thread_without_ranges_takes_the_phase_of_the_main_thread(page: Trace) -> None:
    assert [row.phase for row in page.operators() if row.name == "aten::to"] == ["prefill"]


def test_operators_can_be_added_up_over_phases(page: Trace) -> None:
    by_phase = [row for row in page.operators() if row.name == "cudaMemcpyAsync"]
    assert [row.phase for row in by_phase] == ["preprocess", "decode"]
    assert sum(row.count for row in by_phase) == 3
    assert sum(row.total_ms for row in by_phase) == pytest.approx(0.020 + 2 * 0.004)


def test_phases_contain_their_parts_and_busy_time_is_a_union(page: Trace) -> None:
    rows = {row.name: row for row in page.phase_rows()}
    assert list(rows) == ["preprocess", "vision", "sam", "clip", "prefill", "decode"]
    assert {row.name: row.parent for row in rows.values() if row.parent} == {"sam": "vision", "clip": "vision"}
    # clip: 225-245 on one stream and 235-255 on another are 30 microseconds, not 40
    assert rows["clip"].gpu_busy_ms == pytest.approx(0.030)
    assert rows["vision"].gpu_busy_ms == pytest.approx(0.060)
    assert (rows["vision"].kernels, rows["vision"].host_launches) == (3, 3)
    assert rows["decode"].host_ms == pytest.approx(0.290)
    assert (rows["decode"].kernels, rows["decode"].host_launches) == (6, 2)
    assert (rows["decode"].d2h_copies, rows["decode"].synchronisations) == (2, 2)
    assert rows["prefill"].gpu_idle_share == pytest.approx(75 / 135)  # 255 to 330 before its only kernel


def test_idle_time_is_told_by_its_cause(page: Trace) -> None:
    decode = next(row for row in page.phase_rows() if row.name == "decode")
    # launch: 390-445 before the first graph (launched at 425), 480-514 and 600-634 before the copies;
    # synchronisation: 516-565, as the host was still in cudaStreamSynchronize at 516;
    # device: 1 microsecond between two kernels of each graph
    assert decode.idle_ms == pytest.approx({"launch": 0.123, "synchronisation": 0.049, "device": 0.002})


def test_the_card_runs_dry_inside_a_blocking_copy_and_inside_a_launch() -> None:
    """The copy is done before its call is, and the synchronise begins later still: one wait, and the gap's cause. Work
    whose call began before the card ran dry and was done after it was no queued work."""
    trace = Kineto()
    trace.phase("decode", 0, 200)
    trace.call("cudaLaunchKernel", 1, 4, 1)
    trace.device(GEMM, 5, 50, 1)
    trace.call("cudaMemcpyAsync", 10, 60, 2)
    trace.device(TO_HOST, 50, 52, 2, "gpu_memcpy")
    trace.call("cudaStreamSynchronize", 61, 62, 3)
    trace.call("cudaLaunchKernel", 80, 84, 4)
    trace.device(SCALE, 85, 100, 4)
    trace.call("cudaGraphLaunch", 95, 110, 5)
    trace.device(GEMM, 111, 120, 5)
    trace.device(SCALE, 121, 130, 5)
    row = read_trace(trace.text().encode()).totals()
    assert row.synchronisations == 1
    assert row.idle_ms == pytest.approx({"launch": 0.011, "synchronisation": 0.033, "device": 0.001})


def test_figures_of_a_step_include_what_follows_its_range(page: Trace) -> None:
    steps = page.steps()
    assert steps is not None
    assert (steps.steps, steps.host_launches_per_token, steps.kernels_per_token) == (2, 1, 3)
    assert (steps.d2h_copies_per_token, steps.synchronisations_per_token) == (1, 1)
    assert (steps.step_ms, steps.gpu_busy_ms_per_step) == pytest.approx((0.080, 0.034))


def test_summary_names_what_the_profiler_slowed(page: Trace) -> None:
    summary = profile_summary(page, clean_step_ms=0.068)
    assert summary.gpu_busy_share == pytest.approx(0.5)
    assert summary.copies == {"DtoH": 2, "HtoD": 1}
    assert (summary.kernels, summary.host_launches, summary.graph_launches) == (10, 6, 2)
    assert summary.kernels_per_token == 3
    assert summary.phases["sam"].parent == "vision"
    assert summary.top_kernels[0].share == pytest.approx(60 / 200)
    assert profile_summary(page).gpu_busy_share is None
    times = [name for name in summary.__struct_fields__ if "_ms" in name]
    assert times
    assert all(name.endswith("_profiled") for name in times)
    assert msgspec.json.decode(msgspec.json.encode(summary), type=Profile) == summary


def test_the_span_of_a_phase_goes_from_its_first_kernel_to_its_last(page: Trace) -> None:
    spans = {row.name: row.gpu_span_ms for row in page.phase_rows()}
    # vision: 150-180, 225-245 and 235-255; copies are no kernels
    assert spans == pytest.approx(
        {"preprocess": 0.0, "vision": 0.105, "sam": 0.030, "clip": 0.030, "prefill": 0.060, "decode": 0.155}
    )
    assert profile_summary(page).phases["vision"].gpu_span_ms_profiled == pytest.approx(0.105)


def test_the_spans_of_a_phase_that_was_opened_twice_add_up() -> None:
    trace = Kineto()
    for begin in (0, 1000):
        trace.phase("sam", begin, begin + 50)
        for number, start in enumerate((10, 30)):
            trace.host("aten::mm", begin + start, begin + start + 9)
            trace.call("cudaLaunchKernel", begin + start + 1, begin + start + 5, begin + number + 1)
            trace.device(GEMM, begin + start + 20, begin + start + 28, begin + number + 1)
    (row,) = read_trace(trace.text().encode()).phase_rows()
    assert (row.count, row.gpu_span_ms) == (2, pytest.approx(2 * 0.028))


def test_a_pinned_copy_does_not_wait() -> None:
    trace = Kineto()
    trace.phase("decode", 0, 100)
    trace.host("aten::copy_", 10, 30)
    trace.call("cudaMemcpyAsync", 12, 15, 1)
    trace.device("Memcpy DtoH (Device -> Pinned)", 16, 18, 1, "gpu_memcpy")
    trace.host("aten::copy_", 40, 60)
    trace.call("cudaMemcpyAsync", 42, 50, 2)
    trace.device(TO_HOST, 46, 48, 2, "gpu_memcpy")
    totals = read_trace(trace.text().encode()).totals()
    assert (totals.d2h_copies, totals.synchronisations) == (2, 1)


def test_a_window_that_starts_late_is_all_decode() -> None:
    trace = Kineto()
    for begin in (0, 100):
        trace.phase("step", begin, begin + 50)
        trace.host("aten::mm", begin + 10, begin + 20)
        trace.call("cudaLaunchKernel", begin + 12, begin + 15, begin + 1)
        trace.device(GEMM, begin + 20, begin + 30, begin + 1)
        trace.host("aten::item", begin + 60, begin + 70)
    found = read_trace(trace.text().encode())
    assert {row.phase for row in found.operators()} == {"decode"}
    assert [(row.name, row.count) for row in found.phase_rows()] == [("decode", 1)]
    assert found.timeline.steps == 2


def test_the_wait_that_ends_a_late_window_is_no_steps() -> None:
    trace = Kineto()
    trace.phase("step", 0, 50)
    trace.call("cudaLaunchKernel", 12, 15, 1)
    trace.device(GEMM, 20, 30, 1)
    trace.call("cudaStreamSynchronize", 60, 62, 2)  # of the step, behind its range
    trace.phase("end", 100, 200)
    trace.call("cudaDeviceSynchronize", 110, 190, 3)
    found = read_trace(trace.text().encode())
    steps = found.steps()
    assert steps is not None
    assert (steps.steps, steps.synchronisations_per_token) == (1, 1)
    assert [row.name for row in found.phase_rows()] == ["decode"]
    assert found.totals().synchronisations == 1
    assert "llmprof/end" not in {row.name for row in found.operators()}  # line 8 of issue 15: it is no operator


def test_launches_that_the_trace_lost_are_found_by_the_operators_id() -> None:
    trace = Kineto()
    trace.phase("prefill", 0, 100)
    trace.host("aten::mm", 10, 30)
    trace.device(GEMM, 40, 50, 99)
    row = read_trace(trace.text().encode()).kernels()[0]
    assert (row.phase, row.operator) == ("prefill", "aten::mm")


def test_a_kernel_of_unknown_origin_is_kept() -> None:
    trace = Kineto()
    trace.device(GEMM, 40, 50, 99)
    found = read_trace(trace.text().encode())
    assert [(row.phase, row.operator, row.count) for row in found.kernels()] == [("", "", 1)]
    assert found.totals().kernels == 1
    assert found.operators() == []


def test_events_that_cross_are_nested_as_torch_nests_them() -> None:
    trace = Kineto()
    trace.host("aten::mm", 0, 100)
    trace.host("aten::mul", 10, 50)
    trace.host("aten::add", 40, 60)  # ends after aten::mul, in which it began
    rows = {row.name: row for row in read_trace(trace.text().encode()).operators()}
    # The ten microseconds in which both are open belong to the one that began last.
    assert rows["aten::mul"].self_ms == pytest.approx(0.030)
    assert rows["aten::add"].self_ms == pytest.approx(0.020)
    assert rows["aten::mm"].self_ms == pytest.approx(0.050)


def test_host_events_are_in_order_whatever_the_files_is() -> None:
    """By thread and start; of those that begin at one time, the outer one first."""
    trace, random = Kineto(), np.random.default_rng(0)
    for _ in range(300):
        start, length, thread = random.integers(0, 40), random.integers(1, 9), int(random.integers(1, 4))
        trace.host("aten::mm", float(start), float(start + length), thread=thread)
    host = decode(trace.text().encode()).host
    order = np.lexsort((-host.dur, host.start, host.thread))
    assert (order == np.arange(len(host))).all()


def test_time_between_two_profiles_is_nobodys(page: Trace) -> None:
    """Two pages, profiled one after the other, with three seconds between: as idle and as long as two of one."""
    trace = one_page()
    trace.complete("Trace", "PyTorch Profiler (0)", -1, 1000, '"PyTorch Profiler"', '"Op count": 0')

    def later(event: str) -> str:
        event = re.sub(r'("(?:External id|correlation)": )(\d+)', lambda m: f"{m[1]}{int(m[2]) + 1000}", event)
        return re.sub(r'("ts": )([\d.]+)', lambda m: f"{m[1]}{float(m[2]) + 3e6:.3f}", event)

    both = read_trace(trace.text([*trace.events, *map(later, trace.events)]).encode())
    assert both.window_ms == pytest.approx(2 * page.window_ms)
    mine, twice = page.totals(), both.totals()
    assert twice.kernels == 2 * mine.kernels
    assert twice.idle_ms == pytest.approx({cause: 2 * idle for cause, idle in mine.idle_ms.items()})


def test_late_windows_of_two_pages_add_up(tmp_path: Path) -> None:
    """Neither holds the range of its decode phase; and Kineto has printed infinities."""
    paths = [tmp_path / "0.json", tmp_path / "1.json"]
    for number, path in enumerate(paths):
        trace, begin = Kineto(), number * 3e6
        trace.complete("Trace", "PyTorch Profiler (0)", begin, begin + 90, '"PyTorch Profiler"', '"bandwidth": inf')
        trace.phase("step", begin + 1, begin + 50)
        for start in (10, 30):
            trace.call("cudaLaunchKernel", begin + start, begin + start + 3, 10 * number + start)
            trace.device(GEMM, begin + start + 5, begin + start + 15, 10 * number + start)
        trace.write(path)
    (row,) = read_trace(merged(paths)).phase_rows()
    assert (row.name, row.count, row.kernels) == ("decode", 2, 4)
    assert row.gpu_span_ms == pytest.approx(2 * 0.030)
    paths[1].write_text(paths[1].read_text()[:300])
    with pytest.raises(ArtifactError, match=r"1\.json is not a whole torch\.profiler trace"):
        merged(paths)


@pytest.mark.parametrize("size", [1, 300, 1 << 20])
def test_slices_give_what_the_whole_gives(page: Trace, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JsonReader, "slice_bytes", size)
    again = read_trace(one_page().text().encode())
    assert again.events == page.events
    assert again.operators() == page.operators()
    assert again.kernels() == page.kernels()


def test_a_cut_inside_a_text_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JsonReader, "slice_bytes", 1)
    trace = Kineto()
    trace.host("odd }, { name", 0, 10)
    trace.host("aten::mm", 20, 30)
    found = read_trace(trace.text().encode())
    assert {row.name for row in found.operators()} == {"odd }, { name", "aten::mm"}


def test_infinities_do_not_end_the_reading_in_slices(page: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JsonReader, "slice_bytes", 300)
    monkeypatch.setattr(JsonReader, "read_file", lambda self: pytest.fail("read at once"))
    text = one_page().text().replace('"queued": 0', '"memory bandwidth (GB/s)": inf')
    assert read_trace(text.encode()).kernels() == page.kernels()


def test_packed_files_compact_json_and_infinities_are_read(tmp_path: Path, page: Trace) -> None:
    text = one_page().text()
    packed = tmp_path / "trace.json.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    compact = msgspec.json.encode(msgspec.json.decode(text))
    infinite = text.replace('"queued": 0', '"memory bandwidth (GB/s)": inf').encode()
    for source in (packed, str(packed), one_page().write(tmp_path / "trace.json"), compact, infinite):
        assert read_trace(source).kernels() == page.kernels()


def test_a_broken_trace_is_named(tmp_path: Path) -> None:
    half = tmp_path / "half.json"
    half.write_text(one_page().text()[:900])
    broken = tmp_path / "broken.json.gz"
    broken.write_bytes(gzip.compress(b"{}")[:-9])
    for path in (half, broken, tmp_path / "missing.json"):
        with pytest.raises(ArtifactError, match=path.name):
            read_trace(path)
    with pytest.raises(ArtifactError):
        read_trace(b'{"traceEvents": 3}')


def test_a_trace_without_events_gives_empty_tables() -> None:
    empty = read_trace(b'{"traceEvents": []}')
    assert (empty.operators(), empty.kernels(), empty.phase_rows(), empty.steps()) == ([], [], [], None)
    assert profile_summary(empty).kernels is None
