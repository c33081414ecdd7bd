"""The record of one page's answer, as predictions.jsonl holds it."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_llmprof.models.base import Box

__all__ = ["SCHEMA", "Prediction"]

SCHEMA = 1
"""Version of the predictions.jsonl line format."""


@dataclass(frozen=True)
class Prediction:
    """One line of predictions.jsonl. Times in milliseconds; None where a figure cannot be known."""

    page: str
    image: str
    stage: str
    prompt: str
    status: str
    """"ok" or "error"."""
    error: str | None
    batch_id: int
    batch_size: int
    round: int
    text_raw: str
    text_clean: str
    boxes: tuple[Box, ...]
    bad_boxes: int
    tokens: int
    finish_reason: str | None
    """"eos", "length" or None for a failed page."""
    preprocess_ms: float | None
    vision_ms: float | None
    prefill_ms: float | None
    decode_ms: float | None
    other_ms: float | None
    total_ms: float | None
    ttft_ms: float | None
    tokens_per_s: float | None
    cer: float | None
    wer: float | None = None
    box_iou: float | None = None
    repetition: float | None = None
    """Share of repeated 4-grams among the answer's words: 1 - distinct-4."""
    runaway: bool = False
    schema: int = SCHEMA
