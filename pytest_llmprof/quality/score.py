"""The quality of one page, and of all pages of a run together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pytest_llmprof.datasets.base import Page
from pytest_llmprof.models.base import ParsedOutput
from pytest_llmprof.quality.boxes import mean_iou, share_labels
from pytest_llmprof.quality.repetition import repetition, runaway
from pytest_llmprof.quality.text import EditCount, character_edits, normalise, word_edits


@dataclass(frozen=True)
class PageQuality:
    """The quality of one page. None where a metric is not applicable: no truth, or random weights."""

    cer: float | None
    wer: float | None
    box_iou: float | None
    repetition: float | None
    runaway: bool
    characters: EditCount | None = None
    """The counts behind `cer`, to add pages up."""
    words: EditCount | None = None
    """The counts behind `wer`."""
    truth_boxes: int = 0
    """Number of true boxes, over which `box_iou` is the mean."""
    applicable: bool = True
    """False where the weights are random: then no metric has a meaning."""


def score_page(
    page: Page,
    prompt_kind: str,
    parsed: ParsedOutput,
    finish_reason: str | None,
    *,
    random_weights: bool,
) -> PageQuality:
    """Score one answer.

    The text is compared with the truth of the prompt's kind (`Page.truth`). Boxes are scored for the markdown prompt,
    which asks for them, for a prompt of the user's own (kind "other") only where the answer has a box with a label of
    the truth (its labels may be texts), never for free OCR.
    """
    if random_weights:
        return PageQuality(None, None, None, None, runaway=False, applicable=False)
    truth = page.truth(prompt_kind)
    characters = None if truth is None else character_edits(truth, parsed.plain)
    words = None if truth is None else word_edits(truth, parsed.plain)
    box_iou = None
    if prompt_kind == "markdown" or (prompt_kind == "other" and share_labels(page.truth_boxes, parsed.boxes)):
        box_iou = mean_iou(page.truth_boxes, parsed.boxes)
    return PageQuality(
        cer=None if characters is None else characters.rate,
        wer=None if words is None else words.rate,
        box_iou=box_iou,
        repetition=repetition(normalise(parsed.plain)),
        runaway=runaway(parsed.plain if parsed.loop_text is None else parsed.loop_text, finish_reason),
        characters=characters,
        words=words,
        truth_boxes=0 if box_iou is None else len(page.truth_boxes or ()),
    )


def summarise(pages: Iterable[PageQuality]) -> dict[str, float | None]:
    """The metrics of all pages together, by the names of the catalogue; None with random weights or no page.

    `by_block_pages`, the pages whose `EditCount` is by block, is there only if there is one.
    """
    scored = list(pages)
    applicable = [page for page in scored if page.applicable]
    characters = [page.characters for page in applicable if page.characters is not None]
    words = [page.words for page in applicable if page.words is not None]
    boxed = [(page.box_iou, page.truth_boxes) for page in applicable if page.box_iou is not None]
    repetitions = [page.repetition for page in applicable if page.repetition is not None]
    by_block = sum(one.by_block or other.by_block for one, other in zip(characters, words, strict=True))
    true_boxes = sum(count for _, count in boxed)
    return {
        "cer": sum(characters, EditCount(0, 0)).rate if characters else None,
        "wer": sum(words, EditCount(0, 0)).rate if words else None,
        "box_iou": sum(iou * count for iou, count in boxed) / true_boxes if boxed else None,
        "repetition": sum(repetitions) / len(repetitions) if repetitions else None,
        "runaway_pages": sum(page.runaway for page in applicable) if applicable else None,
        "pages": len(scored),
        "truth_pages": len(characters),
        **({"by_block_pages": by_block} if by_block else {}),
    }
