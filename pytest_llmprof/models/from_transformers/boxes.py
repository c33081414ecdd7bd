"""Formats of boxes: an answer -> boxes in pixels of the source image, and the text without them.

Answers are untrusted: no text raises an error, and what is not a box is counted in `ParsedOutput.bad_boxes`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pytest_llmprof.models.base import BoxFormat, ParsedOutput
from pytest_llmprof.models.deepseek_ocr import parsing
from pytest_llmprof.records.predictions import Box

Size = tuple[int, int]
_NUMBER = re.compile(r"\d{1,6}")
_LINE_OR_TAG = re.compile(r"[<\n]")
_OBJECT = re.compile(r'\{\s*["}]')
"""The begin of a JSON object; in a formula a letter follows the brace."""
_DECODER = json.JSONDecoder()
_READ_IN_VAIN = 10_000_000
"""Characters of broken objects that are read in one answer: thousands of nested ones would take seconds."""
_BOX_KEYS = ("bbox_2d", "bbox")
_BOX_KEY = re.compile(rf'"(?:{"|".join(_BOX_KEYS)})"\s*:')


@dataclass(frozen=True)
class _Found:
    """One box as written."""

    label: str
    numbers: Sequence[float]
    """x, y of two or more corners."""
    text: str


def _all_after(before: str, after: str) -> str:
    return after


def _up_to_a_tag(before: str, after: str) -> str:
    return after.partition("<")[0]


def _the_line_before(before: str, after: str) -> str:
    return _LINE_OR_TAG.split(before)[-1]


@dataclass(frozen=True)
class Spans:
    """A format whose boxes a pattern finds. Its groups: `numbers`, and if it has one `label`."""

    pattern: re.Pattern[str]
    scale: float
    """The number that stands for the image's whole width or height."""
    corners: int = 2
    text_of: Callable[[str, str], str] = _all_after
    """The text of a box, out of what stands between it and the box before, and between it and the next one."""

    def read(self, text: str, size: Size, resized: Size | None) -> ParsedOutput:
        """See `BoxFormat.read`."""
        matches = list(self.pattern.finditer(text))
        ends = [0, *(match.end() for match in matches)]
        starts = [*(match.start() for match in matches), len(text)]
        between = [text[end:start] for end, start in zip(ends, starts, strict=True)]
        found = [
            _Found(
                match.groupdict().get("label") or "text",
                [float(number) for number in _NUMBER.findall(match["numbers"])],
                self.text_of(before, after),
            )
            for match, before, after in zip(matches, between[:-1], between[1:], strict=True)
        ]
        return _output("".join(between), found, size, (self.scale, self.scale), self.corners)


def _output(
    plain: str, found: Sequence[_Found], size: Size, scales: tuple[float, float], corners: int = 2
) -> ParsedOutput:
    boxes, bad = [], 0
    for one in found:
        box = _pixels(one.numbers, size, scales) if len(one.numbers) == 2 * corners else None
        if box is None:
            bad += 1
        else:
            boxes.append(Box(" ".join(one.label.split()), box, one.text.strip()))
    return ParsedOutput(plain, tuple(boxes), bad)


def _pixels(numbers: Sequence[float], size: Size, scales: tuple[float, float]) -> tuple[int, int, int, int] | None:
    """The box around the corners, in pixels of the source; None where it is outside the image or has no area."""
    axes = [(numbers[axis::2], scale) for axis, scale in enumerate(scales)]
    if not all(0 <= number <= scale for edges, scale in axes for number in edges):  # nor is NaN
        return None
    columns, rows = ([number / scale for number in edges] for edges, scale in axes)
    left, right = (round(edge(columns) * size[0]) for edge in (min, max))
    top, bottom = (round(edge(rows) * size[1]) for edge in (min, max))
    return (left, top, right, bottom) if left < right and top < bottom else None


def _deepseek(text: str, size: Size, resized: Size | None) -> ParsedOutput:
    return parsing.parse(text, size, ())


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects of *text*, each before those in it. What is cut off or broken is none, but those in it are."""
    start, left = 0, _READ_IN_VAIN
    while left > 0 and (begin := _OBJECT.search(text, start)):
        start = begin.start()
        try:
            value, start = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            left -= getattr(error, "pos", len(text)) - start
            start += 1
            continue
        rest = [value]
        while rest:
            value = rest.pop()
            if isinstance(value, dict):
                yield value
                value = list(value.values())
            rest += reversed(value) if isinstance(value, list) else ()


def _json(text: str, size: Size, resized: Size | None, *, grid: int | None) -> ParsedOutput:
    """JSON objects with `bbox_2d` (or `bbox`); *grid* None: in pixels of the resized image."""
    found: list[_Found] = []
    unread = len(_BOX_KEY.findall(text))
    for item in _objects(text):
        given = [item[key] for key in _BOX_KEYS if key in item]
        if not given:
            continue
        unread -= len(given)
        numbers = given[0]
        good = isinstance(numbers, list) and all(type(number) in (int, float) for number in numbers)
        words = [str(item.get(key) or "") for key in ("label", "category", "text_content", "text")]
        found.append(_Found(words[0] or words[1] or "text", numbers if good else (), words[2] or words[3]))
    whole = (resized or size) if grid is None else (grid, grid)
    output = _output(text, found, size, (whole[0], whole[1]))
    return replace(output, bad_boxes=output.bad_boxes + max(unread, 0))


def _spans(pattern: str, *how: Any) -> Callable[[str, Size, Size | None], ParsedOutput]:
    return Spans(re.compile(pattern), *how).read


FORMATS = (
    BoxFormat("none", lambda text, size, resized: ParsedOutput(text), "no boxes"),
    BoxFormat("deepseek", _deepseek, "`<|ref|>label<|/ref|><|det|>[[x1,y1,x2,y2]]<|/det|>`, 0 to 999"),
    BoxFormat(
        "unlimited",
        _spans(r"<\|det\|>(?P<label>\S{1,99}) \[(?P<numbers>[\d, ]{1,99})\]<\|/det\|>", 999),
        "`<|det|>label [x1, y1, x2, y2]<|/det|>text`, 0 to 999",
    ),
    BoxFormat(
        "paddle",
        _spans(r"(?P<numbers>(?:<\|LOC_\d{1,4}\|>){8})", 1000, 4, _the_line_before),
        "`text<|LOC_n|>` with eight numbers, four corners, 0 to 1000",
    ),
    BoxFormat(
        "mineru",
        _spans(
            r"<\|box_start\|>(?P<numbers>[\d ]{1,40})<\|box_end\|><\|ref_start\|>(?P<label>\w{1,99})<\|ref_end\|>"
            r"(?:<\|rotate_\w{1,20}\|>)?",
            1000,
        ),
        "`<|box_start|>x1 y1 x2 y2<|box_end|><|ref_start|>label<|ref_end|>`, 0 to 1000",
    ),
    BoxFormat(
        "doctags",
        _spans(r"<(?P<label>[a-z_0-9]{1,40})>(?P<numbers>(?:<loc_\d{1,4}>){4})", 500, 2, _up_to_a_tag),
        "`<label><loc_x1><loc_y1><loc_x2><loc_y2>text`, 0 to 500",
    ),
    BoxFormat("qwen", partial(_json, grid=1000), '`{"bbox_2d": [x1, y1, x2, y2], "label": …}`, 0 to 1000'),
    BoxFormat(
        "qwen2_5",
        partial(_json, grid=None),
        "the same in pixels of the image as the processor resized it",
        resized=True,
    ),
)
"""The packaged formats."""
