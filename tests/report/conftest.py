"""A stage directory as a run on a card leaves it, made by hand."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from pytest_llmprof.records.files import write_json, write_text

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


def _samples() -> list[dict[str, Any]]:
    return [
        {
            "round": index,
            "page": page,
            "batch_id": 0,
            "tokens": int(total / 15.7),
            "ttft_ms": 63.4,
            "tpot_ms": 15.6,
            "total_ms": total + index,
            "other_ms": 49.5,
            "phases": {"decode": total - 110},
            "peak_bytes": 7_655_000_000,
        }
        for page, total in (("receipt", 4_020.0), ("letter", 16_100.0), ("list|two", 20_080.0))
        for index in range(3)
    ]


METRICS: dict[str, Any] = {
    "schema": 1,
    "test": "test_pages/test_pages-base",
    "id": "benchmarks/test_pages.py::test_pages[base-torch_profiler]",
    "stage": "torch_profiler",
    "kind": "pages",
    "status": "ok",
    "errors": [],
    "rounds": 3,
    "warmup": 1,
    "pages": 3,
    "batch_size": 1,
    "deterministic": True,
    "samples": _samples(),
    "figures": FIGURES,
    "spread": {
        name: {"min": value * 0.9, "max": value * 1.1, "iqr": value * 0.01, "p50": value, "p90": value * 1.05}
        for name, value in FIGURES.items()
        if name not in ("pages_per_s", "peak_memory_gib")
    },
    "quality": {
        "cer": 0.0123,
        "wer": 0.034,
        "box_iou": 0.91,
        "repetition": 0.01,
        "runaway_pages": 0,
        "pages": 3,
        "truth_pages": 2,
    },
    "quality_reason": None,
    "gates": [
        {"name": "cer", "limit": "<=0.05", "figure": 0.0123, "outcome": "passed"},
        {"name": "box_iou", "limit": ">=0.5", "figure": None, "outcome": "not applicable"},
    ],
    "profile": {
        "events": 151_204,
        "window_ms_profiled": 1640.0,
        "kernels": 25_000,
        "host_launches": 25_000,
        "graph_launches": 0,
        "copies": {"DtoH": 99, "HtoD": 4},
        "d2h_copies": 99,
        "synchronisations": 99,
        "steps": 32,
        "step_ms_profiled": 27.0,
        "host_launches_per_token": 770.0,
        "kernels_per_token": 770.0,
        "d2h_copies_per_token": 3.0,
        "synchronisations_per_token": 3.0,
        "gpu_busy_ms_profiled": 110.0,
        "gpu_busy_ms_per_step_profiled": 1.872,
        "gpu_busy_share": None,
        "gpu_idle_share_profiled": 0.93,
        "phases": {
            "vision": {
                "parent": None,
                "count": 1,
                "host_ms_profiled": 60.0,
                "gpu_busy_ms_profiled": 12.9,
                "gpu_idle_share_profiled": 0.78,
                "idle_ms_profiled": {"launch": 45.0, "synchronisation": 1.0, "device": 0.2},
                "kernels": 773,
                "host_launches": 773,
                "d2h_copies": 0,
                "synchronisations": 1,
            },
            "sam": {
                "parent": "vision",
                "count": 1,
                "host_ms_profiled": 40.0,
                "gpu_busy_ms_profiled": 8.0,
                "gpu_idle_share_profiled": 0.8,
                "idle_ms_profiled": {"launch": 32.0, "synchronisation": 0.0, "device": 0.1},
                "kernels": 500,
                "host_launches": 500,
                "d2h_copies": 0,
                "synchronisations": 0,
            },
            "decode": {
                "parent": None,
                "count": 1,
                "host_ms_profiled": 870.0,
                "gpu_busy_ms_profiled": 60.0,
                "gpu_idle_share_profiled": 0.93,
                "idle_ms_profiled": {"launch": 700.0, "synchronisation": 100.0, "device": 3.0},
                "kernels": 24_640,
                "host_launches": 24_640,
                "d2h_copies": 96,
                "synchronisations": 96,
            },
        },
        "top_operators": [
            {
                "name": "aten::copy_",
                "kind": "op",
                "phase": "decode",
                "count": 5000,
                "self_ms_profiled": 120.0,
                "share": 0.13,
                "phase_share": 0.14,
            }
        ],
        "top_kernels": [
            {
                "name": "gemv2T_kernel_val<…>",
                "phase": "decode",
                "operator": "aten::mm",
                "count": 6400,
                "total_ms_profiled": 30.0,
                "busy_ms_profiled": 30.0,
                "share": 0.27,
                "phase_share": 0.5,
            }
        ],
        "window": {"pages": 1, "start_token": 0, "decode_tokens": 32},
        "window_s_profiled": 1.64,
        "profiler_load_s": 2.1,
        "stage_cost_s": 2.8,
        "trace_bytes": 55_000_000,
    },
    "profiler_ran_before": False,
    "model": {
        "name": "deepseek_ocr",
        "weights": "checkpoint",
        "digest": "sha256:0123",
        "parameters": 3_336_000_000,
        "device": "cuda:0",
        "dtype": "bfloat16",
        "mode": "base",
        "engine": "reference",
        "details": {},
    },
    "prompt": "<image>\n<|grounding|>Convert the document to markdown. ",
    "dataset": {"name": "sample_pages", "digest": "sha256:4567", "pages": 3},
    "fingerprint": {"device": "cuda:0"},
}

ENVIRONMENT: dict[str, Any] = {
    "schema": 1,
    "python": "CPython 3.12.3",
    "versions": {"pytest-llmprof": "0.1.0", "torch": "2.11.0", "triton": None},
    "cuda": "13.0",
    "host": {
        "cpu": "INTEL(R) XEON(R) PLATINUM 8480+",
        "cores": 64,
        "affinity": 16,
        "ram_gib": 512.0,
        "os": "Debian GNU/Linux 12 (Linux 6.8)",
        "container": "docker",
        "torch_threads": 16,
    },
    "git": {"commit": "4d93b1440cf26c9284e97da972b4f22330b3f9a0", "dirty": True},
    "gpu": {
        "name": "NVIDIA H100 80GB HBM3",
        "uuid": "GPU-1",
        "driver": "580.65",
        "memory_gib": 79.6,
        "power_limit_w": 700.0,
        "power_default_w": 700.0,
        "sm_clock_mhz": 1980,
        "memory_clock_mhz": 2619,
        "sm_clock_max_mhz": 1980,
        "temperature_c": 41,
        "throttle_reasons": [],
        "throttled": False,
        "other_processes": 0,
        "mig": False,
        "energy_mj": 1,
    },
    "gpu_reason": None,
}


@pytest.fixture
def metrics() -> dict[str, Any]:
    return deepcopy(METRICS)


@pytest.fixture
def environment() -> dict[str, Any]:
    return deepcopy(ENVIRONMENT)


@pytest.fixture
def stage_dir(tmp_path: Path, metrics: dict[str, Any], environment: dict[str, Any]) -> Path:
    write_json(tmp_path / "metrics.json", metrics)
    write_json(tmp_path / "environment.json", environment)
    for name in ("config.yaml", "operators.csv", "operators.md", "kernels.md", "trace.json.gz"):
        write_text(tmp_path / name, "")
    (tmp_path / "viz").mkdir()
    write_text(tmp_path / "viz" / "predictions.md", "")
    return tmp_path
