"""The reader against torch's own `key_averages` on a real CPU trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_llmprof.analysis import profile_summary, read_trace


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    torch = pytest.importorskip("torch")
    from torch.profiler import ProfilerActivity, profile, record_function

    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    conv = torch.nn.Conv2d(3, 4, 3)
    picture = torch.rand(1, 3, 16, 16)
    path = tmp_path_factory.mktemp("trace") / "trace.json"
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        with record_function("llmprof/vision"), record_function("llmprof/sam"):
            features = conv(picture).flatten(2)[:, :, :16]
        with record_function("llmprof/prefill"):
            state = layer(features)
        with record_function("llmprof/decode"):
            for _ in range(4):
                with record_function("llmprof/step"):
                    state = layer(state.to(torch.float64).to(torch.float32))
                state.sum().item()
    profiler.export_chrome_trace(str(path))
    return profiler, path


def test_counts_and_times_are_those_of_key_averages(profiled: tuple[Any, Path]) -> None:
    profiler, path = profiled
    ours = {row.name: row for row in read_trace(path).operators(by_phase=False)}
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
    assert summary["steps"] == 4
    assert summary["kernels"] is None
    assert summary["host_launches_per_token"] is None
    assert summary["step_ms_profiled"] > 0
