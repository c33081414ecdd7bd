"""SAM's attention with relative positions as two Triton kernels, for 16-bit numbers on a GPU.

A score is query . key / sqrt(size) + query . row table + query . column table, where the tables depend on how far apart
the two places are. torch's attention wants the two position terms as a matrix [views, heads, places, places], which
takes longer to write and read than the attention itself. Here `positions` computes a number for each query and each
row, and for each query and each column; `attend` goes through the keys in tiles of 8 rows and 8 columns, and adds a
tile's 8 + 8 numbers to its 64 scores as a product with a matrix of zeros and ones. They are rounded to 16 bits as in
transformers, but not their sum, and the rest is the usual attention with running maxima in float32.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

_TILE = 8
"""Rows and columns of a tile of keys."""
_QUERIES = 64
"""Queries of a program."""
_WARPS, _STAGES = 4, 3


@triton.jit
def positions(
    qkv, rows, columns, result,
    SIDE: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Each query times the tables of its row (line < SIDE) or column: qkv [views, SIDE * SIDE, 3, HEADS, SIZE] and
    *rows*, *columns* [SIDE, SIDE, SIZE] -> result [views * HEADS, SIDE * SIDE, 2, PADDED]."""
    line, pair = tl.program_id(0) % (2 * SIDE), tl.program_id(0) // (2 * SIDE)
    n, c = tl.arange(0, BLOCK), tl.arange(0, SIZE)
    if line < SIDE:
        query, table, shift = line * SIDE + n, rows + line * (SIDE * SIZE), 0
    else:
        query, table, shift = n * SIDE + (line - SIDE), columns + (line - SIDE) * (SIDE * SIZE), PADDED
    inside = n < SIDE
    start = qkv + (pair // HEADS).to(tl.int64) * (SIDE * SIDE * 3 * HEADS * SIZE) + pair % HEADS * SIZE
    asked = tl.load(start + query[:, None] * (3 * HEADS * SIZE) + c[None, :], mask=inside[:, None], other=0.0)
    known = tl.load(table + n[None, :] * SIZE + c[:, None], mask=inside[None, :], other=0.0)
    place = (pair.to(tl.int64) * (SIDE * SIDE) + query)[:, None] * (2 * PADDED) + shift + n[None, :]
    found = tl.dot(asked, known)
    if result.dtype.element_ty == tl.float16:  # infinity times the zeros of `attend` would be no number
        found = tl.minimum(tl.maximum(found, -65504.0), 65504.0)
    tl.store(result + place, found.to(result.dtype.element_ty), mask=inside[:, None] & (n < PADDED)[None, :])


@triton.jit
def attend(
    qkv, positions, result,
    SIDE: tl.constexpr, PADDED: tl.constexpr, HEADS: tl.constexpr, SIZE: tl.constexpr,
    QUERIES: tl.constexpr, TILE: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """QUERIES queries of one view and head over all keys: qkv as above and *positions* -> result [views, SIDE * SIDE,
    HEADS, SIZE]."""
    LOG2E: tl.constexpr = 1.4426950408889634
    LENGTH: tl.constexpr = SIDE * SIDE
    WIDTH: tl.constexpr = 3 * HEADS * SIZE
    TILES: tl.constexpr = (SIDE + TILE - 1) // TILE
    BLOCKS: tl.constexpr = (LENGTH + QUERIES - 1) // QUERIES
    block, pair = tl.program_id(0) % BLOCKS, tl.program_id(0) // BLOCKS
    view = (pair // HEADS).to(tl.int64)
    q, c = block * QUERIES + tl.arange(0, QUERIES), tl.arange(0, SIZE)
    live = q < LENGTH
    start = qkv + view * (LENGTH * WIDTH) + pair % HEADS * SIZE
    query = tl.load(start + q[:, None] * WIDTH + c[None, :], mask=live[:, None], other=0.0)
    k, n = tl.arange(0, 2 * TILE), tl.arange(0, TILE * TILE)
    row, column = n // TILE, n % TILE
    # Rows 0 to 7 are 1 at the keys of this row, rows 8 to 15 at those of this column.
    spread = tl.where(k[:, None] < TILE, k[:, None] == row[None, :], k[:, None] - TILE == column[None, :])
    # Triton 3.2 ends the process (SIGFPE, on GPUs before Hopper) where a factor of a product is made of truth values.
    spread = tl.where(spread, 1.0, 0.0).to(query.dtype)
    known = positions + (pair.to(tl.int64) * LENGTH + tl.minimum(q, LENGTH - 1))[:, None] * (2 * PADDED)
    top = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    mixed = tl.zeros([QUERIES, SIZE], tl.float32)
    for tile in range(TILES * TILES):
        first, left = tile // TILES * TILE, tile % TILES * TILE
        keys = start + HEADS * SIZE + ((first + row) * SIDE + left + column) * WIDTH
        if SIDE % TILE == 0:
            key = tl.load(keys[None, :] + c[:, None])
            value = tl.load(keys[:, None] + HEADS * SIZE + c[None, :])
        else:
            inside = (first + row < SIDE) & (left + column < SIDE)
            key = tl.load(keys[None, :] + c[:, None], mask=inside[None, :], other=0.0)
            value = tl.load(keys[:, None] + HEADS * SIZE + c[None, :], mask=inside[:, None], other=0.0)
        both = tl.load(known + first + (k // TILE * (PADDED + left - first) + k % TILE)[None, :])
        scores = tl.dot(query, key) * (SCALE * LOG2E) + tl.dot(both, spread) * LOG2E
        if SIDE % TILE != 0:
            scores = tl.where(inside[None, :], scores, float("-inf"))
        highest = tl.maximum(top, tl.max(scores, 1))
        weight, keep = tl.exp2(scores - highest[:, None]), tl.exp2(top - highest)
        total = total * keep + tl.sum(weight, 1)
        mixed = tl.dot(weight.to(value.dtype), value, mixed * keep[:, None])
        top = highest
    mixed = mixed / total[:, None]
    place = (view * LENGTH + q)[:, None] * (HEADS * SIZE) + pair % HEADS * SIZE + c[None, :]
    tl.store(result + place, mixed.to(result.dtype.element_ty), mask=live[:, None])


def mix(qkv: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
    """Attention over square views: *qkv* [views, places, 3, heads, size] and position tables [side, side, size] give
    [views, places, heads * size]."""
    views, places, _, heads, size = qkv.shape
    side = rows.shape[0]
    padded = -(-side // _TILE) * _TILE
    block = max(16, 1 << (padded - 1).bit_length())
    found = qkv.new_empty((views * heads, places, 2, padded))
    result = qkv.new_empty((views, places, heads * size))
    # One axis: a grid's others hold 65535 programs, and many views of small windows are more.
    positions[(2 * side * views * heads,)](
        qkv, rows, columns, found, SIDE=side, PADDED=padded, BLOCK=block, HEADS=heads, SIZE=size
    )
    attend[(triton.cdiv(places, _QUERIES) * views * heads,)](
        qkv, found, result,
        SIDE=side, PADDED=padded, HEADS=heads, SIZE=size, QUERIES=_QUERIES, TILE=_TILE, SCALE=scale,
        num_warps=_WARPS, num_stages=_STAGES,
    )  # fmt: skip
    return result


def forward(layer: Any, hidden_states: Tensor) -> tuple[Tensor, None]:
    """What the attention module *layer*, whose tables are ready, returns for [views, side, side, width]."""
    views, height, width, _ = hidden_states.shape
    qkv = layer.qkv(hidden_states).view(views, height * width, 3, layer.num_attention_heads, -1)
    mixed = mix(qkv, layer.rel_pos_h, layer.rel_pos_w, layer.scale)
    return layer.proj(mixed.view(views, height, width, -1)), None
