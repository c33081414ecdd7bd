"""FLOPs and bytes of each phase of DeepSeek-OCR, from shapes alone.

**FLOPs** are those of the matrix products, convolutions and attention that transformers' class executes, two for each
multiply-add, as `torch.utils.flop_counter` counts them:

* SAM pads its windows to full size, and the padding is counted. Its relative positions are two more products in each
  layer.
* Attention is 4 * heads * head size * queries * keys. Neither causal masking nor the padding of a shorter prompt in a
  batch makes the count smaller.
* Text: QKV and output projection, the gated MLP of dense layers, and in the others router, top-k and shared experts.
  The head is applied to the last position of each row only.
* A decode step attends to the cache and its own token. Rows of a batch that have ended are fed until the last one
  ends, so they are counted.

Norms, activations, softmax, rotation, interpolation of position tables and the choice of the token are not counted.

**Bytes** are the least that must cross the memory bus, however well the kernels are fused:

* weights, once for each forward pass (the crops of gundam are a second pass of the vision tower), with biases, norms
  and position tables. Of the routed experts those that were really used count, once for each layer and pass; the
  embedding table does not count.
* the cache: written by each token, and read whole by each decode step.
* activations: the input and output of each matrix product and convolution, and queries, keys, values and output of
  each attention, once each. Products that share an input (QKV; gate and up) read it once. Attention's scores, SAM's
  position bias, residuals and norms are assumed to stay on the chip.

All is counted in elements of the model's dtype, except routers kept in another. What an implementation moves on top
(copying the cache to append to it, gathering experts' weights) is not counted: MBU is there to show it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from operator import add
from typing import Any

from pytest_llmprof.models.base import Costs, PhaseCost, Phases
from pytest_llmprof.models.deepseek_ocr.preprocessing import TILE


@dataclass(frozen=True)
class Batch:
    """The shapes of one batch."""

    overview: int
    """Side of the global views in pixels."""
    crops: int
    """Crops of all pages together."""
    prompts: tuple[int, ...]
    """Prompt tokens of each page, image included; they are padded to the longest."""
    steps: int
    """Decode steps: tokens of the longest answer, minus one."""

    @property
    def rows(self) -> int:
        """Pages."""
        return len(self.prompts)

    @property
    def length(self) -> int:
        """Places of a row in prefill."""
        return max(self.prompts)


@dataclass(frozen=True)
class Routing:
    """How many experts a forward pass reads."""

    prefill: float
    """Distinct routed experts that prefill uses, summed over the layers."""
    decode: float
    """The same for a decode step, as the mean over the steps."""
    counted: bool
    """True: counted at the routers in a pass of its own. False: expected for even routing."""


@dataclass(frozen=True)
class _Work:
    """FLOPs, and the elements of each kind that are moved."""

    flops: int = 0
    weights: int = 0
    cache: int = 0
    activations: int = 0

    def __add__(self, other: _Work) -> _Work:
        return _Work(*map(add, vars(self).values(), vars(other).values()))

    def __mul__(self, count: int) -> _Work:
        """*count* such layers, each with its own weights."""
        return _Work(*(value * count for value in vars(self).values()))

    def cost(self, itemsize: int) -> PhaseCost:
        parts = {name: value * itemsize for name, value in vars(self).items() if value and name != "flops"}
        return PhaseCost(self.flops, sum(parts.values()), parts)


def _linear(places: int, inputs: int, outputs: int, *, bias: bool = False) -> _Work:
    """A product with a weight [outputs, inputs] for each of *places* vectors."""
    return _Work(
        flops=2 * places * inputs * outputs,
        weights=inputs * outputs + (outputs if bias else 0),
        activations=places * (inputs + outputs),
    )


def _conv(side: int, inputs: int, outputs: int, kernel: int, stride: int = 1, *, bias: bool = False) -> _Work:
    """A convolution whose output is *side* x *side*; its input is *stride* times as wide."""
    return _Work(
        flops=2 * side * side * outputs * inputs * kernel * kernel,
        weights=outputs * inputs * kernel * kernel + (outputs if bias else 0),
        activations=side * side * (inputs * stride * stride + outputs),
    )


def _attention(queries: int, keys: int, width: int) -> _Work:
    """softmax(Q K^T) V of one row; *width* is that of all heads. Reading keys and values is not counted."""
    return _Work(flops=4 * queries * keys * width, activations=2 * queries * width)


def _batched(work: _Work, views: int) -> _Work:
    """*work* of one view, for *views* of them: the weights are read once."""
    return _Work(work.flops * views, work.weights, work.cache * views, work.activations * views)


def _halved(side: int) -> int:
    """The side after a 3x3 convolution with stride 2 and padding 1."""
    return (side - 1) // 2 + 1


def _sides(config: Any, pixels: int) -> tuple[int, int]:
    """Patches along a view's side in SAM, and tokens after its two downsampling convolutions."""
    patches: int = pixels // config.vision_config.sam_config.patch_size
    return patches, _halved(_halved(patches))


def _sam(config: Any, pixels: int) -> _Work:
    sam = config.vision_config.sam_config
    side, half = _sides(config, pixels)[0], _halved(_sides(config, pixels)[0])
    width, head = sam.hidden_size, sam.hidden_size // sam.num_attention_heads
    table = sam.image_size // sam.patch_size
    work = _conv(side, sam.num_channels, width, sam.patch_size, sam.patch_size, bias=True)
    if sam.use_abs_pos:
        work += _Work(weights=table * table * width)
    for layer in range(sam.num_hidden_layers):
        whole = layer in sam.global_attn_indexes
        window = side if whole else sam.window_size
        windows = 1 if whole else (-(-side // window)) ** 2
        places = windows * window * window
        work += _linear(places, width, 3 * width, bias=sam.qkv_bias)
        attention = _attention(window * window, window * window, width) + _Work(activations=2 * window**2 * width)
        if sam.use_rel_pos:
            # Two products of each query with `window` vectors; the tables count as weights.
            attention += _Work(flops=4 * window**3 * width)
            work += _Work(weights=2 * (2 * (table if whole else sam.window_size) - 1) * head)
        work += _batched(attention, windows)
        work += _linear(places, width, width, bias=True)
        work += _linear(side * side, width, sam.mlp_dim, bias=True)
        work += _linear(side * side, sam.mlp_dim, width, bias=True)
        work += _Work(weights=4 * width)
    neck, (first, second) = sam.output_channels, sam.downsample_channels
    work += _conv(side, width, neck, 1) + _conv(side, neck, neck, 3) + _Work(weights=4 * neck)
    return work + _conv(half, neck, first, 3, 2) + _conv(_halved(half), first, second, 3, 2)


def _clip(config: Any, pixels: int) -> _Work:
    clip = config.vision_config.encoder_config
    width, places = clip.hidden_size, _sides(config, pixels)[1] ** 2 + 1
    layer = (
        _linear(places, width, 3 * width, bias=True)
        + _attention(places, places, width)
        + _Work(activations=2 * places * width)
        + _linear(places, width, width, bias=True)
        + _linear(places, width, clip.intermediate_size, bias=True)
        + _linear(places, clip.intermediate_size, width, bias=True)
        + _Work(weights=4 * width)
    )
    positions = (clip.image_size // clip.patch_size) ** 2 + 1
    work: _Work = layer * clip.num_hidden_layers
    return work + _Work(weights=(positions + 1 + 2) * width)  # positions, the class, the norm before the layers


def _projector(config: Any, pixels: int) -> _Work:
    vision = config.vision_config
    inputs = vision.sam_config.downsample_channels[-1] + vision.encoder_config.hidden_size
    places: int = _sides(config, pixels)[1] ** 2
    return _linear(places, inputs, config.text_config.hidden_size, bias=True)


def _head_size(text: Any) -> int:
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def _moe_layers(text: Any) -> int:
    return sum(kind == "sparse" for kind in text.mlp_layer_types)


def _gated(places: int, width: int, inner: int) -> _Work:
    return _linear(places, width, 2 * inner) + _linear(places, inner, width)


def _text(config: Any, rows: int, queries: int, keys: int, experts: float, router: int = 1) -> _Work:
    """One pass of the text model: in each row *queries* new places attend to *keys* places. *experts* are read in all
    layers together; each weight of a router takes *router* elements."""
    text = config.text_config
    width, head, places = text.hidden_size, _head_size(text), rows * queries
    outer, inner = text.num_attention_heads * head, text.num_key_value_heads * head
    layers, moe = text.num_hidden_layers, _moe_layers(text)
    attention = _linear(places, width, outer + 2 * inner) + _linear(places, outer, width)
    attention += _batched(_attention(queries, keys, outer), rows)
    attention += _Work(weights=2 * width)
    attention += _Work(cache=rows * 2 * inner * (queries + (keys if queries == 1 else 0)))
    if queries > 1:
        attention += _Work(activations=rows * 2 * inner * keys)
    routed = _gated(places * text.num_experts_per_tok, width, text.moe_intermediate_size)
    each = _linear(places, width, text.n_routed_experts)
    each += _Work(weights=(router - 1) * width * text.n_routed_experts)
    each += _Work(flops=routed.flops, activations=routed.activations)
    each += _gated(places, width, text.moe_intermediate_size * text.n_shared_experts)
    dense = _gated(places, width, text.intermediate_size)
    work: _Work = attention * layers + dense * (layers - moe) + each * moe
    work += _Work(weights=round(experts * 3 * width * text.moe_intermediate_size) + width)
    return work + _linear(rows, width, text.vocab_size)


def active_parameters(config: Any) -> dict[str, int]:
    """Parameters that a decode step of one row reads, by part, and their `total`.

    Times the size of an element, and with the cache, they are the least bytes of a step at batch 1.
    """
    text = config.text_config
    width, head, moe = text.hidden_size, _head_size(text), _moe_layers(text)
    heads = 2 * text.num_attention_heads + 2 * text.num_key_value_heads
    found = {
        "attention": text.num_hidden_layers * width * head * heads,
        "dense": (text.num_hidden_layers - moe) * 3 * width * text.intermediate_size,
        "experts": moe * (text.num_experts_per_tok + text.n_shared_experts) * 3 * width * text.moe_intermediate_size,
        "router": moe * width * text.n_routed_experts,
        "norms": (2 * text.num_hidden_layers + 1) * width,
        "lm_head": width * text.vocab_size,
    }
    return {**found, "total": sum(found.values())}


def _expected_experts(config: Any, places: int) -> float:
    """Distinct routed experts that *places* use in all layers together, if routing is even and independent.

    layers * E * (1 - (1 - k / E) ** places), for top k of E.
    """
    text = config.text_config
    missed = (1 - text.num_experts_per_tok / text.n_routed_experts) ** places
    return float(_moe_layers(text) * text.n_routed_experts * (1 - missed))


def batch_costs(
    config: Any, batch: Batch, itemsize: int, routing: Routing | None = None, router_itemsize: int | None = None
) -> Costs:
    """Costs of each phase of *batch* in a dtype of *itemsize* bytes; routers may have a multiple of it.

    Without *routing*, even routing is assumed.
    """
    router = (router_itemsize or itemsize) // itemsize
    if routing is None:
        prefill, decode = (_expected_experts(config, places) for places in (batch.rows * batch.length, batch.rows))
        routing = Routing(prefill, decode, False)
    views = [(batch.overview, batch.rows), (TILE, batch.crops)]
    parts: dict[str, _Work] = {}
    for name, part in (("sam", _sam), ("clip", _clip), ("projector", _projector)):
        parts[name] = sum((_batched(part(config, pixels), count) for pixels, count in views if count), _Work())
    lengths = range(batch.length + 1, batch.length + batch.steps + 1)
    steps = (_text(config, batch.rows, 1, length, routing.decode, router) for length in lengths)
    work = {
        "vision": parts["sam"] + parts["clip"] + parts["projector"],
        **parts,
        "prefill": _text(config, batch.rows, batch.length, batch.length, routing.prefill, router),
    }
    if batch.steps:
        work["decode"] = sum(steps, _Work())
    return Costs(
        phases={name: total.cost(itemsize) for name, total in work.items()},
        note=_note(config, routing),
        details={
            "prompt_tokens": list(batch.prompts),
            "crops": batch.crops,
            "decode_steps": batch.steps,
            "experts_counted": routing.counted,
            "experts_prefill": routing.prefill,
            "experts_decode_step": routing.decode,
            "active_parameters": active_parameters(config),
            "decode_step": _step(config, batch, itemsize, routing, router),
        },
    )


def _step(config: Any, batch: Batch, itemsize: int, routing: Routing, router: int) -> dict[str, int]:
    """FLOPs and bytes of the first and the last decode step: the cache grows between them."""
    found: dict[str, int] = {}
    for name, keys in (("first", batch.length + 1), ("last", batch.length + max(batch.steps, 1))):
        cost = _text(config, batch.rows, 1, keys, routing.decode, router).cost(itemsize)
        found |= {f"{name}_flops": cost.flops, f"{name}_bytes": cost.bytes}
    return found


def _note(config: Any, routing: Routing) -> str:
    of = _moe_layers(config.text_config) * config.text_config.n_routed_experts
    if routing.counted:
        return f"routed experts read, of {of}: counted at the router in a pass outside the clock"
    return f"routed experts read, of {of}: expected of even routing, since this engine's routers could not be watched"


@dataclass
class _RoutingCounter(Phases):
    """Counts the experts that routers choose in each phase."""

    steps: int = 0
    _phase: str = ""
    _hits: dict[str, list[Any]] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        before, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = before

    @contextmanager
    def step(self) -> Iterator[None]:
        self.steps += 1
        yield

    def router(self, module: Any, inputs: Any, outputs: Any) -> None:
        """A forward hook for a router, whose last output is the chosen experts [places, k]."""
        import torch

        chosen = outputs[-1].flatten()
        hit = torch.zeros(module.num_experts, dtype=torch.bool, device=chosen.device)
        # Summed on the device, so that nothing waits here.
        self._hits.setdefault(self._phase, []).append(hit.index_fill(0, chosen, True).sum())

    def total(self, phase: str) -> int:
        return sum(int(hit) for hit in self._hits.get(phase, ()))

    def calls(self, phase: str) -> int:
        return len(self._hits.get(phase, ()))


def count_routing(
    model: Any, batch: Batch, run: Callable[[Mapping[str, Any], Phases], Iterator[Any]]
) -> Routing | None:
    """Count the experts that *batch* uses in one pass: *run* takes changes of the settings and `Phases`.

    With one row decode needs no pass: the top k of a token are k experts. Returns None where not all routers were
    called, as in an engine that does not call their modules.
    """
    text = model.config.text_config
    moe = _moe_layers(text)
    if not moe:
        return Routing(0.0, 0.0, True)
    counter = _RoutingCounter()
    alone = batch.rows == 1
    with ExitStack() as stack:
        for router in _routers(model):
            stack.callback(router.register_forward_hook(counter.router).remove)
        for _ in run({"max_new_tokens": 1} if alone else {}, counter):
            pass
    if counter.calls("prefill") != moe or counter.calls("decode") != moe * counter.steps:
        return None
    if alone:
        decode = float(moe * text.num_experts_per_tok)
    else:
        decode = counter.total("decode") / counter.steps if counter.steps else 0.0
    return Routing(float(counter.total("prefill")), decode, True)


def router_itemsize(model: Any) -> int | None:
    """Bytes of an element of the routers' weights; None without routers."""
    return next((int(router.weight.element_size()) for router in _routers(model)), None)


def _routers(model: Any) -> list[Any]:
    return [layer.mlp.gate for layer in model.model.language_model.layers if hasattr(layer.mlp, "gate")]
