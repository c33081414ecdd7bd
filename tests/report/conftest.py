"""A stage directory as a run on a GPU leaves it, made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_llmprof.records.environment import Environment, Git, Gpu, Host
from pytest_llmprof.records.files import write_text
from pytest_llmprof.records.metrics import (
    DatasetInfo,
    Energy,
    Fingerprint,
    GateResult,
    Metrics,
    ModelInfo,
    Sample,
    Spread,
)
from pytest_llmprof.records.stage import StageRecords
from pytest_llmprof.stages.torch_profiler.records import (
    PhaseProfile,
    Profile,
    ProfiledWindow,
    TopKernel,
    TopOperator,
)

FIGURES = {
    "ttft_ms": 63.4,
    "tpot_ms": 15.6,
    "tokens_per_s": 64.1,
    "pages_per_s": 0.05,
    "total_ms": 16_100.0,
    "preprocess_ms": 12.1,
    "vision_ms": 28.0,
    "sam_ms": 17.2,
    "clip_ms": 10.3,
    "projector_ms": 0.4,
    "prefill_ms": 20.4,
    "decode_ms": 15_990.0,
    "other_ms": 49.5,
    "round_s": 40.2,
    "tokens": 1024.0,
    "peak_memory_gib": 7.13,
}


def _samples() -> list[Sample]:
    return [
        Sample(
            round=index,
            page=page,
            batch_id=0,
            tokens=int(total / 15.7),
            ttft_ms=63.4,
            tpot_ms=15.6,
            total_ms=total + index,
            other_ms=49.5,
            phases={"decode": total - 110},
            peak_bytes=7_655_000_000,
        )
        for page, total in (("receipt", 4_020.0), ("letter", 16_100.0), ("list|two", 20_080.0))
        for index in range(3)
    ]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(
        test="test_pages/test_pages-base",
        id="benchmarks/test_pages.py::test_pages[base-torch_profiler]",
        stage="torch_profiler",
        kind="pages",
        status="ok",
        rounds=3,
        warmup=1,
        pages=3,
        batch_size=1,
        deterministic=True,
        samples=_samples(),
        energy=Energy(),
        figures=dict(FIGURES),
        spread={
            name: Spread(min=value * 0.9, max=value * 1.1, iqr=value * 0.01, p50=value, p90=value * 1.05)
            for name, value in FIGURES.items()
            if name not in ("pages_per_s", "peak_memory_gib")
        },
        quality={
            "cer": 0.0123,
            "wer": 0.034,
            "box_iou": 0.91,
            "repetition": 0.01,
            "runaway_pages": 0,
            "pages": 3,
            "truth_pages": 2,
        },
        gates=[
            GateResult("cer", "<=0.05", 0.0123, "passed"),
            GateResult("box_iou", ">=0.5", None, "not applicable"),
        ],
        model=ModelInfo(
            name="deepseek_ocr",
            weights="checkpoint",
            digest="sha256:0123",
            parameters=3_336_000_000,
            device="cuda:0",
            dtype="bfloat16",
            mode="base",
            engine="reference",
        ),
        prompt="<image>\n<|grounding|>Convert the document to markdown. ",
        dataset=DatasetInfo("sample_pages", "sha256:4567", 3),
        fingerprint=Fingerprint(device="cuda:0"),
    )


@pytest.fixture
def profile() -> Profile:
    return Profile(
        events=151_204,
        window_ms_profiled=1640.0,
        kernels=25_000,
        host_launches=25_000,
        graph_launches=0,
        copies={"DtoH": 99, "HtoD": 4},
        d2h_copies=99,
        synchronisations=99,
        steps=32,
        step_ms_profiled=27.0,
        host_launches_per_token=770.0,
        kernels_per_token=770.0,
        d2h_copies_per_token=3.0,
        synchronisations_per_token=3.0,
        gpu_busy_ms_profiled=110.0,
        gpu_busy_ms_per_step_profiled=1.872,
        gpu_busy_share=None,
        gpu_idle_share_profiled=0.93,
        phases={
            "vision": PhaseProfile(
                count=1,
                host_ms_profiled=60.0,
                gpu_busy_ms_profiled=12.9,
                gpu_idle_share_profiled=0.78,
                idle_ms_profiled={"launch": 45.0, "synchronisation": 1.0, "device": 0.2},
                kernels=773,
                host_launches=773,
                d2h_copies=0,
                synchronisations=1,
            ),
            "sam": PhaseProfile(
                parent="vision",
                count=1,
                host_ms_profiled=40.0,
                gpu_busy_ms_profiled=8.0,
                gpu_idle_share_profiled=0.8,
                idle_ms_profiled={"launch": 32.0, "synchronisation": 0.0, "device": 0.1},
                kernels=500,
                host_launches=500,
                d2h_copies=0,
                synchronisations=0,
            ),
            "decode": PhaseProfile(
                count=1,
                host_ms_profiled=870.0,
                gpu_busy_ms_profiled=60.0,
                gpu_idle_share_profiled=0.93,
                idle_ms_profiled={"launch": 700.0, "synchronisation": 100.0, "device": 3.0},
                kernels=24_640,
                host_launches=24_640,
                d2h_copies=96,
                synchronisations=96,
            ),
        },
        top_operators=[TopOperator("aten::copy_", "op", "decode", 5000, 120.0, 0.13, 0.14)],
        top_kernels=[
            TopKernel(
                name="gemv2T_kernel_val<…>",
                phase="decode",
                operator="aten::mm",
                count=6400,
                total_ms_profiled=30.0,
                busy_ms_profiled=30.0,
                share=0.27,
                phase_share=0.5,
            )
        ],
        window=ProfiledWindow(pages=1, start_token=0, decode_tokens=32),
        window_s_profiled=1.64,
        profiler_load_s=2.1,
        stage_cost_s=2.8,
        stage_costs_s={"start": 0.1, "window": 1.64, "stop": 0.5, "export": 0.32, "release": 0.14, "read": 0.1},
        trace_bytes=55_000_000,
    )


@pytest.fixture
def gpu() -> Gpu:
    return Gpu(
        name="NVIDIA H100 80GB HBM3",
        uuid="GPU-1",
        driver="580.65",
        memory_gib=79.6,
        power_limit_w=700.0,
        power_default_w=700.0,
        sm_clock_mhz=1980,
        memory_clock_mhz=2619,
        sm_clock_max_mhz=1980,
        temperature_c=41,
        throttle_reasons=(),
        throttled=False,
        other_processes=0,
        mig=False,
        energy_mj=1,
    )


@pytest.fixture
def environment(gpu: Gpu) -> Environment:
    return Environment(
        python="CPython 3.12.3",
        versions={"pytest-llmprof": "0.1.0", "torch": "2.11.0", "triton": None},
        cuda="13.0",
        host=Host(
            cpu="INTEL(R) XEON(R) PLATINUM 8480+",
            cores=64,
            affinity=16,
            ram_gib=512.0,
            os="Debian GNU/Linux 12 (Linux 6.8)",
            container="docker",
            torch_threads=16,
        ),
        git=Git(commit="4d93b1440cf26c9284e97da972b4f22330b3f9a0", dirty=True),
        gpu=gpu,
    )


@pytest.fixture
def records(metrics: Metrics, profile: Profile, environment: Environment) -> StageRecords:
    return StageRecords(metrics, {"profile": profile}, environment)


@pytest.fixture
def stage_dir(tmp_path: Path, records: StageRecords) -> Path:
    records.write(tmp_path)
    for name in ("config.yaml", "operators.csv", "operators.md", "kernels.md", "trace.json.gz"):
        write_text(tmp_path / name, "")
    (tmp_path / "viz").mkdir()
    write_text(tmp_path / "viz" / "predictions.md", "")
    return tmp_path
