"""Render the eight sample pages and their truth into pytest_llmprof/datasets/sample_pages.

    python tools/render_pages/render_sample_pages.py [--fonts DIR ...] [--out DIR]

Fonts come from the Debian packages fonts-dejavu-core (Bitstream Vera licence; the DejaVu changes are public
domain) and fonts-liberation2 or fonts-liberation 2.x (SIL Open Font License 1.1). Both licences let an image
of a text be used freely; no font file is shipped. The output depends on the fonts and on FreeType only: noise
is seeded, the layout engine is Pillow's basic one.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from sample_source import HEIGHT, SHEETS, WIDTH, Block, Sheet  # noqa: E402

OUT = HERE.parents[1] / "pytest_llmprof" / "datasets" / "sample_pages"
FONT_DIRS = tuple(
    Path("/usr/share/fonts/truetype") / name for name in ("dejavu", "liberation2", "liberation")
)
LICENSE = "Apache-2.0"
"""Texts and images were made for this project."""
RULE = (150, 150, 150)
PAD = 2
"""Pixels between the ink of a block and its box."""


class Fonts:
    """Font files found in *directories*."""

    def __init__(self, directories: Iterable[Path]) -> None:
        self.files: dict[str, Path] = {}
        for directory in directories:
            for path in sorted(directory.glob("*.ttf")) if directory.is_dir() else ():
                self.files.setdefault(path.stem, path)

    def has(self, sheet: Sheet) -> bool:
        """Whether every font of *sheet* is there."""
        names = {name for block in sheet.blocks if block.lines for name in (block.font, block.head) if name}
        return names <= self.files.keys()

    def get(self, name: str, size: int) -> ImageFont.FreeTypeFont:
        """The font *name* at *size* pixels an em."""
        if name not in self.files:
            raise SystemExit(
                f"no font {name}.ttf: install fonts-dejavu-core and fonts-liberation2, or give --fonts DIR"
            )
        return ImageFont.truetype(self.files[name], size, layout_engine=ImageFont.Layout.BASIC)


def _draw_block(draw: ImageDraw.ImageDraw, block: Block, sheet: Sheet, fonts: Fonts) -> list[int]:
    plain = fonts.get(block.font, block.size)
    step = block.step or round(block.size * 1.3)
    boxes: list[tuple[float, ...]] = []
    columns, rows = block.grid
    if columns:
        x1, y1, x2, y2 = columns[0], rows[0], columns[-1], rows[-1]
        for line in (*((x, y1, x, y2) for x in columns), *((x1, y, x2, y) for y in rows)):
            draw.line(line, fill=RULE, width=2)
        boxes.append((x1 + PAD, y1 + PAD, x2 + 1 - PAD, y2 + 1 - PAD))
    for row, line in enumerate(block.lines):
        font = fonts.get(block.head, block.size) if block.head and row == 0 else plain
        y = block.y + row * step
        cells = ((block.x, line),) if isinstance(line, str) else line
        if block.centred:
            (text,) = (text for _, text in cells)
            cells = (((WIDTH - round(font.getlength(text))) // 2, text),)
        for x, text in cells:
            draw.text((x, y), text, font=font, fill=sheet.ink)
            boxes.append(draw.textbbox((x, y), text, font=font))
    left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
    right, bottom = max(box[2] for box in boxes), max(box[3] for box in boxes)
    return [int(left) - PAD, int(top) - PAD, int(right) + PAD, int(bottom) + PAD]


def _draw_piano(draw: ImageDraw.ImageDraw, box: Sequence[int]) -> None:
    """A piano keyboard: seven white keys, five black ones, on a blue board."""
    x1, y1, x2, y2 = box
    draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=(70, 100, 150))
    width = (x2 - x1 - 20) // 7
    for key in range(7):
        left = x1 + 11 + key * width
        draw.rectangle((left, y1 + 24, left + width - 3, y2 - 14), fill=(250, 250, 250))
    for key in (1, 2, 4, 5, 6):
        middle = x1 + 11 + key * width - 2
        draw.rectangle((middle - 7, y1 + 24, middle + 7, y1 + 90), fill=(25, 25, 25))


def render(sheet: Sheet, fonts: Fonts) -> tuple[Image.Image, list[list[int]]]:
    """The image of *sheet* and a pixel box [x1, y1, x2, y2] a block."""
    image = Image.new("RGB", (WIDTH, HEIGHT), sheet.paper)
    draw = ImageDraw.Draw(image)
    for rule in sheet.rules:
        draw.line(rule, fill=RULE, width=2)
    boxes = []
    for block in sheet.blocks:
        if block.label == "image":
            assert sheet.image is not None
            _draw_piano(draw, sheet.image)
            boxes.append(list(sheet.image))
        else:
            boxes.append(_draw_block(draw, block, sheet, fonts))
    if sheet.noise:
        dice = random.Random(sheet.name)
        for _ in range(WIDTH * HEIGHT * sheet.noise // 100):
            spot = (dice.randrange(WIDTH), dice.randrange(HEIGHT))
            shade = dice.choice((-48, -32, -16, 16, 32, 48))
            red, green, blue = image.getpixel(spot)
            image.putpixel(spot, tuple(min(255, max(0, part + shade)) for part in (red, green, blue)))
    return image, boxes


def truth(sheet: Sheet, boxes: list[list[int]] | None = None) -> dict[str, Any]:
    """The entry of *sheet* in pages.json; without *boxes* (which need the fonts) the boxes are null."""
    return {
        "name": sheet.name,
        "file": f"{sheet.name}.png",
        "size": [WIDTH, HEIGHT],
        "license": LICENSE,
        "free": sheet.free(),
        "markdown": sheet.markdown(),
        "blocks": [
            {"label": block.label, "box": boxes[index] if boxes else None, "text": block.markdown()}
            for index, block in enumerate(sheet.blocks)
        ],
    }


def _smallest(image: Image.Image) -> Image.Image:
    """The same pixels in the mode that makes the smallest file."""
    grey = image.convert("L")
    if list(grey.convert("RGB").tobytes()) == list(image.tobytes()):
        return grey
    colours = image.getcolors(256)
    return image.quantize(len(colours), dither=Image.Dither.NONE) if colours else image


def main() -> None:
    """Write one PNG a page and pages.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--fonts", type=Path, action="append", default=[], help="directory with .ttf files")
    parser.add_argument("--out", type=Path, default=OUT, help="default: the package's sample_pages")
    options = parser.parse_args()
    fonts = Fonts((*options.fonts, *FONT_DIRS))
    options.out.mkdir(parents=True, exist_ok=True)
    entries = []
    for sheet in SHEETS:
        image, boxes = render(sheet, fonts)
        _smallest(image).save(options.out / f"{sheet.name}.png", optimize=True)
        entries.append(truth(sheet, boxes))
    text = json.dumps({"schema": 1, "pages": entries}, indent=1, ensure_ascii=True)
    (options.out / "pages.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
