"""Images to tensors, by the rules of the released code.

A page has one global view and, in mode gundam, a grid of 640x640 crops. Global view and crops each become a grid of
image tokens with one more token at the end of every row; one separator ends them:

    side(view)  = ceil(view / 16 / 4)
    tokens      = side * (side + 1) + 1                                     the global view
                + (columns * 10 + 1) * (rows * 10)                          the crops, where there are any
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

CropGrid = tuple[int, int]
"""Columns and rows of crops; (1, 1) where there are none."""
TILE = 640
"""Side of a crop, in pixels."""
_PATCH, _DOWNSAMPLE = 16, 4
GREY = 127
"""Each channel of the padding, as a byte."""
_GRIDS = sorted(
    ((columns, rows) for columns in range(1, 10) for rows in range(1, 10) if 2 <= columns * rows <= 9),
    key=lambda grid: grid[0] * grid[1],
)
"""Every grid of 2 to 9 crops, the fewest first: the order decides between grids equally close to an aspect."""


@dataclass(frozen=True)
class Mode:
    """An input resolution."""

    size: int
    """Side of the global view, in pixels."""
    pad: bool
    """True: keep the aspect and pad with grey. False: stretch to the square."""
    crops: bool = False
    """Also cut larger images into crops."""


MODES = {
    "tiny": Mode(512, pad=False),
    "small": Mode(640, pad=False),
    "base": Mode(1024, pad=True),
    "large": Mode(1280, pad=True),
    "gundam": Mode(1024, pad=True, crops=True),
}


@dataclass(frozen=True)
class PageViews:
    """A page's views before normalisation."""

    overview: torch.Tensor
    """uint8 [3, size, size]"""
    crops: torch.Tensor | None
    """uint8 [columns * rows, 3, 640, 640], row by row; None where there are none."""
    grid: CropGrid


@dataclass(frozen=True)
class Placement:
    """Where a resized image lies on square tiles: the global view is one, crops are several."""

    size: tuple[int, int]
    """Width and height that the image is resized to."""
    side: int
    """Side of a tile, in pixels."""
    columns: int = 1
    rows: int = 1
    corner: tuple[int, int] = (0, 0)
    """Left and top of the image on the tiles; the rest is grey."""

    @property
    def tiles(self) -> int:
        """How many tiles there are."""
        return self.columns * self.rows


def overview_placement(size: tuple[int, int], mode: Mode) -> Placement:
    """Where `page_views` puts an image of *size* (width, height) in its global view."""
    width, height = size
    side = mode.size
    if not mode.pad or width == height:
        return Placement((side, side), side)
    if min(width, height) * side < max(width, height):  # as in `_pad`: the short side keeps one pixel
        middle = (side - 1) // 2
        wide = width > height
        return Placement((side, 1) if wide else (1, side), side, corner=(0, middle) if wide else (middle, 0))
    # As PIL.ImageOps.pad computes it.
    fitted = (side, round(height / width * side)) if width > height else (round(width / height * side), side)
    return Placement(fitted, side, corner=(round((side - fitted[0]) * 0.5), round((side - fitted[1]) * 0.5)))


def crop_placement(grid: CropGrid) -> Placement:
    """Where it puts an image on its crops."""
    columns, rows = grid
    return Placement((columns * TILE, rows * TILE), TILE, columns, rows)


def crop_grid(size: tuple[int, int], mode: Mode) -> CropGrid:
    """Return the grid of crops for an image of *size* (width, height).

    It is the grid with the closest aspect. Among equally close ones a later one wins where the image covers more than
    half of its area.
    """
    width, height = size
    if not mode.crops or (width <= TILE and height <= TILE):
        return 1, 1
    best, best_difference = (1, 1), float("inf")
    for grid in _GRIDS:
        difference = abs(width / height - grid[0] / grid[1])
        larger = width * height > 0.5 * TILE * TILE * grid[0] * grid[1]
        if difference < best_difference or (difference == best_difference and larger):
            best, best_difference = grid, difference
    return best


def image_tokens(grid: CropGrid, mode: Mode) -> int:
    """Return the number of image tokens of a page with this crop grid."""
    side = _side(mode.size)
    tokens = side * (side + 1) + 1
    if grid != (1, 1):
        tokens += (grid[0] * _side(TILE) + 1) * (grid[1] * _side(TILE))
    return tokens


def page_views(image: Image, mode: Mode) -> PageViews:
    """Resize an image to its global view, and cut its crops."""
    if image.mode != "RGB":
        image = image.convert("RGB")
    overview = _pad(image, mode.size) if mode.pad else image.resize((mode.size, mode.size))
    grid = crop_grid(image.size, mode)
    if grid == (1, 1):
        return PageViews(_pixels(overview), None, grid)
    columns, rows = grid
    canvas = _pixels(image.resize((columns * TILE, rows * TILE)))
    crops = canvas.reshape(3, rows, TILE, columns, TILE).permute(1, 3, 0, 2, 4).reshape(-1, 3, TILE, TILE)
    return PageViews(_pixels(overview), crops, grid)


def normalize(pixels: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Stack uint8 views as (v / 255 - 0.5) / 0.5, rounded to bfloat16 for every *dtype*, as released."""
    import torch

    values = torch.stack(list(pixels)).float()
    return values.div_(255).sub_(0.5).div_(0.5).to(torch.bfloat16).to(dtype)


def _side(view: int) -> int:
    """Image tokens along the side of a view of *view* pixels."""
    return -(-(view // _PATCH) // _DOWNSAMPLE)


def _pad(image: Image, size: int) -> Image:
    from PIL import Image as images
    from PIL import ImageOps

    width, height = image.size
    if min(width, height) * size >= max(width, height):
        return ImageOps.pad(image, (size, size), color=(GREY, GREY, GREY))
    # The short side would round to nothing, which Pillow refuses: keep one pixel.
    strip = image.resize((size, 1) if width > height else (1, size))
    canvas = images.new("RGB", (size, size), (GREY, GREY, GREY))
    canvas.paste(strip, (0, (size - 1) // 2) if width > height else ((size - 1) // 2, 0))
    return canvas


def _pixels(image: Image) -> torch.Tensor:
    """uint8 [3, height, width]"""
    import numpy as np
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
