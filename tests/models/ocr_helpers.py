"""Stand-ins that the model tests use: a record of phases, and a tokenizer of numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytest_llmprof.models.base import Token
from pytest_llmprof.models.deepseek_ocr import generation

OFFICIAL = Path(__file__).parents[1] / "data" / "official_format_checkpoint"


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
