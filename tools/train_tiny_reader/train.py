"""Train the reader; stop and resume at will. README.md has the commands.

    python train.py --data DIR --run DIR [--time-limit SECONDS --finish | --steps N] [--resume DIR]
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

import checkpoint
import torch
from augment import develop_normalised, normalise, photograph, turn
from data import Batches, Requests, loader
from fonts import BUILTIN, TRAINED
from model import SIZES, TINY_SIZES, Reader, build, initialise
from optim import Optimizer
from pages import Painter
from text import Source
from torch import Tensor

__all__ = ["Settings", "Trainer", "echoed", "main"]

LEVELS = (2, 3, 4, 6, 9, 12)
"""Most lines a page, step by step."""
HEAD_ALONE = 200
"""Steps in which the fresh auxiliary head of a run that starts from a model learns alone: its gradients are noise."""
STARTED = time.monotonic()


@dataclass
class Settings:
    """Settings of a run. Times are in seconds."""

    run: Path
    data: Path | None = None
    """Folder with fonts/ and text/ (see fetch.py); None: Pillow's font and a few words, for tests."""
    resume: Path | None = None
    init: Path | None = None
    """Model folder (see export.py) whose weights to start from, on the hardest pages; tokens it lacks start afresh."""
    batch: int = 384
    steps: int | None = None
    """Length of the whole training in steps; None: in seconds, `budget`."""
    budget: float = 1000.0
    """Length of the whole training in seconds spent in steps, all runs together."""
    time_limit: float = math.inf
    """Seconds from the start of the process to the stop."""
    finish: bool = False
    """End at the time limit with a learning rate of zero, whatever the budget."""
    stop_after: int | None = None
    """Stop at this step, for tests."""
    workers: int = 15
    compiled: bool = False
    echo: int = 1
    """Times each batch is trained on, with new noise, blur and light: for machines whose workers make pages more slowly
    than the GPU trains on them."""
    cache: Path | None = None
    """Compiled kernels of an earlier run on the same machine kind (see probe.py)."""
    half: bool = True
    muon: bool = True
    lr: float = 1.5e-3
    matrix_lr: float = 3e-3
    average: float = 0.9995
    tiny: bool = False
    carry: Path | None = None
    """Write a second, compact checkpoint here at the end (see checkpoint.py)."""
    save_every: float = 120.0
    """Seconds between checkpoints."""
    seed: int = 1
    log_every: int = 20
    level_up: float = 0.8
    """The next level begins when the reading loss falls below this."""
    cooldown: float = 0.55
    """Share of the training in which the learning rate falls to zero."""
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")


class Trainer:
    """A training run: model, optimizer, stream of batches and progress."""

    def __init__(self, settings: Settings) -> None:
        self.s = settings
        model = build(TINY_SIZES if settings.tiny else SIZES, settings.seed)
        if settings.init and not settings.resume:
            initialise(model, settings.init)
        self.reader = Reader(model, torch.bfloat16 if settings.half else torch.float32).to(settings.device)
        self.optimizer = Optimizer(
            self.reader, muon=settings.muon, lr=settings.lr, matrix_lr=settings.matrix_lr, average=settings.average
        )
        self.step, self.seconds, self.stage, self.stage_step, self.smooth = 0, 0.0, 0, 0, math.nan
        self.history: list[dict[str, Any]] = []
        self.requests = Requests(level=LEVELS[0])
        if settings.resume:
            self._resume(settings.resume)
        elif settings.init:
            self.stage = len(LEVELS) - 1
            self.requests = Requests(level=LEVELS[-1])
        self._develop = develop_normalised
        if settings.cache:
            torch.compiler.load_cache_artifacts(settings.cache.read_bytes())
        if settings.compiled:
            self.reader.compile()
            self._develop = torch.compile(develop_normalised, dynamic=False)
        self._first_seconds, self._began = self.seconds, time.monotonic()
        self._from = self._raw_progress()

    # state

    def tensors(self) -> dict[str, Tensor]:
        """Weights and the optimizer's state."""
        weights = {f"weights/{name}": p.detach() for name, p in self.reader.named_parameters()}
        return weights | self.optimizer.state()

    def save(self, folder: Path, *, compact: bool = False) -> list[Path]:
        """Write a checkpoint; its files."""
        state = {
            "step": self.step, "seconds": self.seconds, "stage": self.stage, "stage_step": self.stage_step,
            "smooth": None if math.isnan(self.smooth) else self.smooth, "progress": self.progress(),
            "requests": self.requests.state(), "tiny": self.s.tiny, "seed": self.s.seed, "history": self.history,
        }
        return checkpoint.save(folder, self.tensors(), state, compact=compact)

    def _resume(self, folder: Path) -> None:
        tensors, state = checkpoint.load(folder)
        with torch.no_grad():
            for name, p in self.reader.named_parameters():
                p.copy_(tensors[f"weights/{name}"])
        self.step, self.seconds, self.stage = state["step"], state["seconds"], state["stage"]
        self.stage_step, self.history = state["stage_step"], state["history"]
        self.smooth = math.nan if state["smooth"] is None else state["smooth"]
        self.optimizer.load(tensors, self.step)
        at = state["requests"]
        self.requests = Requests(at["next_index"], at["level"], at["pending"])

    # schedule

    def _raw_progress(self) -> float:
        return self.step / self.s.steps if self.s.steps else self.seconds / self.s.budget

    def progress(self) -> float:
        """How much of the training is done, 0..1."""
        if self.s.steps or not self.s.finish:
            return min(1.0, self._raw_progress())
        total = self.s.time_limit - (self._began - STARTED)
        return min(1.0, self._from + (1 - self._from) * (self.seconds - self._first_seconds) / max(1.0, total))

    def scale(self) -> float:
        """Factor of the learning rates: up over 150 steps, flat, down to zero at the end."""
        return min(1.0, (self.step + 1) / 150, max(0.0, (1 - self.progress()) / self.s.cooldown))

    def slot_weight(self) -> float:
        """Weight of the auxiliary loss: 8 until reading has begun, then 2.4, less towards the end."""
        if self.stage == 0:
            return 8.0
        return 2.4 * min(1.0, 0.25 + (1 - self.progress()) / self.s.cooldown)

    def _advance(self) -> None:
        """Harder pages, when reading is good enough or time is running out."""
        last = len(LEVELS) - 1
        if self.stage == last:
            return
        long_enough = self.step - self.stage_step >= 100
        forced = self.progress() > 0.08 * (self.stage + 2)
        if long_enough and (self.smooth < self.s.level_up or forced):
            self.stage, self.stage_step = self.stage + 1, self.step
            self.requests.level = LEVELS[self.stage]

    # training

    def train_step(self, batch: dict[str, Tensor]) -> Tensor:
        """One update; the losses (read, slots, balance, gradient norm), still on the device."""
        ink, seed = turn(batch["ink"], batch["angles"]), self.s.seed * 1_000_003 + self.step
        pixels = photograph(ink, seed, self._develop) if self.s.half else normalise(photograph(ink, seed))
        self.reader.head_alone = self.s.init is not None and self.step < HEAD_ALONE
        read, seen, balance = self.reader(pixels, batch["ids"].long(), batch["labels"].long(), batch["slots"])
        (read + self.slot_weight() * seen + 0.01 * balance).backward()
        norm = self.optimizer.clip(1.0)
        self.optimizer.step(self.scale(), self.step)
        self.optimizer.clear()
        self.step += 1
        return torch.stack([read.detach(), seen.detach(), balance.detach(), norm])

    def run(self) -> None:
        """Train until the steps, the budget or the time limit are used up."""
        painter = _painter(self.s.data)
        stream = iter(loader(
            Batches(painter, self.s.batch, self.s.seed), self.requests, self.s.workers, pin=self.s.device == "cuda"
        ))
        self._began = time.monotonic()
        losses: list[Tensor] = []
        since = saved = time.monotonic()
        for batch, fresh in echoed(_ahead(stream, self.s.device), self.s.echo, self.s.seed):
            losses.append(self.train_step(batch))
            if fresh:
                self.requests.used()
            if self.step % self.s.log_every == 0:
                mean = torch.stack(losses).mean(0).tolist()  # waits for the device
                spent = time.monotonic() - since
                since, losses = time.monotonic(), []
                self.seconds += spent
                self._log(mean, spent)
                self._advance()
                if not math.isfinite(mean[0]):
                    raise SystemExit("the loss is not finite: resume from the last checkpoint with a lower rate")
                if time.monotonic() - saved > self.s.save_every:
                    self.save(self.s.run)
                    saved = since = time.monotonic()
            if self._over():
                break
        if losses:
            self.seconds += time.monotonic() - since

    def _over(self) -> bool:
        if self.s.stop_after is not None and self.step >= self.s.stop_after:
            return True
        if time.monotonic() - STARTED > self.s.time_limit:
            return True
        return self.step >= self.s.steps if self.s.steps else self.seconds >= self.s.budget and not self.s.finish

    def _log(self, mean: list[float], spent: float) -> None:
        self.smooth = mean[0] if math.isnan(self.smooth) else 0.5 * self.smooth + 0.5 * mean[0]
        row = {
            "step": self.step, "s": round(self.seconds, 1), "lines": LEVELS[self.stage], "read": round(mean[0], 4),
            "slots": round(mean[1], 4), "balance": round(mean[2], 3), "norm": round(mean[3], 3),
            "rate": round(self.scale(), 4), "pages_s": round(self.s.log_every * self.s.batch / spent),
        }
        self.history.append(row)
        if len(self.history) % 5 == 1:
            print(json.dumps(row), flush=True)


def _painter(data: Path | None) -> Painter:
    if data is None:
        return Painter(Source.load(None), BUILTIN, None)
    text, fonts = Source.load(data / "text"), data / "fonts"
    return Painter(text, TRAINED, fonts, tables=0.45, empty=0.1, spread=0.5)


def _ahead(stream: Iterator[dict[str, Tensor]], device: str) -> Iterator[dict[str, Tensor]]:
    """The batches on *device*, each copied while the one before is trained on."""
    if device != "cuda":
        yield from stream
        return
    side = torch.cuda.Stream()

    def fetch() -> dict[str, Tensor]:
        batch = next(stream)
        with torch.cuda.stream(side):
            return {name: _to(device, name, value) for name, value in batch.items()}

    following = fetch()
    while True:
        torch.cuda.current_stream().wait_stream(side)
        current = following
        for value in current.values():
            if value.is_cuda:
                value.record_stream(torch.cuda.current_stream())
        following = fetch()
        yield current


def echoed(
    stream: Iterator[dict[str, Tensor]], echo: int, seed: int, kept: int = 48
) -> Iterator[tuple[dict[str, Tensor], bool]]:
    """Each batch as it comes (True), and `echo` - 1 more times (False) some *kept* batches later.

    Batches that wait for their echo are not part of a checkpoint: a resumed run echoes its own batches.
    """
    rng = random.Random(seed)
    waiting: list[tuple[dict[str, Tensor], int]] = []
    for batch in stream:
        yield batch, True
        if echo > 1:
            waiting.append((batch, echo - 1))
        for _ in range(echo - 1 if len(waiting) > kept else 0):
            place = rng.randrange(len(waiting))
            old, left = waiting.pop(place)
            if left > 1:
                waiting.append((old, left - 1))
            yield old, False


def _to(device: str, name: str, value: Tensor) -> Tensor:
    return value if name == "angles" else value.to(device, non_blocking=True)  # angles are read on the CPU


def settings_from(arguments: list[str]) -> Settings:
    """Settings from the command line; a field's name is its option."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    for name, hint in get_type_hints(Settings).items():
        kind = next(kind for kind in (*get_args(hint), hint) if kind is not type(None))
        how: dict[str, Any] = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}
        parser.add_argument(f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, required=name == "run", **how)
    return Settings(**vars(parser.parse_args(arguments)))


def main(arguments: list[str] | None = None) -> Trainer:
    """Train, save, and print the progress."""
    settings = settings_from(sys.argv[1:] if arguments is None else arguments)
    torch.set_float32_matmul_precision("high")
    trainer = Trainer(settings)
    try:
        trainer.run()
    finally:  # a run that breaks keeps what it has learnt
        files = trainer.save(settings.run)
        if settings.carry:
            trainer.save(settings.carry, compact=True)
    size = sum(path.stat().st_size for path in files) / 2**20
    done = f"step {trainer.step}, {trainer.seconds:.0f} s, progress {trainer.progress():.3f}"
    print(f"{done}: {len(files)} files, {size:.1f} MiB")
    return trainer


if __name__ == "__main__":
    main()
