"""One decode step of 2 to 8 rows in Triton: `kernels.py` has the step of one row, `batch_step.py` the launches' order.

Each weight is read once for all rows, and multiplied on the tensor cores: a tile of a matrix times 16 columns. They are
8 rows twice, since a vector is packed as two numbers of the weights' dtype, the rounded value and what the rounding has
lost. Both products are added in float32, so a step is as near to float32 as that of one row. Whoever makes a vector
packs it, as values[2, rows, K]; products load it.

Rows choose different experts: of 64 experts, 6 for each row, 8 rows that choose at random read 35 in a layer, three
quarters of the step's bytes. So `widen` also makes a list of the experts that any row has chosen, each once and with
its rows, and `experts` and `narrow` have programs for the list's experts, not for each row's. They load the vectors of
an expert's own rows; the other columns are 0.

Tiles are loaded in a pipeline, behind the wait. What lies ahead of it asks for the program's part of the matrix, so
that it is on its way into the L2 cache while the previous kernel ends (`_ahead`). The rules for early starts (PDL) are
those of `kernels.py`. `widen` and `experts` release the next kernel after their own wait, so `narrow` may read the
list, which is two kernels old, before its wait, and `head` what `begin` wrote. A row that has ended chooses no expert
and attends to its own token alone, so it adds nothing to what is read.

Sums have a fixed order, so the same inputs give the same bits. A row's scores differ from those of one row alone in the
last bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pytest_llmprof.models.deepseek_ocr.engines.kernels import _gated, _pack, _release, _wait

__all__ = ["experts", "gather", "head", "join", "narrow", "project", "widen"]
"""The kernels of a decode step that differ from those of one row."""


@triton.jit
def _ahead(
    weight, row, end, first, ROWS: tl.constexpr, K: tl.constexpr, SPAN: tl.constexpr, AHEAD: tl.constexpr
):  # fmt: skip
    """Ask for columns first ... first + SPAN of ROWS rows of a matrix [., K], from *row* on up to *end*. Whole rows lie
    together: one thread asks for all of them. Else each row has a thread."""
    if AHEAD and K % 8 == 0 and SPAN % 8 == 0:  # addresses and sizes are multiples of 16 bytes
        size: tl.constexpr = weight.dtype.element_ty.primitive_bitwidth // 8
        count = tl.minimum(ROWS, end - row)
        if K == SPAN:
            pieces, length = 1, count * (K * size)
        else:
            pieces, length = count, tl.minimum(SPAN, K - first) * size
        tl.inline_asm_elementwise(
            """{
            .reg .pred asks; .reg .b32 thread; .reg .b64 piece;
            mov.u32 thread, %tid.x;
            setp.lt.s32 asks, thread, $2;
            mad.wide.s32 piece, thread, $4, $1;
            @asks cp.async.bulk.prefetch.L2.global [piece], $3;
            mov.b32 $0, thread;
            }""",
            "=r,l,r,r,r", [weight + row * K + first, pieces, length, K * size],
            dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@triton.jit
def _products(
    weight, rows, live, values, members, first,
    K: tl.constexpr, SPAN: tl.constexpr, BATCH: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Those columns of some *rows* of a matrix [., K] times the packed *values* [2, BATCH, K] of the batch rows whose
    bit *members* has: [rows, 8], 0 for other batch rows."""
    column, span = tl.arange(0, 16), tl.arange(0, BLOCK)
    asked = ((members >> (column % 8)) & 1) != 0
    tiles = weight + rows[:, None] * K + (first + span)[None, :]
    vectors = values + (column // 8 * BATCH + column % 8)[None, :] * K + (first + span)[:, None]
    total = tl.zeros([rows.shape[0], 16], tl.float32)
    for at in tl.range(0, SPAN, BLOCK, num_stages=STAGES):
        inside = (at + span < SPAN) & (first + at + span < K)
        tile = tl.load(tiles + at, mask=live[:, None] & inside[None, :], other=0.0)
        vector = tl.load(vectors + at, mask=inside[:, None] & asked[None, :], other=0.0, cache_modifier=".cg")
        rounded = tile.to(vector.dtype)
        total = tl.dot(rounded, vector, total)
        if tile.dtype != vector.dtype:  # a router in float32
            total = tl.dot((tile - rounded.to(tile.dtype)).to(vector.dtype), vector, total)
    return tl.sum(tl.reshape(total, [rows.shape[0], 2, 8]), 1)


@triton.jit
def _pair(program, INNER: tl.constexpr, ROWS: tl.constexpr):
    """The ROWS of a matrix [gate and up of INNER, .] that belong together, and whether they are there."""
    index = tl.arange(0, ROWS)
    out = program * (ROWS // 2) + index % (ROWS // 2)
    return index // (ROWS // 2) * INNER + out, out < INNER


@triton.jit
def _pair_ahead(
    weight, program, INNER: tl.constexpr, ROWS: tl.constexpr, HIDDEN: tl.constexpr, AHEAD: tl.constexpr
):  # fmt: skip
    """Ask for these rows."""
    half: tl.constexpr = ROWS // 2
    _ahead(weight, program * half, INNER, 0, half, HIDDEN, HIDDEN, AHEAD)
    _ahead(weight + INNER * HIDDEN, program * half, INNER, 0, half, HIDDEN, HIDDEN, AHEAD)


@triton.jit
def _halves(products, factor, ROWS: tl.constexpr):
    """Gate and up, of the products of such ROWS, times a norm's *factor* [8], as the inner values [ROWS // 2, 8]."""
    gate, up = tl.split(tl.permute(tl.reshape(products, [2, ROWS // 2, 8]), 1, 2, 0))
    return _gated(gate * factor[None, :], up * factor[None, :])


@triton.jit
def gather(
    stream, ended, norm, normed, eps,
    SLOTS: tl.constexpr, DENSE: tl.constexpr, TOP: tl.constexpr, HIDDEN: tl.constexpr, STRIDE: tl.constexpr,
    POWER: tl.constexpr, BATCH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Add what `narrow` has written to each row's stream, and norm and pack it for the product that comes next.

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
    _pack(normed + row * HIDDEN + at, BATCH * HIDDEN, total * gains * factor, inside)


@triton.jit
def project(
    normed, weight, out,
    N: tl.constexpr, HIDDEN: tl.constexpr, BATCH: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Queries, keys and values: out[row, N] = weight[N, HIDDEN] normed[row]."""
    _release(PDL)
    rows, row = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, 8)
    _ahead(weight, tl.program_id(0) * ROWS, N, 0, ROWS, HIDDEN, HIDDEN, AHEAD)
    _wait(PDL)
    products = _products(weight, rows, rows < N, normed, (1 << BATCH) - 1, 0, HIDDEN, HIDDEN, BATCH, BLOCK, STAGES)
    live = (rows < N)[:, None] & (row < BATCH)[None, :]
    tl.store(out + row[None, :] * N + rows[:, None], products, mask=live)


@triton.jit
def join(
    blend, weight, norm, stream, gained, squares,
    K: tl.constexpr, HIDDEN: tl.constexpr, STRIDE: tl.constexpr, BATCH: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The output projection: weight[HIDDEN, K] blend[row] is added to each row's stream. Of the norm that comes next,
    the stream times its weights, packed in gained[row, HIDDEN], and the sums of its squares [program, 8]."""
    _release(PDL)
    rows, row = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, 8)
    _ahead(weight, tl.program_id(0) * ROWS, HIDDEN, 0, ROWS, K, K, AHEAD)
    gains = tl.load(norm + rows, mask=rows < HIDDEN, other=0.0).to(tl.float32)
    _wait(PDL)
    live = (rows < HIDDEN)[:, None] & (row < BATCH)[None, :]
    place = stream + row[None, :] * STRIDE + rows[:, None]
    before = tl.load(place, mask=live, other=0.0, cache_modifier=".cg")
    total = before + _products(weight, rows, rows < HIDDEN, blend, (1 << BATCH) - 1, 0, K, K, BATCH, BLOCK, STAGES)
    tl.store(place, total, mask=live)
    _pack(gained + row[None, :] * HIDDEN + rows[:, None], BATCH * HIDDEN, total * gains[:, None], live)
    tl.store(squares + tl.program_id(0) * 8 + row, tl.sum(total * total, 0))


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
    gained, squares, router, weight, ended, factors, scores, ticket, slots, shares, order, members, inner, eps, scaling,
    EXPERTS: tl.constexpr, POWER: tl.constexpr, TOP: tl.constexpr, LISTED: tl.constexpr, INNER: tl.constexpr,
    HIDDEN: tl.constexpr, PARTS: tl.constexpr, BATCH: tl.constexpr, BATCH_POWER: tl.constexpr, ROUTED: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The router's scores (first programs, of ROUTED rows; the one that ends last makes the list of experts), the
    norms' factors [8] for `experts`, and inner[row, INNER], packed, from *weight* [gate and up, HIDDEN]. EXPERTS is 0
    in a layer without a router. squares[PARTS, 8] are those of `join`."""
    routers: tl.constexpr = (EXPERTS + ROUTED - 1) // ROUTED
    program = tl.program_id(0) - routers
    row = tl.arange(0, 8)
    sums = squares + tl.arange(0, PARTS)[:, None] * 8 + row[None, :]
    every: tl.constexpr = (1 << BATCH) - 1
    if program < 0:
        expert = tl.program_id(0) * ROUTED + tl.arange(0, ROUTED)
        _ahead(router, tl.program_id(0) * ROUTED, EXPERTS, 0, ROUTED, HIDDEN, HIDDEN, AHEAD)
        _wait(PDL)
        _release(PDL)
        factor = tl.rsqrt(tl.sum(tl.load(sums, cache_modifier=".cg"), 0) / HIDDEN + eps)
        score = _products(router, expert, expert < EXPERTS, gained, every, 0, HIDDEN, HIDDEN, BATCH, BLOCK, STAGES)
        known = (expert < EXPERTS)[:, None] & (row < BATCH)[None, :]
        tl.store(scores + row[None, :] * EXPERTS + expert[:, None], score * factor[None, :], mask=known)
        tl.store(factors + row, factor, mask=row < tl.where(tl.program_id(0) == 0, 8, 0))
        tl.debug_barrier()
        if tl.atomic_add(ticket, 1, sem="acq_rel") == routers - 1:
            _route(
                scores, ended, slots, shares, order, members, scaling, EXPERTS, POWER, TOP, LISTED, BATCH, BATCH_POWER
            )
            tl.store(ticket, 0)
    else:
        rows, there = _pair(program, INNER, ROWS)
        _pair_ahead(weight, program, INNER, ROWS, HIDDEN, AHEAD)
        _wait(PDL)
        _release(PDL)
        factor = tl.rsqrt(tl.sum(tl.load(sums, cache_modifier=".cg"), 0) / HIDDEN + eps)
        products = _products(weight, rows, there, gained, every, 0, HIDDEN, HIDDEN, BATCH, BLOCK, STAGES)
        out = program * (ROWS // 2) + tl.arange(0, ROWS // 2)
        live = (out < INNER)[:, None] & (row < BATCH)[None, :]
        _pack(inner + row[None, :] * INNER + out[:, None], BATCH * INNER, _halves(products, factor, ROWS), live)


@triton.jit
def experts(
    gained, factors, shares, order, members, weight, routed,
    EXPERTS: tl.constexpr, INNER: tl.constexpr, HIDDEN: tl.constexpr, BATCH: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """routed[place in the list, row, INNER], packed, of the rows that have chosen an expert, weight[EXPERTS, gate and
    up, HIDDEN], times its share. Program [rows of the matrix, place in the list]."""
    _wait(PDL)
    _release(PDL)
    number = tl.program_id(1)
    chosen = tl.load(members + number, cache_modifier=".cg")
    expert = tl.load(order + number, cache_modifier=".cg")
    if chosen != 0:
        rows, there = _pair(tl.program_id(0), INNER, ROWS)
        weight += expert.to(tl.int64) * (2 * INNER * HIDDEN)
        _pair_ahead(weight, tl.program_id(0), INNER, ROWS, HIDDEN, AHEAD)
        row = tl.arange(0, 8)
        asked = ((chosen >> row) & 1) != 0
        factor = tl.load(factors + row, cache_modifier=".cg")
        share = tl.load(shares + row * EXPERTS + expert, mask=asked, other=0.0, cache_modifier=".cg")
        products = _products(weight, rows, there, gained, chosen, 0, HIDDEN, HIDDEN, BATCH, BLOCK, STAGES)
        out = tl.program_id(0) * (ROWS // 2) + tl.arange(0, ROWS // 2)
        place = routed + (number * (2 * BATCH) + row)[None, :] * INNER + out[:, None]
        live = (out < INNER)[:, None] & asked[None, :]
        _pack(place, BATCH * INNER, _halves(products, factor, ROWS) * share[None, :], live)


@triton.jit
def narrow(
    slots, order, members, routed, weight, inner, dense_weight, stream,
    EXPERTS: tl.constexpr, LISTED: tl.constexpr, TOP: tl.constexpr, INNER: tl.constexpr,
    DENSE: tl.constexpr, SPAN: tl.constexpr, HIDDEN: tl.constexpr, STRIDE: tl.constexpr, BATCH: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The down projections, written to the parts of each row's stream: program [rows of the matrix, place in the list,
    which has up to LISTED experts, or behind them a span of the dense MLP's columns]."""
    _release(PDL)
    rows, row = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, 8)
    number = tl.program_id(1)
    place = stream + row[None, :] * STRIDE + rows[:, None]
    if number < LISTED:
        chosen = tl.load(members + number, cache_modifier=".cg")
        expert = tl.load(order + number, cache_modifier=".cg")
        if chosen != 0:  # a program behind the list's end need not wait: it writes nothing
            weight += expert.to(tl.int64) * (HIDDEN * INNER)
            _ahead(weight, tl.program_id(0) * ROWS, HIDDEN, 0, ROWS, INNER, INNER, AHEAD)
            asked = ((chosen >> row) & 1) != 0
            slot = tl.load(slots + row * EXPERTS + expert, mask=asked, other=0, cache_modifier=".cg")
            _wait(PDL)
            values = routed + number * (2 * BATCH * INNER)
            products = _products(weight, rows, rows < HIDDEN, values, chosen, 0, INNER, INNER, BATCH, BLOCK, STAGES)
            live = (rows < HIDDEN)[:, None] & asked[None, :]
            tl.store(place + ((1 + slot) * HIDDEN)[None, :], products, mask=live)
    else:
        first = (number - LISTED) * SPAN
        _ahead(dense_weight, tl.program_id(0) * ROWS, HIDDEN, first, ROWS, DENSE, SPAN, AHEAD)
        _wait(PDL)
        every: tl.constexpr = (1 << BATCH) - 1
        products = _products(dense_weight, rows, rows < HIDDEN, inner, every, first, DENSE, SPAN, BATCH, BLOCK, STAGES)
        live = (rows < HIDDEN)[:, None] & (row < BATCH)[None, :]
        tl.store(place + (1 + TOP + number - LISTED) * HIDDEN, products, mask=live)


@triton.jit
def head(
    normed, weight, banned, length, scores, peaks, tokens,
    VOCABULARY: tl.constexpr, HIDDEN: tl.constexpr, BATCH: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """scores[row, VOCABULARY] of the next tokens; for each row and program the highest score that is not banned, and
    its token. A NaN counts as infinite, so that `choose` finds it."""
    _release(PDL)
    rows, row = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, 8)
    inside = rows < VOCABULARY
    _ahead(weight, tl.program_id(0) * ROWS, VOCABULARY, 0, ROWS, HIDDEN, HIDDEN, AHEAD)
    at = row[None, :] * VOCABULARY + rows[:, None]
    live = inside[:, None] & (row < BATCH)[None, :]
    free = tl.load(banned + at, mask=live, other=0, cache_modifier=".cg") != tl.load(length, cache_modifier=".cg")
    _wait(PDL)
    score = _products(weight, rows, inside, normed, (1 << BATCH) - 1, 0, HIDDEN, HIDDEN, BATCH, BLOCK, STAGES)
    tl.store(scores + at, score, mask=live)
    score = tl.where(free & live, tl.where(score == score, score, float("inf")), float("-inf"))
    peak = tl.max(score, 0)
    token = tl.min(tl.where(score == peak[None, :], rows[:, None], VOCABULARY), 0)
    best = row * tl.num_programs(0) + tl.program_id(0)
    tl.store(peaks + best, peak, mask=row < BATCH)
    tl.store(tokens + best, token, mask=row < BATCH)
