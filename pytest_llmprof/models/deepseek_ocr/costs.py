"""What each phase of DeepSeek-OCR takes: FLOPs and bytes, from shapes alone.

**FLOPs** are those of the matrix products, convolutions and attention that transformers' class executes, two for
a multiply-add, as `torch.utils.flop_counter` counts them:

* SAM's windowed layers work on windows padded to whole ones, so padding is counted; its relative positions are
  two more products in every layer.
* Attention is 4 * heads * head size * queries * keys: causal masking saves nothing in this count, nor do padded
  places of a shorter prompt in a batch.
* Text: QKV and output projection, the gated MLP of dense layers, and in the others router, top-k and shared
  experts. The head is applied to the last position of each row alone.
* A decode step attends to the cache and its own token. Rows of a batch that have ended are fed on until the last
  one ends, so they are counted.

Norms, activations, softmax, rotation, interpolation of position tables and the choice of the token are not counted.

**Bytes** are what must cross the memory bus however well the kernels are fused, so a floor:

* weights once for each forward pass (the crops of gundam are a second pass of the vision tower), biases, norms and
  position tables included; of the routed experts those that were really hit, once a layer and pass; of the
  embedding table nothing;
* the cache: written by each token, and read whole by each decode step;
* activations: the input and output of each matrix product and convolution, and queries, keys, values and output
  of each attention, once each. Products that share an input (QKV; gate and up) read it once. Attention's scores,
  SAM's added position bias, residuals and norms are taken to stay on the chip.

Everything is in elements of the model's dtype, but for routers that are kept in another. What one implementation
moves on top (copying the cache to append to it, gathering experts' weights) is not counted: it is what MBU is there
to show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from pytest_llmprof.models.base import Costs, PhaseCost, Phases

__all__ = [
    "Batch",
    "Routing",
    "active_parameters",
    "batch_costs",
    "count_routing",
    "expected_experts",
    "router_itemsize",
]

_TILE = 640
"""Side of a crop in pixels, as `preprocessing.TILE`."""


@dataclass(frozen=True)
class Batch:
    """The shapes of one batch."""

    overview: int
    """Side of the global views in pixels."""
    crops: int
    """Crops of all pages together."""
    prompts: tuple[int, ...]
    """Prompt tokens of each page, picture included; they are padded to the longest."""
    steps: int
    """Decode steps: the longest answer's tokens less one."""

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
    """How many experts a forward pass really reads."""

    prefill: float
    """Distinct routed experts that prefill hits, summed over the layers."""
    decode: float
    """The same for a decode step, the mean over the steps."""
    counted: bool
    """Counted at the router in a pass of its own; else expected of even routing."""


@dataclass(frozen=True)
class _Work:
    """FLOPs, and elements moved of each kind."""

    flops: int = 0
    weights: int = 0
    cache: int = 0
    activations: int = 0

    def __add__(self, other: _Work) -> _Work:
        return _Work(
            self.flops + other.flops,
            self.weights + other.weights,
            self.cache + other.cache,
            self.activations + other.activations,
        )

    def __mul__(self, times: int) -> _Work:
        """The same layer *times* over, each with weights of its own."""
        return _Work(self.flops * times, self.weights * times, self.cache * times, self.activations * times)

    def cost(self, itemsize: int) -> PhaseCost:
        parts = {
            name: getattr(self, name) * itemsize
            for name in ("weights", "cache", "activations")
            if getattr(self, name)
        }
        return PhaseCost(self.flops, sum(parts.values()), parts)


def _linear(places: int, inputs: int, outputs: int, *, bias: bool = False) -> _Work:
    """A product with a weight [outputs, inputs] at *places* places."""
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
    """softmax(Q K^T) V of one row over heads that are *width* wide together; keys and values not counted."""
    return _Work(flops=4 * queries * keys * width, activations=2 * queries * width)


def _batched(work: _Work, views: int) -> _Work:
    """*work* of one view for *views*: the weights are read once."""
    return _Work(work.flops * views, work.weights, work.cache * views, work.activations * views)


def _halved(side: int) -> int:
    """A side after a 3x3 convolution with stride 2 and padding 1."""
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
            # Two products of each query with `window` vectors; the tables belong to the weights.
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
    """One pass of the text model: *queries* new places a row that attend to *keys*; *experts* read in all layers;
    each of the router's weights takes *router* elements."""
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

    With an element's size and the cache they are the floor of a step's bytes at batch 1.
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


def expected_experts(config: Any, places: int) -> float:
    """Distinct routed experts that *places* hit in all layers, were they routed evenly and independently.

    layers * E * (1 - (1 - k / E) ** places), for top k of E.
    """
    text = config.text_config
    missed = (1 - text.num_experts_per_tok / text.n_routed_experts) ** places
    return float(_moe_layers(text) * text.n_routed_experts * (1 - missed))


def batch_costs(
    config: Any, batch: Batch, itemsize: int, routing: Routing | None = None, router_itemsize: int | None = None
) -> Costs:
    """The phases' costs of *batch*, in a dtype of *itemsize* bytes, a multiple of which routers may have.

    Without *routing*, even routing is assumed.
    """
    router = (router_itemsize or itemsize) // itemsize
    if routing is None:
        routing = Routing(
            expected_experts(config, batch.rows * batch.length), expected_experts(config, batch.rows), False
        )
    views = [(batch.overview, batch.rows), (_TILE, batch.crops)]
    parts: dict[str, _Work] = {}
    for name, one in (("sam", _sam), ("clip", _clip), ("projector", _projector)):
        parts[name] = sum((_batched(one(config, pixels), count) for pixels, count in views if count), _Work())
    decode, last = _Work(), _Work()
    for step in range(1, batch.steps + 1):
        last = _text(config, batch.rows, 1, batch.length + step, routing.decode, router)
        decode += last
    work = {
        "vision": parts["sam"] + parts["clip"] + parts["projector"],
        **parts,
        "prefill": _text(config, batch.rows, batch.length, batch.length, routing.prefill, router),
    }
    if batch.steps:
        work["decode"] = decode
    return Costs(
        phases={name: one.cost(itemsize) for name, one in work.items()},
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
    """FLOPs and bytes of the first and of the last decode step: the cache grows between them."""
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
class _Watch(Phases):
    """Counts the experts that routers choose, by the phase they run in."""

    _phase: str = ""
    _passes: int = 0
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
        self._passes += 1
        yield

    def router(self, module: Any, inputs: Any, outputs: Any) -> None:
        """A forward hook of a router, whose last output is the chosen experts [places, k]."""
        import torch

        chosen = outputs[-1].flatten()
        hit = torch.zeros(module.num_experts, dtype=torch.bool, device=chosen.device)
        # Summed on the device: nothing waits here, although no clock runs.
        self._hits.setdefault(self._phase, []).append(hit.index_fill(0, chosen, True).sum())

    def total(self, phase: str) -> int:
        return sum(int(hit) for hit in self._hits.get(phase, ()))

    def calls(self, phase: str) -> int:
        return len(self._hits.get(phase, ()))

    @property
    def steps(self) -> int:
        return self._passes


def count_routing(
    model: Any, batch: Batch, run: Callable[[Mapping[str, Any], Phases], Iterator[Any]]
) -> Routing | None:
    """Count the experts of *batch* in one pass, which *run* makes of changed settings and of `Phases`.

    A single row's decode needs no pass: top k of a token are k experts. None where the routers were not all
    called, as in an engine that does not run them through their modules.
    """
    text = model.config.text_config
    moe = _moe_layers(text)
    if not moe:
        return Routing(0.0, 0.0, True)
    watch = _Watch()
    alone = batch.rows == 1
    with ExitStack() as stack:
        for router in _routers(model):
            stack.callback(router.register_forward_hook(watch.router).remove)
        for _ in run({"max_new_tokens": 1} if alone else {}, watch):
            pass
    if watch.calls("prefill") != moe or watch.calls("decode") != moe * watch.steps:
        return None
    if alone:
        decode = float(moe * text.num_experts_per_tok)
    else:
        decode = watch.total("decode") / watch.steps if watch.steps else 0.0
    return Routing(float(watch.total("prefill")), decode, True)


def router_itemsize(model: Any) -> int | None:
    """Bytes of an element of the routers' weights, where there are any."""
    return next((int(router.weight.element_size()) for router in _routers(model)), None)


def _routers(model: Any) -> list[Any]:
    return [layer.mlp.gate for layer in model.model.language_model.layers if hasattr(layer.mlp, "gate")]
