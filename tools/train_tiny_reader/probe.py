"""How fast training can go on this machine: the loader, the step (compiled and eager), and the kernels it spends on.

    python probe.py --data DIR --out DIR [--batch 384] [--workers 15]

Writes OUT/probe.json, and OUT/cache.bin: the compiled kernels, which `train.py --cache` takes on an equal machine.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from data import Batches, Requests, loader
from fonts import TRAINED
from pages import Painter
from text import Source
from tokens import BUCKETS
from train import Settings, Trainer

__all__ = ["main"]

Batch = dict[str, torch.Tensor]


def pages_per_second(painter: Painter, workers: int, level: int = 12, seconds: float = 6) -> float:
    """What the loader alone gives."""
    stream = iter(loader(Batches(painter, 64, 5), Requests(level=level), workers, pin=False))
    for _ in range(2 * workers + 1):
        next(stream)
    began, count = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        next(stream)
        count += 64
    return count / (time.monotonic() - began)


def some_batches(painter: Painter, pages: int, device: str) -> dict[int, Batch]:
    """A batch of each bucket (few pages, repeated), on *device*."""
    source = Batches(painter, min(32, pages), 5)
    batches: dict[int, Batch] = {}
    index = 0
    while len(batches) < len(BUCKETS):
        batch = source[(index, 12 if batches else 4)]
        width, repeat = batch["ids"].shape[1], -(-pages // len(batch["ids"]))
        batch = {name: torch.cat([value] * repeat)[:pages] for name, value in batch.items()}
        batches[width] = {name: value if name == "angles" else value.to(device) for name, value in batch.items()}
        index += 1
    return batches


def step_time(settings: Settings, batches: dict[int, Batch]) -> dict[str, Any]:
    """Seconds of the first two steps (they compile), milliseconds a step, pages a second, for each bucket."""
    trainer = Trainer(settings)
    cuda = settings.device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    row: dict[str, Any] = {}
    for bucket, batch in batches.items():
        began = time.monotonic()
        for _ in range(2):
            losses = trainer.train_step(batch)
        losses.tolist()  # waits for the device
        warm, count = time.monotonic(), 6 if cuda else 1
        for _ in range(count):
            losses = trainer.train_step(batch)
        losses.tolist()
        each = (time.monotonic() - warm) / count
        row[str(bucket)] = {
            "first_s": round(warm - began, 1), "ms": round(each * 1e3, 1), "pages_s": round(settings.batch / each)
        }
    if cuda:
        row["GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
    return row


def hot_kernels(settings: Settings, batch: Batch) -> list[tuple[str, float]]:
    """The kernels that take most of three steps, in milliseconds a step."""
    from torch.profiler import ProfilerActivity, profile

    trainer = Trainer(settings)
    trainer.train_step(batch)
    with profile(activities=[ProfilerActivity.CUDA]) as prof:
        for _ in range(3):
            losses = trainer.train_step(batch)
        losses.tolist()
    total: dict[str, float] = {}
    for event in prof.events():
        total[event.name] = total.get(event.name, 0.0) + event.time_range.elapsed_us() / 3e3
    return sorted(((name[:90], round(ms, 2)) for name, ms in total.items()), key=lambda pair: -pair[1])[:25]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Probe, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=15)
    parser.add_argument("--batch", type=int, default=384)
    parser.add_argument("--tiny", action="store_true", help="tiny model, for a trial on a CPU")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    painter = Painter(Source.load(options.data / "text"), TRAINED, options.data / "fonts")
    report: dict[str, Any] = {"torch": torch.__version__, "processors": os.cpu_count()}
    report["loader pages/s"] = round(pages_per_second(painter, options.workers))
    settings = Settings(run=options.out, batch=options.batch, tiny=options.tiny)
    batches = some_batches(painter, options.batch, settings.device)
    if settings.device == "cuda":
        report["eager"] = step_time(settings, batches)
        settings.compiled = True
        report["compiled"] = step_time(settings, batches)
        report["kernels, ms"] = hot_kernels(settings, batches[BUCKETS[1]])
        cache = torch.compiler.save_cache_artifacts()
        if cache is not None:
            (options.out / "cache.bin").write_bytes(cache[0])
    else:
        report["eager"] = step_time(settings, batches)
    text = json.dumps(report, indent=1)
    (options.out / "probe.json").write_text(text + "\n", encoding="utf-8")
    print(text)
    return report


if __name__ == "__main__":
    main()
