"""How fast training can go on this machine: the loader, the compiled step, then three short trainings.

    python probe.py --data DIR --out DIR --time-limit SECONDS

A variant that fails is reported and left out. Writes OUT/probe.json, OUT/cache.bin (compiled kernels) and the
checkpoint of the first training (OUT/run), prints a table last.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
import traceback
from collections.abc import Callable
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


def some_batches(data: Path, pages: int) -> dict[int, dict[str, torch.Tensor]]:
    """A batch of each bucket (few pages, repeated)."""
    source = Batches(Painter(Source.load(data / "text"), TRAINED, data / "fonts"), min(32, pages), 5)
    batches: dict[int, dict[str, torch.Tensor]] = {}
    index = 0
    while len(batches) < len(BUCKETS):
        batch = source[(index, 12 if len(batches) else 4)]
        width = batch["ids"].shape[1]
        if width not in batches:
            repeat = -(-pages // len(batch["ids"]))
            batches[width] = {name: torch.cat([value] * repeat)[:pages] for name, value in batch.items()}
        index += 1
    return batches


def reading(data: Path, run: Path) -> dict[str, Any]:
    """That evaluation works here: a few pages, short answers."""
    from evaluate import evaluate, samples
    from export import averaged

    model = averaged(run)[0].eval().to("cuda" if torch.cuda.is_available() else "cpu")
    figures = evaluate(model, samples(data, 10), most=60)
    return {"cer": figures["free"]["cer"], "s": figures["seconds"], "worst": figures["worst"][-1]}


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


def learning(settings: Settings, seconds: float, out: Path | None = None) -> tuple[Trainer, list[dict[str, Any]]]:
    """Train for *seconds* from nothing; the trainer and its history."""
    trainer = Trainer(replace(settings, budget=1000.0, time_limit=spent() + seconds, log_every=10))
    trainer.run()
    if out is not None:
        trainer.save(out, compact=True)
    keys = ("step", "s", "lines", "read", "slots", "norm", "pages_s")
    return trainer, [{key: row[key] for key in keys} for row in trainer.history[4::5]]


def main() -> None:
    """Probe."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--time-limit", type=float, default=270)
    parser.add_argument("--workers", type=int, default=15)
    parser.add_argument("--batch", type=int, default=384, help="tried first")
    parser.add_argument("--others", type=int, nargs="*", default=[512], help="tried compiled at the end")
    parser.add_argument("--train", type=float, default=40, help="seconds of each short training")
    parser.add_argument("--tiny", action="store_true", help="tiny model, for a trial on a CPU")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    report: dict[str, Any] = {}

    def note(name: str, value: Any) -> None:
        report[name] = value
        print(f"[{spent():6.1f} s] {name}: {value}", flush=True)
        (options.out / "probe.json").write_text(json.dumps(report, indent=1), encoding="utf-8")

    def attempt(name: str, make: Callable[[], Any]) -> Any:
        """What *make* gives, noted; None, with a note, where it fails or time is short."""
        if spent() > options.time_limit - 20:
            return note(name, "no time left")
        try:
            value = make()
        except Exception as error:  # noqa: BLE001 - a variant that fails must not end the probe
            traceback.print_exc()
            return note(name, f"failed: {error!r:.300}")
        note(name, value)
        return value

    base = Settings(
        run=options.out / "run", data=options.data, workers=options.workers, tiny=options.tiny, seed=11,
        batch=options.batch, compiled=True,
    )
    note("machine", [torch.__version__, os.cpu_count(), shutil.disk_usage("/dev/shm").total >> 20, base.device])
    attempt("loader pages/s", lambda: round(pages_per_second(options.data, options.workers, 12, 5)))
    batches = some_batches(options.data, max(options.batch, *options.others, 1))
    note("batches", sorted(batches))
    first = attempt(f"compiled {base.batch}", lambda: step_time(base, batches))
    if first is None or first["pages_s_310"] < 300:
        eager = replace(base, compiled=False)
        second = attempt(f"eager {base.batch}", lambda: step_time(eager, batches))
        if second and (first is None or second["pages_s_310"] > first["pages_s_310"]):
            base = eager
    trained = attempt("training, muon 3e-3", lambda: learning(base, options.train, options.out / "run")[1])
    attempt("training, adamw 1.5e-3", lambda: learning(replace(base, muon=False), options.train)[1])
    attempt("training, muon 6e-3", lambda: learning(replace(base, matrix_lr=6e-3, lr=2e-3), options.train)[1])
    if trained is not None:
        attempt("reading", lambda: reading(options.data, options.out / "run"))
    if base.device == "cuda":
        attempt("kernels", lambda: hot_kernels(base, batches[310]))
    cache = torch.compiler.save_cache_artifacts()
    if cache is not None and len(cache[0]) < 15 * 2**20:
        (options.out / "cache.bin").write_bytes(cache[0])
        note("cache bytes", len(cache[0]))
    for size in options.others:
        if spent() < options.time_limit * 0.8:
            attempt(f"compiled {size}", lambda size=size: step_time(replace(base, batch=size), batches))
    for name, value in report.items():
        if name != "kernels":
            print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
