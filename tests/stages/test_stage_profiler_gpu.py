"""The profiled window on a real card."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stage_helpers import context, pages

from pytest_llmprof.config.schema import InferSettings, ModelSettings
from pytest_llmprof.measure.phases import PhaseRecorder
from pytest_llmprof.models.deepseek_ocr.loader import load
from pytest_llmprof.stages.base import Window
from pytest_llmprof.stages.callable import CallableWorkload
from pytest_llmprof.stages.torch_profiler import stage as torch_profiler

pytestmark = pytest.mark.gpu
CARD = "cuda:0"

HELD = """
import ctypes, sys, tempfile
from pathlib import Path
import torch

torch.ones(3, device="cuda").sum().item()
loaded = [line.split()[-1] for line in open("/proc/self/maps") if "libcupti.so" in line]
library = ctypes.CDLL(loaded[0] if loaded else f"libcupti.so.{torch.version.cuda.split('.')[0]}")
callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p)(lambda *_: None)
subscriber = ctypes.c_void_p()
assert library.cuptiSubscribe(ctypes.byref(subscriber), callback, None) == 0

sys.path.insert(0, sys.argv[1])
from stage_helpers import context
from pytest_llmprof.stages.base import Window
from pytest_llmprof.errors import StageError
from pytest_llmprof.models.deepseek_ocr.loader import load
from pytest_llmprof.stages.torch_profiler import stage as torch_profiler
from pytest_llmprof.stages.callable import CallableWorkload

workload = CallableWorkload(lambda: torch.ones(99, device="cuda").sum(), "sum", "cuda:0", lambda *_: None)
try:
    torch_profiler.profile_window(context(Path(tempfile.mkdtemp()), workload, Window(), device="cuda:0"))
except StageError as error:
    print("failed:", error)
"""


def full(engine: str) -> Any:
    """The released size, as its phases are long enough to be compared."""
    settings = ModelSettings(weights="random", size="full", mode="base", device=CARD)
    return load(settings, InferSettings(engine=engine))


class KeptBusy(PhaseRecorder):
    """Half a millisecond of work for the card before each phase: it never waits there for the host's first launch."""

    def phase(self, name: str) -> Any:
        import torch

        torch.cuda._sleep(1_000_000)  # type: ignore[no-untyped-call]
        return super().phase(name)


@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_events_and_kernels_agree_on_each_phase(tmp_path: Path, engine: str) -> None:
    """In one execution: the time between a phase's CUDA events, and from its first kernel's start to its last's end.

    Within 5 %, for phases under 5 ms within 50 microseconds. The card is kept busy at each phase's begin: how long an
    idle one waits for the host is the host's matter. Preprocessing is the CPU's work and has no such span.
    """
    model = full(engine)
    workload = pages(model, 64)
    workload.warmup(2, PhaseRecorder(CARD))

    def times(recorder: type[PhaseRecorder]) -> dict[str, tuple[float, float]]:
        given = context(tmp_path, workload, Window(), device=CARD)
        given.recorder = lambda domain: recorder(CARD, domain=domain)
        phases = torch_profiler.profile_window(given).phases
        del phases["preprocess"]
        return {name: (one.event_ms_profiled, one.gpu_span_ms_profiled) for name, one in phases.items()}

    busy, plain = times(KeptBusy), times(PhaseRecorder)
    model.close()
    assert set(busy) == {"vision", "sam", "clip", "projector", "prefill", "decode"}
    apart = {
        name: (event, span)
        for name, (event, span) in busy.items()
        if abs(event - span) > (0.05 * span if span >= 5 else 0.05)
    }
    assert not apart, busy
    for column in (0, 1):
        parts = sum(plain[name][column] for name in ("sam", "clip", "projector"))
        assert 0.9 * plain["vision"][column] <= parts <= plain["vision"][column] * 1.001, plain


def test_a_second_profile_sees_its_kernels_and_tokens_stay(tmp_path: Path) -> None:
    """CUPTI is ended after each window and begins anew."""
    model = full("reference")
    workload = pages(model, 24)
    recorder = PhaseRecorder(CARD)
    workload.warmup(1, recorder)
    kernels = []
    for number in range(3):
        workload.round(number, recorder)
        profile = torch_profiler.profile_window(
            context(tmp_path, workload, Window(decode_tokens=4), device=CARD)
        )
        kernels.append(profile.kernels)
        assert profile.profiler_unload_s is not None
    workload.round(3, recorder)
    model.close()
    assert len(set(kernels)) == 1, kernels


def test_graphs_outlive_the_profiler(tmp_path: Path) -> None:
    """A CUDA graph made before CUPTI came and went still replays, and so does one made between two profiles."""
    import torch

    source = torch.arange(1000.0, device=CARD)

    def captured() -> tuple[Any, Any]:
        for _ in range(2):
            (source * 2).sum()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            total = (source * 2).sum()
        return graph, total

    graphs = [captured()]
    for _ in range(3):
        for graph, total in graphs:
            total.zero_()
            work = CallableWorkload(graph.replay, "replay", CARD, lambda *_: None)
            profile = torch_profiler.profile_window(context(tmp_path, work, Window(), device=CARD))
            assert profile.graph_launches == 1
            assert profile.kernels >= 2
            torch.cuda.synchronize()
            assert total.item() == 999_000
        graphs.append(captured())


def test_a_card_held_by_another_profiler_is_named_as_the_cause() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELD, str(Path(__file__).parent)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("failed: the profiled window holds no CUDA kernel: CUPTI could not start:"), (
        done.stdout + done.stderr
    )
    assert "MULTIPLE_SUBSCRIBERS" in done.stdout
