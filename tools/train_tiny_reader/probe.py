"""How fast training can go on this machine: the loader, then variants of the step, then two short trainings.

    python probe.py --data DIR --out DIR --time-limit SECONDS

A variant that fails is reported and left out. Writes OUT/probe.json, OUT/cache.bin (compiled kernels) and the
checkpoint of the better training (OUT/run), prints a table last.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from data import Batches, Requests, loader
from fonts import TRAINED
from pages import Painter
from text import Source
from tokens import BUCKETS
from train import STARTED, Settings, Trainer

__all__ = ["main"]


def spent() -> float:
    """Seconds since the process began."""
    return time.monotonic() - STARTED


def pages_per_second(data: Path, workers: int, level: int, seconds: float = 8) -> float:
    """What the loader alone gives."""
    painter = Painter(Source.load(data / "text"), TRAINED, data / "fonts")
    stream = iter(loader(Batches(painter, 64, 5), Requests(level=level), workers, pin=False))
    for _ in range(2 * workers):
        next(stream)
    began, count = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        next(stream)
        count += 64
    return count / (time.monotonic() - began)


def _part(batch: dict[str, torch.Tensor], settings: Settings) -> dict[str, torch.Tensor]:
    part = {name: value[: settings.batch] for name, value in batch.items()}
    return {name: value if name == "angles" else value.to(settings.device) for name, value in part.items()}


def step_time(settings: Settings, batches: dict[int, dict[str, torch.Tensor]]) -> dict[str, Any]:
    """Seconds to compile and milliseconds a step for each bucket, and peak memory."""
    trainer = Trainer(settings)
    cuda = settings.device == "cuda"
    row: dict[str, Any] = {}
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for bucket, batch in batches.items():
        batch = _part(batch, settings)
        began = time.monotonic()
        for _ in range(2):
            trainer.train_step(batch)
        if cuda:
            torch.cuda.synchronize()
        row[f"first_s_{bucket}"] = round(time.monotonic() - began, 1)
        began = time.monotonic()
        count = 6 if cuda else 1
        for _ in range(count):
            losses = trainer.train_step(batch)
        losses.tolist()
        row[f"ms_{bucket}"] = round((time.monotonic() - began) / count * 1e3, 1)
    row["pages_s_310"] = round(settings.batch / row["ms_310"] * 1e3)
    row["loss"] = [round(value, 3) for value in losses.tolist()]
    if cuda:
        row["GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
    return row


def hot_kernels(settings: Settings, batch: dict[str, torch.Tensor]) -> list[tuple[str, float]]:
    """The kernels that take most of three steps, in milliseconds a step."""
    from torch.profiler import ProfilerActivity, profile

    trainer = Trainer(settings)
    batch = _part(batch, settings)
    trainer.train_step(batch)
    with profile(activities=[ProfilerActivity.CUDA]) as prof:
        for _ in range(3):
            losses = trainer.train_step(batch)
        losses.tolist()
    total: dict[str, float] = {}
    for event in prof.events():
        total[event.name] = total.get(event.name, 0.0) + event.time_range.elapsed_us() / 3e3
    return sorted(((name[:90], round(ms, 2)) for name, ms in total.items()), key=lambda pair: -pair[1])[:25]


def main() -> None:
    """Probe."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--time-limit", type=float, default=240)
    parser.add_argument("--workers", type=int, default=15)
    parser.add_argument("--batches", type=int, nargs="+", default=[160, 384, 512])
    parser.add_argument("--train", type=float, default=45, help="seconds of each short training")
    parser.add_argument("--tiny", action="store_true", help="tiny model, for a trial on a CPU")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    report: dict[str, Any] = {"torch": torch.__version__}

    def note(name: str, value: Any) -> None:
        report[name] = value
        print(f"[{spent():6.1f} s] {name}: {value}", flush=True)
        (options.out / "probe.json").write_text(json.dumps(report, indent=1), encoding="utf-8")

    base = Settings(run=options.out / "run", data=options.data, workers=options.workers, tiny=options.tiny, seed=11)
    painter = Painter(Source.load(options.data / "text"), TRAINED, options.data / "fonts")
    for level in (3, 12):
        note(f"loader pages/s, level {level}", round(pages_per_second(options.data, options.workers, level, 6)))
    largest = max(options.batches)
    batches: dict[int, dict[str, torch.Tensor]] = {}
    source = Batches(painter, min(32, largest), 5)
    index = 0
    while len(batches) < len(BUCKETS):
        batch = source[(index, 12 if len(batches) else 4)]
        width = batch["ids"].shape[1]
        if width not in batches:
            repeat = -(-largest // len(batch["ids"]))
            batches[width] = {name: torch.cat([value] * repeat)[:largest] for name, value in batch.items()}
        index += 1
    good: list[tuple[float, Settings]] = []
    variants = [(compiled, size) for compiled in (False, True) for size in options.batches]
    variants = [v for v in variants if v[0] or v[1] == options.batches[0]]
    for compiled, size in variants:
        if spent() > options.time_limit * 0.62:
            break
        settings = replace(base, compiled=compiled, batch=size)
        name = f"{'compiled' if compiled else 'eager'} {size}"
        try:
            row = step_time(settings, batches)
        except Exception as error:  # noqa: BLE001 - a variant that fails must not end the probe
            traceback.print_exc()
            note(name, f"failed: {error!r:.300}")
            continue
        note(name, row)
        good.append((row["pages_s_310"], settings))
    good.sort(key=lambda pair: -pair[0])
    if not good:
        raise SystemExit("no variant ran")
    best = good[0][1]
    if best.device == "cuda":
        try:
            note("kernels", hot_kernels(best, batches[310]))
        except Exception as error:  # noqa: BLE001 - as above
            note("kernels", f"failed: {error!r:.300}")
    torch.cuda.empty_cache()
    for muon in (True, False):
        left = options.time_limit - spent() - 12
        if left < 15:
            break
        limit = spent() + min(options.train, left / (2 if muon else 1))
        name = "muon" if muon else "adamw"
        trainer = Trainer(replace(best, muon=muon, budget=1000.0, time_limit=limit, log_every=10))
        trainer.run()
        note(f"training, {name}", [
            {key: row[key] for key in ("step", "s", "lines", "read", "slots", "pages_s")} for row in trainer.history[4::5]
        ])
        if muon:
            trainer.save(options.out / "run", compact=True)
        del trainer
    cache = torch.compiler.save_cache_artifacts()
    if cache is not None and len(cache[0]) < 15 * 2**20:
        (options.out / "cache.bin").write_bytes(cache[0])
        note("cache bytes", len(cache[0]))
    for name, value in report.items():
        if name != "kernels":
            print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
