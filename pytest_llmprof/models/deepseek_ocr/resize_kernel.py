"""One pass of Pillow's resize in Triton: `resize.py` has the arithmetic, `views.py` launches it."""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK = 256
"""Pixels of a row that a program computes."""


# No size is specialised on, so pages of new sizes compile nothing.
@triton.jit(
    do_not_specialize=[
        *("channel_stride", "row_stride", "pixel_stride", "last", "taps"),
        *("width", "height", "left", "top", "side", "columns"),
    ]
)
def resample(
    source, table, result, values,
    channel_stride, row_stride, pixel_stride, last, taps,
    width, height, left, top, side, columns,
    ALONG_ROWS: tl.constexpr, FINAL: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """A row's block of one channel: source, uint8 by its strides -> result; *width* and *height* are the result's.

    *table* is `resize.taps` of the axis, its weights have BITS fractional bits, and HALF is one half. *last* is the
    source's last pixel along the axis. Without FINAL the result is uint8 [3, height, width]. With it the bytes index
    *values*, [256], and the result lies at *left* and *top* on tiles of *side* pixels, [tiles, 3, side, side].
    """
    y = tl.program_id(0)
    x = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.program_id(2)
    inside = x < width
    start = source + channel * channel_stride
    total = tl.full((BLOCK,), HALF, tl.int32)
    if ALONG_ROWS:
        start += y.to(tl.int64) * row_stride
        first = tl.load(table + x, mask=inside, other=0)
        for tap in range(taps):
            weight = tl.load(table + (1 + tap) * width + x, mask=inside, other=0)
            byte = tl.load(start + tl.minimum(first + tap, last) * pixel_stride, mask=inside, other=0)
            total += weight * byte.to(tl.int32)
    else:
        start_x = start + x * pixel_stride
        first_row = tl.load(table + y)
        for tap in range(taps):
            weight_row = tl.load(table + (1 + tap) * height + y)
            row = tl.minimum(first_row + tap, last).to(tl.int64)
            byte = tl.load(start_x + row * row_stride, mask=inside, other=0)
            total += weight_row * byte.to(tl.int32)
    byte = tl.minimum(tl.maximum(total >> BITS, 0), 255)
    if FINAL:
        column, row = x + left, y + top
        tile = (row // side) * columns + column // side
        place = ((tile * 3 + channel) * side + row % side) * side + column % side
        tl.store(result + place, tl.load(values + byte, mask=inside, other=0.0), mask=inside)
    else:
        place = (channel * height + y).to(tl.int64) * width + x
        tl.store(result + place, byte.to(tl.uint8), mask=inside)
