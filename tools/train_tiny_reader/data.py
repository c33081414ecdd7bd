"""Batches: pages, their token ids and their slots, made by worker processes.

Batch *k* at curriculum level *l* is always the same, so the next index and the levels of the batches already requested
describe the stream.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from pages import SIZE, SLOT, Page, Painter
from tokens import BUCKETS, EOS, FREE, GROUNDED, PAD, encode
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

__all__ = ["Batches", "Requests", "loader"]

PROMPTS = {False: encode(FREE)[1:], True: encode(GROUNDED)[1:]}
GROUNDED_SHARE = 0.4
BLOCK_TOKENS = len(encode("<|ref|>title<|/ref|><|det|>[[999,999,999,999]]<|/det|>\n"))
"""Most tokens that the tags of a block take."""


class Requests(Sampler[tuple[int, int]]):
    """Endless (index, level) pairs; a new `level` applies to later requests."""

    def __init__(self, next_index: int = 0, level: int = 2, pending: list[tuple[int, int]] | None = None) -> None:
        self.next_index, self.level = next_index, level
        self.pending = deque(tuple(pair) for pair in pending or ())
        self._replay = list(self.pending)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        yield from self._replay
        while True:
            pair = (self.next_index, self.level)
            self.next_index += 1
            self.pending.append(pair)
            yield pair

    def used(self) -> None:
        """The oldest batch has been trained on."""
        self.pending.popleft()

    def state(self) -> dict[str, Any]:
        """What resumes the stream: the requests not trained on yet, and the next ones."""
        return {"next_index": self.next_index, "level": self.level, "pending": [list(pair) for pair in self.pending]}


class Batches(Dataset[dict[str, Tensor]]):
    """Batch (index, level): the pages of one length bucket, the bucket drawn as often as its pages occur."""

    def __init__(self, painter: Painter, pages: int, seed: int) -> None:
        self.painter, self.pages, self.seed = painter, pages, seed

    def _compose(self, rng: random.Random, level: int) -> tuple[Page, bool, int]:
        """A page, whether it is for the grounding prompt, and its bucket."""
        while True:
            lines = round(rng.triangular(1, level, 1 + 0.65 * (level - 1)))
            grounded = rng.random() < GROUNDED_SHARE
            page = self.painter.compose(rng, lines)
            length = len(PROMPTS[grounded]) + 1
            if grounded:
                length += sum(BLOCK_TOKENS + 2 + len(encode(block.markdown)) for block in page.blocks)
            else:
                length += len(page.free)
            if length <= BUCKETS[-1]:
                return page, grounded, bisect_left(BUCKETS, length)

    def __getitem__(self, request: tuple[int, int]) -> dict[str, Tensor]:
        index, level = request
        rng = random.Random(f"{self.seed} {index} {level}")
        chosen: int | None = None
        ink = np.empty((self.pages, SIZE, SIZE), np.uint8)
        slots = np.empty((self.pages, SIZE // SLOT[1], SIZE // SLOT[0]), np.uint8)
        angles = np.zeros(self.pages, np.float32)
        rows: list[tuple[list[int], int]] = []
        refused = 0
        while len(rows) < self.pages:
            page, grounded, bucket = self._compose(rng, level)
            if chosen is None:
                chosen = bucket
            if bucket > chosen or (bucket < chosen and refused < 2 * self.pages):
                refused += 1
                continue
            self.painter.finish(page)
            prompt = PROMPTS[grounded]
            ids = [*prompt, *encode(page.grounded if grounded else page.free), EOS]
            ink[len(rows)], slots[len(rows)] = self.painter.draw(page), self.painter.slots(page)
            angles[len(rows)] = page.angle
            rows.append((ids, len(prompt)))
        width = BUCKETS[chosen or 0]
        ids_out = np.full((self.pages, width), PAD, np.int16)
        labels = np.full((self.pages, width), -100, np.int16)
        for row, (ids, prompt) in enumerate(rows):
            ids_out[row, : len(ids)] = ids
            labels[row, prompt : len(ids)] = ids[prompt:]
        arrays = {"ink": ink, "slots": slots, "ids": ids_out, "labels": labels, "angles": angles}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def loader(batches: Batches, requests: Requests, workers: int, *, pin: bool) -> DataLoader[dict[str, Tensor]]:
    """The stream, in order."""
    return DataLoader(
        batches, batch_size=None, sampler=requests, num_workers=workers, pin_memory=pin,
        prefetch_factor=2 if workers else None, persistent_workers=False,
        multiprocessing_context="fork" if workers else None,
    )
