"""Read an answer: plain text and labelled boxes. The text is untrusted, and no text raises an error.

Grounded answers hold spans ``<|ref|>LABEL<|/ref|><|det|>[[x1,y1,x2,y2], ...]<|/det|>``, each followed by its block's
text. Coordinates run from 0 to 999 over the image's width and height. Time is linear in the answer's length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from pytest_llmprof.models.base import ParsedOutput
from pytest_llmprof.records.predictions import Box

__all__ = ["SPECIAL", "parse"]

SPECIAL = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>")
"""Tokens that frame an answer: begin, end, padding."""
_TAG = re.compile(r"<\|(/?)(ref|det)\|>")
_OPEN = re.compile(r"\s*\[")
_GROUP = re.compile(r"\[([^\[\]]*)\]")
_REST = re.compile(r"[\s,]*\]\s*")
_NUMBER = re.compile(r"\s*([0-9]{1,9}(?:\.[0-9]{0,30})?)\s*")
_SCALE = 999


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
    spans, bad = _spans(text)
    boxes: list[Box] = []
    plain: list[str] = []
    at = 0
    for index, span in enumerate(spans):
        plain.append(text[at : span.start])
        at = span.end
        following = spans[index + 1].start if index + 1 < len(spans) else len(text)
        good, failed = _coordinates(span.det)
        bad += failed
        label, block = " ".join(span.label.split()), text[span.end : following].strip()
        boxes.extend(Box(label, _pixels(corners, size), block) for corners in good)
    plain.append(text[at:])
    return ParsedOutput("".join(plain), tuple(boxes), bad)


def _spans(text: str) -> tuple[list[_Span], int]:
    """Find the whole spans, in order, and count the incomplete ones."""
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
    return spans, broken + (expected > 0)


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
