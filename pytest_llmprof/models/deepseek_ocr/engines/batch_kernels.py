"""One decode step of 2 to 8 rows in Triton: `kernels.py` has the step of one row, `batch_step.py` the launches' order.

Each weight is read once for all rows: a program loads its part of a matrix and multiplies it with one row after the
other, while the next row's values are on their way. Rows choose different experts: of 64 experts, 6 for each row, 8
rows that choose at random read 35 in a layer, three quarters of the step's bytes. So `widen` also makes a list of the
experts that any row has chosen, each once and with its rows, and `experts` and `narrow` have programs for the list's
experts, not for each row's.

The rules for early starts (PDL) are those of `kernels.py`. `widen` and `experts` release the next kernel after their
own wait, so `narrow` may read the list, which is two kernels old, before its wait, and `head` what `begin` wrote. A row
that has ended chooses no expert and attends to its own token alone, so it adds nothing to what is read.

Sums have a fixed order, so the same inputs give the same bits. A row's scores differ from those of one row alone in the
last bits: its norms are applied before the products, not after them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pytest_llmprof.models.deepseek_ocr.engines.kernels import (
    _dot,
    _gained,
    _gated,
    _matrix,
    _release,
    _vector,
    _wait,
)

__all__ = ["experts", "gather", "head", "narrow", "product", "widen"]
"""The kernels of a decode step that those of one row do not have."""


@triton.jit
def gather(
    stream, ended, norm, normed, eps,
    SLOTS: tl.constexpr, DENSE: tl.constexpr, TOP: tl.constexpr, HIDDEN: tl.constexpr, STRIDE: tl.constexpr,
    POWER: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Add what `narrow` has written to each row's stream, and norm it for the product that comes next.

    stream[rows, STRIDE] has parts of HIDDEN: the stream itself, those of TOP slots, of which SLOTS are written, and
    DENSE parts of the dense MLP. Program: row.
    """
    _release(PDL)
    row = tl.program_id(0)
    at = tl.arange(0, POWER)
    inside = at < HIDDEN
    gains = tl.load(norm + at, mask=inside, other=0.0).to(tl.float32)
    _wait(PDL)
    stream += row * STRIDE
    chose = at < tl.where(tl.load(ended + row), 0, HIDDEN)
    total = tl.load(stream + at, mask=inside, other=0.0, cache_modifier=".cg")
    for part in tl.static_range(SLOTS):
        total += tl.load(stream + (1 + part) * HIDDEN + at, mask=chose, other=0.0, cache_modifier=".cg")
    for part in tl.static_range(DENSE):
        total += tl.load(stream + (1 + TOP + part) * HIDDEN + at, mask=inside, other=0.0, cache_modifier=".cg")
    tl.store(stream + at, total, mask=inside)
    factor = tl.rsqrt(tl.sum(total * total, 0) / HIDDEN + eps)
    tl.store(normed + row * HIDDEN + at, total * gains * factor, mask=inside)


@triton.jit
def _next(values, row, BATCH: tl.constexpr, STRIDE: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr):
    """The values of the row behind *row*, of the last one again behind the last."""
    return _vector(values + tl.minimum(row + 1, BATCH - 1) * STRIDE, 0, K, K, BLOCK)


@triton.jit
def product(
    values, weight, out,
    N: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, ADD: tl.constexpr, BATCH: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[row, N] = weight[N, K] values[row, K], added to what is there with ADD; out's rows are STRIDE apart."""
    _release(PDL)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    matrix = _matrix(weight, rows, rows < N, 0, K, K, BLOCK)
    _wait(PDL)
    vector = _vector(values, 0, K, K, BLOCK)
    for row in range(BATCH):
        place = out + row * STRIDE + rows
        before = tl.load(place, mask=(rows < N) & ADD, other=0.0, cache_modifier=".cg")
        following = _next(values, row, BATCH, K, K, BLOCK)
        tl.store(place, before + _dot(matrix, vector, K, BLOCK), mask=rows < N)
        vector = following


@triton.jit
def _route(
    scores, ended, slots, shares, order, members, scaling,
    EXPERTS: tl.constexpr, POWER: tl.constexpr, TOP: tl.constexpr, LISTED: tl.constexpr,
    BATCH: tl.constexpr, BATCH_POWER: tl.constexpr,
):  # fmt: skip
    """From the router's scores[rows, EXPERTS]: slots[rows, EXPERTS], each expert's place among a row's TOP chosen ones
    and -1 where it is not chosen; shares[rows, EXPERTS], its probability times *scaling*; order[LISTED], the experts
    that any row has chosen; members[LISTED], a bit for each row that has, 0 behind the list's end."""
    row, expert = tl.arange(0, BATCH_POWER), tl.arange(0, POWER)
    inside = row < BATCH
    live = inside[:, None] & (expert < EXPERTS)[None, :]
    at = row[:, None] * EXPERTS + expert[None, :]
    score = tl.load(scores + at, mask=live, other=float("-inf"), cache_modifier=".cg")
    over = tl.load(ended + row, mask=inside, other=1, cache_modifier=".cg") != 0
    score = tl.where(score == score, score, float("-inf"))  # a NaN is also in the stream, and stays there
    share = tl.exp(score - tl.max(score, 1)[:, None])
    tl.store(shares + at, share / tl.sum(share, 1)[:, None] * scaling, mask=live)
    slot = tl.full([BATCH_POWER, POWER], -1, tl.int32)
    for number in range(TOP):
        _, best = tl.max(score, 1, return_indices=True)
        chosen = expert[None, :] == tl.where(over, -1, best)[:, None]
        slot = tl.where(chosen, number, slot)
        score = tl.where(chosen, float("-inf"), score)
    tl.store(slots + at, slot, mask=live)
    bits = tl.sum(tl.where(slot >= 0, 1 << row[:, None], 0), 0)
    used = (bits > 0).to(tl.int32)
    place = tl.cumsum(used, 0) - used
    tl.store(order + place, expert, mask=used > 0)
    tl.store(members + place, bits, mask=used > 0)
    tl.store(members + expert, 0, mask=(expert >= tl.sum(used, 0)) & (expert < LISTED))


@triton.jit
def widen(
    stream, norm, router, weight, ended, normed, scores, ticket, slots, shares, order, members, inner, eps, scaling,
    EXPERTS: tl.constexpr, POWER: tl.constexpr, TOP: tl.constexpr, LISTED: tl.constexpr, INNER: tl.constexpr,
    HIDDEN: tl.constexpr, STRIDE: tl.constexpr, BATCH: tl.constexpr, BATCH_POWER: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The router's scores (first programs; the one that ends last makes the list of experts), normed[row, HIDDEN] for
    `experts`, and inner[row, INNER] from *weight* [gate and up, HIDDEN]. EXPERTS is 0 in a layer without a router."""
    routers: tl.constexpr = (EXPERTS + ROWS - 1) // ROWS
    program = tl.program_id(0) - routers
    gains = _vector(norm, 0, HIDDEN, HIDDEN, BLOCK)
    if program < 0:
        rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        matrix = _matrix(router, rows, rows < EXPERTS, 0, HIDDEN, HIDDEN, BLOCK)
        _wait(PDL)
        _release(PDL)
        vector = _vector(stream, 0, HIDDEN, HIDDEN, BLOCK)
        for row in range(BATCH):
            following = _next(stream, row, BATCH, STRIDE, HIDDEN, BLOCK)
            tiles, factor = _gained(vector, gains, eps, HIDDEN, BLOCK)
            tl.store(scores + row * EXPERTS + rows, _dot(matrix, tiles, HIDDEN, BLOCK) * factor, mask=rows < EXPERTS)
            for number in tl.static_range((HIDDEN + BLOCK - 1) // BLOCK):
                at = number * BLOCK + tl.arange(0, BLOCK)
                written = tl.where(tl.program_id(0) == 0, HIDDEN, 0)
                tl.store(normed + row * HIDDEN + at, tiles[number] * factor, mask=at < written)
            vector = following
        tl.debug_barrier()
        if tl.atomic_add(ticket, 1, sem="acq_rel") == routers - 1:
            _route(
                scores, ended, slots, shares, order, members, scaling, EXPERTS, POWER, TOP, LISTED, BATCH, BATCH_POWER
            )
            tl.store(ticket, 0)
    else:
        out = program * ROWS + tl.arange(0, ROWS)
        gates = _matrix(weight, out, out < INNER, 0, HIDDEN, HIDDEN, BLOCK)
        ups = _matrix(weight + INNER * HIDDEN, out, out < INNER, 0, HIDDEN, HIDDEN, BLOCK)
        _wait(PDL)
        _release(PDL)
        vector = _vector(stream, 0, HIDDEN, HIDDEN, BLOCK)
        for row in range(BATCH):
            following = _next(stream, row, BATCH, STRIDE, HIDDEN, BLOCK)
            tiles, factor = _gained(vector, gains, eps, HIDDEN, BLOCK)
            gate, up = _dot(gates, tiles, HIDDEN, BLOCK) * factor, _dot(ups, tiles, HIDDEN, BLOCK) * factor
            tl.store(inner + row * INNER + out, _gated(gate, up), mask=out < INNER)
            vector = following


@triton.jit
def experts(
    normed, shares, order, members, weight, routed,
    EXPERTS: tl.constexpr, INNER: tl.constexpr, HIDDEN: tl.constexpr,
    BATCH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """routed[place in the list, row, INNER] of the rows that have chosen an expert, weight[EXPERTS, gate and up,
    HIDDEN], times its share. Program [rows of the matrix, place in the list]."""
    _wait(PDL)
    _release(PDL)
    number = tl.program_id(1)
    chosen = tl.load(members + number, cache_modifier=".cg")
    expert = tl.load(order + number, cache_modifier=".cg")
    if chosen != 0:
        rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        weight += expert.to(tl.int64) * (2 * INNER * HIDDEN)
        gates = _matrix(weight, rows, rows < INNER, 0, HIDDEN, HIDDEN, BLOCK)
        ups = _matrix(weight + INNER * HIDDEN, rows, rows < INNER, 0, HIDDEN, HIDDEN, BLOCK)
        for row in range(BATCH):
            if (chosen >> row) & 1:
                share = tl.load(shares + row * EXPERTS + expert, cache_modifier=".cg")
                vector = _vector(normed + row * HIDDEN, 0, HIDDEN, HIDDEN, BLOCK)
                gate, up = _dot(gates, vector, HIDDEN, BLOCK), _dot(ups, vector, HIDDEN, BLOCK)
                place = routed + (number * BATCH + row) * INNER + rows
                tl.store(place, _gated(gate, up) * share, mask=rows < INNER)


@triton.jit
def narrow(
    slots, order, members, routed, weight, inner, dense_weight, stream,
    EXPERTS: tl.constexpr, LISTED: tl.constexpr, TOP: tl.constexpr, INNER: tl.constexpr,
    DENSE: tl.constexpr, SPAN: tl.constexpr, HIDDEN: tl.constexpr, STRIDE: tl.constexpr, BATCH: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The down projections, written to the parts of each row's stream: program [rows of the matrix, place in the list,
    which has up to LISTED experts, or behind them a span of the dense MLP's columns]."""
    _release(PDL)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    number = tl.program_id(1)
    if number < LISTED:
        chosen = tl.load(members + number, cache_modifier=".cg")
        expert = tl.load(order + number, cache_modifier=".cg")
        if chosen != 0:  # a program behind the list's end need not wait: it writes nothing
            weight += expert.to(tl.int64) * (HIDDEN * INNER)
            matrix = _matrix(weight, rows, rows < HIDDEN, 0, INNER, INNER, BLOCK)
            _wait(PDL)
            for row in range(BATCH):
                if (chosen >> row) & 1:
                    slot = tl.load(slots + row * EXPERTS + expert, cache_modifier=".cg")
                    values = _vector(routed + (number * BATCH + row) * INNER, 0, INNER, INNER, BLOCK)
                    place = stream + row * STRIDE + (1 + slot) * HIDDEN + rows
                    tl.store(place, _dot(matrix, values, INNER, BLOCK), mask=rows < HIDDEN)
    else:
        part = number - LISTED
        columns = _matrix(dense_weight, rows, rows < HIDDEN, part * SPAN, DENSE, SPAN, BLOCK)
        _wait(PDL)
        vector = _vector(inner, part * SPAN, DENSE, SPAN, BLOCK)
        for row in range(BATCH):
            following = _vector(inner + tl.minimum(row + 1, BATCH - 1) * DENSE, part * SPAN, DENSE, SPAN, BLOCK)
            place = stream + row * STRIDE + (1 + TOP + part) * HIDDEN + rows
            tl.store(place, _dot(columns, vector, SPAN, BLOCK), mask=rows < HIDDEN)
            vector = following


@triton.jit
def head(
    normed, weight, banned, length, scores, peaks, tokens,
    VOCABULARY: tl.constexpr, HIDDEN: tl.constexpr, BATCH: tl.constexpr, BATCH_POWER: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """scores[row, VOCABULARY] of the next tokens; for each row and program the highest score that is not banned, and
    its token. A NaN counts as infinite, so that `choose` finds it."""
    _release(PDL)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    matrix = _matrix(weight, rows, rows < VOCABULARY, 0, HIDDEN, HIDDEN, BLOCK)
    every = tl.arange(0, BATCH_POWER)
    at = every[:, None] * VOCABULARY + rows[None, :]
    live = (every < BATCH)[:, None] & (rows < VOCABULARY)[None, :]
    free = tl.load(banned + at, mask=live, other=0, cache_modifier=".cg") != tl.load(length, cache_modifier=".cg")
    _wait(PDL)
    vector = _vector(normed, 0, HIDDEN, HIDDEN, BLOCK)
    for row in range(BATCH):
        following = _next(normed, row, BATCH, HIDDEN, HIDDEN, BLOCK)
        tl.store(scores + row * VOCABULARY + rows, _dot(matrix, vector, HIDDEN, BLOCK), mask=rows < VOCABULARY)
        vector = following
    # All rows' scores are compared together: one look for each row takes longer than its product.
    tl.debug_barrier()
    score = tl.load(scores + at, mask=live, other=0.0, cache_modifier=".cg")
    score = tl.where(free & live, tl.where(score == score, score, float("inf")), float("-inf"))
    peak = tl.max(score, 1)
    token = tl.min(tl.where(score == peak[:, None], rows[None, :], VOCABULARY), 1)
    best = every * tl.num_programs(0) + tl.program_id(0)
    tl.store(peaks + best, peak, mask=every < BATCH)
    tl.store(tokens + best, token, mask=every < BATCH)
