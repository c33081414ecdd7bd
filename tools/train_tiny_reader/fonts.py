"""The font families pages are set in, and a cache of opened fonts with their advances."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from PIL import ImageFont

__all__ = ["BUILTIN", "HELD_OUT", "TRAINED", "Face", "Family", "Glyph", "face"]


@dataclass(frozen=True)
class Family:
    """A family: file names of its upright regular (and light, italic) faces and of its bold ones."""

    name: str
    regular: tuple[str, ...]
    bold: tuple[str, ...]
    weight: float = 1.0
    """How often it is chosen."""


def _family(name: str, stem: str, regular: str, bold: str, weight: float = 1.0, ext: str = "ttf") -> Family:
    def names(styles: str) -> tuple[str, ...]:
        return tuple(f"{stem}{style}.{ext}" for style in styles.split())

    return Family(name, names(regular), names(bold), weight)


TRAINED = (
    Family("DejaVu Sans", ("DejaVuSans.ttf",), ("DejaVuSans-Bold.ttf",), 2.0),
    Family("DejaVu Serif", ("DejaVuSerif.ttf",), ("DejaVuSerif-Bold.ttf",), 2.0),
    Family("DejaVu Sans Mono", ("DejaVuSansMono.ttf",), ("DejaVuSansMono-Bold.ttf",), 1.5),
    _family("Liberation Sans", "LiberationSans-", "Regular Regular Italic", "Bold BoldItalic", 2.0),
    _family("Liberation Serif", "LiberationSerif-", "Regular Regular Italic", "Bold BoldItalic", 2.0),
    _family("Liberation Mono", "LiberationMono-", "Regular", "Bold"),
    _family("EB Garamond", "EBGaramond12-", "Regular Italic", "Regular", ext="otf"),
    _family("STIX", "STIX-", "Regular Italic", "Bold", ext="otf"),
    _family("Roboto", "Roboto-", "Regular Light Italic Medium", "Bold Black"),
    _family("Roboto Condensed", "RobotoCondensed-", "Regular", "Bold", 0.5),
    _family("Lato", "Lato-", "Regular Light Italic", "Bold Black"),
    _family("Carlito", "Carlito-", "Regular Italic", "Bold"),
    _family("Caladea", "Caladea-", "Regular Italic", "Bold"),
    _family("Cantarell", "Cantarell-", "Regular Light", "Bold", ext="otf"),
    Family("Inconsolata", ("Inconsolata.otf",), ("Inconsolata.otf",), 0.5),
    _family("Hack", "Hack-", "Regular", "Bold", 0.5),
    Family("Courier Prime", ("Courier Prime.otf",), ("Courier Prime Bold.otf",)),
    _family("Linux Libertine", "LinLibertine_", "R RI", "RB", ext="otf"),
    _family("Linux Biolinum", "LinBiolinum_", "R RI", "RB", ext="otf"),
    _family("Old Standard", "OldStandard-", "Regular Italic", "Bold", 0.7),
    _family("JetBrains Mono", "JetBrainsMono-", "Regular", "Bold", 0.5),
    _family("Quicksand", "Quicksand-", "Regular", "Bold", 0.5),
    _family("Charis SIL", "CharisSIL-", "Regular Italic", "Bold"),
    _family("TeX Gyre Pagella", "texgyrepagella-", "regular italic", "bold", ext="otf"),
    _family("TeX Gyre Schola", "texgyreschola-", "regular italic", "bold", ext="otf"),
    _family("TeX Gyre Bonum", "texgyrebonum-", "regular", "bold", 0.7, ext="otf"),
    _family("TeX Gyre Adventor", "texgyreadventor-", "regular", "bold", 0.7, ext="otf"),
    Family("GFS Didot", ("GFSDidot.otf", "GFSDidotItalic.otf"), ("GFSDidotBold.otf",), 0.5),
)
HELD_OUT = (
    _family("Open Sans", "OpenSans-", "Regular", "Bold"),
    Family("Gentium Book Basic", ("GenBkBasR.ttf",), ("GenBkBasB.ttf",)),
)
"""Never seen in training."""
BUILTIN = (Family("Pillow default", ("",), ("",)),)
"""The font inside Pillow: for tests on machines without font files."""


@dataclass(frozen=True)
class Glyph:
    """A drawn character: its mask, and the mask's distance from the pen and from the top of the em box."""

    mask: np.ndarray
    left: int
    top: int


class Face:
    """One font file at one size, in pixels an em. Characters are drawn once and kept."""

    def __init__(self, path: Path | None, size: int) -> None:
        self.path, self.size = path, size
        self.font = _open(path, size)
        self._advances: dict[str, float] = {}
        self._glyphs: dict[str, Glyph | None] = {}
        self._pairs = _pairs(path)

    @cached_property
    def ink(self) -> tuple[int, int]:
        """Top and bottom of a line of text, from the top of the em box."""
        box = self.font.getbbox("Ahgp")
        return round(box[1]), round(box[3])

    @cached_property
    def baseline(self) -> int:
        """Where a line's letters stand, from the top of the em box."""
        return int(self.font.getmetrics()[0])

    def advance(self, char: str) -> float:
        """Pixels from *char* to the next, without kerning."""
        width = self._advances.get(char)
        if width is None:
            width = self._advances[char] = self.font.getlength(char)
        return width

    def width(self, text: str) -> float:
        """Pixels *text* takes, without kerning."""
        return sum(map(self.advance, text))

    def glyph(self, char: str) -> Glyph | None:
        """The drawn *char*; None where nothing is drawn."""
        if char not in self._glyphs:
            mask, (left, top) = self.font.getmask2(char, "L")
            width, height = mask.size
            pixels = np.array(mask, np.uint8).reshape(height, width) if width and height else None
            self._glyphs[char] = None if pixels is None or not pixels.any() else Glyph(pixels, left, top)
        return self._glyphs[char]

    def edges(self, text: str, tracking: float = 0.0) -> list[float]:
        """Where each character of *text* starts, and where the last ends, from 0; with kerning and *tracking*."""
        x, before, pairs, size = 0.0, "", self._pairs, self.size
        out = [x]
        for char in text:
            if before:
                kern = pairs.get(before + char)
                if kern is None:
                    kern = pairs[before + char] = _kerning(self.path, before, char)
                x += kern * size + tracking
                out[-1] = x
            x += self.advance(char)
            out.append(x)
            before = char
        return out


def _open(path: Path | None, size: int) -> ImageFont.FreeTypeFont:
    if path is not None:
        return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


@lru_cache(maxsize=256)
def _large(path: Path | None) -> ImageFont.FreeTypeFont:
    return _open(path, 128)


@lru_cache(maxsize=256)
def _pairs(path: Path | None) -> dict[str, float]:
    """Cache of kerning by pair, in ems, for all sizes of a file."""
    return {}


def _kerning(path: Path | None, left: str, right: str) -> float:
    font = _large(path)
    return (font.getlength(left + right) - font.getlength(left) - font.getlength(right)) / 128


@lru_cache(maxsize=4096)
def face(folder: Path | None, name: str, size: int) -> Face:
    """The face *name* of *folder*; an empty name is Pillow's own font."""
    return Face(folder / name if folder is not None and name else None, size)
