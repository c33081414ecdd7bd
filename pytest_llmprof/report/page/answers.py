"""The pages of a test with their answers, from its gallery or its predictions.jsonl."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.records.files import NOT_JSON, read_bytes
from pytest_llmprof.records.predictions import Prediction, gallery_infos
from pytest_llmprof.text.escape import one_line, shorten, visible
from pytest_llmprof.text.numbers import significant

LONGEST = 20_000
"""Characters of a text that the page has; the whole text is in the file that it comes from."""
_BOX_TEXT = 300
_MOST_BOXES = 2_000
_IMAGE = "thumbnail.jpg"


class Answer(Struct, omit_defaults=True):
    """A page with its answer, as plain text made visible."""

    page: str
    status: str
    raw: str
    """Every token."""
    clean: str | None = None
    """Without special tokens, where that differs."""
    scored: str | None = None
    """As it was held against the truth; null without a gallery."""
    truth: str | None = None
    error: str | None = None
    boxes: list[tuple[str, int, int, int, int, str]] = []
    """Label, x1, y1, x2, y2 in pixels of the image, text."""
    image: str | None = None
    """A smaller image, relative to the run directory."""
    size: tuple[int, int] | None = None
    """Width and height of the source image."""
    tokens: int = 0
    finish: str | None = None
    total: float | None = None
    cer: float | None = None
    wer: float | None = None
    iou: float | None = None
    repetition: float | None = None
    runaway: bool = False
    cut: int = 0
    """Characters of the raw answer where the page has only the first of them; 0 where it has all."""


class _Size(Struct):
    width: int
    height: int


class _Info(Prediction, frozen=True, kw_only=True):
    """What is read of an info.json."""

    text_scored: str | None = None
    truth: str | None = None
    picture: _Size | None = None


def read_answers(run_dir: Path, directory: str) -> list[Answer]:
    """The pages of the stage directory *directory* of a run: failed ones, then those that ended in a loop, then by CER.

    A `save_dir` outside the stage directory is not seen. Raises `ArtifactError` where a file cannot be read.
    """
    stage_dir = run_dir / directory
    found = {answer.page: answer for answer in _of_predictions(stage_dir)}
    for info, folder in _of_gallery(stage_dir):
        answer = _answer(info)
        answer.scored, answer.truth = _text(info.text_scored), _text(info.truth)
        if info.picture is not None and (folder / _IMAGE).is_file():
            answer.image = (folder / _IMAGE).relative_to(run_dir).as_posix()
            answer.size = info.picture.width, info.picture.height
        found[answer.page] = answer
    return sorted(found.values(), key=_worst_first)


def _worst_first(answer: Answer) -> tuple[bool, bool, float, str]:
    return answer.status == "ok", not answer.runaway, -(answer.cer or 0.0), answer.page


def _of_predictions(stage_dir: Path) -> Iterator[Answer]:
    for path in sorted((*stage_dir.glob("predictions.jsonl"), *stage_dir.glob("*/predictions.jsonl"))):
        for line in read_bytes(path).splitlines():
            try:
                yield _answer(msgspec.json.decode(line, type=_Info))
            except NOT_JSON:
                continue  # the last line of a killed run, or another program's


def _of_gallery(stage_dir: Path) -> Iterator[tuple[_Info, Path]]:
    for path in gallery_infos(stage_dir):
        try:
            yield msgspec.json.decode(read_bytes(path), type=_Info), path.parent
        except (ArtifactError, *NOT_JSON):
            continue  # not a gallery's


def _answer(info: Prediction) -> Answer:
    return Answer(
        page=one_line(info.page),
        status=one_line(info.status),
        raw=_text(info.text_raw) or "",
        clean=_text(info.text_clean) if info.text_clean != info.text_raw else None,
        error=info.error and one_line(info.error, 600),
        boxes=[(one_line(box.label, 80), *box.box, one_line(box.text, _BOX_TEXT)) for box in info.boxes[:_MOST_BOXES]],
        tokens=info.tokens,
        finish=info.finish_reason,
        total=significant(info.total_ms),
        cer=significant(info.cer),
        wer=significant(info.wer),
        iou=significant(info.box_iou),
        repetition=significant(info.repetition),
        runaway=info.runaway,
        cut=len(info.text_raw) if len(info.text_raw) > LONGEST else 0,
    )


def _text(text: str | None) -> str | None:
    return None if text is None else visible(shorten(text, LONGEST))
