"""predictions.jsonl: one line a page."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

SCHEMA = 1
"""Version of the predictions.jsonl line format."""


class Box(Struct, frozen=True):
    """A labelled box in pixels of the source image: x1 <= x2, y1 <= y2, origin top left."""

    label: str
    box: tuple[int, int, int, int]
    text: str = ""
    """The text that follows the box in the answer, up to the next one."""


class Prediction(Struct, frozen=True, kw_only=True):
    """One page's answer. Times in milliseconds; null where a value cannot be known."""

    schema: int = SCHEMA
    page: str
    image: str
    """The image as the dataset names it."""
    stage: str
    prompt: str
    """The full prompt."""
    status: str
    """ok | error"""
    error: str | None = None
    batch_id: int
    batch_size: int
    round: int
    text_raw: str = ""
    """Every token, special ones included."""
    text_clean: str = ""
    """As `strip_special_tokens` asks."""
    boxes: tuple[Box, ...] = ()
    bad_boxes: int = 0
    """Boxes that were malformed or empty and were skipped."""
    tokens: int = 0
    finish_reason: str | None = None
    """"eos", "length", or null for a failed page."""
    preprocess_ms: float | None = None
    vision_ms: float | None = None
    prefill_ms: float | None = None
    decode_ms: float | None = None
    other_ms: float | None = None
    total_ms: float | None = None
    ttft_ms: float | None = None
    tokens_per_s: float | None = None
    cer: float | None = None
    wer: float | None = None
    box_iou: float | None = None
    repetition: float | None = None
    """Share of repeated 4-grams among the answer's words: 1 - distinct-4."""
    runaway: bool = False
    """Whether the answer ended in a loop."""
    scores: dict[str, float | None] = {}
    """This page's values of the metrics that plugins declare with a `score`."""


def gallery_infos(stage_dir: Path) -> list[Path]:
    """The info.json of each page of the galleries in a stage directory. A `save_dir` outside of it is not seen."""
    return sorted((*stage_dir.glob("pages/*/info.json"), *stage_dir.glob("*/pages/*/info.json")))
