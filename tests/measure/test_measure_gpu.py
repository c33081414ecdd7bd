"""What only a card can show: event times, memory, energy, compilers and graphs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from pytest_llmprof.config.schema import InferSettings
from pytest_llmprof.datasets.base import Page
from pytest_llmprof.measure.memory import PeakMemory, PhasePeaks
from pytest_llmprof.measure.phases import PhaseRecorder
from pytest_llmprof.models.base import ModelInfo, Token
from pytest_llmprof.stages.runner import PagesWorkload

pytestmark = pytest.mark.gpu
PHASES = ("preprocess", "vision", "prefill", "decode")
CYCLES = 200_000_000


class SleepingModel:
    """Keeps the card busy for CYCLES in one phase, without the host waiting; takes memory in vision's part."""

    info = ModelInfo("sleeping", "random", "none", 0, "cuda:0", "float32", "tiny", "reference")

    def __init__(self, slow=None):
        self.slow = slow

    def generate(self, images, infer, phases):
        for name in PHASES:
            with phases.phase(name):
                if name == "vision":
                    with phases.phase("sam"):
                        torch.empty(2**28, dtype=torch.uint8, device="cuda:0").zero_()
                if name == self.slow:
                    torch.cuda._sleep(CYCLES)
        torch.cuda.synchronize()
        yield Token(0, 1, None, time.perf_counter_ns(), "eos")

    def shape_key(self, image, infer):
        return image.size


class MemoryPage(Page):
    def load(self):
        return Image.new("RGB", (8, 8))


def workload(model):
    return PagesWorkload(
        model,
        [MemoryPage(name="a", source="a", path=Path("a"))],
        InferSettings(),
        on_answer=lambda page, image, answer, sample: None,
        on_failure=lambda page, batch, size, text: pytest.fail(text),
        progress=lambda *_: None,
    )


def sleep_ms():
    """What CYCLES take now, by the card's own events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(CYCLES)
    start.record()
    torch.cuda._sleep(CYCLES)
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


@pytest.mark.parametrize("phase", PHASES)
def test_a_delay_on_the_card_is_found_in_its_phase(phase):
    recorder = PhaseRecorder("cuda:0")
    workload(SleepingModel()).round(0, recorder)
    known = sleep_ms()
    (sample,), _ = workload(SleepingModel(phase)).round(0, recorder)
    # The clock may rise or fall between the two, by far less than half.
    assert known / 2 <= sample.phases[phase] <= known * 2
    others = {name: spent for name, spent in sample.phases.items() if name not in (phase, "sam")}
    assert max(others.values()) < known / 4
    assert sample.total_ms >= sample.phases[phase]


def test_events_are_used_again():
    recorder = PhaseRecorder("cuda:0")
    work = workload(SleepingModel())
    work.round(0, recorder)
    made = len(recorder._events)
    work.round(1, recorder)
    assert len(recorder._events) == made == 10


def test_peaks_by_phase():
    recorder = PhaseRecorder("cuda:0", peaks=PhasePeaks(PeakMemory("cuda:0")))
    work = workload(SleepingModel())
    work.warmup(1, recorder)
    peaks = work.phase_peaks
    assert set(peaks) == {*PHASES, "sam"}
    assert peaks["vision"] == peaks["sam"]
    assert peaks["vision"].allocated_bytes - peaks["prefill"].allocated_bytes >= 2**28
    assert peaks["preprocess"].allocated_bytes < peaks["vision"].allocated_bytes
    for peak in peaks.values():
        assert peak.reserved_bytes >= peak.allocated_bytes
    (sample,), _ = work.round(0, PhaseRecorder("cuda:0"))
    assert sample.peak_bytes == peaks["vision"].allocated_bytes
    assert sample.peak_reserved_bytes >= sample.peak_bytes


def run(pytester: pytest.Pytester, source: str, *overrides: str, stage: str = "direct_inference"):
    """Run a test module in a process of its own; gives its result and a function that reads a stage's file."""
    pytester.makepyfile(test_it=source)
    given = [word for override in overrides for word in ("--llmprof-override", override)]
    os.environ.pop("PYTEST_ADDOPTS", None)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", f"--llmprof-stage={stage}", *given)

    def read(test: str, name: str):
        path = pytester.path / "llmprof-runs" / "latest" / "test_it" / test / stage / name
        return json.loads(path.read_text(encoding="utf-8"))

    return result, read


RANDOM = ("model=deepseek_ocr_random", "dataset.limit=2", "infer.max_new_tokens=48")


def test_times_and_memory_of_the_full_size_model(pytester):
    result, read = run(pytester, "def test_pages(llmprof):\n    llmprof.run()\n", *RANDOM)
    result.assert_outcomes(passed=1)
    metrics, place = (read("test_pages", name) for name in ("metrics.json", "environment.json"))
    for sample in metrics["samples"]:
        phases = sample["phases"]
        assert phases["vision"] + phases["prefill"] <= sample["ttft_ms"]
        assert phases["sam"] + phases["clip"] + phases["projector"] <= phases["vision"]
        assert sample["ttft_ms"] <= sample["total_ms"]
        assert sample["peak_reserved_bytes"] >= sample["peak_bytes"] > 2 * metrics["model"]["parameters"]
    peaks = {name: peak["allocated_bytes"] for name, peak in metrics["phase_peaks"].items()}
    assert set(peaks) >= {*PHASES, "sam", "clip", "projector"}
    assert max(peaks["sam"], peaks["clip"], peaks["projector"]) <= peaks["vision"]
    highest = max(sample["peak_bytes"] for sample in metrics["samples"])
    assert max(peaks.values()) == pytest.approx(highest, rel=0.05)
    assert metrics["figures"]["peak_reserved_gib"] >= metrics["figures"]["peak_memory_gib"] > 6
    assert place["gpu"]["uuid"] == place["gpu_after"]["uuid"]
    assert place["gpu_after"]["energy_mj"] is None or place["gpu_after"]["energy_mj"] > place["gpu"]["energy_mj"]


def test_the_next_test_runs_after_the_card_is_full(pytester):
    source = """
import pytest, torch

def test_too_much(llmprof, llmprof_model):
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**26) / total)
    try:
        llmprof.run()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)

def test_next(llmprof, llmprof_model):
    before = torch.cuda.memory_allocated()
    assert before < 2.05 * llmprof_model.info.parameters + 2**27
    llmprof.run()
"""
    result, read = run(pytester, source, *RANDOM, "infer.batch_size=2")
    result.assert_outcomes(passed=1, failed=1)
    text = read("test_too_much", "metrics.json")["errors"][0]["error"]
    assert text.startswith("out of device memory in phase ")
    assert "unknown" not in text
    assert "batch of 2 (" in text
    assert " GiB allocated and " in text
    assert "more asked for: lower infer.batch_size" in text
    assert read("test_next", "metrics.json")["status"] == "ok"


def test_energy_is_within_the_power_cap(pytester):
    source = """
import torch

def test_work(llmprof):
    left = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    def work():
        for _ in range(1200):
            left @ left
        torch.cuda.synchronize()
    run = llmprof.measure(work)
    print("J", run.joules_per_page, "s", run.round_s)
"""
    result, read = run(pytester, source, "measure.rounds=2")
    result.assert_outcomes(passed=1)
    metrics, place = (read("test_work", name) for name in ("metrics.json", "environment.json"))
    energy = metrics["energy"]
    if place["gpu"]["energy_mj"] is None or place["gpu"]["other_processes"] or place["gpu"]["mig"]:
        assert energy["reason"]
        assert metrics["figures"]["joules_per_page"] is None
        return
    for taken, seconds in zip(energy["rounds"], metrics["round_seconds"], strict=True):
        assert taken["span_s"] >= seconds
        if seconds > 2:
            assert taken["reason"] is None
        if taken["energy_j"] is not None:
            watts = taken["energy_j"] / taken["span_s"]
            assert 50 < watts < 1.2 * place["gpu"]["power_limit_w"]


def test_work_of_compilers_inside_the_clock_fails_a_test(pytester):
    pytest.importorskip("triton", reason="this torch has no Triton")
    source = """
import itertools
import torch, triton
import triton.language as tl

@triton.jit
def _copy(source, target, size: tl.constexpr):
    places = tl.arange(0, size)
    tl.store(target + places, tl.load(source + places))

def test_kernel(llmprof):
    sizes = itertools.count(4)
    def work():
        source = torch.ones(1024, device="cuda")
        _copy[(1,)](source, torch.empty_like(source), 2 ** next(sizes))
    llmprof.measure(work)

def test_inductor(llmprof):
    call, sizes = torch.compile(lambda tensor: tensor.sin() + 1, dynamic=False), itertools.count(64)
    llmprof.measure(lambda: call(torch.ones(next(sizes), device="cuda")))

def test_graph(llmprof):
    tensor = torch.ones(64, device="cuda")
    def work():
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            tensor.add_(1)
        graph.replay()
    llmprof.measure(work)

def test_warm(llmprof):
    call = torch.compile(lambda tensor: tensor.cos() + 1, mode="reduce-overhead")
    source = torch.ones(64, device="cuda")
    llmprof.measure(lambda: call(source).clone())
"""
    result, read = run(pytester, source, "measure.rounds=1", "measure.warmup=3", "measure.iterations=1")
    wanted = {
        "test_kernel": "Triton compiled _copy",
        "test_inductor": "torch.compile compiled <lambda>",
        "test_graph": "a CUDA graph was captured",
    }
    for test, text in wanted.items():
        errors = read(test, "metrics.json")["errors"]
        assert errors, test
        assert text in errors[0]["error"], test
    assert read("test_warm", "metrics.json")["errors"] == []
    result.assert_outcomes(passed=1, failed=3)
