"""Vision and prefill for engines that keep a static cache: layers compiled, phases captured in CUDA graphs.

`fill` writes keys and values into a `Cache` and chooses the first token; what follows is the engine's own.
"""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from pytest_llmprof.models.deepseek_ocr import vision
from pytest_llmprof.models.deepseek_ocr.engines.graphs import Graphs, compile_whole
from pytest_llmprof.models.deepseek_ocr.generation import NOT_A_TOKEN, Limits, Prompts, ban_repeats, causal_mask, read

if TYPE_CHECKING:
    from pytest_llmprof.models.base import Phases
    from pytest_llmprof.models.deepseek_ocr.engines import Inputs

__all__ = ["Cache", "Prefill"]

_EXPERTS = "grouped_mm"
"""transformers' fastest way that can be captured."""
_CROPS = (2, 4, 6, 9)
"""Crops of a page are filled up to so many, so that four shapes are compiled and captured instead of eight; those of
several pages to a multiple of four."""


class Cache:
    """One batch's state at fixed addresses: keys and values, every id so far, and how far it has come.

    It takes a prompt's keys and values from transformers' layers.
    """

    def __init__(self, model: Any, rows: int, places: int) -> None:
        """For *rows* rows of at most *places* tokens each, padding included."""
        text, device = model.config.text_config, model.lm_head.weight.device
        size = model.model.language_model.layers[0].self_attn.head_dim
        shape = (text.num_hidden_layers, 2, rows, text.num_key_value_heads, places, size)
        self.rows, self.places = rows, places
        self.stored = torch.zeros(shape, dtype=model.lm_head.weight.dtype, device=device)
        """Of each layer keys and values, [layers, 2, rows, key-value heads, places, head size]."""
        self.ids = torch.empty((rows, places), dtype=torch.int64, device=device)
        """-1 before a shorter prompt."""
        self.starts = torch.empty((rows, 1), dtype=torch.int64, device=device)
        """Where each row's prompt begins."""
        self.length = torch.empty(1, dtype=torch.int64, device=device)
        """Places filled in `ids`; the last one is not in `keys` and `values` yet."""
        self.last = torch.empty(rows, dtype=torch.int64, device=device)
        """The tokens chosen last; -1 where the scores were not numbers."""
        self.ended = torch.empty(rows, dtype=torch.bool, device=device)
        """Rows that have ended, and are fed `pad`."""
        self.eos, self.pad = (torch.empty((), dtype=torch.int64, device=device) for _ in range(2))
        """-1: no end token."""

        self.clear()

    def clear(self) -> None:
        """Be empty rows with one token each, without an end token."""
        self.ids.zero_()
        self.starts.zero_()
        self.last.zero_()
        self.length.fill_(1)
        self.ended.fill_(False)
        self.eos.fill_(NOT_A_TOKEN)
        self.pad.zero_()

    def begin(self, prompts: Prompts, limits: Limits) -> None:
        """Forget the last batch; take the prompts in."""
        self.clear()
        self.ids[:, : prompts.ids.shape[1]] = prompts.ids
        self.starts.copy_(prompts.starts)
        self.eos.fill_(NOT_A_TOKEN if limits.eos is None else limits.eos)
        self.pad.fill_(limits.pad)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep a prompt's keys and values, [rows, heads, length, head size]; a prompt attends to itself alone."""
        for stored, new in zip(self.stored[layer], (keys, values), strict=True):
            stored[:, :, : new.shape[2]] = new
        return keys, values


class Prefill:
    """One model's vision tower and prefill. It changes the model: its vision layers run compiled from now on, unless
    *compiled* is False."""

    def __init__(self, model: Any, graphs: Graphs, compiled: bool = True) -> None:
        model.set_experts_implementation(_EXPERTS)
        vision.keep_position_tables(model)
        self._model, self._graphs = model, graphs
        weight = model.lm_head.weight
        # In other types than bfloat16 torch's grouped product reads its offsets on the host, which no capture allows.
        self.captured = not weight.is_cuda or (
            weight.dtype == torch.bfloat16 and torch.cuda.get_device_capability(weight.device) >= (8, 0)
        )
        """Whether the language model's part is replayed from a graph, too."""
        if not compiled:
            return
        tower = model.model.vision_tower
        _share_sam_layers(tower.sam_encoder.layers)
        _share_layers(tower.vision_encoder.encoder.layers)

    def embeddings(self, inputs: Inputs, phases: Phases) -> torch.Tensor:
        """The prompts' embeddings, [rows, length, hidden], with the pictures' features merged in: phase vision."""
        model, graphs, prompts = self._model, self._graphs, inputs.prompts
        with phases.phase("vision"):
            views = [vision.project(model, inputs.overviews, phases, graphs.run)]
            if inputs.crops is not None:
                filled = _filled_up(inputs.crops)
                views.append(vision.project(model, filled, phases, graphs.run)[: len(inputs.crops)])

            def merge(ids: torch.Tensor, *views: torch.Tensor) -> torch.Tensor:
                parts = views[1] if len(views) > 1 else None
                pages = vision.assemble(model, views[0], parts, inputs.grids)
                return vision.merge(model.model.language_model.embed_tokens(ids), pages, inputs.places)

            merged = graphs.run(("merge", inputs.grids, inputs.places), merge, prompts.embeddable, *views)
        assert merged is not None
        return merged

    def fill(self, cache: Cache, embeddings: torch.Tensor, prompts: Prompts, ngram: int) -> torch.Tensor:
        """Read the prompts into *cache*, which stays the same for its rows and places; return the first tokens
        [rows]."""
        padded = any(prompts.padding)
        if not self.captured:
            return self._fill(cache, padded, ngram, embeddings)
        key = ("prefill", cache.rows, cache.places, padded, ngram)
        chosen = self._graphs.run(key, partial(self._fill, cache, padded, ngram), embeddings)
        assert chosen is not None
        return chosen

    def _fill(self, cache: Cache, padded: bool, ngram: int, embeddings: torch.Tensor) -> torch.Tensor:
        length = embeddings.shape[1]
        places = torch.arange(length, device=embeddings.device)
        positions = (places - cache.starts).clamp_min(0)
        mask = causal_mask(cache.starts, length) if padded else None
        hidden = read(self._model.model.language_model, embeddings, positions, mask, cache)
        scores = self._model.lm_head(hidden[:, -1])
        best, chosen = ban_repeats(cache.ids[:, :length], scores, ngram).max(-1)
        chosen = chosen.masked_fill(best.isnan(), NOT_A_TOKEN)
        cache.last.copy_(chosen)
        cache.ids[:, length] = chosen
        cache.length.fill_(length + 1)
        torch.eq(chosen, cache.eos, out=cache.ended)
        return chosen


def _filled_up(crops: torch.Tensor) -> torch.Tensor:
    """*crops* [crops, 3, 640, 640] with grey ones behind them; their features are left out again."""
    count = len(crops)
    wanted = next((size for size in _CROPS if size >= count), -(-count // 4) * 4)
    return torch.cat([crops, crops.new_zeros((wanted - count, *crops.shape[1:]))]) if wanted > count else crops


def _share_layers(layers: Any) -> None:
    """Let *layers* of one shape run through one compiled function, which takes their weights as inputs."""
    call = _compiled(layers[0])
    for layer in layers:
        weights = dict(layer.named_parameters())
        layer.forward = partial(_forward, call, weights)


def _share_sam_layers(layers: Any) -> None:
    """The same for SAM's, windowed and global ones apart; each brings its tables of relative positions."""
    calls: dict[int, Any] = {}
    for layer in layers:
        if layer.window_size not in calls:
            calls[layer.window_size] = _compiled(layer)
        weights = dict(layer.named_parameters())
        layer.forward = partial(_sam_forward, calls[layer.window_size], weights, layer.window_size, layer.attn, {})


def _compiled(layer: Any) -> Any:
    template = deepcopy(layer).to("meta")
    if hasattr(template, "attn"):
        # The tables come ready, in the place of the weights that they are made of.
        template.attn.get_rel_pos = lambda queries, keys, table: table

    def call(weights: dict[str, torch.Tensor], *inputs: Any) -> Any:
        return torch.func.functional_call(template, weights, inputs)

    return compile_whole(call)


def _forward(call: Any, weights: Any, hidden: torch.Tensor, attention_mask: None = None) -> Any:
    return call(weights, hidden, attention_mask)


def _sam_forward(
    call: Any, weights: Any, window: int, attention: Any, tables: dict[Any, Any], hidden: torch.Tensor
) -> Any:
    size = (window, window) if window else (hidden.shape[1], hidden.shape[2])
    if size not in tables:
        tables[size] = {
            "attn.rel_pos_h": attention.get_rel_pos(size[0], size[0], attention.rel_pos_h),
            "attn.rel_pos_w": attention.get_rel_pos(size[1], size[1], attention.rel_pos_w),
        }
    return call(weights | tables[size], hidden)
