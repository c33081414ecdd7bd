"""Page synthesis: a random 512x512 page with its exact truth.

A page is drawn upright as ink coverage (0 = paper, 255 = ink); `augment.py` turns it by the page's angle and gives it
colours, blur and noise. The same `random.Random` always gives the same page.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from fonts import Face, Family, face
from PIL import Image, ImageDraw
from text import ALPHABET, Source

__all__ = ["CELL_SLOTS", "SIZE", "SLOT", "Block", "Page", "Painter"]

SIZE = 512
SLOT = (8, 16)
"""Width and height, in pixels, of the slots whose characters the auxiliary head predicts."""
CELL_SLOTS = (64 // SLOT[0]) * (64 // SLOT[1])
PAD = 2
"""Pixels between the ink of a block and its box."""
SLOT_OF = {char: index + 1 for index, char in enumerate(ALPHABET)}
"""Class of a character in the auxiliary head; 0 = nothing, or a blank."""
SLOT_OF[" "] = 0


@dataclass
class Line:
    """Cells (x, text) of one line whose em box starts at y."""

    y: int
    cells: list[tuple[int, str]]


@dataclass
class Block:
    """A title, a text or an image with its lines and, once drawn, its box in pixels."""

    label: str
    face: Face | None
    lines: list[Line] = field(default_factory=list)
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    tracking: float = 0.0
    """Extra pixels between characters."""
    _edges: dict[str, list[float]] = field(default_factory=dict, repr=False)

    def edges(self, text: str) -> list[float]:
        """Where the characters of *text* start and end, from its left."""
        if text not in self._edges:
            assert self.face is not None
            self._edges[text] = self.face.edges(text, self.tracking)
        return self._edges[text]

    @property
    def text(self) -> str:
        """Lines joined by newlines, the cells of a line by one blank."""
        return "\n".join(" ".join(text for _, text in line.cells) for line in self.lines)


@dataclass
class Page:
    """What is on a page, before it is drawn."""

    blocks: list[Block]
    angle: float = 0.0
    """Degrees, counter-clockwise."""
    rules: list[tuple[int, int, int, int]] = field(default_factory=list)
    seed: int = 0
    """Seed of what is drawn beside the text."""
    plain: bool = False
    """Nothing but text: no frame, no line between blocks."""

    @property
    def free(self) -> str:
        """The answer to the free prompt."""
        return "\n\n".join(block.text for block in self.blocks if block.lines)

    @property
    def grounded(self) -> str:
        """The answer to the grounding prompt."""
        parts = []
        for block in self.blocks:
            numbers = ",".join(str(min(999, max(0, round(value * 999 / SIZE)))) for value in block.box)
            text = f"# {block.text}" if block.label == "title" else block.text
            parts.append(f"<|ref|>{block.label}<|/ref|><|det|>[[{numbers}]]<|/det|>\n{text}".rstrip())
        return "\n\n".join(parts)

    @property
    def line_count(self) -> int:
        """Lines of text."""
        return sum(len(block.lines) for block in self.blocks)


@dataclass
class Style:
    """What the blocks of one page share."""

    family: Family
    size: int
    left: int
    right: int
    pitch: float
    centred: bool


class Painter:
    """Composes and draws pages from one text source and some font families."""

    def __init__(
        self, source: Source, families: tuple[Family, ...], folder: Path | None, frames: float = 0.15
    ) -> None:
        self.source, self.families, self.folder, self.frames = source, families, folder, frames
        self._weights = [family.weight for family in families]
        rows = np.arange(SIZE // SLOT[1]) * SLOT[1] + SLOT[1] / 2
        columns = np.arange(SIZE // SLOT[0]) * SLOT[0] + SLOT[0] / 2
        self._slot_x = np.broadcast_to(columns, (len(rows), len(columns)))
        self._slot_y = np.broadcast_to(rows[:, None], (len(rows), len(columns)))

    # composing

    def compose(
        self, rng: random.Random, lines: int, *, characters: int = 420, prose: bool = False,
        sizes: tuple[int, int] = (16, 40),
    ) -> Page:
        """A page of about *lines* lines, never more, without its boxes (`finish` finds them).

        *prose*: a title at most and paragraphs, nothing else.
        """
        mode = sizes[0] + (sizes[1] - sizes[0]) * 0.3
        size = round(rng.triangular(*sizes, mode))
        left = rng.randint(14, 60) if rng.random() < 0.8 else rng.randint(14, 150)
        style = Style(
            rng.choices(self.families, self._weights)[0], size, left, rng.randint(470, 500),
            rng.uniform(1.18, 1.7), not prose and rng.random() < 0.15,
        )
        page = Page([], seed=rng.getrandbits(30), plain=prose)
        if rng.random() < 0.2:
            page.angle = rng.uniform(-1.5, 1.5)
        tallest = SIZE - 16
        y = 0
        left_lines, left_characters = lines, characters
        if not prose and rng.random() < 0.06:
            y = self._add_image(rng, page)
        if left_lines > 1 and rng.random() < 0.6:
            y = self._title(rng, page, style, y)
            left_lines -= page.line_count
            left_characters -= len(page.free)
        first = True
        while left_lines > 0 and left_characters > 8:
            step = max(size + 2, round(style.pitch * size))
            room = (tallest - y) // step
            if room < 1:
                break
            most = min(left_lines, room)
            count = most if prose and rng.random() < 0.6 else rng.randint(1, most)
            block = self._block(rng, style, count, left_characters, step, y, prose)
            if not block.lines:
                break
            page.blocks.append(block)
            left_lines -= len(block.lines)
            left_characters -= len(block.text) + 2
            y = block.lines[-1].y + step + round(step * rng.uniform(0.35, 1.2))
            if first and rng.random() < 0.3 and not prose:  # the size may change once, as in a letter's foot
                style.size = size = max(sizes[0], min(sizes[1], size + rng.randint(-4, 4)))
            first = False
            if rng.random() < 0.08:
                break
        self._move_down(rng, page)
        return page

    def finish(self, page: Page) -> Page:
        """Find the boxes of a composed page; drop blocks without ink."""
        page.blocks = [block for block in page.blocks if block.face is None or block.text.strip()]
        for block in page.blocks:
            box = block.box
            if block.face is not None:
                spans = []
                for line in block.lines:
                    for x, text in line.cells:
                        for char, edge in zip(text, block.edges(text), strict=False):
                            glyph = block.face.glyph(char)
                            if glyph is not None:
                                left, top = x + round(edge) + glyph.left, line.y + glyph.top
                                height, width = glyph.mask.shape
                                spans.append((left, top, left + width, top + height))
                lefts, tops, rights, bottoms = zip(*spans, strict=True)
                box = (min(lefts) - PAD, min(tops) - PAD, max(rights) + PAD, max(bottoms) + PAD)
            block.box = _turned(box, page.angle)
        if not (page.plain or page.angle):
            self._add_rules(page)
        return page

    def _add_rules(self, page: Page) -> None:
        """On a share `frames` of the pages add a frame around everything, and on as many add lines between blocks."""
        dice = random.Random(page.seed)
        lefts, tops, rights, bottoms = zip(*(block.box for block in page.blocks), strict=True)
        room = min(*lefts, *tops, SIZE - max(*rights, *bottoms))
        if dice.random() < self.frames and room >= 8:
            x1, y1 = dice.randint(2, min(lefts) - 5), dice.randint(2, min(tops) - 5)
            x2, y2 = dice.randint(max(rights) + 5, SIZE - 2), dice.randint(max(bottoms) + 5, SIZE - 2)
            page.rules += [(x1, y1, x2, y1), (x2, y1, x2, y2), (x2, y2, x1, y2), (x1, y2, x1, y1)]
        if dice.random() < self.frames:
            left, right = dice.randint(8, min(lefts) + 8), dice.randint(max(rights) - 8, SIZE - 8)
            for end, start in zip(bottoms, tops[1:], strict=False):
                if start - end >= 8 and dice.random() < 0.6:
                    y = dice.randint(end + 3, start - 3)
                    page.rules.append((left, y, right, y))

    def _add_image(self, rng: random.Random, page: Page) -> int:
        width, height = rng.randint(90, 300), rng.randint(70, 170)
        x = rng.randint(10, SIZE - width - 10)
        page.blocks.append(Block("image", None, [], (x, 0, x + width, height)))
        return height + rng.randint(14, 40)

    def _face(self, rng: random.Random, family: Family, size: int, bold: bool) -> Face:
        return face(self.folder, rng.choice(family.bold if bold else family.regular), size)

    def _title(self, rng: random.Random, page: Page, style: Style, y: int) -> int:
        size = max(style.size, min(44, round(style.size * rng.uniform(1.05, 1.7))))
        letters = self._face(rng, style.family, size, rng.random() < 0.85)
        text = self.source.title(rng)
        room = SIZE - 12 - style.left
        while letters.width(text) > room and " " in text:
            text = text.rsplit(" ", 1)[0]
        while letters.width(text) > room:
            text = text[:-1]
        if not text.strip():  # a single word too wide for the page was cut to nothing
            return y
        x = style.left
        if style.centred or rng.random() < 0.25:
            x = max(4, round((SIZE - letters.width(text)) / 2))
        page.blocks.append(Block("title", letters, [Line(y, [(x, text)])]))
        gap = round(size * rng.uniform(1.2, 2.1))
        if rng.random() < 0.15:
            page.rules.append((style.left, y + gap - 4, style.right, y + gap - 4))
            gap += 8
        return y + gap

    def _block(
        self, rng: random.Random, style: Style, count: int, characters: int, step: int, y: int, prose: bool
    ) -> Block:
        letters = self._face(rng, style.family, style.size, rng.random() < 0.12)
        room = style.right - style.left
        dice = 0.0 if prose else rng.random()
        rows: list[list[tuple[int, str]]]
        if dice < 0.5:
            rows = [[(style.left, text)] for text in self._wrap(rng, letters, room, count, characters)]
        elif dice < 0.64:
            mark = rng.choice(("- ", "- ", "* ", "• ", "{}. ", "{}) ", "+ ", "[ ] "))
            start = rng.randint(1, 9)
            rows = [
                [(style.left, self._cut(letters, mark.format(start + k) + self.source.item(rng), room))]
                for k in range(count)
            ]
        elif dice < 0.82:
            rows = self._columns(rng, letters, style, count)
        else:
            rows = [[(style.left, self._cut(letters, self.source.line(rng), room))] for _ in range(count)]
        if style.centred and all(len(row) == 1 for row in rows):
            rows = [[(round((SIZE - letters.width(row[0][1])) / 2), row[0][1])] for row in rows]
        block = Block("text", letters, tracking=rng.uniform(-0.5, 0.4) if rng.random() < 0.2 else 0.0)
        for index, row in enumerate(rows):
            characters -= sum(len(text) + 1 for _, text in row)
            if index and characters < 0:
                break
            block.lines.append(Line(y + index * step, row))
        return block

    def _cut(self, letters: Face, text: str, room: float) -> str:
        while letters.width(text) > room and len(text) > 1:
            text = text[:-1]
        return text.strip() or "-"

    def _wrap(self, rng: random.Random, letters: Face, room: float, count: int, characters: int) -> list[str]:
        average = letters.advance("e")
        budget = min(characters, round(count * room / average))
        if rng.random() < 0.35:  # the last line seldom ends with the column
            budget -= rng.randrange(round(min(budget, room / average) * 0.8) + 1)
        lines: list[str] = []
        line, width = "", 0.0
        blank = letters.advance(" ")
        for word in self.source.prose(rng, budget):
            size = letters.width(word)
            if line and width + blank + size > room:
                lines.append(line)
                line, width = "", 0.0
                if len(lines) == count:
                    return lines
            if size > room:
                word = self._cut(letters, word, room)
                size = letters.width(word)
            line, width = (f"{line} {word}", width + blank + size) if line else (word, size)
        return [*lines, line][:count] if line else lines[:count]

    def _columns(self, rng: random.Random, letters: Face, style: Style, count: int) -> list[list[tuple[int, str]]]:
        columns = rng.choice((2, 2, 2, 3))
        kind = rng.choice((0, 0, 1, 2, 2, 3))
        room = style.right - style.left
        share = room / columns
        table = [self.source.cells(rng, columns, kind) for _ in range(count)]
        stops = [style.left]
        for column in range(1, columns):
            before = max(letters.width(row[column - 1]) for row in table)
            stops.append(max(round(style.left + share * column + rng.randint(-20, 20)), round(stops[-1] + 14 + before)))
        align_right = kind == 0 and rng.random() < 0.5
        rows = []
        for row in table:
            cells: list[tuple[int, str]] = []
            for column, text in enumerate(row):
                x = stops[column]
                if column and align_right and column == columns - 1:
                    x = max(x, round(style.right - letters.width(text)))
                text = text.strip()
                while x + letters.width(text) > SIZE - 4 and len(text) > 1:
                    text = text[:-1].strip()
                if text and x + letters.width(text) <= SIZE - 2:
                    cells.append((x, text))
            rows.append(cells or [(style.left, "-")])
        return rows

    def _move_down(self, rng: random.Random, page: Page) -> None:
        """Move everything down by a random amount."""
        ends = [line.y + block.face.ink[1] for block in page.blocks for line in block.lines if block.face]
        last = max([0, *ends, *(block.box[3] for block in page.blocks)])
        shift = round(rng.uniform(6, max(7, SIZE - 6 - last)))
        if rng.random() < 0.5:
            shift = min(shift, rng.randint(8, 40))
        page.rules = [(x1, y1 + shift, x2, y2 + shift) for x1, y1, x2, y2 in page.rules]
        for block in page.blocks:
            x1, y1, x2, y2 = block.box
            block.box = (x1, y1 + shift, x2, y2 + shift)
            for line in block.lines:
                line.y += shift

    # drawing

    def draw(self, page: Page) -> np.ndarray:
        """Ink coverage of the upright page, uint8 [512, 512]."""
        if page.rules or any(block.face is None for block in page.blocks):
            canvas = Image.new("L", (SIZE, SIZE), 0)
            draw = ImageDraw.Draw(canvas)
            for rule in page.rules:
                draw.line(rule, fill=70 + page.seed % 180, width=1 + page.seed % 3)
            for block in page.blocks:
                if block.face is None:
                    self._draw_image(draw, block, page)
            ink = np.array(canvas)
        else:
            ink = np.zeros((SIZE, SIZE), np.uint8)
        for block in page.blocks:
            if block.face is not None:
                for line in block.lines:
                    for x, text in line.cells:
                        _draw_text(ink, block, text, x, line.y)
        return ink

    def _draw_image(self, draw: ImageDraw.ImageDraw, block: Block, page: Page) -> None:
        dice = random.Random(page.seed)
        x1, y1, x2, y2 = block.box
        if page.angle:  # the box is the turned one; turning the whole of it makes it 4 px larger at most
            x1, y1, x2, y2 = x1 + 3, y1 + 3, x2 - 3, y2 - 3
        draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=dice.randint(60, 255))
        for _ in range(dice.randint(1, 9)):
            a, b = dice.randint(x1, x2 - 8), dice.randint(y1, y2 - 8)
            spot = (a, b, dice.randint(a + 4, x2 - 1), dice.randint(b + 4, y2 - 1))
            shape = draw.rectangle if dice.random() < 0.5 else draw.ellipse
            shape(spot, fill=dice.randint(0, 255))

    def slots(self, page: Page) -> np.ndarray:
        """Class of the character at the centre of each slot, uint8 [32 rows, 64 columns]."""
        x, y = self._slot_x, self._slot_y
        if page.angle:
            x, y = _turn(x, y, -page.angle)
        found = np.zeros(x.shape, np.uint8)
        for block in page.blocks:
            if block.face is None:
                continue
            top, bottom = block.face.ink
            for line in block.lines:
                low, high = line.y + top - 1, line.y + bottom + 1
                if page.angle:
                    rows = slice(0, len(found))
                else:
                    rows = slice(max(0, int(low) // SLOT[1] - 1), int(high) // SLOT[1] + 2)
                inside = (y[rows] >= low) & (y[rows] < high)
                for start, text in line.cells:
                    edges = np.add(block.edges(text), start)
                    classes = np.array([0, *(SLOT_OF[char] for char in text), 0], np.uint8)
                    at = classes[np.searchsorted(edges, x[rows], side="right")]
                    np.copyto(found[rows], at, where=inside & (at > 0))
        return found


def _draw_text(ink: np.ndarray, block: Block, text: str, x: int, y: int) -> None:
    assert block.face is not None
    for char, edge in zip(text, block.edges(text), strict=False):
        glyph = block.face.glyph(char)
        if glyph is None:
            continue
        left, top = x + round(edge) + glyph.left, y + glyph.top
        height, width = glyph.mask.shape
        if left >= 0 and top >= 0:
            place = ink[top : top + height, left : left + width]
            np.maximum(place, glyph.mask[: place.shape[0], : place.shape[1]], out=place)


def _turn(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Where points go when the page is turned counter-clockwise by *angle* degrees about its middle."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    middle = SIZE / 2
    return middle + c * (x - middle) + s * (y - middle), middle - s * (x - middle) + c * (y - middle)


def _turned(box: tuple[int, int, int, int], angle: float) -> tuple[int, int, int, int]:
    if angle:
        xs, ys = _turn(np.array([box[0], box[2], box[0], box[2]]), np.array([box[1], box[1], box[3], box[3]]), angle)
        box = (round(xs.min()), round(ys.min()), round(xs.max()), round(ys.max()))
    x1, y1, x2, y2 = box
    return max(0, x1), max(0, y1), min(SIZE, x2), min(SIZE, y2)
