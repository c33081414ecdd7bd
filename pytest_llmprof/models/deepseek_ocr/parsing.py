"""Read an answer: plain text and labelled boxes. The text is untrusted, and no text raises an error.

Grounded answers hold spans ``<|ref|>LABEL<|/ref|><|det|>[[x1,y1,x2,y2], ...]<|/det|>``, each followed by its block's
text. If no span has text behind it and the labels are not names of layout blocks, the labels are the text: this is the
answer to "OCR this image.". Coordinates run from 0 to 999 over the image's width and height. Time is linear in the
answer's length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from pytest_llmprof.models.base import ParsedOutput
from pytest_llmprof.records.predictions import Box

SPECIAL = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>")
"""Tokens that frame an answer: begin, end, padding."""
_TAG = re.compile(r"<\|(/?)(ref|det)\|>")
_OPEN = re.compile(r"\s*\[")
_GROUP = re.compile(r"\[([^\[\]]*)\]")
_REST = re.compile(r"[\s,]*\]\s*")
_NUMBER = re.compile(r"\s*([0-9]{1,9}(?:\.[0-9]{0,30})?)\s*")
_SCALE = 999
_BLOCKS = frozenset((
    *("title", "sub_title", "text", "list", "code", "header", "footer", "footnote", "page_number", "reference"),
    *("table", "table_caption", "table_footnote", "image", "image_caption", "figure", "figure_caption", "chart"),
    *("equation", "formula", "caption", "seal"),
))
"""Labels that name a block of the page's layout."""
_LONG_REST = 200
"""A span that the answer's end cuts off stays in the text for loops from this length on: it may be the loop."""


class _Span(NamedTuple):
    """A whole grounding span: its place in the text, label and coordinates as written."""

    start: int
    end: int
    label: str
    det: str


def parse(text: str, size: tuple[int, int], special: Iterable[str] = SPECIAL) -> ParsedOutput:
    """Read the answer *text* about an image of *size* (width, height) in pixels.

    Tokens in *special* are removed from the plain text. A box that is malformed, incomplete, out of range or empty is
    skipped and counted in `ParsedOutput.bad_boxes`, as is a span that is cut off.
    """
    for token in special:
        text = text.replace(token, "")
    spans, cut, bad = _spans(text)
    starts = [span.start for span in spans] + [len(text)]
    before = text[: starts[0]]
    blocks = [text[span.end : start] for span, start in zip(spans, starts[1:], strict=True)]
    boxes: list[Box] = []
    for span, block in zip(spans, blocks, strict=True):
        good, failed = _coordinates(span.det)
        bad += failed
        label = " ".join(span.label.split())
        boxes.extend(Box(label, _pixels(corners, size), block.strip()) for corners in good)
    plain = before + "".join(blocks)
    if not spans:
        return ParsedOutput(plain, (), bad)
    rest = text[cut:]
    blocks[-1] = blocks[-1].removesuffix(rest)
    labelled = before + "".join(
        block if block.strip() else f"{span.label}\n{block}" for span, block in zip(spans, blocks, strict=True)
    )
    loop_text = labelled + rest * (len(rest) >= _LONG_REST)
    if any(block.strip() for block in blocks) or all(span.label.strip() in _BLOCKS for span in spans):
        return ParsedOutput(plain, tuple(boxes), bad, loop_text)
    unfinished = rest.removeprefix("<|ref|>").partition("<|")[0]
    boxes = [msgspec.structs.replace(box, text=box.label) for box in boxes]
    return ParsedOutput(labelled + unfinished, tuple(boxes), bad, loop_text)


def _spans(text: str) -> tuple[list[_Span], int, int]:
    """Find the whole spans, in order, where one begins that the text's end cuts off, and how many are broken."""
    spans: list[_Span] = []
    broken = 0
    expected = 0  # position in the sequence <|ref|> <|/ref|> <|det|> <|/det|>
    start = opened = 0
    label = ""
    for match in _TAG.finditer(text):
        closing, name = bool(match[1]), match[2]
        if name == "ref" and not closing:  # always starts a new span
            broken += expected > 0
            start, opened, expected = match.start(), match.end(), 1
        elif expected == 1 and name == "ref":
            label, opened, expected = text[opened : match.start()], match.end(), 2
        elif expected == 2 and not closing and not text[opened : match.start()].strip():
            opened, expected = match.end(), 3
        elif expected == 3 and closing and name == "det":
            spans.append(_Span(start, match.end(), label, text[opened : match.start()]))
            expected = 0
        else:  # a tag out of place ends whatever was open
            broken += 1
            expected = 0
    return spans, start if expected else len(text), broken + (expected > 0)


def _coordinates(det: str) -> tuple[list[tuple[float, float, float, float]], int]:
    """Read ``[[x1,y1,x2,y2], ...]``: the good boxes, and how many were bad."""
    opening = _OPEN.match(det)
    if opening is None:
        return [], 1
    body = det[opening.end() :]
    good, bad = [], 0
    for corners in map(_corners, _GROUP.findall(body)):
        if corners is None:
            bad += 1
        else:
            good.append(corners)
    tidy = _REST.fullmatch(_GROUP.sub("", body)) is not None
    return good, bad + (not tidy or not (good or bad))


def _corners(group: str) -> tuple[float, float, float, float] | None:
    """Return x1, y1, x2, y2 in 0..999, or None where the group is not a box with an area."""
    matches = [_NUMBER.fullmatch(part) for part in group.split(",", 4)]
    values = [float(match[1]) for match in matches if match]
    if len(matches) != 4 or len(values) != 4 or max(values) > _SCALE:
        return None
    x1, y1, x2, y2 = values
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def _pixels(corners: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Scale corners to pixels (v / 999 * length, rounded); the box keeps at least one pixel each way."""
    x1, y1, x2, y2 = corners
    (left, right), (top, bottom) = _interval(x1, x2, size[0]), _interval(y1, y2, size[1])
    return left, top, right, bottom


def _interval(low: float, high: float, length: int) -> tuple[int, int]:
    first = min(round(low / _SCALE * length), max(length - 1, 0))
    return first, max(round(high / _SCALE * length), first + 1)
