"""Page synthesis: a random 512x512 page with its exact truth.

A page is drawn upright as ink coverage (0 = paper, 254 = ink) whose lowest bit marks the pixels in the page's tint;
`augment.py` turns it by the page's angle and gives it colours, blur and noise. The same `random.Random` always gives
the same page.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import decor
import numpy as np
from decor import Box, Shape
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
    face: Face | None = None
    """None: the block's."""


class Run(NamedTuple):
    """A text drawn in one piece: its left and top, and where its characters start and end, from its left."""

    face: Face
    x: int
    y: int
    text: str
    edges: list[float]


@dataclass
class Block:
    """A title, a text, a table or an image with its lines and, once drawn, its box in pixels."""

    label: str
    face: Face | None
    lines: list[Line] = field(default_factory=list)
    box: Box = (0, 0, 0, 0)
    tracking: float = 0.0
    """Extra pixels between characters."""
    rows: list[list[str]] = field(default_factory=list)
    """The cells of a table, empty ones too. Its `box` is that of its lines before it is that of all of it."""
    _edges: dict[tuple[str, int], list[float]] = field(default_factory=dict, repr=False)

    def runs(self) -> Iterator[Run]:
        """Everything written in the block."""
        for number, line in enumerate(self.lines):
            letters = line.face or self.face
            assert letters is not None
            for x, text in line.cells:
                key = (text, number if line.face else -1)
                if key not in self._edges:
                    self._edges[key] = letters.edges(text, self.tracking)
                yield Run(letters, x, line.y, text, self._edges[key])

    @property
    def text(self) -> str:
        """Lines joined by newlines, the cells of a line by one blank."""
        return "\n".join(" ".join(text for _, text in line.cells) for line in self.lines)

    @property
    def markdown(self) -> str:
        """The answer to the grounding prompt, without its tags: a heading, an HTML table, or the text."""
        if self.rows:
            rows = ("".join(f"<td>{escape(cell, quote=False)}</td>" for cell in row) for row in self.rows)
            return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"
        return f"# {self.text}" if self.label == "title" else self.text


@dataclass
class Page:
    """What is on a page, before it is drawn."""

    blocks: list[Block]
    angle: float = 0.0
    """Degrees, counter-clockwise."""
    shapes: list[Shape] = field(default_factory=list)
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
            parts.append(f"<|ref|>{block.label}<|/ref|><|det|>[[{numbers}]]<|/det|>\n{block.markdown}".rstrip())
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
        self, source: Source, families: tuple[Family, ...], folder: Path | None, *,
        frames: float = 0.25, tables: float = 0.3, empty: float = 0.06, spread: float = 0.0,
    ) -> None:
        """*frames*: the share of pages with a frame round everything, and of what else is drawn beside text.

        *tables*: the share of pages on which a table is tried; *empty*: that of empty cells in a grid. *spread*: the
        share of columns (of other lines a quarter of it) whose rows are as far apart as a table's.
        """
        self.source, self.families, self.folder = source, families, folder
        self.frames, self.tables, self.empty, self.spread = frames, tables, empty, spread
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
        # No dice without tables: pages without them stay what they were.
        table_at = rng.choice((0, 0, 1, 1, 2)) if self.tables and not prose and rng.random() < self.tables else -1
        number = 0
        while left_lines > 0 and left_characters > 8:
            step = max(size + 2, round(style.pitch * size))
            room = (tallest - y) // step
            if room < 1:
                break
            if number == table_at:
                table = self._table(rng, page, style, left_lines, left_characters, y)
                table_at = -1
                if table is not None:
                    left_lines -= len(table.lines)
                    left_characters -= len(table.text) + 4 * sum(map(len, table.rows))
                    below = max(table.box[3], table.lines[-1].y + round(1.2 * style.size))
                    y = below + round(style.size * rng.uniform(0.5, 1.4))
                    continue
            number += 1
            most = min(left_lines, room)
            if table_at >= 0:  # leave room for it
                most = max(1, min(most - 3, 3))
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
            if block.face is not None:
                spans = [block.box] if block.rows else []
                for run in block.runs():
                    for char, edge in zip(run.text, run.edges, strict=False):
                        glyph = run.face.glyph(char)
                        if glyph is not None:
                            left, top = run.x + round(edge) + glyph.left, run.y + glyph.top
                            height, width = glyph.mask.shape
                            spans.append((left - PAD, top - PAD, left + width + PAD, top + height + PAD))
                block.box = decor.union(spans)
        if not page.plain and self.frames:
            self._decorate(page)
        for block in page.blocks:
            block.box = _turned(block.box, page.angle)
        return page

    def _decorate(self, page: Page) -> None:
        """Add what real pages have beside text; nothing of it touches the text."""
        dice = random.Random(page.seed)
        blocks = page.blocks
        boxes = [block.box for block in blocks]
        around = decor.union(boxes)
        room = min(*around[:2], SIZE - max(around[2:]))
        under: list[Shape] = []
        shapes: list[Shape] = []
        if dice.random() < self.frames and room >= 8:
            sides = [dice.randint(0, side) for side in (around[0] - 6, around[1] - 6)]
            sides += [dice.randint(side + 5, SIZE - 1) for side in around[2:]]
            if dice.random() < 0.2:  # cut by the page's edge
                for side in dice.sample(range(4), dice.randint(1, 3)):
                    sides[side] = -20 if side < 2 else SIZE + 20
            x1, y1, x2, y2 = sides
            inner = min(around[0] - x1, around[1] - y1, x2 - around[2], y2 - around[3]) - 3
            shapes += decor.frame(dice, (x1, y1, x2, y2), max(1, inner))
            if dice.random() < 0.15:
                under += decor.panel(dice, (x1, y1, x2, y2))
        if dice.random() < self.frames * 0.7:
            shapes += self._part(dice, boxes, filled=False)
        if dice.random() < self.frames * 0.7:
            under += self._part(dice, boxes, filled=True)
        columns = any(block.label == "text" and len(line.cells) > 1 for block in blocks for line in block.lines)
        if dice.random() < self.frames * (1 + columns):
            left = dice.randint(8, max(8, around[0] + 8))
            right = dice.randint(min(max(left + 20, around[2] - 8), SIZE - 8), SIZE - 8)
            if dice.random() < 0.2:
                right = left + (right - left) * dice.randint(20, 80) // 100
            gaps = [(box[3], below[1]) for box, below in pairwise(boxes)]
            for end, start in ((0, around[1]), *gaps, (around[3], SIZE)):
                if start - end >= 8 and dice.random() < 0.6:
                    y = dice.randint(end + 3, max(end + 3, start - 6))
                    shapes += decor.rule(dice, (left, y, right, y), max(1, start - y - 3))
        if dice.random() < self.frames * 0.4:
            block = dice.choice(blocks)
            if block.face is not None and not block.rows:
                shapes += self._underlines(dice, block)
        if dice.random() < self.frames * 0.25:
            block = dice.choice(blocks)
            if block.label == "text" and block.box[0] >= 12:
                shapes += decor.bar(dice, block.box, min(block.box[0] - 2, 20))
        page.shapes = [*under, *page.shapes, *shapes]

    def _part(self, dice: random.Random, boxes: list[Box], *, filled: bool) -> list[Shape]:
        """A frame round, or a panel under, one block or several."""
        first = dice.randrange(len(boxes))
        last = min(len(boxes) - 1, first + dice.choice((0, 0, 0, 1, 2)))
        x1, y1, x2, y2 = decor.union(boxes[first : last + 1])
        above = y1 - (boxes[first - 1][3] if first else 0)
        below = (boxes[last + 1][1] if last + 1 < len(boxes) else SIZE) - y2
        if min(above, below) < 7 or min(x1, SIZE - x2) < 7:
            return []
        up, down = dice.randint(5, min(above - 2, 24)), dice.randint(5, min(below - 2, 24))
        left, right = dice.randint(5, min(x1 - 2, 40)), dice.randint(5, min(SIZE - x2 - 2, 40))
        box = (x1 - left, y1 - up, x2 + right, y2 + down)
        if filled:
            if dice.random() < 0.25:  # a band from edge to edge
                box = (-20, box[1], SIZE + 20, box[3])
            return decor.panel(dice, box)
        return decor.frame(dice, box, max(1, min(up, down, left, right) - 3))

    def _underlines(self, dice: random.Random, block: Block) -> list[Shape]:
        level, width, close = dice.choice((0, 255, 255)), dice.randint(1, 2), dice.random() < 0.5
        below, every = dice.randint(1, 2), dice.random() < 0.5
        runs = list(block.runs())
        return [
            Shape((run.x, y, round(run.x + run.edges[-1]), y), width, level)
            for run in (runs if every else [dice.choice(runs)])
            for y in [run.y + (run.face.baseline + below + 1 if close else run.face.ink[1] + below)]
        ]

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
            line = (style.left, y + gap - 4, style.right, y + gap - 4)
            page.shapes.append(Shape(line, 1 + page.seed % 3, 70 + page.seed % 180))
            gap += 8
        return y + gap

    def _block(
        self, rng: random.Random, style: Style, count: int, characters: int, step: int, y: int, prose: bool
    ) -> Block:
        letters = self._face(rng, style.family, style.size, rng.random() < 0.12)
        room = style.right - style.left
        dice = 0.0 if prose else rng.random()
        if self.tables and 0.4 < dice < 0.5:  # more columns, so that they are told from tables
            dice = 0.7
        if self.spread and not prose and rng.random() < self.spread * (1 if 0.64 <= dice < 0.82 else 0.25):
            step = max(step, round(style.size * rng.uniform(1.5, 2.3)))
            count = max(1, min(count, (SIZE - 16 - y) // step))
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

    def _table(
        self, rng: random.Random, page: Page, style: Style, most: int, characters: int, y: int
    ) -> Block | None:
        """Put a table of at most *most* rows on the page, its top at *y*; None where it has no room.

        Every table can be told from text in columns: by lines between its rows or columns, a bold or a shaded head.
        """
        columns = rng.choice((2, 2, 3, 3, 3, 4))
        size = max(14, min(style.size, {2: 34, 3: 27, 4: 21}[columns]))
        letters = self._face(rng, style.family, size, False)
        look = rng.choices(("grid", "rows", "columns", "booktabs", "bare", "shaded"), (42, 18, 6, 14, 8, 12))[0]
        head = look in ("columns", "booktabs", "bare", "shaded") or rng.random() < 0.65
        bold = head and (look in ("bare", "shaded") or rng.random() < 0.65)
        heavy = self._face(rng, style.family, size, True) if bold else letters
        height = round(size * rng.uniform(1.35, 2.1))
        count = min(rng.randint(2, 6), most, (SIZE - 12 - y) // height)
        if count < 2:
            return None
        kind = rng.choice((0, 0, 1, 2, 3))
        rows = [self.source.cells(rng, columns, kind) for _ in range(count - head)]
        for column in range(columns):
            if rng.random() < 0.4:
                for row in rows:
                    row[column] = self.source.phrase(rng)
        if head:
            rows.insert(0, self.source.heads(rng, columns))
        if look == "grid":
            rows = [[text if n == 0 or rng.random() > self.empty else "" for n, text in enumerate(row)] for row in rows]
        pad, room = rng.randint(5, 13), SIZE - 12 - style.left
        widths = self._fit(rows, letters, heavy, room - 2 * pad * columns)
        if sum(4 + len(text) for row in rows for text in row) > characters:
            return None
        spare = rng.random() * (room - 2 * pad * columns - sum(widths)) / columns
        stops = [style.left if style.left + room < SIZE - 40 or rng.random() < 0.8 else 12]
        for width in widths:
            stops.append(round(stops[-1] + 2 * pad + width + spare))
        aligned = ["l", *rng.choices("lrc", (5, 4, 2), k=columns - 1)]
        if kind == 0 and rng.random() < 0.6:
            aligned[-1] = "r"
        block = Block("table", letters, rows=rows)
        for number, row in enumerate(rows):
            shown = heavy if head and number == 0 else letters
            top = round(y + number * height + (height - sum(shown.ink)) / 2)
            cells = []
            for start, end, side, text in zip(stops, stops[1:], aligned, row, strict=False):
                spare = end - start - shown.width(text)
                left = {"l": pad, "r": spare - pad, "c": spare / 2}
                if text:
                    cells.append((round(start + left[side]), text))
            block.lines.append(Line(top, cells, shown if shown is not letters else None))
        block.box = self._table_lines(rng, page, block, look, stops, y, height)
        page.blocks.append(block)
        return block

    def _fit(self, rows: list[list[str]], letters: Face, heavy: Face, room: float) -> list[float]:
        """Cut the cells of the widest columns until all fit into *room*; the columns' widths."""
        faces = [heavy, *[letters] * (len(rows) - 1)]
        while True:
            widths = [
                max(letters.width(text) for letters, text in zip(faces, column, strict=True))
                for column in zip(*rows, strict=True)
            ]
            over = sum(widths) - room
            if over <= 0:
                return widths
            widest = max(range(len(widths)), key=widths.__getitem__)
            limit = max(widths[widest] - over, room / len(widths))
            for letters, row in zip(faces, rows, strict=True):
                row[widest] = self._cut(letters, row[widest], limit) if row[widest] else ""

    def _table_lines(
        self, rng: random.Random, page: Page, block: Block, look: str, stops: list[int], y: int, height: int
    ) -> Box:
        """Draw the lines of a table; its box."""
        left, right, bottom = stops[0], stops[-1], y + len(block.rows) * height
        rows = [y + number * height for number in range(len(block.rows) + 1)]
        # The tint may be pale: only where a bold head tells the table too.
        level = 0 if block.lines[0].face and rng.random() < 0.25 else rng.randint(100, 255)
        width = rng.choice((1, 1, 2, 2, 3))
        outer = max(width, rng.choice((1, 1, 2, 3)))
        whole = (left, y, right, bottom)
        if look == "shaded" or (look == "grid" and rng.random() < 0.2):
            page.shapes.append(Shape((left, y, right, rows[1]), 0, 0))
            if rng.random() < 0.25:
                page.shapes += [Shape((left, top, right, top + height), 0, 0) for top in rows[2:-1:2]]
            level = level or 255  # a line in the tint would not be seen
        across: list[int] = []
        if look in ("grid", "rows"):
            across = rows[1:-1]
        elif look in ("columns", "booktabs"):
            across = [rows[1]]
        page.shapes += [Shape((left, top, right, top), width, level) for top in across]
        if look in ("grid", "columns"):
            page.shapes += [Shape((stop, y, stop, bottom), width, level) for stop in stops[1:-1]]
        boxed = {"grid": 0.9, "columns": 0.5, "shaded": 0.5}.get(look)
        if boxed and rng.random() < boxed:
            radius = rng.randint(4, 10) if rng.random() < 0.1 else 0
            page.shapes.append(Shape(whole, outer, level, radius=radius))
        elif look in ("rows", "booktabs") and (look == "booktabs" or rng.random() < 0.7):
            page.shapes += [Shape((left, top, right, top), outer, level) for top in (y, bottom)]
        elif look == "bare":
            runs = list(block.runs())
            return runs[0].x, runs[0].y + height // 2, runs[0].x, runs[0].y + height // 2  # its text alone
        return left, y, right + 1, bottom + 1

    def _move_down(self, rng: random.Random, page: Page) -> None:
        """Move everything down by a random amount."""
        ends = [line.y + block.face.ink[1] for block in page.blocks for line in block.lines if block.face]
        last = max([0, *ends, *(block.box[3] for block in page.blocks)])
        shift = round(rng.uniform(6, max(7, SIZE - 6 - last)))
        if rng.random() < 0.5:
            shift = min(shift, rng.randint(8, 40))
        page.shapes = [decor.moved(shape, shift) for shape in page.shapes]
        for block in page.blocks:
            x1, y1, x2, y2 = block.box
            block.box = (x1, y1 + shift, x2, y2 + shift)
            for line in block.lines:
                line.y += shift

    # drawing

    def draw(self, page: Page) -> np.ndarray:
        """The upright page, uint8 [512, 512]: ink coverage, even, plus 1 where the page has its tint."""
        tint: np.ndarray | None = None
        if page.shapes or any(block.face is None for block in page.blocks):
            canvas, second = (Image.new("L", (SIZE, SIZE), 0) for _ in range(2))
            decor.draw(canvas, second, page.shapes)
            pen = ImageDraw.Draw(canvas)
            for block in page.blocks:
                if block.face is None:
                    self._draw_image(pen, block, page)
            ink = np.array(canvas)
            tint = np.array(second) if any(not shape.level for shape in page.shapes) else None
        else:
            ink = np.zeros((SIZE, SIZE), np.uint8)
        for block in page.blocks:
            if block.face is not None:
                for run in block.runs():
                    _draw_text(ink, run)
        ink &= 254
        if tint is not None:
            ink |= tint
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
            for run in block.runs():
                top, bottom = run.face.ink
                low, high = run.y + top - 1, run.y + bottom + 1
                if page.angle:
                    rows = slice(0, len(found))
                else:
                    rows = slice(max(0, int(low) // SLOT[1] - 1), int(high) // SLOT[1] + 2)
                inside = (y[rows] >= low) & (y[rows] < high)
                classes = np.array([0, *(SLOT_OF[char] for char in run.text), 0], np.uint8)
                at = classes[np.searchsorted(np.add(run.edges, run.x), x[rows], side="right")]
                np.copyto(found[rows], at, where=inside & (at > 0))
        return found


def _draw_text(ink: np.ndarray, run: Run) -> None:
    for char, edge in zip(run.text, run.edges, strict=False):
        glyph = run.face.glyph(char)
        if glyph is None:
            continue
        left, top = run.x + round(edge) + glyph.left, run.y + glyph.top
        height, width = glyph.mask.shape
        if left >= 0 and top >= 0:
            place = ink[top : top + height, left : left + width]
            np.maximum(place, glyph.mask[: place.shape[0], : place.shape[1]], out=place)


def _turn(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Where points go when the page is turned counter-clockwise by *angle* degrees about its middle."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    middle = SIZE / 2
    return middle + c * (x - middle) + s * (y - middle), middle - s * (x - middle) + c * (y - middle)


def _turned(box: Box, angle: float) -> Box:
    if angle:
        xs, ys = _turn(np.array([box[0], box[2], box[0], box[2]]), np.array([box[1], box[1], box[3], box[3]]), angle)
        box = (round(xs.min()), round(ys.min()), round(xs.max()), round(ys.max()))
    x1, y1, x2, y2 = box
    return max(0, x1), max(0, y1), min(SIZE, x2), min(SIZE, y2)
