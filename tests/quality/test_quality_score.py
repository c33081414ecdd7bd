from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pytest_llmprof.datasets.base import Page
from pytest_llmprof.models.base import ParsedOutput
from pytest_llmprof.quality import PageQuality, score_page, summarise
from pytest_llmprof.records.catalogue import Catalogue
from pytest_llmprof.records.predictions import Box

BOXES = (Box("text", (0, 0, 10, 10)), Box("text", (0, 20, 10, 30)))
PAGE = Page(
    "a",
    "a.png",
    Path("a.png"),
    truth_free="Hello world",
    truth_markdown="# Hello\n\nworld!",
    truth_boxes=BOXES,
)
BARE = Page("b", "b.png", Path("b.png"))


def score(page: Page, kind: str, plain: str, *boxes: Box, random_weights: bool = False) -> PageQuality:
    return score_page(page, kind, ParsedOutput(plain, boxes), "eos", random_weights=random_weights)


def test_each_prompt_has_its_own_truth() -> None:
    markdown = score(PAGE, "markdown", "Hello world", BOXES[0])
    assert markdown.cer == pytest.approx(1 / 12)
    assert markdown.wer == pytest.approx(1 / 2)
    assert markdown.box_iou == 0.5
    free = score(PAGE, "free", "Hello world", BOXES[0])
    assert (free.cer, free.wer, free.box_iou) == (0.0, 0.0, None)


def test_boxes_of_a_prompt_of_the_users_own() -> None:
    assert score(PAGE, "other", "Hello world!").box_iou is None
    assert score(PAGE, "other", "Hello world!", *BOXES).box_iou == 1.0
    assert score(PAGE, "markdown", "Hello world!").box_iou == 0.0


def test_null_without_truth_and_with_random_weights() -> None:
    bare = score(BARE, "markdown", "some words", BOXES[0])
    assert (bare.cer, bare.wer, bare.box_iou, bare.repetition) == (None, None, None, 0.0)
    untrained = score_page(PAGE, "markdown", ParsedOutput("x " * 400), "length", random_weights=True)
    assert (untrained.cer, untrained.wer, untrained.box_iou, untrained.repetition) == (None,) * 4
    assert not untrained.runaway


def test_runaway_page() -> None:
    assert score_page(
        PAGE, "free", ParsedOutput("again and " * 100), "length", random_weights=False
    ).runaway


def test_summary_adds_up() -> None:
    short = dataclasses.replace(PAGE, truth_free="ab", truth_boxes=BOXES[:1], truth_markdown="ab")
    quality = summarise(
        [
            score(PAGE, "markdown", "Hello world", BOXES[0]),  # 1 of 12, 1 of 2, boxes 1 and 0
            score(short, "markdown", "xb", BOXES[0]),  # 1 of 2, 1 of 1, box 1
            score(BARE, "markdown", "a b c d a b c d"),
        ]
    )
    assert quality["cer"] == pytest.approx(2 / 14)
    assert quality["wer"] == pytest.approx(2 / 3)
    assert quality["box_iou"] == pytest.approx(2 / 3)
    assert quality["repetition"] == pytest.approx((1 - 4 / 5) / 3)
    assert (quality["runaway_pages"], quality["pages"], quality["truth_pages"]) == (0, 3, 2)


def test_summary_of_nothing_and_of_random_weights() -> None:
    nothing = dict.fromkeys(("cer", "wer", "box_iou", "repetition", "runaway_pages"))
    assert summarise([]) == {**nothing, "pages": 0, "truth_pages": 0}
    untrained = summarise([score(PAGE, "free", "x", random_weights=True)])
    assert untrained == {**nothing, "pages": 1, "truth_pages": 0}
    assert list(untrained) == Catalogue().names("quality")


def test_pages_compared_by_block_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_llmprof.quality.text._CELLS", 100)
    pages = [score(PAGE, "free", "Hello world"), score(PAGE, "free", "Something of another kind")]
    assert summarise(pages)["by_block_pages"] == 1
    assert "by_block_pages" not in summarise(pages[:1])
