"""The images of a page's section: thumbnail, labelled boxes, crops.

Labels come from the model and are only ever drawn. Pillow is imported where it is used.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llmprof.records.predictions import Box
from pytest_llmprof.text.escape import one_line

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

MAX_SIDE = 2048
"""Longest side of boxes.jpg in pixels; a larger image is scaled down."""
MAX_JPEG_SIDE = 16_384
"""Longest side of a thumbnail or a crop (JPEG ends at 65,535)."""

# An answer in a loop can hold thousands of boxes. All are outlined; only the first _LABELLED get a label, and labels
# avoid only the first _AVOIDED boxes: on a fuller page there is no free place anyway.
_LABELLED = 500
_AVOIDED = 200

Rectangle = tuple[float, float, float, float]
Colour = tuple[int, int, int]

# Colours that are easy to tell apart on white paper. Each label of DeepSeek-OCR has its own; any other label takes one
# of the rest by its digest, so it has the same colour on every page and in every run.
_OWN: dict[str, Colour] = {
    "title": (214, 39, 40),
    "text": (31, 119, 180),
    "table": (44, 160, 44),
    "image": (255, 127, 14),
    "equation": (148, 103, 189),
    "list": (23, 190, 207),
    "sub_title": (227, 119, 194),
    "image_caption": (140, 86, 75),
    "table_caption": (107, 142, 35),
    "header": (90, 90, 200),
    "footer": (127, 127, 127),
    "page_number": (200, 160, 0),
}
_REST: tuple[Colour, ...] = (
    *((0, 128, 128), (220, 20, 120), (85, 60, 180), (180, 90, 0), (0, 100, 0), (128, 0, 128)),
    *((178, 34, 34), (0, 60, 130), (110, 110, 0), (255, 99, 71), (0, 160, 110)),
)


@dataclass(frozen=True)
class PlacedBox:
    """A box that lies at least partly inside its image."""

    number: int
    """Counted from 1 in the answer's order; drawn beside the label, and its crop's file name."""
    label: str
    corners: tuple[int, int, int, int]
    """x1, y1, x2, y2 in pixels of the source image, cut at its edges."""


def colour(label: str) -> Colour:
    """The RGB colour of *label*: the same on every page and in every run."""
    name = label.strip().casefold()
    if name in _OWN:
        return _OWN[name]
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return _REST[int.from_bytes(digest[:4], "big") % len(_REST)]


def place_boxes(boxes: Sequence[Box], size: tuple[int, int]) -> tuple[list[PlacedBox], int]:
    """*boxes* cut at the edges of an image of *size* (width, height), and how many were skipped.

    Boxes are skipped that have no area, lie outside, or have corners that are not finite numbers.
    """
    placed = []
    for number, box in enumerate(boxes, 1):
        if len(box.box) != 4 or not all(math.isfinite(value) for value in box.box):
            continue
        x1, y1, x2, y2 = (round(value) for value in box.box)
        corners = max(x1, 0), max(y1, 0), min(x2, size[0]), min(y2, size[1])
        if corners[0] < corners[2] and corners[1] < corners[3]:
            placed.append(PlacedBox(number, box.label, corners))
    return placed, len(boxes) - len(placed)


def thumbnail(image: Image, width: int) -> Image:
    """*image* at most *width* pixels wide, its aspect kept, never enlarged."""
    scale = min(1.0, width / image.width, MAX_JPEG_SIDE / image.height)
    return _scaled(image, scale)


def crop(image: Image, box: PlacedBox) -> Image:
    """The part of the clean *image* inside *box*."""
    part = image.crop(box.corners)
    return _scaled(part, min(1.0, MAX_JPEG_SIDE / max(part.size)))


def boxes_image(image: Image, boxes: Sequence[PlacedBox]) -> Image:
    """*image* with each box outlined in its label's colour and its number and label beside it.

    At most `MAX_SIDE` pixels on its longer side; *image* itself stays clean.
    """
    from PIL import ImageDraw, ImageFont

    scale = min(1.0, MAX_SIDE / max(image.size))
    canvas = _scaled(image, scale)
    if canvas is image:
        canvas = image.copy()
    draw = ImageDraw.Draw(canvas)
    side = max(canvas.size)
    line = max(2, min(6, round(side / 400)))
    # Many boxes need small labels, or the labels hide the page.
    font = ImageFont.load_default(max(10, min(26, round(side / (48 if len(boxes) <= 20 else 90)))))
    outlined = [(box, _on_canvas(box.corners, scale, canvas.size)) for box in boxes]
    # Large boxes first, so that a small one inside a large one stays visible.
    for box, (x1, y1, x2, y2) in sorted(outlined, key=lambda pair: -_area(pair[1])):
        draw.rectangle((x1, y1, x2, y2), outline=colour(box.label), width=line)
    taken: list[Rectangle] = []
    others = [rectangle for _, rectangle in outlined[:_AVOIDED]]
    for box, rectangle in outlined[:_LABELLED]:
        taken.append(_draw_label(draw, box, rectangle, font, canvas.size, taken, others))
    return canvas


def _scaled(image: Image, scale: float) -> Image:
    from PIL.Image import Resampling

    if scale >= 1.0:
        return image
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Resampling.LANCZOS, reducing_gap=2.0)


def _on_canvas(corners: tuple[int, int, int, int], scale: float, size: tuple[int, int]) -> Rectangle:
    """*corners* as the inclusive pixel rectangle that Pillow draws, on a canvas of *size*."""
    x1, y1, x2, y2 = (value * scale for value in corners)
    right, bottom = min(max(x1, x2 - 1), size[0] - 1), min(max(y1, y2 - 1), size[1] - 1)
    return min(x1, right), min(y1, bottom), right, bottom


def _area(rectangle: Rectangle) -> float:
    return (rectangle[2] - rectangle[0]) * (rectangle[3] - rectangle[1])


def _draw_label(
    draw: ImageDraw,
    box: PlacedBox,
    rectangle: Rectangle,
    font: FreeTypeFont | ImageFont,
    size: tuple[int, int],
    taken: Sequence[Rectangle],
    others: Sequence[Rectangle],
) -> Rectangle:
    """Draw number and label on a background of the box's colour; return the background's rectangle.

    Of the places around the box it takes the one that covers the fewest labels (*taken*), then boxes (*others*).
    """
    from PIL.ImageFont import FreeTypeFont

    text = f"{box.number}  {one_line(box.label, 32)}"
    if not isinstance(font, FreeTypeFont):  # Pillow without FreeType: its bitmap font knows Latin-1 only
        text = text.encode("latin-1", "replace").decode("latin-1")
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    pad = max(1.0, (bottom - top) / 5)
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x1, y1, x2, y2 = rectangle
    places = (
        (x1, y1 - height),  # above, left of, and below the box, then inside
        (x1 - width, y1),
        (x2 - width, y1 - height),
        (x1, y2),
        (x2, y1),
        (x1, y1),
    )
    best, background = None, (x1, y1, x1, y1)
    for x, y in places:
        x, y = max(0.0, min(x, size[0] - width)), max(0.0, min(y, size[1] - height))
        place = x, y, x + width, y + height
        cost = sum(_meet(place, other) for other in taken), sum(_meet(place, other) for other in others)
        if best is None or cost < best:
            best, background = cost, place
        if best == (0, 0):
            break
    fill = colour(box.label)
    draw.rectangle(background, fill=fill)
    # Relative luminance (ITU-R BT.709) decides between black and white letters.
    light = 0.2126 * fill[0] + 0.7152 * fill[1] + 0.0722 * fill[2] > 140
    at = background[0] + pad - left, background[1] + pad - top
    draw.text(at, text, font=font, fill="black" if light else "white")
    return background


def _meet(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
