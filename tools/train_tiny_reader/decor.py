"""What stands on a page beside its text: frames, rules, underlines, panels and the lines of tables.

Shapes are drawn upright into two planes: how much ink covers a pixel, and which pixels have the page's second colour,
its tint. `augment.py` chooses the tint, and the colour of text on it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

__all__ = ["Box", "Shape", "bar", "draw", "frame", "moved", "panel", "rule", "union"]

Box = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels."""


class Shape(NamedTuple):
    """A line (a box without height or width), an outline, or a filled area."""

    box: Box
    width: int = 1
    """Pixels; an outline grows inwards. 0: filled."""
    level: int = 255
    """Coverage with ink, 1..255. 0: in the page's tint."""
    dash: tuple[int, int] | None = None
    """Pixels drawn and left out, in turns."""
    radius: int = 0


def union(boxes: Sequence[Box]) -> Box:
    """The smallest box around *boxes*."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def moved(shape: Shape, down: int) -> Shape:
    """*shape*, *down* pixels lower."""
    x1, y1, x2, y2 = shape.box
    return shape._replace(box=(x1, y1 + down, x2, y2 + down))


def rule(dice: random.Random, box: Box, room: int) -> list[Shape]:
    """A line along *box*, solid, broken or double, at most *room* pixels thick."""
    level = 0 if dice.random() < 0.25 else dice.randint(70, 255)
    style = dice.choices(("thin", "thick", "double", "dashed", "dotted"), (50, 12, 12, 13, 13))[0]
    if style == "double" and room >= 4:
        x1, y1, x2, y2 = box
        across = y1 == y2
        gap = dice.randint(3, min(room, 6))
        second = (x1, y1 + gap, x2, y2 + gap) if across else (x1 + gap, y1, x2 + gap, y2)
        return [Shape(box, 1, level), Shape(second, 1, level)]
    if style == "thick":
        return [Shape(box, dice.randint(1, max(1, min(room, 6))), level)]
    width = dice.randint(1, max(1, min(room, 3)))
    if style == "dashed":
        return [Shape(box, width, level, (dice.randint(5, 14), dice.randint(3, 8)))]
    if style == "dotted":
        return [Shape(box, width, level, (width, dice.randint(2, 5)))]
    return [Shape(box, width, level)]


def frame(dice: random.Random, box: Box, room: int) -> list[Shape]:
    """A frame along *box*: whole, on two sides, or its corners; its lines take *room* pixels inwards at most."""
    x1, y1, x2, y2 = box
    level = 0 if dice.random() < 0.4 else dice.randint(70, 255)
    part = dice.random()
    if part < 0.1:
        width, arm = dice.randint(1, max(1, min(room, 4))), dice.randint(12, 50)
        across = [(left, y, left + arm, y) for y in (y1, y2) for left in (x1, x2 - arm)]
        down = [(x, top, x, top + arm) for x in (x1, x2) for top in (y1, y2 - arm)]
        return [Shape(line, width, level) for line in (*across, *down)]
    if part < 0.22:
        sides = ((x1, y1, x2, y1), (x1, y2, x2, y2)) if dice.random() < 0.6 else ((x1, y1, x1, y2), (x2, y1, x2, y2))
        width = dice.randint(1, max(1, min(room, 5)))
        return [Shape(side, width, level) for side in sides]
    style = dice.choices(("thin", "thick", "double", "dashed", "dotted", "rounded"), (30, 20, 14, 9, 9, 18))[0]
    if style == "double" and room >= 5:
        outer, inner = dice.randint(1, 2), dice.randint(1, 2)
        gap = outer + dice.randint(2, max(2, min(room - inner, 6)))
        return [Shape(box, outer, level), Shape((x1 + gap, y1 + gap, x2 - gap, y2 - gap), inner, level)]
    if style == "thick":
        return [Shape(box, dice.randint(1, max(1, min(room, 12))), level)]
    width = dice.randint(1, max(1, min(room, 3)))
    if style == "rounded":
        return [Shape(box, width, level, radius=dice.randint(4, 30))]
    dash = {"dashed": (dice.randint(5, 14), dice.randint(3, 8)), "dotted": (width, dice.randint(2, 5))}.get(style)
    return [Shape(box, width, level, dash)]


def panel(dice: random.Random, box: Box) -> list[Shape]:
    """An area in the page's tint, with square or round corners."""
    return [Shape(box, 0, 0, radius=dice.choice((0, 0, dice.randint(3, 20))))]


def bar(dice: random.Random, box: Box, room: int) -> list[Shape]:
    """A line at the left of *box*, as beside a quotation, in the *room* pixels before it."""
    x1, y1, _, y2 = box
    width = dice.randint(1, min(6, room - 3))
    x = x1 - dice.randint(3 + width // 2, room)
    return [Shape((x, y1, x, y2), width, 0 if dice.random() < 0.5 else dice.randint(70, 255))]


def draw(ink: Image.Image, tint: Image.Image, shapes: Sequence[Shape]) -> None:
    """Draw *shapes*, in their order, into both planes (mode L; *tint* is 0 or 1)."""
    pens = {False: ImageDraw.Draw(ink), True: ImageDraw.Draw(tint)}
    for shape in shapes:
        pen, fill = pens[shape.level == 0], shape.level or 1
        x1, y1, x2, y2 = shape.box
        if x1 == x2 or y1 == y2:
            _line(pen, shape.box, shape, fill)
        elif not shape.width:
            pen.rounded_rectangle(shape.box, _radius(shape), fill=fill)
        elif shape.dash:
            for side in ((x1, y1, x2, y1), (x2, y1, x2, y2), (x1, y2, x2, y2), (x1, y1, x1, y2)):
                _line(pen, side, shape, fill)
        else:
            pen.rounded_rectangle(shape.box, _radius(shape), outline=fill, width=shape.width)


def _radius(shape: Shape) -> float:
    x1, y1, x2, y2 = shape.box
    return min(shape.radius, (x2 - x1) / 2, (y2 - y1) / 2)


def _line(pen: ImageDraw.ImageDraw, box: Box, shape: Shape, fill: int) -> None:
    x1, y1, x2, y2 = box
    if shape.dash is None:
        pen.line(box, fill=fill, width=shape.width)
        return
    on, off = shape.dash
    for start in range(0, max(x2 - x1, y2 - y1), on + off):
        end = start + on - 1
        dash = (x1 + start, y1, min(x1 + end, x2), y1) if y1 == y2 else (x1, y1 + start, x1, min(y1 + end, y2))
        pen.line(dash, fill=fill, width=shape.width)
