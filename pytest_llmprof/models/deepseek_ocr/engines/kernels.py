"""One decode step of one row in Triton: nine kernels, six of them launched for each layer (`fast.py` has the order).

A step of batch 1 reads each active weight once and does two operations with it, so memory traffic sets the least time
and everything else must overlap with it. At full size, in bfloat16 (hidden 1280, 12 layers, 10 heads of 128, 6 of 64
experts of 896 and 1792 shared, vocabulary 129280):

==========  ==================================================  ================  =====================================
kernel      reads                                               MB a step         writes
==========  ==================================================  ================  =====================================
`begin`     the last token's embedding, every id                0.003             stream; the tokens banned next
`project`   norm and [q, k, v] weights, the stream              12 x 9.8          queries, keys, values
`attend`    the cache: 61 KB a place over all layers            18 at 300 places  this token's key and value, the blend
`join`      output weights, the blend                           12 x 3.3          stream
`widen`     router, shared (first layer: all) gate and up       11 x 9.3 + 35     router's scores, inner values
`experts`   gate and up of the chosen experts                   11 x 27.5         inner values times their shares
`narrow`    down weights of the experts and of the shared MLP   11 x 18.4 + 18    parts of the stream
`head`      the vocabulary's weights                            331               scores, the best of each program
`choose`    the best of each program                            0                 the next token
==========  ==================================================  ================  =====================================

That is 1,146 MB a step plus the cache. "Stream" is the residual stream. How the kernels come close to that least time:

- **Weights are loaded before the wait.** With programmatic dependent launch (PDL, compute capability 9) a kernel starts
  while the previous one still runs. It loads its weights into registers, since they depend on nothing, and then waits
  for the previous kernel's results. The matrices are split so that all programs of a kernel fit on the GPU at once
  (`head` has too many rows, and `experts` knows its matrices only after the wait).
- **Most kernels release the next one as soon as all of their programs run.** So several kernels are on the GPU, and the
  matrices of `join` and `widen` arrive while attention waits for the cache.
- **`begin`, `widen` and `experts` release after their own wait.** The kernel behind them then knows that the kernel
  before them has ended, and may read its results without waiting: `attend` the places of earlier steps, `experts` the
  stream that `join` wrote, `narrow` the scores of `widen`. Such reads bypass the L1 cache (`.cg`), which may hold older
  values. A kernel writes only after its wait, so after every kernel that could still read the old values.
- **Norms are part of products.** x -> W (g * x) * rsqrt(mean(x^2) + eps): the factor comes after the product, and every
  program computes it from the whole x, which it needs anyway.
- **No sums across programs.** `narrow` splits its long rows into parts. The next kernels add them, always in the same
  order, so the same inputs give the same bits. In `attend` the last program of a head blends the others' parts.
- **No kernel for routing.** Each program finds its expert in the router's scores.

The stream and all values between kernels are float32; weights and cache have the model's dtype; products are summed in
float32. Measured against float32 throughout, the scores' relative error at full size is 0.15 to 0.54 of that of eager
bfloat16, which rounds after every operation (docs/engines.md). In float32 the tokens equal the reference's.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import cuda

__all__ = ["attend", "begin", "choose", "experts", "head", "join", "narrow", "project", "widen"]
"""The kernels of a decode step."""


@triton.jit
def _wait(PDL: tl.constexpr):
    """Wait until the previous kernel has ended."""
    if PDL:
        cuda.gdc_wait()


@triton.jit
def _release(PDL: tl.constexpr):
    """Let the next kernel start once all programs of this one run."""
    if PDL:
        cuda.gdc_launch_dependents()


@triton.jit
def _matrix(weight, rows, live, first, K: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr):
    """Load columns first ... first + SPAN of some *rows* of a matrix [., K]: a tuple of tiles [rows, BLOCK]."""
    tiles = ()
    for number in tl.static_range((SPAN + BLOCK - 1) // BLOCK):
        column = number * BLOCK + tl.arange(0, BLOCK)
        at = first + column
        inside = live[:, None] & ((column < SPAN) & (at < K))[None, :]
        tiles = tiles + (tl.load(weight + rows[:, None] * K + at[None, :], mask=inside, other=0.0),)  # noqa: RUF005
    return tiles


@triton.jit
def _vector(values, first, K: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr):
    """Load the same columns of a vector [K] as float32: a tuple of tiles [BLOCK]."""
    tiles = ()
    for number in tl.static_range((SPAN + BLOCK - 1) // BLOCK):
        column = number * BLOCK + tl.arange(0, BLOCK)
        at = first + column
        tile = tl.load(values + at, mask=(column < SPAN) & (at < K), other=0.0, cache_modifier=".cg").to(tl.float32)
        tiles = tiles + (tile,)  # noqa: RUF005
    return tiles


@triton.jit
def _stream(stream, at, live, PARTS: tl.constexpr, HIDDEN: tl.constexpr):
    """The stream [PARTS, HIDDEN] at some places: the sum of its parts."""
    total = tl.load(stream + at, mask=live, other=0.0, cache_modifier=".cg")
    for part in tl.static_range(1, PARTS):
        total += tl.load(stream + part * HIDDEN + at, mask=live, other=0.0, cache_modifier=".cg")
    return total


@triton.jit
def _gained(vector, norm, eps, HIDDEN: tl.constexpr, BLOCK: tl.constexpr):
    """A *vector* times the *norm*'s weights (tiles), and the factor that makes it a norm."""
    tiles = ()
    squares = tl.zeros([BLOCK], tl.float32)
    for number in tl.static_range((HIDDEN + BLOCK - 1) // BLOCK):
        squares += vector[number] * vector[number]
        tiles = tiles + (vector[number] * norm[number],)  # noqa: RUF005
    return tiles, tl.rsqrt(tl.sum(squares, 0) / HIDDEN + eps)


@triton.jit
def _normed(stream, norm, eps, PARTS: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr):
    """The stream times the *norm*'s weights (tiles), and the factor that makes it a norm."""
    tiles = ()
    for number in tl.static_range((HIDDEN + BLOCK - 1) // BLOCK):
        at = number * BLOCK + tl.arange(0, BLOCK)
        tiles = tiles + (_stream(stream, at, at < HIDDEN, PARTS, HIDDEN),)  # noqa: RUF005
    return _gained(tiles, norm, eps, HIDDEN, BLOCK)


@triton.jit
def _dot(matrix, vector, SPAN: tl.constexpr, BLOCK: tl.constexpr):
    """Tiles [rows, BLOCK] times tiles [BLOCK]: [rows]."""
    total = matrix[0].to(tl.float32) * vector[0][None, :]
    for number in tl.static_range(1, (SPAN + BLOCK - 1) // BLOCK):
        total += matrix[number].to(tl.float32) * vector[number][None, :]
    return tl.sum(total, 1)


@triton.jit
def _gated(gate, up):
    return gate * tl.sigmoid(gate) * up


@triton.jit
def _pack(place, gap, value, live):
    """Store a *value* as two numbers that are *gap* apart: rounded, and what the rounding has lost."""
    rounded = value.to(place.dtype.element_ty)
    tl.store(place, rounded, mask=live)
    tl.store(place + gap, (value - rounded.to(tl.float32)).to(place.dtype.element_ty), mask=live)


@triton.jit
def _ordered(bits):
    """The bits of a float32 as a whole number in the order of the floats; of such a number, the bits."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _score(key):
    """The float32 of an ordered number."""
    return _ordered(key).to(tl.float32, bitcast=True)


@triton.jit
def _chosen(scores, slot, EXPERTS: tl.constexpr, POWER: tl.constexpr, WARPS: tl.constexpr):
    """The expert in *slot*, counted from the highest score, and its probability in the softmax over all experts.

    POWER is a power of two >= EXPERTS. The slots are found one after the other: comparing all pairs at once reads the
    same L2 cache line dozens of times in each program, which costs more than a third of a step. Every warp of the
    program holds all scores, as whole numbers: so the highest is one instruction, and no warp waits for another. Among
    equal scores the first expert comes first.
    """
    expert = tl.arange(0, POWER)[None, :] + tl.zeros([WARPS, 1], tl.int32)
    score = tl.load(scores + expert, mask=expert < EXPERTS, other=float("-inf"), cache_modifier=".cg")
    key = _ordered(score.to(tl.int32, bitcast=True))
    highest = tl.max(key, 1)
    chosen = tl.min(tl.where(key == highest[:, None], expert, POWER), 1)
    top, value = _score(highest), highest
    total = tl.sum(tl.exp(score - top[:, None]), 1)
    for _ in range(slot):
        key = tl.where(expert == chosen[:, None], -2147483648, key)
        value = tl.max(key, 1)
        chosen = tl.min(tl.where(key == value[:, None], expert, POWER), 1)
    return tl.max(chosen, 0), tl.max(tl.exp(_score(value) - top) / total, 0)


@triton.jit
def begin(
    embedding, last, ids, length, stream, banned, places,
    HIDDEN: tl.constexpr, POWER: tl.constexpr, NGRAM: tl.constexpr, SPAN: tl.constexpr,
    STRIDE: tl.constexpr, VOCABULARY: tl.constexpr, BATCH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Start the stream with the last token; mark the tokens that would repeat an n-gram.

    Program 0 copies the embedding; each other program checks SPAN places of *ids* [places], of which *length* are
    filled. banned[token] is the place that the token may not fill, so nothing has to be reset between steps. With more
    rows than one (BATCH) the second number of a program is its row; rows of *stream* are STRIDE apart.
    """
    _wait(PDL)
    _release(PDL)
    if BATCH > 1:
        batch_row = tl.program_id(1)
        last += batch_row
        ids += batch_row * places
        stream += batch_row * STRIDE
        banned += batch_row * VOCABULARY
    program = tl.program_id(0)
    if program == 0:
        at = tl.arange(0, POWER)
        row = tl.maximum(tl.load(last), 0) * HIDDEN
        values = tl.load(embedding + row + at, mask=at < HIDDEN, other=0.0)
        tl.store(stream + at, values.to(tl.float32), mask=at < HIDDEN)
    else:
        filled = tl.load(length)
        start = (program - 1) * SPAN + tl.arange(0, SPAN)
        whole = start + NGRAM <= filled
        repeats = whole
        for number in tl.static_range(NGRAM - 1):
            tail = tl.load(ids + tl.maximum(filled - (NGRAM - 1) + number, 0))
            repeats = repeats & (tl.load(ids + start + number, mask=whole, other=-1) == tail)
        token = tl.load(ids + start + (NGRAM - 1), mask=whole, other=-1)
        tl.store(banned + token, filled.to(tl.int32), mask=repeats & (token >= 0))


@triton.jit
def project(
    stream, norm, weight, out, eps,
    N: tl.constexpr, HIDDEN: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Queries, keys and values: out[N] = weight[N, HIDDEN] norm(stream); each program computes ROWS rows."""
    _release(PDL)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    matrix = _matrix(weight, rows, rows < N, 0, HIDDEN, HIDDEN, BLOCK)
    gains = _vector(norm, 0, HIDDEN, HIDDEN, BLOCK)
    _wait(PDL)
    vector, factor = _normed(stream, gains, eps, PARTS, HIDDEN, BLOCK)
    tl.store(out + rows, _dot(matrix, vector, HIDDEN, BLOCK) * factor, mask=rows < N)


@triton.jit
def _places(keys, values, place, end, SIZE: tl.constexpr):
    """Load some places of the cache, up to *end*: both halves of the keys, and the values, each [places, .]."""
    half, size = tl.arange(0, SIZE // 2), tl.arange(0, SIZE)
    live = (place < end)[:, None]
    row = keys + place[:, None] * SIZE + half[None, :]
    first = tl.load(row, mask=live, other=0.0, cache_modifier=".cg")
    second = tl.load(row + SIZE // 2, mask=live, other=0.0, cache_modifier=".cg")
    third = tl.load(values + place[:, None] * SIZE + size[None, :], mask=live, other=0.0, cache_modifier=".cg")
    return first, second, third


@triton.jit
def attend(
    qkv, cosines, sines, keys, values, length, starts, ended, parts, peaks, sums, tickets, out,
    places, positions, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, SIZE: tl.constexpr,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr, BATCH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Attention of one head to one split of the cache in each program [HEADS, SPLITS, BATCH]. The program of a head
    that ends last blends the head's splits into out[HEADS, SIZE], packed as [2, BATCH, HEADS, SIZE] for several rows.

    Of several rows each begins at *starts* [BATCH], behind its padding, and stays at the last of *positions*. One that
    has *ended* [BATCH] attends to its new key alone.

    The new key is rotated and stored in *keys* [KV_HEADS, places, SIZE], its value in *values*, at place length - 1.
    The last split starts with them, so that they need not be read back. A split keeps what flash decoding keeps: the
    highest score, the sum of the exponentials relative to it, and the weighted sum of the values.
    """
    _release(PDL)
    head, split = tl.program_id(0), tl.program_id(1)
    kv_head = head // (HEADS // KV_HEADS)
    half, size = tl.arange(0, SIZE // 2), tl.arange(0, SIZE)
    at = tl.load(length, cache_modifier=".cg") - 1
    if BATCH > 1:
        row = tl.program_id(2)
        start = tl.where(tl.load(ended + row, cache_modifier=".cg"), at, tl.load(starts + row))
        position = tl.minimum(at - start, positions - 1)
        qkv += row * (HEADS + 2 * KV_HEADS) * SIZE
        keys += row.to(tl.int64) * KV_HEADS * places * SIZE
        values += row.to(tl.int64) * KV_HEADS * places * SIZE
        parts += row * HEADS * SPLITS * SIZE
        peaks += row * HEADS * SPLITS
        sums += row * HEADS * SPLITS
        tickets += row * HEADS
        out += row * HEADS * SIZE
    else:
        start = 0
        position = at
    cosine = tl.load(cosines + position * (SIZE // 2) + half)
    sine = tl.load(sines + position * (SIZE // 2) + half)
    keys += kv_head * places * SIZE
    values += kv_head * places * SIZE
    span = tl.cdiv(at - start, SPLITS)
    first_place = start + split * span
    end = tl.minimum(first_place + span, at)
    place = first_place + tl.arange(0, BLOCK)
    old1, old2, old = _places(keys, values, place, end, SIZE)
    _wait(PDL)
    query = qkv + head * SIZE + half
    first, second = tl.load(query), tl.load(query + SIZE // 2)
    query1, query2 = first * cosine - second * sine, second * cosine + first * sine
    key = qkv + (HEADS + kv_head) * SIZE + half
    first, second = tl.load(key), tl.load(key + SIZE // 2)
    key1, key2 = first * cosine - second * sine, second * cosine + first * sine
    value = tl.load(qkv + (HEADS + KV_HEADS + kv_head) * SIZE + size)

    newest = split == SPLITS - 1
    kept = tl.where(newest & (head % (HEADS // KV_HEADS) == 0), SIZE, 0)
    tl.store(keys + at * SIZE + half, key1.to(keys.dtype.element_ty), mask=half < kept)
    tl.store(keys + at * SIZE + SIZE // 2 + half, key2.to(keys.dtype.element_ty), mask=half < kept)
    tl.store(values + at * SIZE + size, value.to(values.dtype.element_ty), mask=size < kept)

    peak = tl.where(newest, (tl.sum(query1 * key1, 0) + tl.sum(query2 * key2, 0)) * scale, float("-inf"))
    total = tl.where(newest, 1.0, 0.0)
    blend = tl.where(newest, value, 0.0)
    for _ in range(first_place, end, BLOCK):
        score = (tl.sum(old1 * query1[None, :], 1) + tl.sum(old2 * query2[None, :], 1)) * scale
        score = tl.where(place < end, score, float("-inf"))
        higher = tl.maximum(peak, tl.max(score, 0))
        share, fade = tl.exp(score - higher), tl.exp(peak - higher)
        blend = blend * fade + tl.sum(old * share[:, None], 0)
        total = total * fade + tl.sum(share, 0)
        peak = higher
        place += BLOCK
        old1, old2, old = _places(keys, values, place, end, SIZE)
    part = head * SPLITS + split
    tl.store(parts + part * SIZE + size, blend)
    tl.store(peaks + part, peak)
    tl.store(sums + part, total)
    tl.debug_barrier()
    if tl.atomic_add(tickets + head, 1, sem="acq_rel") == SPLITS - 1:
        every = head * SPLITS + tl.arange(0, SPLITS)
        highest = tl.load(peaks + every, cache_modifier=".cg")
        portion = tl.load(sums + every, cache_modifier=".cg")
        blends = tl.load(parts + every[:, None] * SIZE + size[None, :], cache_modifier=".cg")
        weight = tl.exp(highest - tl.max(highest, 0))
        whole = tl.sum(weight * portion, 0)
        blend = tl.sum(blends * weight[:, None], 0) / whole
        if BATCH > 1:
            _pack(out + head * SIZE + size, BATCH * HEADS * SIZE, blend, size < SIZE)
        else:
            tl.store(out + head * SIZE + size, blend)
        tl.store(tickets + head, 0)


@triton.jit
def join(
    blend, weight, stream,
    K: tl.constexpr, HIDDEN: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The output projection: weight[HIDDEN, K] blend[K] is added to the stream, whose PARTS parts become one."""
    _release(PDL)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    matrix = _matrix(weight, rows, rows < HIDDEN, 0, K, K, BLOCK)
    _wait(PDL)
    before = _stream(stream, rows, rows < HIDDEN, PARTS, HIDDEN)
    product = _dot(matrix, _vector(blend, 0, K, K, BLOCK), K, BLOCK)
    tl.store(stream + rows, before + product, mask=rows < HIDDEN)


@triton.jit
def widen(
    stream, norm, router, weight, scores, inner, eps,
    EXPERTS: tl.constexpr, INNER: tl.constexpr, HIDDEN: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The router's scores [EXPERTS] (first programs), and inner[INNER] from *weight* [gate and up, HIDDEN]."""
    program = tl.program_id(0) - (EXPERTS + ROWS - 1) // ROWS
    gains = _vector(norm, 0, HIDDEN, HIDDEN, BLOCK)
    if program < 0:
        rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        matrix = _matrix(router, rows, rows < EXPERTS, 0, HIDDEN, HIDDEN, BLOCK)
        _wait(PDL)
        _release(PDL)
        vector, factor = _normed(stream, gains, eps, 1, HIDDEN, BLOCK)
        tl.store(scores + rows, _dot(matrix, vector, HIDDEN, BLOCK) * factor, mask=rows < EXPERTS)
    else:
        out = program * ROWS + tl.arange(0, ROWS)
        gates = _matrix(weight, out, out < INNER, 0, HIDDEN, HIDDEN, BLOCK)
        ups = _matrix(weight + INNER * HIDDEN, out, out < INNER, 0, HIDDEN, HIDDEN, BLOCK)
        _wait(PDL)
        _release(PDL)
        vector, factor = _normed(stream, gains, eps, 1, HIDDEN, BLOCK)
        gate, up = _dot(gates, vector, HIDDEN, BLOCK) * factor, _dot(ups, vector, HIDDEN, BLOCK) * factor
        tl.store(inner + out, _gated(gate, up), mask=out < INNER)


@triton.jit
def experts(
    stream, norm, scores, weight, inner, eps, scaling,
    EXPERTS: tl.constexpr, POWER: tl.constexpr, INNER: tl.constexpr, HIDDEN: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, WARPS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """inner[slot, INNER] of the expert in each slot, weight[EXPERTS, gate and up, HIDDEN], times its probability."""
    slot = tl.program_id(1)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    gains = _vector(norm, 0, HIDDEN, HIDDEN, BLOCK)
    vector, factor = _normed(stream, gains, eps, 1, HIDDEN, BLOCK)  # of `join`, two kernels back
    _wait(PDL)
    _release(PDL)
    expert, share = _chosen(scores, slot, EXPERTS, POWER, WARPS)
    weight += expert * (2 * INNER * HIDDEN)
    gates = _matrix(weight, rows, rows < INNER, 0, HIDDEN, HIDDEN, BLOCK)
    ups = _matrix(weight + INNER * HIDDEN, rows, rows < INNER, 0, HIDDEN, HIDDEN, BLOCK)
    gate, up = _dot(gates, vector, HIDDEN, BLOCK) * factor, _dot(ups, vector, HIDDEN, BLOCK) * factor
    tl.store(inner + slot * INNER + rows, _gated(gate, up) * share * scaling, mask=rows < INNER)


@triton.jit
def narrow(
    scores, routed, weight, inner, dense_weight, stream,
    EXPERTS: tl.constexpr, POWER: tl.constexpr, SLOTS: tl.constexpr, EACH: tl.constexpr, INNER: tl.constexpr,
    DENSE: tl.constexpr, SPAN: tl.constexpr, HIDDEN: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, WARPS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The down projections, written to the stream's parts 1, 2, ...: program [rows, part].

    A part is EACH slots of routed[SLOTS, INNER] with *weight* [EXPERTS, HIDDEN, INNER], or SPAN columns of
    inner[DENSE] with *dense_weight* [HIDDEN, DENSE].
    """
    _release(PDL)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(1)
    if part < SLOTS // EACH:
        matrices = ()
        for number in tl.static_range(EACH):
            # The scores are those of `widen`, two kernels back.
            expert, _ = _chosen(scores, part * EACH + number, EXPERTS, POWER, WARPS)
            matrix = _matrix(weight + expert * (HIDDEN * INNER), rows, rows < HIDDEN, 0, INNER, INNER, BLOCK)
            matrices = matrices + (matrix,)  # noqa: RUF005
        _wait(PDL)
        total = tl.zeros([ROWS], tl.float32)
        for number in tl.static_range(EACH):
            values = _vector(routed + (part * EACH + number) * INNER, 0, INNER, INNER, BLOCK)
            total += _dot(matrices[number], values, INNER, BLOCK)
        tl.store(stream + (1 + part) * HIDDEN + rows, total, mask=rows < HIDDEN)
    else:
        first = (part - SLOTS // EACH) * SPAN
        columns = _matrix(dense_weight, rows, rows < HIDDEN, first, DENSE, SPAN, BLOCK)
        _wait(PDL)
        product = _dot(columns, _vector(inner, first, DENSE, SPAN, BLOCK), SPAN, BLOCK)
        tl.store(stream + (1 + part) * HIDDEN + rows, product, mask=rows < HIDDEN)


@triton.jit
def head(
    stream, norm, weight, banned, length, scores, peaks, tokens, eps,
    VOCABULARY: tl.constexpr, HIDDEN: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """scores[VOCABULARY] of the next token; for each program the highest score that is not banned, and its token.

    A NaN counts as infinite, so that `choose` finds it.
    """
    _release(PDL)
    gains = _vector(norm, 0, HIDDEN, HIDDEN, BLOCK)
    _wait(PDL)
    vector, factor = _normed(stream, gains, eps, PARTS, HIDDEN, BLOCK)
    place = tl.load(length)
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    token = tl.zeros([ROWS], tl.int32)
    for number in range(tl.program_id(0), tl.cdiv(VOCABULARY, ROWS), tl.num_programs(0)):
        rows = number * ROWS + tl.arange(0, ROWS)
        live = rows < VOCABULARY
        score = _dot(_matrix(weight, rows, live, 0, HIDDEN, HIDDEN, BLOCK), vector, HIDDEN, BLOCK) * factor
        tl.store(scores + rows, score, mask=live)
        free = live & (tl.load(banned + rows, mask=live, other=0) != place)
        score = tl.where(free, tl.where(score == score, score, float("inf")), float("-inf"))
        token = tl.where(score > highest, rows, token)
        highest = tl.maximum(highest, score)
    peak = tl.max(highest, 0)
    tl.store(peaks + tl.program_id(0), peak)
    tl.store(tokens + tl.program_id(0), tl.min(tl.where(highest == peak, token, VOCABULARY), 0))


@triton.jit
def choose(
    peaks, tokens, ids, length, last, ended, eos, pad, ticket, places,
    COUNT: tl.constexpr, POWER: tl.constexpr, BATCH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Choose the token of the highest of COUNT peaks, the lowest among equals: written to *last* and, at *length*, to
    *ids*; then *length* grows by one.

    It is -1 where a score was NaN, and *pad* where the answer has ended. Of several rows (BATCH) each has a program,
    and the one that ends last lets *length* grow.
    """
    _release(PDL)
    if BATCH > 1:
        row = tl.program_id(0)
        peaks += row * COUNT
        tokens += row * COUNT
        ids += row * places
        last += row
        ended += row
    at = tl.arange(0, POWER)
    _wait(PDL)
    peak = tl.load(peaks + at, mask=at < COUNT, other=float("-inf"))
    token = tl.load(tokens + at, mask=at < COUNT, other=2147483647)
    highest = tl.max(peak, 0)
    chosen = tl.min(tl.where(peak == highest, token, 2147483647), 0).to(tl.int64)
    over = tl.load(ended)
    chosen = tl.where(over, tl.load(pad), chosen)
    chosen = tl.where(highest == float("inf"), -1, chosen)
    filled = tl.load(length)
    tl.store(last, chosen)
    tl.store(ids + filled, chosen)
    if BATCH == 1:
        tl.store(length, filled + 1)
    tl.store(ended, over | (chosen == tl.load(eos)))
    if BATCH > 1:
        tl.debug_barrier()
        if tl.atomic_add(ticket, 1, sem="acq_rel") == BATCH - 1:
            tl.store(length, filled + 1)
            tl.store(ticket, 0)
