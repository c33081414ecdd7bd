"""What the model tests share: a record of phases, a tokenizer of numbers, images, and a short answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pytest_llmprof.config.schema import InferSettings
from pytest_llmprof.models.base import Token
from pytest_llmprof.models.deepseek_ocr import generation

OFFICIAL = Path(__file__).parents[1] / "data" / "official_format_checkpoint"
INFER = InferSettings(max_new_tokens=24, no_repeat_ngram_size=6)


class Record:
    """`Phases` that note what is entered and left, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.events.append(name)
        try:
            yield
        finally:
            self.events.append(f"/{name}")

    @contextmanager
    def step(self) -> Iterator[None]:
        with self.phase("step"):
            yield


class Ids:
    """A tokenizer whose texts are ids: "1 2 3". The reference checkpoint has none of its own."""

    def __init__(self, image: int) -> None:
        self._image = image

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(f"{number} " for number in ids)

    def token_id(self, token: str) -> int | None:
        return self._image if token == "<image>" else None


def generate(model: Any, prompts: generation.Prompts, embeddings: Any, limits: generation.Limits) -> list[Token]:
    """What the reference engine does after the vision tower."""
    return list(generation.stream(model, prompts, embeddings, limits, Record()))


def sam_attention_by_torch(qkv: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """What `sam_attention.mix` gives, as transformers computes it: the position terms as one matrix."""
    views, places, _, heads, size = qkv.shape
    side = len(rows)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    grid = query.reshape(views * heads, side, side, size)
    down = torch.einsum("phwc,hkc->phwk", grid, rows)
    across = torch.einsum("phwc,wkc->phwk", grid, columns)
    bias = (down[..., :, None] + across[..., None, :]).reshape(views, heads, places, places)
    mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return mixed.transpose(1, 2).reshape(views, places, heads * size)


def blocks_image(seed: int, size: tuple[int, int] = (300, 200)) -> Image.Image:
    """Coloured blocks, different for each seed."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


def by_row(tokens: Sequence[Token], rows: int) -> list[list[tuple[int | None, str | None]]]:
    """Ids and ends of each row's tokens."""
    return [[(token.id, token.finish) for token in tokens if token.row == row] for row in range(rows)]
