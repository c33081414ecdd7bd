"""Run directories as runs leave them, made by hand, of any size."""

from __future__ import annotations

import base64
import random
from pathlib import Path

from pytest_llmprof.records.catalogue import BUILTIN
from pytest_llmprof.records.environment import Environment, Host
from pytest_llmprof.records.files import write_json, write_text
from pytest_llmprof.records.metrics import (
    ErrorRecord,
    Fingerprint,
    GateResult,
    Metrics,
    ModelInfo,
    Peak,
    RoundHost,
    Sample,
    Spread,
)
from pytest_llmprof.records.run import RunRecord, TestRecord
from pytest_llmprof.records.stage import StageRecords
from pytest_llmprof.records.timeline import Lane, Timeline

PARTS = {"preprocess": 0.02, "vision": 0.1, "sam": 0.07, "clip": 0.03, "prefill": 0.08, "decode": 0.79}


def write_run(path: Path, *, tests: int = 2, pages: int = 3, rounds: int = 2, failed: int = 0, **more: object) -> Path:
    """A run of *tests* tests, the last *failed* of which failed on a gate; *more* are fields of run.json."""
    records = []
    for index in range(tests):
        broken = index >= tests - failed
        record = TestRecord(
            id=f"benchmarks/test_pages.py::test_pages[mode{index}-one_stage]",
            stage="one_stage",
            kind="pages",
            outcome="failed" if broken else "passed",
            dir=f"test_pages/test_pages-mode{index}/one_stage",
            error="llmprof_gate: cer is 0.2, limit <=0.05" if broken else None,
            seconds=12.5 + index,
        )
        write_stage(path, record, pages=pages, rounds=rounds, broken=broken, scale=1 + index)
        records.append(record)
    write_json(path / "run.json", run_record(records, **more))
    return path


def run_record(records: list[TestRecord], **more: object) -> RunRecord:
    return RunRecord(
        **{
            "status": "complete",
            "argv": ["benchmarks", "--llmprof-stage=one_stage", "--llmprof-override", "infer.prompt=free", "-x"],
            "started": "2026-11-24T10:15:00+00:00",
            "versions": {"torch": "2.13.0", "python": "3.11.7"},
            "metrics": [metric.declaration for metric in BUILTIN],
            "tests": records,
            **more,
        }
    )


def write_stage(
    run_dir: Path, record: TestRecord, *, pages: int = 3, rounds: int = 2, broken: bool = False, scale: float = 1.0
) -> Path:
    """metrics.json, environment.json, report.md and other files of one test."""
    stage_dir = run_dir / str(record.dir)
    stage_dir.mkdir(parents=True)
    noise = random.Random(3)
    samples = [
        sample(f"page-{page:03}", index, 1000.0 * scale * (1 + page % 7) * noise.uniform(0.95, 1.05))
        for index in range(rounds)
        for page in range(pages)
    ]
    figures = {
        "ttft_ms": 60.0 * scale,
        "tpot_ms": 5.0 * scale,
        "tokens_per_s": 200.0 / scale,
        "total_ms": 1000.0 * scale,
        **{f"{name}_ms": 1000.0 * scale * part for name, part in PARTS.items()},
        "other_ms": 10.0 * scale,
        "joules_per_page": None,
    }
    metrics = Metrics(
        test=f"test_pages/test_pages-{scale:g}",
        id=record.id,
        stage=record.stage,
        kind="pages",
        status="ok",
        errors=[ErrorRecord("page-000", "cannot be read")] if broken else [],
        rounds=rounds,
        pages=pages,
        samples=samples,
        round_seconds=[pages * scale] * rounds,
        round_host=[RoundHost(1.0, 1.0, 0.0, False)] * rounds,
        phase_peaks={name: Peak(2**30, 2**31) for name in ("vision", "decode")},
        figures=figures,
        spread={"total_ms": Spread(min=900.0, max=7000.0, p50=1000.0 * scale, p90=5000.0, iqr=12.0)},
        quality={"cer": 0.2 if broken else 0.01, "pages": float(pages), "truth_pages": float(pages)},
        gates=[GateResult("cer", "<=0.05", 0.2 if broken else 0.01, "failed" if broken else "passed")],
        model=ModelInfo("tiny", "random", "random:1", 10, "cpu", "float32", "base", "reference"),
        fingerprint=Fingerprint(device="cpu"),
    )
    StageRecords(metrics, {}, Environment(python="CPython 3.11.7", host=Host(cpu="A CPU", cores=2))).write(stage_dir)
    rows = "".join(f"aten::op{at},op,decode,{at + 1},{100.0 / (at + 1)}\n" for at in range(30))
    write_text(stage_dir / "operators.csv", f"name,kind,phase,count,total_ms\n{rows}")
    write_text(stage_dir / "roofline.svg", '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    write_text(stage_dir / "report.md", REPORT)
    return stage_dir


def sample(page: str, index: int, total: float) -> Sample:
    return Sample(
        round=index,
        page=page,
        batch_id=0,
        tokens=int(total / 5),
        ttft_ms=0.06 * total,
        tpot_ms=5.0,
        total_ms=total,
        other_ms=0.01 * total,
        phases={name: part * total for name, part in PARTS.items()},
        peak_bytes=None,
    )


REPORT = """\
# test_pages · one_stage

**OK.** 3 pages in 2 rounds.

- Model: tiny
- Test: `test_pages`

> **Note:** Noisy: the rounds of a page spread by 12 %.
>

## Metrics

| Metric | Median |
| --- | ---: |
| Total | 1,000 |

## What to look at

1. **The GPU waits for the host**.
2. **One kernel takes 40 % of decode**, see [all](operators.csv).

## Its own section

| Row | Value |
| --- | ---: |
| one | 1 |

![diagram](roofline.svg)

## Files

- [metrics.json](metrics.json): all metrics
"""


def answer_of(page: str, **more: object) -> dict[str, object]:
    """A line of predictions.jsonl."""
    return {
        "schema": 1,
        "page": page,
        "image": f"{page}.png",
        "stage": "one_stage",
        "prompt": "Free OCR.",
        "status": "ok",
        "batch_id": 0,
        "batch_size": 1,
        "round": 0,
        "text_raw": "<|ref|>title<|/ref|><|det|>[[10,10,90,40]]<|/det|>\nTotal 12.30",
        "text_clean": "Total 12.30",
        "boxes": [
            {"label": "title", "box": [10, 10, 90, 40], "text": "Total 12.30"},
        ],
        "tokens": 12,
        "finish_reason": "eos",
        "total_ms": 1000.0,
        "cer": 0.02,
        **more,
    }


def write_gallery(stage_dir: Path, answers: list[dict[str, object]]) -> None:
    """A gallery in viz/, one directory a page."""
    for number, answer in enumerate(answers):
        directory = stage_dir / "viz/pages" / f"p{number}"
        directory.mkdir(parents=True)
        extra = {"text_scored": "Total 12.30", "truth": "Total 72.30", "picture": {"width": 200, "height": 100}}
        write_json(directory / "info.json", {**extra, **answer})
        (directory / "thumbnail.jpg").write_bytes(IMAGE)


IMAGE = base64.b64decode("R0lGODlhAQABAIAAAP///wAAACH5BAEAAAAALAAAAAABAAEAAAICRAEAOw==")
"""One white pixel (a browser looks at the content, not the suffix)."""


def write_timeline(stage_dir: Path, events: int) -> None:
    """timeline.json with *events* kernels, each 2 µs long and followed by 1 µs of waiting."""
    start = list(range(0, 3000 * events, 3000))
    lanes = [
        Lane("Phases", "phases", [0], [3000 * events], [0]),
        Lane("GPU stream 1", "gpu", start, [2000] * events, [1 + at % 3 for at in range(events)]),
        Lane("GPU idle", "idle", [at + 2000 for at in start], [1000] * events, [4] * events),
    ]
    names = ["decode", "gemm", "softmax", "copy", "launch"]
    write_json(stage_dir / "timeline.json", Timeline(names=names, lanes=lanes, window_ns=3000 * events))
