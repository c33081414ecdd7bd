"""Pillow's bicubic resize of 8-bit images in integers, so that a GPU gives the same bytes.

Pillow resizes in two passes, one along each axis. For an axis of n pixels that becomes m:

    scale   = n / m                                        source pixels for each pixel of the result
    centre  = (i + 0.5) * scale                            of the result's pixel i in the source
    support = 2 * max(scale, 1)                            on either side of the centre
    weight  = cubic((j + 0.5 - centre) / max(scale, 1))    of the source pixel j, with a = -0.5; divided by their sum

The weights are computed in float64 and rounded to 22 fractional bits. A pass adds weight * byte in int32, beginning
with one half, shifts by 22 and clips to a byte (`src/libImaging/Resample.c` of Pillow). Which pass comes first changes
bytes, and depends on the sizes and on Pillow's version, so `find_order` tries it out. A pass that changes no size has
the weights 1 and 0, so it changes nothing, whether Pillow leaves it out or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Size = tuple[int, int]
"""Width and height, in pixels."""
Order = Callable[[Size, Size], bool]
"""Whether the vertical pass comes first, by the size before and after."""

BITS = 22
"""Fractional bits of a weight."""


@lru_cache(maxsize=64)
def taps(before: int, after: int) -> npt.NDArray[np.int32]:
    """[1 + taps, after]: the first source pixel that each pixel of the result takes, then the weights from there on.

    Weights past the last source pixel are 0. Float64 operations are done one by one in Pillow's order, as sums depend
    on it.
    """
    if before == after:
        return np.stack([np.arange(after), np.full(after, 1 << BITS)]).astype(np.int32)
    scale = before / after
    wide = max(scale, 1.0)
    support = 2.0 * wide
    centre = (np.arange(after) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + support + 0.5).astype(np.int64), before) - first
    places = np.arange(math.ceil(support) * 2 + 1)[:, None]
    weights = np.where(places < count, _cubic((places + first - centre + 0.5) * (1.0 / wide)), 0.0)
    total = np.zeros(after)
    for row in weights:
        total += row
    weights = np.divide(weights, total, out=weights, where=total != 0.0) * float(1 << BITS)
    rounded = np.trunc(weights + np.where(weights < 0, -0.5, 0.5))
    return np.concatenate([first[None], rounded[: int(count.max())]]).astype(np.int32)


def _cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    a = -0.5
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def resize(pixels: Tensor, size: Size, order: Order) -> Tensor:
    """*pixels*, uint8 [height, width, 3 or more], resized: uint8 [3, height, width] of the first three channels."""
    height, width = pixels.shape[:2]
    passes = [(2, taps(width, size[0])), (1, taps(height, size[1]))]
    if order((width, height), size):
        passes.reverse()
    found = pixels[..., :3].permute(2, 0, 1)
    for axis, table in passes:
        found = _pass(found, axis, torch.from_numpy(table).to(pixels.device))
    return found


def _pass(pixels: Tensor, axis: int, table: Tensor) -> Tensor:
    """*pixels*, uint8 [3, height, width], resized along *axis*."""
    first, last = table[0], pixels.shape[axis] - 1
    shape = (-1, 1) if axis == 1 else (-1,)
    total: Any = 1 << (BITS - 1)
    for place, weights in enumerate(table[1:]):
        taken = pixels.index_select(axis, (first + place).clamp_max(last))
        total = total + taken.int() * weights.view(shape)
    result: Tensor = (total >> BITS).clamp(0, 255).to(torch.uint8)
    return result


def horizontal_first(before: Size, after: Size) -> bool:
    """What Pillow did for long."""
    return False


def vertical_first(before: Size, after: Size) -> bool:
    """No version of Pillow does so for all sizes."""
    return True


def _tall_vertically_first(before: Size, after: Size) -> bool:
    return before[1] > 100 * before[0] and after[1] < before[1]


def _larger_step_first(before: Size, after: Size) -> bool:
    return after[1] < before[1] and before[1] - after[1] > 2 * (before[0] - after[0])


ORDERS: Mapping[str, Order] = {
    "13.0": _larger_step_first,
    "12.2": _tall_vertically_first,
    "10.1": horizontal_first,
}
"""Orders of the passes, by a version of Pillow that has each; not every version was looked at."""
_PROBES: tuple[tuple[Size, Size], ...] = (
    *[((40, 30), (width, height)) for width in (13, 34, 56) for height in (11, 26, 48)],
    *[((61, 60), (60, height)) for height in (57, 58, 59, 61)],
    *[((2, height), (3, 90)) for height in (199, 201, 203)],
    ((40, 30), (40, 20)),
    ((40, 30), (20, 30)),
)
"""Sizes before and after at which the orders differ, and at which each axis grows, shrinks and stays."""


def find_order() -> Order | None:
    """How the installed Pillow orders its passes; None where it is none of `ORDERS`, or its arithmetic is another."""
    from PIL import Image

    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (height, width, 3), dtype=np.uint8) for (width, height), _ in _PROBES]
    wanted = [
        np.asarray(Image.fromarray(image).resize(after)) for image, (_, after) in zip(images, _PROBES, strict=True)
    ]
    for order in ORDERS.values():
        found = (
            resize(torch.from_numpy(image), after, order).permute(1, 2, 0).numpy()
            for image, (_, after) in zip(images, _PROBES, strict=True)
        )
        if all(np.array_equal(ours, theirs) for ours, theirs in zip(found, wanted, strict=True)):
            return order
    return None
