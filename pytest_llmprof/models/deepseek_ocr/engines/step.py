"""One decode step as plain functions of tensors, for torch.compile.

The same arithmetic as transformers' text layers. Weights are inputs, so that all layers of one kind run through one
compiled function. Reading weights is what a step costs. With one row, products are written as sums: then the compiled
code reads an expert's weights in place, where `torch.matmul` would copy them first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pytest_llmprof.errors import ModelError
from pytest_llmprof.models.deepseek_ocr.engines import LAYERS
from pytest_llmprof.models.deepseek_ocr.generation import NOT_A_TOKEN
from pytest_llmprof.models.graphs import compile_whole

if TYPE_CHECKING:
    from pytest_llmprof.models.deepseek_ocr.engines.prefill import Cache

_CHUNK = 128
"""Scores that the first of two steps of `highest_score` compares."""


class Attention(NamedTuple):
    """Weights of one layer's attention."""

    norm: Tensor
    qkv: Tensor
    out: Tensor


class Dense(NamedTuple):
    """Weights of a gated MLP."""

    norm: Tensor
    gate_up: Tensor
    down: Tensor


class Sparse(NamedTuple):
    """Weights of a layer's router, routed experts and shared experts."""

    norm: Tensor
    router: Tensor
    gate_up: Tensor
    """[experts, gate and up, hidden]"""
    down: Tensor
    """[experts, hidden, inner]"""
    shared_gate_up: Tensor
    shared_down: Tensor


class Step:
    """Feeds the tokens chosen last and chooses the next ones, all on the device."""

    def __init__(self, model: Any) -> None:
        """Take *model*'s weights. Raises `ModelError` for layers that `check_layers` rejects."""
        text, language = model.config.text_config, model.model.language_model
        check_layers(text)
        self._heads, self._kv_heads = text.num_attention_heads, text.num_key_value_heads
        self._size, self._eps = language.layers[0].self_attn.head_dim, text.rms_norm_eps
        self._top, self._scaling = text.num_experts_per_tok, text.routed_scaling_factor
        self._embedding, self._head = language.embed_tokens.weight, model.lm_head.weight
        self._last_norm = language.norm.weight
        places = torch.arange(text.max_position_embeddings, device=self._head.device)
        self._rotary = language.rotary_emb(self._head, places[None])
        self._layers = weights_of(language.layers)
        # Compiled in pieces, because a piece stores its results. As one function, the compiler repeats a norm, a
        # softmax or an activation for each row of weights: that took a fifth of a step.
        self._begin = compile_whole(_begin)
        self._norm = compile_whole(self._rms)
        self._project = compile_whole(self._queries)
        self._attend = compile_whole(self._attention_shares)
        self._blend = compile_whole(_blend)
        self._dense = compile_whole(self._dense_mlp)
        self._route = compile_whole(self._router)
        self._up = compile_whole(self._experts_in)
        self._down = compile_whole(self._experts_out)
        self._choose = compile_whole(_choose)

    def __call__(self, cache: Cache, places: int, ngram: int) -> None:
        """Advance *cache* by one token a row; only its first *places* places are read."""
        state = cache.last, cache.length, cache.starts
        hidden, rotary, visible = self._begin(*state, self._embedding, self._rotary, places)
        for (attention, mlp), stored in zip(self._layers, cache.stored, strict=True):
            queries = self._project(self._norm(hidden, attention.norm), rotary, cache.length, stored, attention.qkv)
            shares = self._attend(queries, stored[0, :, :, :places], visible)
            attended = self._blend(shares, stored[1, :, :, :places])
            if isinstance(mlp, Dense):
                hidden = self._dense(hidden, attended, attention.out, mlp)
                continue
            hidden, inner, probabilities, experts = self._route(hidden, attended, attention.out, mlp.norm, mlp.router)
            routed, shared = self._up(inner, probabilities, experts, mlp.gate_up, mlp.shared_gate_up)
            hidden = self._down(hidden, routed, shared, experts, mlp.down, mlp.shared_down)
        scores = F.linear(self._norm(hidden, self._last_norm), self._head)
        ids = cache.ids[:, :places]
        self._choose(scores, ids, cache.length, cache.last, cache.ended, cache.eos, cache.pad, ngram)

    def _rms(self, hidden: Tensor, weight: Tensor) -> Tensor:
        exact = hidden.float()
        scaled = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + self._eps)
        return weight * scaled.to(hidden.dtype)

    def _queries(
        self, inputs: Tensor, rotary: tuple[Tensor, Tensor], length: Tensor, stored: Tensor, weight: Tensor
    ) -> Tensor:
        """Write this token's key and value into *stored*; return its queries [rows, heads, size]."""
        qkv = _product(inputs, weight).view(inputs.shape[0], -1, self._size)
        queries, keys, values = torch.split(qkv, [self._heads, self._kv_heads, self._kv_heads], dim=1)
        stored.index_copy_(3, length - 1, torch.stack((_rotate(keys, rotary), values))[:, :, :, None])
        return _rotate(queries, rotary)

    def _attention_shares(self, queries: Tensor, keys: Tensor, visible: Tensor) -> Tensor:
        """Attention weights of the queries [rows, heads, size] over *keys* [rows, key-value heads, places, size]:
        [rows, key-value heads, queries of each, places]."""
        grouped = queries.view(queries.shape[0], self._kv_heads, -1, 1, self._size)
        scores = (grouped.float() * keys[:, :, None].float()).sum(-1) * self._size**-0.5
        shares: Tensor = scores.masked_fill(~visible[:, None, None], float("-inf")).softmax(-1)
        return shares.to(keys.dtype)

    def _dense_mlp(self, hidden: Tensor, attended: Tensor, out: Tensor, mlp: Dense) -> Tensor:
        hidden = hidden + F.linear(attended, out)
        return hidden + F.linear(_gated(F.linear(self._rms(hidden, mlp.norm), mlp.gate_up)), mlp.down)

    def _router(
        self, hidden: Tensor, attended: Tensor, out: Tensor, norm: Tensor, router: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The output projection and the router: the residual stream, the experts' input, the experts' probabilities
        and numbers, highest first."""
        hidden = hidden + _product(attended, out)
        inner = self._rms(hidden, norm)
        probabilities = (inner.float()[:, None] * router.float()).sum(-1).softmax(-1)
        return hidden, inner, *probabilities.sort(dim=-1, descending=True)

    def _experts_in(
        self, inner: Tensor, probabilities: Tensor, experts: Tensor, gate_up: Tensor, shared_gate_up: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Inner values of the chosen experts, times their probabilities, and of the shared ones: [rows, chosen or all,
        inner], [rows, inner]."""
        rows, top = inner.shape[0], self._top
        shared = F.silu(_product(inner, shared_gate_up.chunk(2)[0])) * _product(inner, shared_gate_up.chunk(2)[1])
        factors = probabilities[:, :top] * self._scaling
        if _gathers(rows * top, gate_up):
            gate, up = ((half[experts[:, :top]] * inner[:, None, None]).sum(-1) for half in gate_up.chunk(2, dim=1))
            return (F.silu(gate) * up * factors[..., None]).to(inner.dtype), shared
        every = _gated(torch.matmul(inner, gate_up.transpose(1, 2))).transpose(0, 1)
        mix = factors.new_zeros(every.shape[:2]).scatter(1, experts[:, :top], factors)
        return (every * mix[..., None]).to(inner.dtype), shared

    def _experts_out(
        self, hidden: Tensor, routed: Tensor, shared: Tensor, experts: Tensor, down: Tensor, shared_down: Tensor
    ) -> Tensor:
        rows, top = hidden.shape[0], self._top
        if _gathers(rows * top, down):
            outputs = (down[experts[:, :top]] * routed[:, :, None]).sum(-1).sum(1)
        else:
            outputs = torch.matmul(routed.transpose(0, 1), down.transpose(1, 2)).sum(0)
        return hidden + (outputs + _product(shared, shared_down))


def _gathers(chosen: int, weights: Tensor) -> bool:
    """Whether to read the weights of each chosen expert; where rows choose more than there are, each is read once."""
    return chosen < weights.shape[0]


def _product(inputs: Tensor, weight: Tensor) -> Tensor:
    """[rows, in], [out, in] -> [rows, out]"""
    return (inputs[:, None] * weight).sum(-1) if inputs.shape[0] == 1 else F.linear(inputs, weight)


def _blend(shares: Tensor, values: Tensor) -> Tensor:
    """The weighted sum of *values*, [rows, heads * size]."""
    return torch.matmul(shares, values).view(shares.shape[0], -1)


def _gated(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def _rotate(states: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of [rows, heads, size] by cosines and sines [rows, size]."""
    first, second = states.chunk(2, dim=-1)
    return states * rotary[0][:, None] + torch.cat((-second, first), dim=-1) * rotary[1][:, None]


def _begin(
    last: Tensor, length: Tensor, starts: Tensor, embedding: Tensor, rotary: tuple[Tensor, Tensor], places: int
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """Embeddings of the last tokens [rows, hidden], cosines and sines [rows, size], visible places [rows, places]."""
    # A row that has ended goes on with the others; its tokens are dropped.
    position = (length - 1 - starts)[:, 0].clamp(0, rotary[0].shape[1] - 1)
    place = torch.arange(places, device=last.device)
    visible = (place < length) & (place >= starts)
    hidden = F.embedding(last.clamp_min(0), embedding)
    return hidden, (rotary[0][0, position], rotary[1][0, position]), visible


def _choose(
    scores: Tensor, ids: Tensor, length: Tensor, last: Tensor, ended: Tensor, eos: Tensor, pad: Tensor, ngram: int
) -> None:
    """Add the likeliest token that repeats no n-gram to *ids* [rows, places], of which *length* [1] are filled."""
    best, chosen = highest_score(ban_repeats_in_buffer(scores, ids, length, ngram))
    chosen = torch.where(best.isnan(), NOT_A_TOKEN, torch.where(ended, pad, chosen))
    last.copy_(chosen)
    ended.logical_or_(chosen == eos)
    ids.index_copy_(1, length, chosen[:, None])
    length.add_(1)


def ban_repeats_in_buffer(scores: Tensor, ids: Tensor, length: Tensor, ngram: int) -> Tensor:
    """`ngrams.ban_repeats` for a buffer *ids* of which the first *length* places are filled."""
    rows, vocabulary = scores.shape
    if not 0 < ngram <= ids.shape[1]:
        return scores
    device = ids.device
    tail = ids[:, (length - ngram + 1 + torch.arange(ngram - 1, device=device)).clamp_min(0)]
    windows = ids.unfold(1, ngram, 1)
    final = windows[..., -1]
    filled = torch.arange(ngram, ids.shape[1] + 1, device=device) <= length
    repeats = (windows[..., :-1] == tail[:, None]).all(-1) & filled & (final >= 0)
    # Tokens that are not banned go into an extra column after the vocabulary.
    banned = torch.where(repeats, final, vocabulary)
    mask = scores.new_zeros((rows, vocabulary + 1), dtype=torch.bool).scatter(1, banned, True)
    return scores.masked_fill(mask[:, :vocabulary], float("-inf"))


def highest_score(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The highest score and the first token that has it, [rows] each. In two steps: the first runs in parallel."""
    rows, vocabulary = scores.shape
    chunks = F.pad(scores, (0, -vocabulary % _CHUNK), value=float("-inf")).view(rows, -1, _CHUNK)
    best, at = chunks.max(-1)
    chunk = best.argmax(-1, keepdim=True)
    return best.gather(1, chunk)[:, 0], (chunk * _CHUNK + at.gather(1, chunk))[:, 0]


def check_layers(text: Any) -> None:
    """Raise `ModelError` for layers that engines with a static cache do not compute."""
    for key, value in LAYERS.items():
        if getattr(text, key, value) != value:
            raise ModelError(
                f"this engine needs a language model whose {key} is {value!r}; this one has {getattr(text, key)!r}: "
                "use infer=reference"
            )


def weights_of(layers: Any) -> list[tuple[Attention, Dense | Sparse]]:
    """The weights of transformers' text layers. Those read together are joined; the layers keep views of them."""
    return [(_attention_of(layer), _mlp_of(layer)) for layer in layers]


def _attention_of(layer: Any) -> Attention:
    attention = layer.self_attn
    joined = _join(attention.q_proj, attention.k_proj, attention.v_proj)
    return Attention(layer.input_layernorm.weight, joined, attention.o_proj.weight)


def _mlp_of(layer: Any) -> Dense | Sparse:
    mlp, norm = layer.mlp, layer.post_attention_layernorm.weight
    if hasattr(mlp, "experts"):
        shared = mlp.shared_experts
        return Sparse(
            norm,
            mlp.gate.weight,
            mlp.experts.gate_up_proj,
            mlp.experts.down_proj,
            _join(shared.gate_proj, shared.up_proj),
            shared.down_proj.weight,
        )
    return Dense(norm, _join(mlp.gate_proj, mlp.up_proj), mlp.down_proj.weight)


def _join(*layers: Any) -> Tensor:
    """The weights of *layers* one under the other. The layers keep views of the result, so memory is not doubled."""
    joined = torch.cat([layer.weight for layer in layers])
    parts = torch.split(joined, [layer.weight.shape[0] for layer in layers])
    for layer, part in zip(layers, parts, strict=True):
        layer.weight = torch.nn.Parameter(part, requires_grad=False)
    return joined
