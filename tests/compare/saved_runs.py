"""Saved runs and run directories for tests of the comparison."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from pytest_llmprof.compare.store import Store
from pytest_llmprof.records.baseline import SavedMachine, SavedPage, SavedRun, SavedTest
from pytest_llmprof.records.catalogue import BUILTIN, Declaration
from pytest_llmprof.records.environment import Environment, Gpu, Host
from pytest_llmprof.records.files import write_bytes, write_json
from pytest_llmprof.records.metrics import Fingerprint, Metrics, ModelInfo, Sample, Spread
from pytest_llmprof.records.predictions import Prediction
from pytest_llmprof.records.run import RunRecord, Shard, TestRecord

H100 = SavedMachine("NVIDIA H100 80GB HBM3", 700.0, 1980, "Xeon", 16)
DECLARATIONS: list[Declaration] = [metric.declaration for metric in BUILTIN]


def read_runs(path: Path) -> list[SavedRun]:
    """The runs at *path*, as a comparison reads them: nothing is saved under a name."""
    return Store(path.parent / "no-store").resolve(str(path))


def saved_test(name: str = "test_pages", **changes: Any) -> SavedTest:
    """A measured test of the engine `fast` on an H100."""
    values: dict[str, Any] = {
        "id": f"test_x.py::{name}",
        "stage": "direct_inference",
        "kind": "pages",
        "rounds": 5,
        "figures": {"tpot_ms": 0.54, "tokens_per_s": 1850.0, "peak_memory_gib": 7.5, "tokens": 256.0},
        "quality": {"cer": 0.03},
        "noise": {"tpot_ms": 0.004, "tokens_per_s": 0.004},
        "engine": "fast",
        "machine": H100,
        "fingerprint": Fingerprint("NVIDIA H100", "cuda:0", "model-1", "pages-1", "config-1", {"torch": "2.9"}),
        "pages": {"a": SavedPage(256, "aaaa", 0.02), "b": SavedPage(256, "bbbb", 0.04)},
    }
    return SavedTest(**{**values, **changes})


def saved_run(*tests: SavedTest, key: str = "one", **changes: Any) -> SavedRun:
    """A complete run of *tests*."""
    values: dict[str, Any] = {"source": f"runs/{key}", "started": "2026-11-28T10:00:00+00:00", "machine": "H100"}
    return SavedRun(key=key, metrics=DECLARATIONS, tests=list(tests) or [saved_test()], **{**values, **changes})


def side(values: Sequence[float], metric: str = "tpot_ms", prefix: str = "run", **changes: Any) -> list[SavedRun]:
    """A run for each value of *metric*."""
    return [
        saved_run(saved_test(figures={metric: value}, **changes), key=f"{prefix}{index}")
        for index, value in enumerate(values)
    ]


def noisy(middle: float, share: float, number: int, seed: int = 1) -> list[float]:
    """*number* values around *middle*."""
    source = random.Random(seed)
    return [middle * (1 + source.gauss(0, share)) for _ in range(number)]


def write_run(
    directory: Path,
    tests: int | Sequence[int] = 1,
    *,
    tpot: float = 0.54,
    pages: int = 4,
    rounds: int = 5,
    kernels: str | None = None,
    gpu: str | None = H100.gpu,
    shard: Shard | None = None,
    duet: bool = False,
    **changes: Any,
) -> Path:
    """A run directory as the plugin writes it; *tests* is their number, or their numbers. *changes* are of run.json."""
    read = Gpu(gpu, "GPU-1", power_limit_w=700.0, sm_clock_max_mhz=1980) if gpu else None
    records = []
    for number in range(tests) if isinstance(tests, int) else tests:
        node, place = f"test_x.py::test_pages[{number}]", f"test_x/test_pages-{number}/direct_inference"
        folder = directory / place
        (folder / "pred").mkdir(parents=True)
        samples = [
            Sample(
                round=turn,
                page=f"page-{page}",
                batch_id=page,
                tokens=256,
                ttft_ms=40.0,
                tpot_ms=tpot,
                total_ms=180.0,
                other_ms=0.2,
                phases={"preprocess": 2.0, "vision": 20.0, "prefill": 15.0, "decode": 138.0},
                peak_bytes=2**33,
            )
            for turn in range(rounds)
            for page in range(pages)
        ]
        metrics = Metrics(
            test=f"test_x/test_pages-{number}",
            id=node,
            stage="direct_inference",
            kind="pages",
            status="ok",
            rounds=rounds,
            pages=pages,
            samples=samples,
            round_seconds=[0.7 + number / 1000 + tpot / 1e6] * rounds,
            figures={"tpot_ms": tpot + number / 1e6, "ttft_ms": 40.0, "peak_memory_gib": 8.0},
            spread={"tpot_ms": Spread(0.5, 0.6, 0.54, 0.56, 0.002 if rounds > 1 else None)},
            quality={"cer": 0.03},
            model=ModelInfo("deepseek_ocr", "random", "model-1", 10, "cuda:0", "bfloat16", "base", "fast"),
            fingerprint=Fingerprint("NVIDIA H100", "cuda:0", "model-1", "pages-1", "config-1"),
        )
        write_json(folder / "metrics.json", metrics)
        write_json(folder / "environment.json", Environment(host=Host(cpu="Xeon", cores=16), gpu=read, duet=duet))
        (folder / "config.yaml").write_text("infer:\n  engine: fast\n", encoding="utf-8")
        lines = [
            msgspec.json.encode(
                Prediction(
                    page=f"page-{page}",
                    image="x.png",
                    stage="direct_inference",
                    prompt="?",
                    status="ok",
                    batch_id=page,
                    batch_size=1,
                    round=0,
                    text_raw=f"answer {page}",
                    tokens=256,
                )
            )
            for page in range(pages)
        ]
        write_bytes(folder / "pred" / "predictions.jsonl", b"".join(line + b"\n" for line in lines))
        if kernels is not None:
            (folder / "kernels.csv").write_text(kernels, encoding="utf-8")
        records.append(TestRecord(node, "direct_inference", "pages", "passed", place, None, 1.5))
    run = RunRecord(
        status="complete",
        argv=[],
        started="2026-11-28T10:00:00+00:00",
        versions={},
        metrics=DECLARATIONS,
        tests=records,
        shard=shard,
    )
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "run.json", msgspec.structs.replace(run, **changes))
    return directory
