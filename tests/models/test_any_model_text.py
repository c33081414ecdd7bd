"""Answers of document models: boxes in pixels of the source image, and the text that is scored."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_any_model import ALONE, BOXES, preset

from pytest_llmprof.config.schema import FamilySettings
from pytest_llmprof.errors import ModelError
from pytest_llmprof.models.base import BoxFormat, ParsedOutput
from pytest_llmprof.models.from_transformers import prompts
from pytest_llmprof.models.from_transformers.boxes import FORMATS
from pytest_llmprof.models.from_transformers.loader import load
from pytest_llmprof.models.from_transformers.plain import plain_text

SIZE = (1000, 500)
READ = {one.name: one.read for one in FORMATS}
WHOLE = (0, 0, 1000, 500)
LOCS = "".join(f"<|LOC_{number}|>" for number in (100, 200, 300, 200, 300, 400, 100, 400))
ANSWERS = [
    ("none", "a <loc_1> b", "a <loc_1> b", []),
    ("deepseek", "<|ref|>title<|/ref|><|det|>[[0, 0, 999, 999]]<|/det|>\nHi", "\nHi", [("title", WHOLE, "Hi")]),
    (
        "unlimited",
        "<|det|>title [0, 0, 999, 999]<|/det|>Hi<|det|>text [0, 0, 0, 9]<|/det|>you",
        "Hiyou",
        [("title", WHOLE, "Hi")],
    ),
    ("paddle", f"Total{LOCS}\nrest", "Total\nrest", [("text", (100, 100, 300, 200), "Total")]),
    (
        "mineru",
        "<|box_start|>100 200 300 400<|box_end|><|ref_start|>text<|ref_end|>Hi",
        "Hi",
        [("text", (100, 100, 300, 200), "Hi")],
    ),
    (
        "doctags",
        "<text><loc_50><loc_100><loc_150><loc_200>Hi</text>",
        "Hi</text>",
        [("text", (100, 100, 300, 200), "Hi")],
    ),
    (
        "qwen",
        '[{"bbox_2d": [100, 200, 300, 400], "label": "stamp"}]',
        None,
        [("stamp", (100, 100, 300, 200), "")],
    ),
]


@pytest.mark.parametrize(("name", "answer", "plain", "boxes"), ANSWERS, ids=[row[0] for row in ANSWERS])
def test_boxes_are_in_pixels_of_the_source(name, answer, plain, boxes):
    found = READ[name](answer, SIZE, None)
    assert found.plain == (answer if plain is None else plain)
    assert [(box.label, box.box, box.text) for box in found.boxes] == boxes


def test_pixels_of_the_resized_image():
    answer = '```json\n[{"bbox_2d": [28, 28, 56, 56], "text": "Hi"}]\n```'
    (box,) = READ["qwen2_5"](answer, SIZE, (280, 140)).boxes
    assert box.box == (100, 100, 200, 200)
    assert box.text == "Hi"


@pytest.mark.parametrize("name", sorted(READ))
@pytest.mark.parametrize(
    "answer",
    [
        "",
        "<|det|>a [1, 2, 3]<|/det|>",
        "<|ref|>a<|/ref|><|det|>[[9999, 0, 1, 2]]<|/det|>",
        '{"bbox_2d": [1, 2, 1e999, "x"]}',
        '{"bbox_2d": [5, 5, 1, 1, 7]}',
        '{"bbox_2d": [1, 2, 3, 1' + "0" * 400 + "]}",
        "<a><loc_600><loc_0><loc_9><loc_9>",
        "{" * 3000,
        "<|LOC_1|>" * 3001,
        "<" * 20_000,
    ],
)
def test_no_answer_raises_an_error(name, answer):
    found = READ[name](answer, SIZE, None)
    assert all(0 <= edge <= 1000 for box in found.boxes for edge in box.box)


LONG = (
    *("a" * 60_000, "\n" * 60_000, "```" + "\n" * 60_000, '{"a":"\\"{' * 6000),
    *('{"a":' * 12_000, "{" * 60_000, '{"' * 30_000, '[{"a":[{},' * 6000, '{"a":' + "9" * 60_000 + "}"),
    *("<|LOC_1|>" * 6000, "<a " * 20_000, "<!--" * 50_000),
)
"""Answers in a loop, about as long as they may be."""


@pytest.mark.parametrize("answer", LONG, ids=lambda answer: answer[:12])
def test_a_long_answer_takes_no_minutes(answer):
    begin = time.process_time()
    for read in READ.values():
        read(answer, SIZE, None)
    for markup in ("text", "html", "doctags", "json"):
        plain_text(answer, markup)
    assert time.process_time() - begin < 20


def test_braces_in_a_text_are_not_an_objects():
    answer = json.dumps([{"bbox_2d": [100, 200, 300, 400], "text": r"\frac{a}{b} \"{"}])
    found = READ["qwen"](answer, SIZE, None)
    assert [(box.box, box.text) for box in found.boxes] == [((100, 100, 300, 200), r"\frac{a}{b} \"{")]
    assert found.bad_boxes == 0
    assert READ["qwen"](r"$\frac{a}{b}$", SIZE, None).bad_boxes == 0


def test_objects_in_an_object_with_a_box():
    inner = {"bbox_2d": [0, 0, 100, 100], "label": "line", "text": "a"}
    table = {"bbox_2d": [0, 0, 500, 500], "label": "table", "style": {"rows": {"n": 2}}, "lines": [inner, [inner]]}
    for answer, labels in (([table, inner], ["table", "line", "line", "line"]), ({"page": [inner]}, ["line"])):
        found = READ["qwen"](f"Here: {json.dumps(answer)}!", SIZE, None)
        assert [box.label for box in found.boxes] == labels
        assert found.bad_boxes == 0
    found = READ["qwen"](json.dumps([inner, table])[:-9], SIZE, None)
    assert ([box.label for box in found.boxes], found.bad_boxes) == (["line", "line"], 2), "cut off in the last line"


def test_the_text_of_a_box_ends_at_the_next_one():
    found = READ["paddle"](f"a > b{LOCS} c{LOCS}{LOCS}\nd{LOCS}", SIZE, None)
    assert [box.text for box in found.boxes] == ["a > b", "c", "", "d"]
    assert found.plain == "a > b c\nd"


def test_bad_boxes_are_counted():
    assert READ["unlimited"]("<|det|>a [5, 5, 5, 9]<|/det|><|det|>b [1, 2, 3]<|/det|>", SIZE, None).bad_boxes == 2
    assert READ["qwen"]('{"bbox_2d": [1, 2]} {"bbox_2d": "x"} {"bbox": bad}', SIZE, None).bad_boxes == 3
    assert READ["qwen"]('{"bbox_2d": [1, 2, 3, 4], "bbox": 1}, {"bbox_2d": [1', SIZE, None).bad_boxes == 1, "cut off"
    assert READ["doctags"]("<a><loc_600><loc_0><loc_9><loc_9>", SIZE, None).bad_boxes == 1


@pytest.mark.parametrize(
    ("markup", "answer", "plain"),
    [
        ("text", "# Title\n<b>", "# Title\n<b>"),
        (
            "html",
            "<html><head><style>x</style></head><h1>Title</h1><table><tr><td>a &amp; b</td><td>c</td></tr></table>",
            "Title a & b c",
        ),
        ("html", "<p>a<![if x]>b<![endif]></p>c<![", "a<![if x]>b<![endif]> c<!["),
        ("html", "<head><title>x</title><body>a</body>", "a"),
        ("html", "a < b <i>c</i> <!-- 1 < 2 --> d <br> 2<3 <td", "a < b c d 2<3 <td"),
        ("html", "<p>a <![foo[ b", "a <![foo[ b"),
        ("html", "<!-- a --> b <!-- c", "b <!-- c"),
        ("doctags", "<doctag><title>Title</title><otsl><fcel>a<fcel>b<nl></otsl></doctag>", "Title a b"),
        ("json", json.dumps([{"category": "title", "text": "Title"}, {"bbox": [1], "text": "a"}]), "Title a"),
        ("json", '```json\n{"page": [{"content": "a"}]}\n```', "a"),
        ("json", '[{"text": "", "html": "a"}, {"text": " ", "lines": [{"text": "b"}]}]', "a b"),
        ("json", '``` \n{"text": "a"}```', "a"),
        ("json", "no { json", "no { json"),
    ],
)
def test_the_text_that_is_scored(markup, answer, plain):
    assert plain_text(answer, markup).split() == plain.split()


class _Processor:
    image_token = "<i>"
    chat_template = None


def test_prompts():
    family = FamilySettings(markdown=None, free="OCR:", template="{image}\n{prompt}")
    assert prompts.asked(family, "markdown") == prompts.asked(family, "free") == ("free", "OCR:")
    assert prompts.asked(family, "OCR:") == ("free", "OCR:")
    assert prompts.asked(family, "<image>\nSpotting:") == ("other", "Spotting:")
    assert prompts.whole_prompt(_Processor(), family, "OCR:", "here") == "<i>\nOCR:"
    with pytest.raises(ModelError, match="leave it out"):
        prompts.asked(family, "see <image>")
    with pytest.raises(ModelError, match=r"has no chat template: choose .* model\.family\.template"):
        prompts.whole_prompt(_Processor(), FamilySettings(), "OCR:", "here")


def test_the_end_of_an_answer_is_left_out_and_no_other_text(path: Path):
    """A token that ends an answer may also be text, or part of one: of `stop` the end alone is left out. What the
    checkpoint's generation_config ends with is left out, too, and stands in no box."""
    config = json.loads((path / "generation_config.json").read_text())
    settings = preset("paddleocr_vl", path)
    settings = replace(settings, family=replace(settings.family, stop=("O", "\u010a"), boxes="unlimited"))
    end = "<|IMAGE_END|>"
    model = load(settings, ALONE, BOXES)
    config["eos_token_id"] = [2, model.tokenizer.convert_tokens_to_ids(end)]
    model.close()
    (path / "generation_config.json").write_text(json.dumps(config))
    model = load(settings, ALONE, BOXES)
    assert {model.text([token]) for token in model.eos} == {"</s>", end, "O", "\n"}
    for last in ("</s>", end, "O", "\n"):
        assert model.parse(f"FOO\nO.{last}", (100, 100)).plain == "FOO\nO."
    assert model.parse("FOO\nO", (100, 100)).plain == "FOO\n", "one end, not two"
    found = model.parse("<|det|>text [1, 1, 500, 500]<|/det|>FOOO", (100, 100))
    assert (found.plain, found.boxes[0].text) == ("FOO", "FOO")


@pytest.mark.parametrize("returned", [None, ("text", [], 0), ParsedOutput(None), ParsedOutput(b"text")])  # type: ignore[arg-type]
def test_a_format_of_boxes_that_returns_something_else(path: Path, returned: Any):
    formats = {"mine": BoxFormat("mine", lambda text, size, resized: returned)}
    settings = preset("paddleocr_vl", path)
    model = load(replace(settings, family=replace(settings.family, boxes="mine")), ALONE, formats)
    with pytest.raises(ModelError, match=r"^the format of boxes 'mine' returned .*, which is no ParsedOutput"):
        model.parse("text", (10, 10))


@pytest.mark.parametrize(
    ("read", "words"),
    [(lambda text, size, resized: {}[text], "KeyError: 'text'"), (lambda text: None, "TypeError: "), (None, "TypeErr")],
)
def test_a_format_of_boxes_that_raises_is_named(path: Path, read: Any, words: str):
    settings = preset("paddleocr_vl", path)
    settings = replace(settings, family=replace(settings.family, boxes="mine"))
    model = load(settings, ALONE, {"mine": BoxFormat("mine", read)})
    with pytest.raises(ModelError, match=f"^the format of boxes 'mine' failed: {words}"):
        model.parse("text", (10, 10))
