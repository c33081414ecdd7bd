"""Formats of boxes: an answer -> boxes in pixels of the source image, and the text without them.

Answers are untrusted: no text raises an error, and what is not a box is counted in `ParsedOutput.bad_boxes`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pytest_llmprof.models.base import BoxFormat, ParsedOutput
from pytest_llmprof.models.deepseek_ocr import parsing
from pytest_llmprof.records.predictions import Box

Size = tuple[int, int]
_NUMBER = re.compile(r"\d{1,6}")
_OBJECT = re.compile(r"\{[^{}]*\}")


@dataclass(frozen=True)
class _Found:
    """One box as written."""

    label: str
    numbers: Sequence[float]
    """x, y of two or more corners."""
    text: str


@dataclass(frozen=True)
class Spans:
    """A format whose boxes a pattern finds. Its groups: `numbers`, and if it has them `label` and `text`.

    Without a group `text` the text of a box is what follows it, up to the next one.
    """

    pattern: re.Pattern[str]
    scale: float
    """The number that stands for the image's whole width or height."""
    corners: int = 2

    def read(self, text: str, size: Size, resized: Size | None) -> ParsedOutput:
        """See `BoxFormat.read`."""
        matches = list(self.pattern.finditer(text))
        starts = [match.start() for match in matches[1:]] + [len(text)]
        inline = "text" in self.pattern.groupindex
        found = [
            _Found(
                match.groupdict().get("label") or "text",
                [float(number) for number in _NUMBER.findall(match["numbers"])],
                (match["text"] if inline else text[match.end() : start]) or "",
            )
            for match, start in zip(matches, starts, strict=bool(matches))
        ]
        plain = self.pattern.sub(lambda match: (match["text"] or "") if inline else "", text)
        return _output(plain, found, size, (self.scale, self.scale), self.corners)


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
    if not all(math.isfinite(number) for number in numbers):
        return None
    columns, rows = ([number / scale for number in numbers[axis::2]] for axis, scale in enumerate(scales))
    if min(*columns, *rows) < 0 or max(*columns, *rows) > 1:
        return None
    left, right = (round(edge(columns) * size[0]) for edge in (min, max))
    top, bottom = (round(edge(rows) * size[1]) for edge in (min, max))
    return (left, top, right, bottom) if left < right and top < bottom else None


def _deepseek(text: str, size: Size, resized: Size | None) -> ParsedOutput:
    return parsing.parse(text, size, ())


def _objects(text: str) -> Iterator[dict[str, Any] | None]:
    """The innermost JSON objects of *text*, None for what looks like one and is not."""
    for match in _OBJECT.finditer(text):
        try:
            value = json.loads(match[0])
        except (ValueError, RecursionError):
            value = None
        yield value if isinstance(value, dict) else None


def _json(text: str, size: Size, resized: Size | None, *, grid: int | None) -> ParsedOutput:
    """JSON objects with `bbox_2d` (or `bbox`); *grid* None: in pixels of the resized image."""
    found, broken = [], 0
    for item in _objects(text):
        if item is None:
            broken += 1
            continue
        numbers = next((item[key] for key in ("bbox_2d", "bbox") if key in item), None)
        if numbers is None:
            continue
        good = isinstance(numbers, list) and all(type(number) in (int, float) for number in numbers)
        words = [str(item.get(key) or "") for key in ("label", "category", "text_content", "text")]
        found.append(_Found(words[0] or words[1] or "text", numbers if good else (), words[2] or words[3]))
    whole = (resized or size) if grid is None else (grid, grid)
    output = _output(text, found, size, (whole[0], whole[1]))
    return ParsedOutput(text, output.boxes, output.bad_boxes + broken)


def _spans(pattern: str, scale: float, corners: int = 2) -> Callable[[str, Size, Size | None], ParsedOutput]:
    return Spans(re.compile(pattern, re.DOTALL), scale, corners).read


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
        _spans(r"(?P<text>[^<\n]{0,2000})(?P<numbers>(?:<\|LOC_\d{1,4}\|>){8})", 1000, 4),
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
        _spans(r"<(?P<label>[a-z_0-9]{1,40})>(?P<numbers>(?:<loc_\d{1,4}>){4})(?P<text>[^<]*)", 500),
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
