"""The font families pages are set in, and a cache of opened fonts with their advances."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from PIL import ImageFont

__all__ = ["BUILTIN", "HELD_OUT", "TRAINED", "Face", "Family", "face"]


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
    _family("EB Garamond", "EBGaramond12-", "Regular Italic", "Bold", ext="otf"),
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


class Face:
    """One font file at one size, in pixels an em."""

    def __init__(self, path: Path | None, size: int) -> None:
        self.size = size
        if path is None:
            font = ImageFont.load_default(size)
            assert isinstance(font, ImageFont.FreeTypeFont)
            self.font = font
        else:
            self.font = ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
        self._advances: dict[str, float] = {}

    @cached_property
    def ink(self) -> tuple[float, float]:
        """Top and bottom of a line of text, from the top of the em box."""
        box = self.font.getbbox("Ahgp")
        return box[1], box[3]

    def advance(self, char: str) -> float:
        """Pixels from *char* to the next, without kerning."""
        width = self._advances.get(char)
        if width is None:
            width = self._advances[char] = self.font.getlength(char)
        return width

    def width(self, text: str) -> float:
        """Pixels *text* takes, without kerning."""
        return sum(map(self.advance, text))


@lru_cache(maxsize=4096)
def face(folder: Path | None, name: str, size: int) -> Face:
    """The face *name* of *folder*; an empty name is Pillow's own font."""
    return Face(folder / name if folder is not None and name else None, size)
