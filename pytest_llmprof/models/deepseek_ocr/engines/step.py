"""One decode step as plain functions of tensors, for torch.compile.

The same arithmetic as transformers' text layers. Weights are inputs, so that all layers of a kind run through one
compiled function. A step costs what reading its weights costs. With one row, products are written as sums, so that the
compiler reads an expert's weights where they lie; `torch.matmul` would have them gathered first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional as F

from pytest_llmprof.errors import ModelError
from pytest_llmprof.models.deepseek_ocr.engines.graphs import compile_whole
from pytest_llmprof.models.deepseek_ocr.generation import NOT_A_TOKEN

if TYPE_CHECKING:
    from pytest_llmprof.models.deepseek_ocr.engines.prefill import Cache

__all__ = ["Attention", "Dense", "Sparse", "Step", "check_layers", "weights_of"]

_CHUNK = 128
"""Scores among which the highest is looked for at once."""


class Attention(NamedTuple):
    norm: torch.Tensor
    qkv: torch.Tensor
    out: torch.Tensor


class Dense(NamedTuple):
    norm: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


class Sparse(NamedTuple):
    norm: torch.Tensor
    router: torch.Tensor
    gate_up: torch.Tensor
    """[experts, gate and up, hidden]"""
    down: torch.Tensor
    """[experts, hidden, inner]"""
    shared_gate_up: torch.Tensor
    shared_down: torch.Tensor


class Step:
    """Feeds the tokens chosen last and chooses the next ones, all on the device: see `__call__`."""

    def __init__(self, model: Any) -> None:
        """Take *model*'s weights. Raises `ModelError` for layers of another kind."""
        text, language = model.config.text_config, model.model.language_model
        check_layers(text)
        self._heads, self._kv_heads = text.num_attention_heads, text.num_key_value_heads
        self._size, self._eps = language.layers[0].self_attn.head_dim, text.rms_norm_eps
        self._top, self._scaling = text.num_experts_per_tok, text.routed_scaling_factor
        self._embedding, self._head = language.embed_tokens.weight, model.lm_head.weight
        self._last_norm = language.norm.weight
        places = torch.arange(text.max_position_embeddings, device=self._head.device)
        self._turns = language.rotary_emb(self._head, places[None])
        self._layers = weights_of(language.layers)
        # Where one ends its results are kept. In one piece, the compiler repeats a norm, a softmax or an activation
        # for each row of weights that it meets, which was a fifth of a step.
        self._begin = compile_whole(_begin)
        self._norm = compile_whole(self._rms)
        self._ask = compile_whole(self._queries)
        self._weigh = compile_whole(self._shares)
        self._blend = compile_whole(_blend)
        self._dense = compile_whole(self._dense_mlp)
        self._route = compile_whole(self._router)
        self._up = compile_whole(self._experts_in)
        self._down = compile_whole(self._experts_out)
        self._choose = compile_whole(_choose)

    def __call__(self, cache: Cache, places: int, ngram: int) -> None:
        """Advance *cache* by one token a row, looking at its first *places* places only."""
        hidden, turns, visible = self._begin(
            cache.last, cache.length, cache.starts, self._embedding, self._turns, places
        )
        for (attention, mlp), stored in zip(self._layers, cache.stored, strict=True):
            queries = self._ask(self._norm(hidden, attention.norm), turns, cache.length, stored, attention.qkv)
            shares = self._weigh(queries, stored[0, :, :, :places], visible)
            seen = self._blend(shares, stored[1, :, :, :places])
            if isinstance(mlp, Dense):
                hidden = self._dense(hidden, seen, attention.out, mlp)
                continue
            hidden, inner, odds, experts = self._route(hidden, seen, attention.out, mlp.norm, mlp.router)
            routed, shared = self._up(inner, odds, experts, mlp.gate_up, mlp.shared_gate_up)
            hidden = self._down(hidden, routed, shared, experts, mlp.down, mlp.shared_down)
        scores = F.linear(self._norm(hidden, self._last_norm), self._head)
        ids = cache.ids[:, :places]
        self._choose(scores, ids, cache.length, cache.last, cache.ended, cache.eos, cache.pad, ngram)

    def _rms(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        exact = hidden.float()
        scaled = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + self._eps)
        return weight * scaled.to(hidden.dtype)

    def _queries(
        self,
        inputs: torch.Tensor,
        turns: tuple[torch.Tensor, torch.Tensor],
        length: torch.Tensor,
        stored: torch.Tensor,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """Write this token's key and value into *stored*; return its queries [rows, heads, size]."""
        qkv = _product(inputs, weight).view(inputs.shape[0], -1, self._size)
        queries, keys, values = torch.split(qkv, [self._heads, self._kv_heads, self._kv_heads], dim=1)
        stored.index_copy_(3, length - 1, torch.stack((_rotate(keys, turns), values))[:, :, :, None])
        return _rotate(queries, turns)

    def _shares(self, queries: torch.Tensor, keys: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """What the queries [rows, heads, size] take from each place of *keys* [rows, key-value heads, places, size]:
        [rows, key-value heads, queries of each, places]."""
        grouped = queries.view(queries.shape[0], self._kv_heads, -1, 1, self._size)
        scores = (grouped.float() * keys[:, :, None].float()).sum(-1) * self._size**-0.5
        shares: torch.Tensor = scores.masked_fill(~visible[:, None, None], float("-inf")).softmax(-1)
        return shares.to(keys.dtype)

    def _dense_mlp(self, hidden: torch.Tensor, seen: torch.Tensor, out: torch.Tensor, mlp: Dense) -> torch.Tensor:
        hidden = hidden + F.linear(seen, out)
        return hidden + F.linear(_gated(F.linear(self._rms(hidden, mlp.norm), mlp.gate_up)), mlp.down)

    def _router(
        self, hidden: torch.Tensor, seen: torch.Tensor, out: torch.Tensor, norm: torch.Tensor, router: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Attention's end, and whom to ask: the stream, the experts' input, their odds and numbers in falling order."""
        hidden = hidden + _product(seen, out)
        inner = self._rms(hidden, norm)
        odds = (inner.float()[:, None] * router.float()).sum(-1).softmax(-1)
        return hidden, inner, *odds.sort(dim=-1, descending=True)

    def _experts_in(
        self,
        inner: torch.Tensor,
        odds: torch.Tensor,
        experts: torch.Tensor,
        gate_up: torch.Tensor,
        shared_gate_up: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The chosen experts' inner values, times their odds, and the shared ones': [rows, chosen or all, inner],
        [rows, inner]."""
        rows, top = inner.shape[0], self._top
        shared = F.silu(_product(inner, shared_gate_up.chunk(2)[0])) * _product(inner, shared_gate_up.chunk(2)[1])
        odds = odds[:, :top] * self._scaling
        if _gathers(rows * top, gate_up):
            gate, up = ((half[experts[:, :top]] * inner[:, None, None]).sum(-1) for half in gate_up.chunk(2, dim=1))
            return (F.silu(gate) * up * odds[..., None]).to(inner.dtype), shared
        every = _gated(torch.matmul(inner, gate_up.transpose(1, 2))).transpose(0, 1)
        mix = odds.new_zeros(every.shape[:2]).scatter(1, experts[:, :top], odds)
        return (every * mix[..., None]).to(inner.dtype), shared

    def _experts_out(
        self,
        hidden: torch.Tensor,
        routed: torch.Tensor,
        shared: torch.Tensor,
        experts: torch.Tensor,
        down: torch.Tensor,
        shared_down: torch.Tensor,
    ) -> torch.Tensor:
        rows, top = hidden.shape[0], self._top
        if _gathers(rows * top, down):
            outputs = (down[experts[:, :top]] * routed[:, :, None]).sum(-1).sum(1)
        else:
            outputs = torch.matmul(routed.transpose(0, 1), down.transpose(1, 2)).sum(0)
        return hidden + (outputs + _product(shared, shared_down))


def _gathers(asked: int, weights: torch.Tensor) -> bool:
    """Whether to read the weights of each expert asked; where that is more than there are, each is read once."""
    return asked < weights.shape[0]


def _product(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[rows, in], [out, in] -> [rows, out]"""
    return (inputs[:, None] * weight).sum(-1) if inputs.shape[0] == 1 else F.linear(inputs, weight)


def _blend(shares: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Attention's result, [rows, heads * size]."""
    return torch.matmul(shares, values).view(shares.shape[0], -1)


def _gated(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def _rotate(states: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary embedding of [rows, heads, size] by cosines and sines [rows, size]."""
    first, second = states.chunk(2, dim=-1)
    return states * turns[0][:, None] + torch.cat((-second, first), dim=-1) * turns[1][:, None]


def _begin(
    last: torch.Tensor,
    length: torch.Tensor,
    starts: torch.Tensor,
    embedding: torch.Tensor,
    turns: tuple[torch.Tensor, torch.Tensor],
    places: int,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The last tokens' embeddings [rows, hidden], cosines and sines [rows, size], what they see [rows, places]."""
    # A row that has come to its end goes on with the others; what it says is not read.
    position = (length - 1 - starts)[:, 0].clamp(0, turns[0].shape[1] - 1)
    place = torch.arange(places, device=last.device)
    visible = (place < length) & (place >= starts)
    hidden = F.embedding(last.clamp_min(0), embedding)
    return hidden, (turns[0][0, position], turns[1][0, position]), visible


def _choose(
    scores: torch.Tensor,
    ids: torch.Tensor,
    length: torch.Tensor,
    last: torch.Tensor,
    ended: torch.Tensor,
    eos: torch.Tensor,
    pad: torch.Tensor,
    ngram: int,
) -> None:
    """Add the highest token that repeats no n-gram to *ids* [rows, places], of which *length* [1] are filled."""
    best, chosen = _highest(_ban(scores, ids, length, ngram))
    chosen = torch.where(best.isnan(), NOT_A_TOKEN, torch.where(ended, pad, chosen))
    last.copy_(chosen)
    ended.logical_or_(chosen == eos)
    ids.index_copy_(1, length, chosen[:, None])
    length.add_(1)


def _ban(scores: torch.Tensor, ids: torch.Tensor, length: torch.Tensor, ngram: int) -> torch.Tensor:
    """`generation.ban_repeats` for *ids* of which the first *length* are filled."""
    rows, vocabulary = scores.shape
    if not 0 < ngram <= ids.shape[1]:
        return scores
    device = ids.device
    tail = ids[:, (length - ngram + 1 + torch.arange(ngram - 1, device=device)).clamp_min(0)]
    windows = ids.unfold(1, ngram, 1)
    final = windows[..., -1]
    filled = torch.arange(ngram, ids.shape[1] + 1, device=device) <= length
    repeats = (windows[..., :-1] == tail[:, None]).all(-1) & filled & (final >= 0)
    # What is not to be banned lands in a column past the vocabulary.
    banned = torch.where(repeats, final, vocabulary)
    mask = scores.new_zeros((rows, vocabulary + 1), dtype=torch.bool).scatter(1, banned, True)
    return scores.masked_fill(mask[:, :vocabulary], float("-inf"))


def _highest(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest score and the first token that has it, [rows] each; in two steps, of which the first spreads."""
    rows, vocabulary = scores.shape
    chunks = F.pad(scores, (0, -vocabulary % _CHUNK), value=float("-inf")).view(rows, -1, _CHUNK)
    best, at = chunks.max(-1)
    chunk = best.argmax(-1, keepdim=True)
    return best.gather(1, chunk)[:, 0], (chunk * _CHUNK + at.gather(1, chunk))[:, 0]


def check_layers(text: Any) -> None:
    """Refuse what this step does not compute."""
    for key, value in {
        "hidden_act": "silu",
        "topk_method": "greedy",
        "attention_bias": False,
        "mlp_bias": False,
    }.items():
        if getattr(text, key, value) != value:
            raise ModelError(
                f"this engine knows language models whose {key} is {value!r}; this one has {getattr(text, key)!r}: "
                "use infer=reference"
            )


def weights_of(layers: Any) -> list[tuple[Attention, Dense | Sparse]]:
    """transformers' text layers' weights; what is read together is joined, and the layers go on with its parts."""
    return [(_attention_weights(layer), _mlp_weights(layer)) for layer in layers]


def _attention_weights(layer: Any) -> Attention:
    attention = layer.self_attn
    joined = _join(attention.q_proj, attention.k_proj, attention.v_proj)
    return Attention(layer.input_layernorm.weight, joined, attention.o_proj.weight)


def _mlp_weights(layer: Any) -> Dense | Sparse:
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


def _join(*layers: Any) -> torch.Tensor:
    """The weights of *layers* one under the other; the layers go on with their parts of it, so nothing is doubled."""
    joined = torch.cat([layer.weight for layer in layers])
    parts = torch.split(joined, [layer.weight.shape[0] for layer in layers])
    for layer, part in zip(layers, parts, strict=True):
        layer.weight = torch.nn.Parameter(part, requires_grad=False)
    return joined
