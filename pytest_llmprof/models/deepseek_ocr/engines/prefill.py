"""What engines with a static cache share: the cache, vision and prefill in CUDA graphs, and the start of an answer.

`Prefill` writes a prompt's keys and values into a `Cache` and chooses the first token. `StaticCacheEngine` runs a batch
up to there; its subclasses decode.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pytest_llmprof.models.deepseek_ocr import generation, vision
from pytest_llmprof.models.deepseek_ocr.generation import NOT_A_TOKEN, TokenTracker
from pytest_llmprof.models.graphs import Graphs, compile_whole
from pytest_llmprof.models.ngrams import ban_repeats

if TYPE_CHECKING:
    from pytest_llmprof.models.base import Phases, Token
    from pytest_llmprof.models.deepseek_ocr.engines import Inputs
    from pytest_llmprof.models.deepseek_ocr.generation import Limits, Prompts

_EXPERTS = "grouped_mm"
"""transformers' fastest implementation that can be captured."""
_CROPS = (2, 4, 6, 9)
"""A page's crops are padded to the next of these counts, so that four shapes are compiled instead of eight. The crops
of several pages are padded to a multiple of four."""
_SHORTEST = 512
"""Places of the smallest cache."""


def cache_places(tokens: int) -> int:
    """Places that hold *tokens* tokens: 512 or a larger power of two."""
    return max(_SHORTEST, 1 << (tokens - 1).bit_length())


class Cache:
    """One batch's state at fixed addresses: keys, values and token ids, with a place for each token of a row.

    transformers' layers write a prompt's keys and values into it with `update`.
    """

    def __init__(self, model: Any, rows: int, places: int) -> None:
        """Take memory for *rows* rows of at most *places* tokens each, padding included."""
        text, device = model.config.text_config, model.lm_head.weight.device
        size = model.model.language_model.layers[0].self_attn.head_dim
        shape = (text.num_hidden_layers, 2, rows, text.num_key_value_heads, places, size)
        self.rows, self.places = rows, places
        self.stored = torch.zeros(shape, dtype=model.lm_head.weight.dtype, device=device)
        """Keys and values of each layer, [layers, 2, rows, key-value heads, places, head size]."""
        self.ids = torch.empty((rows, places), dtype=torch.int64, device=device)
        """[rows, places]; -1 before a shorter prompt."""
        self.starts = torch.empty((rows, 1), dtype=torch.int64, device=device)
        """Where each row's prompt begins."""
        self.length = torch.empty(1, dtype=torch.int64, device=device)
        """[1]: places filled in `ids`; keys and values of the last one are not stored yet."""
        self.last = torch.empty(rows, dtype=torch.int64, device=device)
        """[rows]: the tokens chosen last; -1 where the scores were not numbers."""
        self.ended = torch.empty(rows, dtype=torch.bool, device=device)
        """[rows]: whether a row has ended and is fed `pad`."""
        self.eos, self.pad = (torch.empty((), dtype=torch.int64, device=device) for _ in range(2))
        """[]; eos is -1 where no token ends an answer."""
        self.clear()

    def clear(self) -> None:
        """Reset to rows with one token each and no end token."""
        self.ids.zero_()
        self.starts.zero_()
        self.last.zero_()
        self.length.fill_(1)
        self.ended.fill_(False)
        self.eos.fill_(NOT_A_TOKEN)
        self.pad.zero_()

    def begin(self, prompts: Prompts, limits: Limits) -> None:
        """Drop the last batch and take in the prompts' ids."""
        self.clear()
        self.ids[:, : prompts.ids.shape[1]] = prompts.ids
        self.starts.copy_(prompts.starts)
        self.eos.fill_(NOT_A_TOKEN if limits.eos is None else limits.eos)
        self.pad.fill_(limits.pad)

    def update(self, keys: Tensor, values: Tensor, layer: int, **_: Any) -> tuple[Tensor, Tensor]:
        """Store a prompt's keys and values, [rows, heads, length, head size]; a prompt attends to itself alone."""
        for stored, new in zip(self.stored[layer], (keys, values), strict=True):
            stored[:, :, : new.shape[2]] = new
        return keys, values


class Prefill:
    """One model's vision tower and prefill, replayed from CUDA graphs.

    Unless *compiled* is False it changes the model: from now on its vision layers run compiled, and its text layers
    with fewer kernels.
    """

    def __init__(self, model: Any, graphs: Graphs, compiled: bool = True) -> None:
        model.set_experts_implementation(_EXPERTS)
        vision.cache_position_tables(model)
        self._model, self._graphs = model, graphs
        weight = model.lm_head.weight
        # Except in bfloat16, torch's grouped product reads its offsets on the host, which no capture allows.
        self.captured = not weight.is_cuda or (
            weight.dtype == torch.bfloat16 and torch.cuda.get_device_capability(weight.device) >= (8, 0)
        )
        """Whether the language model's part is replayed from a graph too."""
        if not compiled:
            return
        tower = model.model.vision_tower
        _share_sam_layers(tower.sam_encoder.layers)
        _share_layers(tower.vision_encoder.encoder.layers)
        patches = tower.sam_encoder.patch_embed
        patches.forward = partial(_project_patches, patches.projection)
        _shorten_text(model.model.language_model)

    def embeddings(self, inputs: Inputs, phases: Phases) -> Tensor:
        """The prompts' embeddings, [rows, length, hidden], with the images' features merged in: phase vision."""
        model, graphs, prompts = self._model, self._graphs, inputs.prompts
        with phases.phase("vision"):
            views = [vision.encode_views(model, inputs.overviews, phases, graphs.run)]
            if inputs.crops is not None:
                padded = pad_crops(inputs.crops)
                views.append(vision.encode_views(model, padded, phases, graphs.run)[: len(inputs.crops)])

            def merge(ids: Tensor, *views: Tensor) -> Tensor:
                parts = views[1] if len(views) > 1 else None
                pages = vision.arrange_pages(model, views[0], parts, inputs.grids)
                embeddings = model.model.language_model.embed_tokens(ids)
                return vision.insert_features(embeddings, pages, inputs.image_starts)

            merged = graphs.run(("merge", inputs.grids, inputs.image_starts), merge, prompts.ids_to_embed, *views)
        assert merged is not None
        return merged

    def fill(self, cache: Cache, embeddings: Tensor, prompts: Prompts, ngram: int) -> Tensor:
        """Read the prompts into *cache*; return the first tokens [rows].

        A graph holds the cache's address, so calls with as many rows and places must pass the same cache.
        """
        padded = any(prompts.padding)
        if not self.captured:
            return self._fill(cache, padded, ngram, embeddings)
        key = ("prefill", cache.rows, cache.places, padded, ngram)
        chosen = self._graphs.run(key, partial(self._fill, cache, padded, ngram), embeddings)
        assert chosen is not None
        return chosen

    def _fill(self, cache: Cache, padded: bool, ngram: int, embeddings: Tensor) -> Tensor:
        length = embeddings.shape[1]
        places = torch.arange(length, device=embeddings.device)
        positions = (places - cache.starts).clamp_min(0)
        mask = generation.causal_mask(cache.starts, length) if padded else None
        hidden = generation.text_forward(self._model.model.language_model, embeddings, positions, mask, cache)
        scores = self._model.lm_head(hidden[:, -1])
        best, chosen = ban_repeats(cache.ids[:, :length], scores, ngram).max(-1)
        chosen = chosen.masked_fill(best.isnan(), NOT_A_TOKEN)
        cache.last.copy_(chosen)
        cache.ids[:, length] = chosen
        cache.length.fill_(length + 1)
        torch.eq(chosen, cache.eos, out=cache.ended)
        return chosen


class StaticCacheEngine:
    """An engine that prefills with `Prefill` and decodes with steps of its own over a `Cache`."""

    block = 1

    def __init__(self, model: Any, step: type, details: Mapping[str, Any], *, compiled: bool = True) -> None:
        """*step* is made of the model. Raises `ModelError` for layers that it does not compute."""
        self.graphs = Graphs(model.lm_head.weight.device)
        with torch.inference_mode():
            self.prefill: Any = Prefill(model, self.graphs, compiled)
            self.step: Any = step(model)
        self.caches: dict[tuple[int, int], Cache] = {}
        """By rows and places. They are kept, since graphs hold their addresses."""
        self.details: Mapping[str, Any] = {**details, "prefill": "captured" if self.prefill.captured else "eager"}
        self._model: Any = model

    def generate(self, inputs: Inputs, limits: Limits, phases: Phases) -> Iterator[Token]:
        """Yield the batch's tokens, `block` at a time; see `Engine.generate`."""
        prompts = inputs.prompts
        tracker = TokenTracker(prompts, limits)
        rows, length = prompts.ids.shape
        cache = self._prepare(rows, length, tracker.max_tokens, limits.ngram)
        cache.begin(prompts, limits)
        embeddings = self.prefill.embeddings(inputs, phases)
        del inputs
        with phases.phase("prefill"):
            chosen = self.prefill.fill(cache, embeddings, prompts, limits.ngram)
        del embeddings
        yield from tracker.add(chosen.tolist())
        if tracker.active:
            yield from self._decode(cache, tracker, length, limits.ngram, phases)

    def cache_for(self, rows: int, places: int) -> Cache:
        """The cache of this size, made at the first call."""
        if (rows, places) not in self.caches:
            self.caches[rows, places] = Cache(self._model, rows, places)
        return self.caches[rows, places]

    def close(self) -> None:
        """Drop the model, the graphs and the caches."""
        self._model = self.prefill = self.step = None
        self.graphs.close()
        self.caches.clear()

    def _prepare(self, rows: int, length: int, max_tokens: int, ngram: int) -> Cache:
        """Return a cache for prompts of *length* places and *max_tokens* tokens more; compile and capture what their
        decode steps need, so that this does not happen in the middle of an answer."""
        raise NotImplementedError

    def _decode(self, cache: Cache, tracker: TokenTracker, length: int, ngram: int, phases: Phases) -> Iterator[Token]:
        """The phase decode: yield all tokens behind the first."""
        raise NotImplementedError


def pad_crops(crops: Tensor) -> Tensor:
    """Add grey crops to *crops* [crops, 3, 640, 640], up to a count that is compiled; callers drop their features."""
    count = len(crops)
    wanted = next((size for size in _CROPS if size >= count), -(-count // 4) * 4)
    return torch.cat([crops, crops.new_zeros((wanted - count, *crops.shape[1:]))]) if wanted > count else crops


def _project_patches(projection: Any, pixels: Tensor) -> Tensor:
    """The convolution of patches that do not overlap, as a matrix product: with 3 channels cuDNN takes longer.

    *pixels* [views, channels, height, width] -> [views, rows, columns, width of the encoder].
    """
    size: int = projection.kernel_size[0]
    views, channels, height, width = pixels.shape
    patches = pixels.reshape(views, channels, height // size, size, width // size, size)
    patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)
    return torch.nn.functional.linear(patches, projection.weight.flatten(1), projection.bias)


def _shorten_text(text: Any) -> None:
    """Make the text layers launch fewer and shorter kernels: norms by torch's own one, and experts sorted as bytes,
    which is one pass of a radix sort in place of eight."""
    for module in text.modules():
        if hasattr(module, "variance_epsilon"):
            weight = module.weight
            module.forward = partial(_norm, weight=weight, size=tuple(weight.shape), eps=module.variance_epsilon)
        elif hasattr(module, "num_experts") and hasattr(module, "gate_up_proj") and module.num_experts <= 256:
            module.register_forward_pre_hook(_experts_as_bytes)


def _norm(hidden: Tensor, weight: Tensor, size: tuple[int, ...], eps: float) -> Tensor:
    return torch.nn.functional.rms_norm(hidden, size, weight, eps)


def _experts_as_bytes(experts: Any, inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    hidden, chosen, weights = inputs
    return hidden, chosen.to(torch.uint8), weights


def _share_layers(layers: Any) -> None:
    """Run *layers* of one shape through one compiled function, which takes their weights as inputs."""
    call = _compiled(layers[0])
    for layer in layers:
        weights = dict(layer.named_parameters())
        layer.forward = partial(_forward, call, weights)


def _share_sam_layers(layers: Any) -> None:
    """The same for SAM's layers, windowed and global ones apart; each passes its tables of relative positions."""
    calls: dict[int, Any] = {}
    for layer in layers:
        if layer.window_size not in calls:
            calls[layer.window_size] = _compiled(layer)
        weights = dict(layer.named_parameters())
        layer.forward = partial(_sam_forward, calls[layer.window_size], weights, layer.window_size, layer.attn, {})


def _compiled(layer: Any) -> Any:
    template = deepcopy(layer).to("meta")
    if hasattr(template, "attn"):
        # The ready tables are passed in place of the weights that they are computed from.
        template.attn.get_rel_pos = lambda queries, keys, table: table
        weight, size = layer.attn.qkv.weight, layer.attn.qkv.in_features // layer.attn.num_attention_heads
        kernels = layer.attn.use_rel_pos and size in (16, 32, 64, 128)
        if kernels and weight.is_cuda and weight.dtype.itemsize == 2:
            from pytest_llmprof.models.deepseek_ocr.engines import sam_attention  # needs Triton, as this GPU's compiler

            template.attn.forward = partial(sam_attention.forward, template.attn)

    def call(weights: dict[str, Tensor], *inputs: Any) -> Any:
        return torch.func.functional_call(template, weights, inputs)

    return compile_whole(call)


def _forward(call: Any, weights: Any, hidden: Tensor, attention_mask: None = None) -> Any:
    return call(weights, hidden, attention_mask)


def _sam_forward(call: Any, weights: Any, window: int, attention: Any, tables: dict[Any, Any], hidden: Tensor) -> Any:
    size = (window, window) if window else (hidden.shape[1], hidden.shape[2])
    if attention.use_rel_pos and size not in tables:
        tables[size] = {
            "attn.rel_pos_h": attention.get_rel_pos(size[0], size[0], attention.rel_pos_h),
            "attn.rel_pos_w": attention.get_rel_pos(size[1], size[1], attention.rel_pos_w),
        }
    return call(weights | tables.get(size, {}), hidden)
