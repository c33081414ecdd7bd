"""FLOPs and bytes of a batch, counted: FLOPs where torch runs them, bytes from the weights that each phase reads.

The batch runs once more, eagerly, since torch's counter sees neither fused attention on a CPU nor grouped experts.
Decode steps cost a constant and a part that grows with the cache, so a few of them give all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pytest_llmprof.models.base import Costs, PhaseCost

COUNTED_STEPS = 3
"""Decode steps that are counted; the others lie on the line through the first and the last of them."""


class CountingPhases:
    """`Phases` that take the counter's reading for each phase and step, and the experts that each routed to."""

    def __init__(self, counter: FlopCounterMode) -> None:
        self._counter = counter
        self._unseen = 0
        """FLOPs of quantized layers, whose products the counter does not know, less what it has seen of them."""
        self._begin = 0
        self.flops: dict[str, int] = {}
        self.steps: list[int] = []
        self.experts: dict[str, list[int]] = {}
        """Bytes of the experts that were routed to, for each call of a layer, by phase."""
        self._open: list[str] = []

    def _now(self) -> int:
        return int(self._counter.get_total_flops()) + self._unseen

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begin = self._now()
        self._open.append(name)
        try:
            yield
        finally:
            self._open.pop()
            self.flops[name] = self.flops.get(name, 0) + self._now() - begin

    @contextmanager
    def step(self) -> Iterator[None]:
        begin = self._now()
        yield
        self.steps.append(self._now() - begin)

    def routed(self, module: Any, arguments: tuple[Any, ...]) -> None:
        """A hook before a layer's experts: their second argument holds the chosen ones."""
        total = sum(map(_bytes, module.parameters()))
        chosen = arguments[1].unique().numel()
        self.experts.setdefault(self._open[-1], []).append(total * chosen // module.num_experts)

    def before_quantized(self, module: Any, arguments: tuple[Any, ...]) -> None:
        """A hook before a quantized layer."""
        self._begin = self._now()

    def after_quantized(self, module: Any, arguments: tuple[Any, ...], output: Any) -> None:
        """A hook after a quantized layer: it costs what a plain one does."""
        plain = 2 * output.numel() * module.in_features
        self._unseen += plain - (self._now() - self._begin)


@contextmanager
def counted(network: Any) -> Iterator[CountingPhases]:
    """Count what *network* does, with eager attention and experts."""
    attention, experts = attention_of(network), network.get_experts_implementation()
    try:
        network.set_attn_implementation("eager")
        network.set_experts_implementation("eager")
        with FlopCounterMode(display=False) as counter:
            phases = CountingPhases(counter)
            layers = [module for name, module in network.named_modules() if name.endswith(".experts")]
            hooks = [module.register_forward_pre_hook(phases.routed) for module in layers]
            for module in quantized_layers(network):
                hooks.append(module.register_forward_pre_hook(phases.before_quantized))
                hooks.append(module.register_forward_hook(phases.after_quantized))
            try:
                yield phases
            finally:
                for hook in hooks:
                    hook.remove()
    finally:
        for config, implementation in attention:
            config._attn_implementation = implementation  # sets those inside it, too, which follow
        network.set_experts_implementation(experts)


def attention_of(network: Any) -> list[tuple[Any, str]]:
    """Each configuration of its modules, outer ones first, and the implementation of attention that it names: a tower
    may have another one than the text model."""
    found = {id(module.config): module.config for module in network.modules() if hasattr(module, "config")}
    return [(one, one._attn_implementation) for one in found.values() if hasattr(one, "_attn_implementation")]


def batch_costs(
    network: Any, tokens: Sequence[int], prompt: int, run: Callable[[CountingPhases, int], None]
) -> Costs:
    """Costs of a batch whose prompts have *prompt* places and whose answers have *tokens* tokens.

    *run* runs the batch with the phases that it is given, for so many tokens.
    """
    steps = max(max(tokens, default=1) - 1, 0)
    with counted(network) as phases:
        run(phases, min(steps, COUNTED_STEPS) + 1)
    weights, cache = _weights(network), _cache_place(network) * len(tokens)
    experts = {name: sum(found) for name, found in phases.experts.items()}
    found = {"vision": PhaseCost(phases.flops.get("vision", 0), weights["vision"], {"weights": weights["vision"]})}
    found["prefill"] = _cost(
        phases.flops["prefill"], {"weights": weights["text"] + experts.get("prefill", 0), "cache": cache * prompt}
    )
    if steps and phases.steps:
        # The first step reads the prompt and one token, each later one a token more.
        places = steps * (prompt + 1) + steps * (steps - 1) // 2
        routed = experts.get("decode", 0) * steps // len(phases.steps)
        parts = {"weights": weights["text"] * steps + routed, "cache": cache * places}
        found["decode"] = _cost(_line(phases.steps, steps), parts)
    note = (
        f"FLOPs counted over the prompt and {len(phases.steps)} of {steps} decode steps with eager attention; "
        "bytes are weights and cache, without activations"
    )
    if quantized_layers(network):
        note += "; quantized layers count as plain products, with their bytes as they are stored"
    return Costs(found, note)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _cost(flops: int, parts: Mapping[str, int]) -> PhaseCost:
    return PhaseCost(flops, sum(parts.values()), parts)


def _line(counted: Sequence[int], steps: int) -> int:
    """The sum over *steps* of a line through the first and the last of the *counted* ones."""
    if steps <= len(counted):
        return sum(counted[:steps])
    slope = (counted[-1] - counted[0]) / max(len(counted) - 1, 1)
    return round(steps * counted[0] + slope * steps * (steps - 1) / 2)


def quantized_layers(network: Any) -> list[Any]:
    """Its layers of bitsandbytes. compressed-tensors' weights are unpacked when they are loaded."""
    return [module for module in network.modules() if type(module).__module__.startswith("bitsandbytes.")]


def scales(layer: Any) -> list[Tensor]:
    """What a layer of bitsandbytes reads beside its weights; nothing where its checkpoint's scales were not loaded."""
    four = getattr(layer.weight, "quant_state", None)
    if four is not None:
        return [four.absmax, four.code, *([four.state2.absmax, four.state2.code] if four.nested else ())]
    eight = getattr(layer.weight, "SCB", None)
    if eight is None and hasattr(layer, "state"):
        eight = layer.state.SCB  # it moves there at the first product
    return [] if eight is None else [eight]


def _weights(network: Any) -> dict[str, int]:
    """Bytes that vision reads, and that the text model with its head reads beside its routed experts."""
    decoder = network.get_decoder()
    embedding, head = network.get_input_embeddings().weight, network.get_output_embeddings().weight
    routed = {
        id(parameter) for name, module in network.named_modules() if name.endswith(".experts")
        for parameter in module.parameters()
    }  # fmt: skip
    beside = {id(layer.weight): sum(map(_bytes, scales(layer))) for layer in quantized_layers(network)}
    text = {id(parameter) for parameter in decoder.parameters() if parameter is not embedding} | {id(head)}
    found = {"vision": 0, "text": 0}
    for parameter in network.parameters():
        part = "text" if id(parameter) in text else "vision"
        if (parameter is embedding and parameter is not head) or (part == "text" and id(parameter) in routed):
            continue
        found[part] += _bytes(parameter) + beside.get(id(parameter), 0)
    return found


def _cache_place(network: Any) -> int:
    """Bytes of keys and values that one place of one row has, in layers that keep all places."""
    text = network.config.get_text_config(decoder=True)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    return int(2 * kinds.count("full_attention") * heads * size * network.dtype.itemsize)
