"""Prompts, the built-in tokenizer, and the reading of answers, however broken."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_llmprof.datasets.base import Page
from pytest_llmprof.errors import ModelError
from pytest_llmprof.models.deepseek_ocr import prompts
from pytest_llmprof.models.deepseek_ocr.parsing import parse
from pytest_llmprof.models.deepseek_ocr.tokenizers import BuiltInTokenizer
from pytest_llmprof.quality import score_page
from pytest_llmprof.records.predictions import Box

SIZE = (1998, 999)
EOS = "<｜end▁of▁sentence｜>"


def span(det: str, label: str = "text") -> str:
    return f"<|ref|>{label}<|/ref|><|det|>{det}<|/det|>"


def test_grounded_answer() -> None:
    text = f"{span('[[0, 10, 500, 20]]', 'title')}\n# Head\n\n{span('[[1,2,3,4], [5,6,999,999]]')}\nBody{EOS}"
    parsed = parse(text, SIZE)
    assert parsed.plain == "\n# Head\n\n\nBody"
    assert parsed.boxes == (
        Box("title", (0, 10, 1000, 20), "# Head"),
        Box("text", (2, 2, 6, 4), "Body"),
        Box("text", (10, 6, 1998, 999), "Body"),
    )
    assert parsed.bad_boxes == 0


def test_plain_answer() -> None:
    parsed = parse(f"<｜begin▁of▁sentence｜>Just <b>text</b> | 1 < 2{EOS}<｜▁pad▁｜>", SIZE)
    assert (parsed.plain, parsed.boxes, parsed.bad_boxes) == ("Just <b>text</b> | 1 < 2", (), 0)


@pytest.mark.parametrize(
    "det, good, bad",
    [
        ("[[1,2,3,4]]", 1, 0),
        (" [ [ 1 , 2 , 3.5 , 4. ] , [5,6,7,8] ] ", 2, 0),
        ("[[1,2,3,4],]", 1, 0),
        ("[[1,2,3,4],[5,6,7]]", 1, 1),
        ("[[1,2,3,4],[5,6,7,8,9]]", 1, 1),
        ("[[1,2,3,4],[]]", 1, 1),
        ("[[1,2,3,4]", 1, 1),
        ("[[1,2,3,4], [5, 6", 1, 1),
        ("[[0,0,1000,4]]", 0, 1),
        ("[[-1,0,9,4]]", 0, 1),
        ("[[nan,0,9,4]]", 0, 1),
        ("[[1e2,0,900,4]]", 0, 1),
        ("[[inf,0,9,4]]", 0, 1),
        ("[[5,2,5,4]]", 0, 1),
        ("[[5,2,3,4]]", 0, 1),
        ("[[3,4,5,2]]", 0, 1),
        ("[[3,a,5,2]]", 0, 1),
        ("[[٣,1,9,9]]", 0, 1),
        ("[1,2,3,4]", 0, 1),
        ("1,2,3,4", 0, 1),
        ("[[[1,2,3,4]]]", 1, 1),
        ("[]", 0, 1),
        ("[[]]", 0, 1),
        ("", 0, 1),
        ("__import__('os')", 0, 1),
        ("[[99999999999999999999,2,3,4]]", 0, 1),
    ],
)
def test_boxes(det: str, good: int, bad: int) -> None:
    parsed = parse(f"a{span(det)}b", SIZE)
    assert (len(parsed.boxes), parsed.bad_boxes, parsed.plain) == (good, bad, "ab")


@pytest.mark.parametrize(
    "text, plain, boxes, bad",
    [
        ("<|ref|>text<|/ref|><|det|>[[1,2,3,4]]", "<|ref|>text<|/ref|><|det|>[[1,2,3,4]]", 0, 1),
        ("<|ref|>text", "<|ref|>text", 0, 1),
        ("<|ref|>text<|/ref|>", "<|ref|>text<|/ref|>", 0, 1),
        ("a<|/det|>b", "a<|/det|>b", 0, 1),
        ("<|det|>[[1,2,3,4]]<|/det|>", "<|det|>[[1,2,3,4]]<|/det|>", 0, 2),
        (f"<|ref|>a{span('[[1,2,3,4]]')}", "<|ref|>a", 1, 1),
        ("<|ref|>a<|/ref|>b<|det|>[[1,2,3,4]]<|/det|>", "<|ref|>a<|/ref|>b<|det|>[[1,2,3,4]]<|/det|>", 0, 2),
        ("<|ref|>a<|/ref|>\n<|det|>[[1,2,3,4]]<|/det|>b", "b", 1, 0),
    ],
)
def test_broken_spans(text: str, plain: str, boxes: int, bad: int) -> None:
    parsed = parse(text, SIZE)
    assert (parsed.plain, len(parsed.boxes), parsed.bad_boxes) == (plain, boxes, bad)


@pytest.mark.parametrize(
    "text, plain",
    [
        (f"{span('[[1,2,3,4]]', 'Total 12')}\n{span('[[5,6,7,8]]', ' Thank you ')}{EOS}", "Total 12 Thank you"),
        (span("[[1,2,3,4]]", "one") + span("[[1,2,3,4]]", "two"), "one two"),
        (f"The page says:\n{span('[[1,2,3,4]]', 'Total 12')}", "The page says: Total 12"),
        (span("[[1,2,3,4]]", "title") + span("[[1,2,3,4]]", "No. 7"), "title No. 7"),
        (span("[[0,0,0,0]]", "its box is bad"), "its box is bad"),
        (span("[[1,2,3,4]]", "one") + "<|ref|>tw", "one tw"),
        (span("[[1,2,3,4]]", "one") + "<|ref|>two<|/ref|><|det|>[[1,2", "one two"),
        # Labels of blocks, and labels with text behind, are no text.
        (span("[[1,2,3,4]]", "image") + "\n" + span("[[1,2,3,4]]", "table"), ""),
        (span("[[1,2,3,4]]", "a man") + "is a man", "is a man"),
        (f"{span('[[1,2,3,4]]', 'Head')}\nHead\n{span('[[1,2,3,4]]', 'photo')}", "Head"),
    ],
)
def test_labels_are_the_text_where_nothing_follows(text: str, plain: str) -> None:
    assert " ".join(parse(text, SIZE).plain.split()) == plain


def test_an_answer_in_labels_is_scored() -> None:
    """The prompt "OCR this image." answers so."""
    page = Page("a", "a.png", Path("a.png"), truth_free="Total 12\nThank you", truth_boxes=(Box("text", (0, 0, 9, 9)),))
    parsed = parse(f"{span('[[1,2,3,4]]', 'Total 12')}\n{span('[[5,6,7,8]]', 'Thank you')}{EOS}", SIZE)
    assert [(box.label, box.text) for box in parsed.boxes] == [("Total 12",) * 2, ("Thank you",) * 2]
    quality = score_page(page, "other", parsed, "eos", random_weights=False)
    assert (quality.cer, quality.wer, quality.box_iou, quality.runaway) == (0.0, 0.0, None, False)


@pytest.mark.parametrize(
    "unit",
    [
        span("[[1,2,3,4]]", "Thank you"),
        span("[[1,2,3,4]]", "image") + "\n",
        "".join(span(f"[[{number},2,3,{number}4]]", "text") + "\n" for number in range(1, 9)),
        span("[[1,2,3,4]]", "text") + "\nThank you very much\n",
    ],
)
@pytest.mark.parametrize("cut", [0, 3, 20, 43])
def test_a_loop_of_spans_is_a_loop(unit: str, cut: int) -> None:
    page = Page("a", "a.png", Path("a.png"))
    head = span("[[1,2,3,4]]", "title") + "\n# Head\n"
    for start in ("", head):
        text = start + unit * 200
        quality = score_page(page, "other", parse(text[: len(text) - cut], SIZE), "length", random_weights=False)
        assert quality.runaway


@pytest.mark.parametrize("rest", ["<|ref|>" + "no end " * 200, "<|ref|>text<|/ref|><|det|>[" + "[1,2,3,4]," * 200])
def test_a_loop_inside_a_span_is_a_loop(rest: str) -> None:
    parsed = parse(span("[[1,2,3,4]]", "Thank you") + rest, SIZE)
    assert parsed.plain.startswith("Thank you")
    assert score_page(Page("a", "a.png", Path("a.png")), "other", parsed, "length", random_weights=False).runaway


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (640, 480), (20000, 1), (7, 5000)])
def test_boxes_lie_in_the_picture_and_are_not_empty(size: tuple[int, int]) -> None:
    source = random.Random(1)
    for _ in range(300):
        x1, x2 = sorted(source.sample(range(1000), 2))
        y1, y2 = sorted(source.sample(range(1000), 2))
        (box,) = parse(span(f"[[{x1},{y1},{x2},{y2}]]"), size).boxes
        left, top, right, bottom = box.box
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]


def test_labels_are_one_line() -> None:
    assert parse(span("[[1,2,3,4]]", " a\nb\t c "), SIZE).boxes[0].label == "a b c"


def test_any_text_is_read() -> None:
    """Random mixtures of tags, brackets, numbers and debris: never an error, nothing lost but whole spans."""
    source = random.Random(7)
    tags = ["<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "[[", "]]", "[", "]", ",", "12", "999", "1000", "-1", "nan"]
    debris = [EOS, "<|", "|>", "\n", "é", "\x00", "\ud800", "𝕏", "<|grounding|>", " ", "text", "0.5", "1e9"]
    for _ in range(3000):
        text = "".join(source.choices(tags + debris, k=source.randrange(60)))
        parsed = parse(text, (source.randrange(1, 3000), source.randrange(1, 3000)))
        assert len(parsed.plain) <= len(text)
        assert EOS not in parsed.plain
        if "<|det|>" not in text:
            assert parsed.plain == text.replace(EOS, "")


@pytest.mark.parametrize(
    "unit",
    [
        *("<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "[", "]", "[[", "[1,2,3,4]", "[1,", "<|", "1", " ", "<"),
        *("<|ref|>a<|/ref|>", "<|ref|>a<|/ref|><|det|>", "<|ref|>a<|/ref|><|det|>[[1,2,3,4]]<|/det|>", ", ", "1."),
    ],
)
@pytest.mark.parametrize("frame", ["{}", "<|ref|>a<|/ref|><|det|>[{}]<|/det|>"])
def test_time_is_linear(unit: str, frame: str) -> None:
    """A megabyte of any of these takes well under the minutes that a quadratic reader would need."""
    text = frame.format(unit * (1_000_000 // len(unit)))
    start = time.perf_counter()
    parse(text, SIZE)
    assert time.perf_counter() - start < 10


def test_named_prompts() -> None:
    assert prompts.prompt_text("markdown") == "<image>\n<|grounding|>Convert the document to markdown."
    assert prompts.prompt_text("free") == "<image>\nFree OCR."


@pytest.mark.parametrize(
    "prompt, text, kind",
    [
        ("markdown", prompts.MARKDOWN, "markdown"),
        (prompts.MARKDOWN, prompts.MARKDOWN, "markdown"),
        ("<|grounding|>Convert the document to markdown.", prompts.MARKDOWN, "markdown"),
        ("free", prompts.FREE, "free"),
        ("Free OCR.", prompts.FREE, "free"),
        ("Parse the figure.", "<image>\nParse the figure.", "other"),
        ("Look: <image>", "Look: <image>", "other"),
        ("", "<image>\n", "other"),
        # Issue 15, line 6: a line break as a shell or an ini file keeps it.
        (r"<image>\nFree OCR.", prompts.FREE, "free"),
        (r"<image>\n<|grounding|>Convert the document to markdown.", prompts.MARKDOWN, "markdown"),
        (r"\nabla is a sign.", "<image>\n\\nabla is a sign.", "other"),
        (r"<image>\nParse the figure.", "<image>\nParse the figure.", "other"),
        (r"Look:\n<image>\n", "Look:\n<image>\n", "other"),
        (r"Write $\nabla$.", "<image>\nWrite $\\nabla$.", "other"),
        (r"<image> a\nb", "<image> a\\nb", "other"),
    ],
)
def test_prompts(prompt: str, text: str, kind: str) -> None:
    assert prompts.prompt_text(prompt) == text
    assert prompts.prompt_kind(prompt) == kind


def test_split_prompt() -> None:
    assert prompts.split_prompt("a <image> b") == ("a ", " b")


def test_two_pictures() -> None:
    with pytest.raises(ModelError, match="has <image> 2 times"):
        prompts.prompt_text("<image><image>")


@pytest.fixture
def full() -> BuiltInTokenizer:
    return BuiltInTokenizer(129280, 128815)


@pytest.mark.parametrize("text", [prompts.MARKDOWN, prompts.FREE, "ünï ©ode \U0001f600", "", span("[[1,2,3,4]]") + EOS])
def test_tokenizer_round_trip(full: BuiltInTokenizer, text: str) -> None:
    assert full.decode(full.encode(text)) == text


def test_tokenizer_ids(full: BuiltInTokenizer) -> None:
    assert full.encode(f"<｜begin▁of▁sentence｜>{EOS}<image><|ref|>") == [0, 1, 128815, 128816]
    assert full.token_id("<image>") == 128815
    assert full.token_id("nothing") is None
    # About as long as with the released tokenizer, so that timings of random weights are of the same size.
    assert 6 <= len(full.encode(prompts.MARKDOWN)) <= 12


def test_every_id_has_a_text(full: BuiltInTokenizer) -> None:
    words = [full.decode([number]) for number in range(129280)]
    assert all(words)
    made_up = [word for word in words[300:] if word.startswith(" ")]
    assert len(set(made_up)) == len(made_up) > 128000
    assert full.decode([-1, 129280]) == ""


def test_too_small_a_vocabulary() -> None:
    with pytest.raises(ModelError, match="cannot put <image> at 100 of 512"):
        BuiltInTokenizer(512, 100)


def test_describing_the_model_imports_no_torch() -> None:
    program = (
        "import sys; from pytest_llmprof.models import packaged_models; plugin, other = packaged_models(); "
        "assert other.modes == ('native',); "
        "assert plugin.modes == ('tiny', 'small', 'base', 'large', 'gundam'); "
        "assert not {'torch', 'transformers', 'numpy', 'PIL', 'nvtx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
