"""The reader against torch's own `key_averages` on a real CPU trace."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_llmprof.analysis.rows import OperatorRow
from pytest_llmprof.stages.torch_profiler.kineto import read_trace
from pytest_llmprof.stages.torch_profiler.summary import profile_summary


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    torch = pytest.importorskip("torch")
    from torch.profiler import ProfilerActivity, profile, record_function

    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    conv = torch.nn.Conv2d(3, 4, 3)
    image = torch.rand(1, 3, 16, 16)
    path = tmp_path_factory.mktemp("trace") / "trace.json"
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        with record_function("llmprof/vision"), record_function("llmprof/sam"):
            features = conv(image).flatten(2)[:, :, :16]
        with record_function("llmprof/prefill"):
            state = layer(features)
        with record_function("llmprof/decode"):
            for _ in range(4):
                with record_function("llmprof/step"):
                    state = layer(state.to(torch.float64).to(torch.float32))
                state.sum().item()
    profiler.export_chrome_trace(str(path))
    return profiler, path


def by_name(rows: Iterable[OperatorRow]) -> dict[str, OperatorRow]:
    """One row for each name, the sum of its phases."""
    found: dict[str, OperatorRow] = {}
    for row in rows:
        if (one := found.get(row.name)) is not None:
            sums = {key: getattr(one, key) + getattr(row, key) for key in ("count", "total_ms", "self_ms")}
            row = replace(one, **sums)
        found[row.name] = row
    return found


def test_counts_and_times_are_those_of_key_averages(profiled: tuple[Any, Path]) -> None:
    profiler, path = profiled
    ours = by_name(read_trace(path).operators())
    theirs = {row.key: row for row in profiler.key_averages()}
    assert set(ours) == set(theirs)
    assert len(ours) > 30
    for name, row in theirs.items():
        assert ours[name].count == row.count, name
        assert ours[name].total_ms == pytest.approx(row.cpu_time_total / 1e3, abs=2e-5 * row.count), name
        assert ours[name].self_ms == pytest.approx(row.self_cpu_time_total / 1e3, abs=5e-5 * row.count), name


def test_phases_and_steps_are_found(profiled: tuple[Any, Path]) -> None:
    trace = read_trace(profiled[1])
    assert [(row.name, row.parent) for row in trace.phase_rows()] == [
        ("vision", ""),
        ("sam", "vision"),
        ("prefill", ""),
        ("decode", ""),
    ]
    by_phase = {(row.name, row.phase): row.count for row in trace.operators()}
    assert by_phase["aten::conv2d", "sam"] == 1
    assert by_phase["aten::_transformer_encoder_layer_fwd", "prefill"] == 1
    assert by_phase["aten::_transformer_encoder_layer_fwd", "decode"] == 4
    assert by_phase["aten::item", "decode"] == 4
    assert trace.timeline.steps == 4
    assert trace.kernels() == []
    summary = profile_summary(trace)
    assert summary.steps == 4
    assert summary.kernels is None
    assert summary.host_launches_per_token is None
    assert summary.step_ms_profiled > 0


@pytest.mark.gpu
def test_kernels_and_operators_are_those_of_key_averages_on_a_card(tmp_path: Path) -> None:
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile, record_function

    layer = torch.nn.TransformerEncoderLayer(64, 4, 128, batch_first=True).eval().cuda()
    conv = torch.nn.Conv2d(3, 4, 3).cuda()
    image = torch.rand(1, 3, 34, 66)

    def work() -> None:
        with record_function("llmprof/vision"):
            features = conv(image.cuda()).flatten(2)[:, :, :64]
        with record_function("llmprof/decode"):
            for _ in range(5):
                with record_function("llmprof/step"):
                    features = layer(features)
                features.sum().item()

    with torch.inference_mode():
        work()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            work()
            torch.cuda.synchronize()
    path = tmp_path / "trace.json"
    profiler.export_chrome_trace(str(path))
    trace = read_trace(path)

    theirs = {
        row.key: row
        for row in profiler.key_averages()
        if row.device_type == DeviceType.CUDA and not row.is_user_annotation
    }
    ours: dict[str, list[Any]] = {}
    for kernel in trace.kernels():
        ours.setdefault(kernel.name, []).append(kernel)
    assert set(ours) == set(theirs)
    assert len(ours) > 5
    for name, rows in ours.items():
        count = sum(row.count for row in rows)
        assert count == theirs[name].count, name
        total = sum(row.total_ms for row in rows)
        assert total == pytest.approx(theirs[name].self_device_time_total / 1e3, abs=2e-5 * count), name

    on_host = {row.key: row for row in profiler.key_averages() if row.device_type == DeviceType.CPU}
    operators = by_name(row for row in trace.operators() if row.kind == "op")
    assert len(operators) > 20
    for name, row in operators.items():
        assert row.count == on_host[name].count, name
        assert row.total_ms == pytest.approx(on_host[name].cpu_time_total / 1e3, abs=2e-5 * row.count), name
