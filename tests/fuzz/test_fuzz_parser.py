"""Answers of a model: no text raises an error, what was put into one is read out of it, loops are told from pages."""

from __future__ import annotations

import time

import answers
from answers import LOOPS, PAGES
from broken import SLOW
from hypothesis import assume, given
from hypothesis import strategies as st

from pytest_llmprof.models.base import BoxFormat
from pytest_llmprof.models.deepseek_ocr.parsing import SPECIAL, parse
from pytest_llmprof.models.deepseek_ocr.prompts import FREE, IMAGE, MARKDOWN, prompt_kind, prompt_text, split_prompt
from pytest_llmprof.models.from_transformers.boxes import FORMATS
from pytest_llmprof.models.from_transformers.plain import plain_text
from pytest_llmprof.quality.repetition import repetition, runaway
from pytest_llmprof.quality.text import character_edits, normalise, word_edits, words

TAGS = ["<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>"]
PIECES = [
    *(*TAGS, *SPECIAL, "<|", "|>", "<|grounding|>"),
    *("[[", "]]", "[", "]", ",", "[[1,2,3,4]]", "[[0,0,999,999]]", "[[999,0,0,9]]", "1e5", "-1", "1000", "9" * 400),
    *("0." + "3" * 40, "٣", "nan", " ", "\n", "title", "text", "a" * 300, "\ud800", "\0"),
]
ANSWERS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8)), max_size=40).map("".join)
MARKS = [
    *PIECES,
    *("<|det|>a [1, 2, 3, 4]<|/det|>", "<|LOC_1|>" * 4, "<|LOC_9|>" * 4, "<text>", "<loc_1>", "<fcel>", "<nl>"),
    *("<|box_start|>1 2 3 4<|box_end|>", "<|ref_start|>text<|ref_end|>", "{", "}", '"', "\\", '"bbox": [1,2,3,4]'),
    *('"bbox_2d":', '"text":', "```", "```json\n", "<td>", "<p", "</", "<!", "<!--", "<![", "<script>", "&#", "='"),
]
MARKED = st.lists(st.one_of(st.sampled_from(MARKS), st.text(max_size=8)), max_size=40).map("".join)
MARKUPS = ("text", "html", "doctags", "json")
SIZES = st.tuples(st.integers(1, 20_000), st.integers(1, 20_000))
WORDS = st.text(st.characters(blacklist_characters="<|>", blacklist_categories=["Cs"]), min_size=1, max_size=12)
CORNER = st.integers(0, 998)


@given(ANSWERS, SIZES)
def test_any_text(text: str, size: tuple[int, int]) -> None:
    found = parse(text, size)
    assert found.bad_boxes >= 0
    # What is removed never grows the text, labels that stand for it aside.
    assert len(found.plain) <= len(text) + text.count("<|ref|>")
    for box in found.boxes:
        left, top, right, bottom = box.box
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        assert box.label == " ".join(box.label.split())
        assert not any(tag in box.text for tag in SPECIAL) or any(tag in text.replace(tag, "") for tag in SPECIAL)


@given(st.sampled_from(FORMATS), MARKED, SIZES, st.sampled_from(MARKUPS))
def test_any_text_of_document_models(form: BoxFormat, text: str, size: tuple[int, int], markup: str) -> None:
    found = form.read(text, size, (28, 28))
    assert found.bad_boxes >= 0
    assert all(0 <= left < right <= size[0] for left, _, right, _ in (box.box for box in found.boxes))
    assert all(0 <= top < bottom <= size[1] for _, top, _, bottom in (box.box for box in found.boxes))
    plain_text(found.plain, markup)


@given(st.lists(st.tuples(WORDS, CORNER, CORNER, WORDS.filter(str.strip)), min_size=1, max_size=6), SIZES)
def test_blocks_that_are_written_are_read(blocks: list[tuple[str, int, int, str]], size: tuple[int, int]) -> None:
    """Each block's label, box and text; the plain text is the blocks' texts."""
    answer = "".join(
        f"<|ref|>{label}<|/ref|><|det|>[[{x},{y},{x + 1},{y + 1}]]<|/det|>{text}" for label, x, y, text in blocks
    )
    found = parse(answer + SPECIAL[1], size)
    assert found.bad_boxes == 0
    assert found.plain == "".join(text for *_, text in blocks)
    assert [(box.label, box.text) for box in found.boxes] == [
        (" ".join(label.split()), text.strip()) for label, _, _, text in blocks
    ]
    for box, (_, x, y, _) in zip(found.boxes, blocks, strict=True):
        assert abs(box.box[0] - x / 999 * size[0]) <= 1
        assert abs(box.box[1] - y / 999 * size[1]) <= 1


@given(st.lists(st.tuples(WORDS.map(lambda text: f"Line {text}"), CORNER), min_size=1, max_size=6))
def test_labels_without_text_behind_them_are_the_text(labels: list[tuple[str, int]]) -> None:
    """The answer to "OCR this image."."""
    answer = "".join(f"<|ref|>{label}<|/ref|><|det|>[[{x},1,{x + 1},9]]<|/det|>" for label, x in labels)
    found = parse(answer, (999, 999))
    assert found.plain == "".join(f"{label}\n" for label, _ in labels)
    assert [box.text for box in found.boxes] == [" ".join(label.split()) for label, _ in labels]


@given(st.sampled_from(PIECES), st.sampled_from(PIECES), st.integers(1, 2000))
def test_time(first: str, second: str, times: int) -> None:
    assume(len(first + second) < 50)
    begin = time.process_time()
    parse((first + second) * times, (100, 100))
    assert time.process_time() - begin < 5


@given(st.sampled_from(MARKS), st.sampled_from(MARKS), st.integers(1, 2000))
def test_time_of_document_models(first: str, second: str, times: int) -> None:
    assume(len(first + second) < 50)
    begin = time.process_time()
    for form in FORMATS:
        form.read((first + second) * times, (100, 100), (28, 28))
    for markup in MARKUPS:
        plain_text((first + second) * times, markup)
    assert time.process_time() - begin < 5


@given(st.one_of(st.text(max_size=30), st.sampled_from(["markdown", "free", FREE, MARKDOWN, IMAGE, r"\n", "\n"])))
def test_prompts(text: str) -> None:
    """The image is in each prompt once, and a line break typed as a backslash and an n is one beside it."""
    assume(text.count(IMAGE) <= 1)
    whole = prompt_text(text)
    assert whole.count(IMAGE) == 1
    assert IMAGE.join(split_prompt(text)) == whole
    assert prompt_text(whole) == whole
    assert prompt_kind(whole) == prompt_kind(text)
    typed = whole.replace(f"{IMAGE}\n", rf"{IMAGE}\n")
    assert prompt_text(typed) == whole


# A block's text, as models write it.
CELLS = st.text("abc 0189.,$€末", max_size=6)
ROWS = st.lists(st.lists(CELLS, min_size=1, max_size=4), min_size=1, max_size=4)
TABLES = ROWS.map(
    lambda rows: "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
).map("<table>{}</table>".format)
PIPES = ROWS.map(lambda rows: "".join(f"| {' | '.join(row)} |\n" for row in rows))
OTHER = st.sampled_from([r"\[ x < y \]", "a <| b", "[[1,2,3,4]]", "# Title\n\n- item"])
TEXTS = st.one_of(WORDS, TABLES, PIPES, OTHER)
BOXES = st.lists(st.tuples(CORNER, CORNER), min_size=1, max_size=3)


def corners(boxes: list[tuple[int, int]]) -> str:
    return f"[{', '.join(f'[{x}, {y}, {x + 1}, {y + 1}]' for x, y in boxes)}]"


@given(st.lists(st.tuples(WORDS, BOXES, TEXTS), min_size=1, max_size=5), st.sampled_from(["", *SPECIAL]))
def test_blocks_with_tables_and_several_boxes(
    blocks: list[tuple[str, list[tuple[int, int]], str]], end: str
) -> None:
    assume(any(text.strip() for *_, text in blocks))
    answer = "".join(
        f"<|ref|>{label}<|/ref|><|det|>{corners(boxes)}<|/det|>\n{text}\n"
        for label, boxes, text in blocks
    )
    found = parse(answer + end, (999, 999))
    assert found.bad_boxes == 0
    assert found.plain == "".join(f"\n{text}\n" for *_, text in blocks)
    assert [(box.label, box.text, tuple(box.box)) for box in found.boxes] == [
        (" ".join(label.split()), text.strip(), (x, y, x + 1, y + 1)) for label, boxes, text in blocks for x, y in boxes
    ]


@given(ANSWERS, st.integers(0, 4000))
def test_an_answer_that_is_cut_off(text: str, length: int) -> None:
    """What was read of it before its last tag is read of its beginning, too: no box changes as the answer goes on."""
    whole, part = parse(text, (999, 999)), parse(text[:length], (999, 999))
    keep = [(box.label, box.box) for box in part.boxes]
    assert keep == [(box.label, box.box) for box in whole.boxes][: len(keep)]


@SLOW
@given(st.sampled_from(sorted(LOOPS)), st.integers(0, 2**32), st.integers(6_000, 12_000), WORDS)
def test_loops_are_found(name: str, seed: int, length: int, start: str) -> None:
    """Also inside grounding spans."""
    text = start + answers.answer(LOOPS[name], length, seed)
    assert runaway(text, "length")
    assert not runaway(text, "eos")
    found = parse(f"<|ref|>text<|/ref|><|det|>[[1,1,9,9]]<|/det|>\n{text}", (999, 999))
    assert runaway(found.plain if found.loop_text is None else found.loop_text, "length")


@given(st.sampled_from(sorted(PAGES)), st.integers(0, 2**32), st.integers(400, 9_000))
def test_pages_are_no_loops(name: str, seed: int, length: int) -> None:
    assert not runaway(answers.answer(PAGES[name], length, seed), "length")


@given(st.text(min_size=1, max_size=30).filter(str.strip), st.integers(6, 60), st.text(max_size=100))
def test_any_unit_again_and_again_is_a_loop(unit: str, times: int, start: str) -> None:
    times = max(times, 250 // len(unit.strip()) + 2)
    assert runaway(start + unit * times, "length")


def distance(truth: str, answer: str) -> int:
    """Levenshtein distance by its definition, row by row."""
    row = list(range(len(answer) + 1))
    for number, one in enumerate(truth, 1):
        before, row[0] = row[0], number
        for place, other in enumerate(answer, 1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (one != other))
    return row[-1]


SHORT = st.text("ab \n#é末e\u0301", max_size=25) | st.text(max_size=15)


@given(SHORT, SHORT)
def test_edits_are_those_of_the_definition(truth: str, answer: str) -> None:
    count = character_edits(truth, answer)
    assert (count.edits, count.length) == (distance(normalise(truth), normalise(answer)), len(normalise(truth)))
    units = [words(normalise(text)) for text in (truth, answer)]
    letters = {word: chr(0x4E00 + number) for number, word in enumerate(dict.fromkeys([*units[0], *units[1]]))}
    spelt = ["".join(map(letters.__getitem__, one)) for one in units]
    assert word_edits(truth, answer).edits == distance(*spelt)


@given(st.text("ab \n末", max_size=40) | st.text(max_size=30))
def test_repetition_is_that_of_the_definition(text: str) -> None:
    units = words(text) if len(words(text)) > 1 else list(text.strip())
    grams = [tuple(units[place : place + 4]) for place in range(len(units) - 3)]
    assert repetition(text) == (1 - len(set(grams)) / len(grams) if grams else 0.0)
