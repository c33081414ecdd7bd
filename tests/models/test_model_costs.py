"""FLOPs and bytes from shapes, held against torch's own counter and against the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import pytest
import torch
import transformers.integrations.moe  # noqa: F401 - registers its own product of experts
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from pytest_llmprof.config.schema import InferSettings, ModelSettings
from pytest_llmprof.models.base import Costed, Token
from pytest_llmprof.models.deepseek_ocr import costs
from pytest_llmprof.models.deepseek_ocr.loader import load
from pytest_llmprof.models.deepseek_ocr.random_weights import random_config

PHASES = ("vision", "sam", "clip", "projector", "prefill", "decode")
INFER = InferSettings(max_new_tokens=5)


def sdpa(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """Q K^T and weights V, each 2 * queries * keys * head size, for every row and head."""
    return 2 * prod(query[:3]) * key[2] * (query[3] + value[3])


def grouped(rows: Sequence[int], experts: Sequence[int], *_: Any, **__: Any) -> int:
    """[places * k, in] by experts [E, in, out]: each row meets one expert."""
    return 2 * prod(rows) * experts[2]


UNCOUNTED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa,
    torch.ops.transformers.grouped_mm_fallback: grouped,
}
"""What torch's counter has no formula for: attention on a CPU, and the experts' products."""
if hasattr(torch.ops.aten, "_grouped_mm"):  # an older torch leaves them to transformers
    UNCOUNTED[torch.ops.aten._grouped_mm] = grouped


class Counter:
    """`Phases` that read torch's counter where a phase begins and ends."""

    def __init__(self) -> None:
        self.flops: dict[str, int] = {}
        self.counter = FlopCounterMode(display=False, custom_mapping=UNCOUNTED)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        before = self.counter.get_total_flops()
        yield
        self.flops[name] = self.flops.get(name, 0) + self.counter.get_total_flops() - before

    @contextmanager
    def step(self) -> Iterator[None]:
        yield


def tiny(mode: str, dtype: str = "float32") -> Any:
    settings = ModelSettings(weights="random", size="tiny", mode=mode, device="cpu", dtype=dtype)
    return load(settings, INFER)


CASES = [
    pytest.param("tiny", [(300, 200)], "markdown", id="tiny"),
    pytest.param("small", [(300, 200)], "free", id="small"),
    pytest.param("base", [(300, 200)], "markdown", id="base"),
    pytest.param("large", [(300, 200)], "free", id="large"),
    pytest.param("gundam", [(700, 600)], "free", id="gundam with crops"),
    # Crops on one page alone: prompts of two lengths, and a padded batch.
    pytest.param("gundam", [(700, 600), (200, 300)], "markdown", id="gundam batch"),
    pytest.param("tiny", [(300, 200), (200, 300)], "free", id="batch"),
]


@pytest.mark.parametrize(("mode", "sizes", "prompt"), CASES)
def test_flops_are_those_of_torchs_counter(mode: str, sizes: list[tuple[int, int]], prompt: str) -> None:
    model = tiny(mode)
    images = [Image.new("RGB", size) for size in sizes]
    infer = InferSettings(max_new_tokens=5, prompt=prompt)
    seen = Counter()
    with seen.counter:
        tokens = list(model.generate(images, infer, seen))
    found = model.costs(images, infer, lengths(tokens, len(images)))
    # Equal, not near: the same products are counted.
    assert {phase: found.phases[phase].flops for phase in PHASES} == {phase: seen.flops[phase] for phase in PHASES}


def lengths(tokens: Sequence[Token], rows: int) -> list[int]:
    return [sum(token.row == row for token in tokens) for row in range(rows)]


@pytest.fixture(scope="module", params=["tiny", "full"])
def meta(request: pytest.FixtureRequest) -> Any:
    """A model without weights: the shapes alone."""
    from transformers import UnlimitedOcrForConditionalGeneration

    with torch.device("meta"):
        return UnlimitedOcrForConditionalGeneration(random_config(request.param))


def parameters(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_weights_are_the_modules_parameters(meta: Any) -> None:
    config = meta.config
    batch = costs.Batch(overview=1024, crops=0, prompts=(300,), steps=3)
    text = config.text_config
    moe = sum(kind == "sparse" for kind in text.mlp_layer_types)
    everywhere = costs.Routing(moe * text.n_routed_experts, moe * text.num_experts_per_tok, True)
    found = costs.batch_costs(config, batch, 1, everywhere).phases
    tower = meta.model.vision_tower
    assert found["sam"].parts["weights"] == parameters(tower.sam_encoder)
    assert found["clip"].parts["weights"] == parameters(tower.vision_encoder)
    assert found["projector"].parts["weights"] == parameters(meta.model.multi_modal_projector)
    embeddings = parameters(meta.model.language_model.embed_tokens)
    whole = parameters(meta.model.language_model) - embeddings + parameters(meta.lm_head)
    assert found["prefill"].parts["weights"] == whole
    idle = moe * (text.n_routed_experts - text.num_experts_per_tok) * 3 * text.hidden_size * text.moe_intermediate_size
    assert found["decode"].parts["weights"] == 3 * (whole - idle)
    assert costs.active_parameters(config)["total"] == whole - idle
    # What is left of the model: the embeddings, the separator and the newline.
    parts = sum(found[name].parts["weights"] for name in ("sam", "clip", "projector", "prefill"))
    assert parts + embeddings + 2 * text.hidden_size == parameters(meta)


def test_the_full_models_decode_floor() -> None:
    """573 M active parameters, 1.146 GB a token in bfloat16, besides routers, norms and the cache."""
    config = random_config("full")
    found = costs.active_parameters(config)
    millions = {name: round(value / 1e6, 1) for name, value in found.items()}
    assert (millions["attention"], millions["dense"]) == (78.6, 26.3)
    assert (millions["experts"], millions["lm_head"]) == (302.8, 165.5)
    products = sum(found[name] for name in ("attention", "dense", "experts", "lm_head"))
    assert products == pytest.approx(573.2e6, rel=1e-4)
    assert 2 * products == pytest.approx(1.146e9, rel=1e-3)
    assert found["total"] - products < 1e6
    step = costs.batch_costs(config, costs.Batch(1024, 0, (293,), 1), 2, costs.Routing(0, 66.0, True)).phases["decode"]
    cache = 12 * 2 * 1280 * 2 * (294 + 1)  # layers, keys and values, bytes; 294 read and one written
    assert step.parts["cache"] == cache
    assert step.parts["weights"] == 2 * found["total"]
    assert step.bytes == sum(step.parts.values())
    assert step.parts["activations"] < 0.005 * step.bytes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_counted_in_the_dtypes_they_are_kept_in(dtype: str) -> None:
    """transformers 5.24 keeps routers in float32."""
    model = tiny("tiny", dtype)
    found = model.costs([Image.new("RGB", (300, 200))], INFER, [3])
    kept = {name: p.nbytes for name, p in model.network.named_parameters()}
    experts = sum(size for name, size in kept.items() if ".experts." in name)
    text = sum(size for name, size in kept.items() if "language_model" in name or "lm_head" in name)
    read = text - experts - kept["model.language_model.embed_tokens.weight"]
    each = experts // (3 * 6)
    phases = found.phases
    assert phases["prefill"].parts["weights"] == read + found.details["experts_prefill"] * each
    assert phases["decode"].parts["weights"] == 2 * (read + 3 * 2 * each)


def test_the_full_model_has_3_336_billion_parameters() -> None:
    from transformers import UnlimitedOcrForConditionalGeneration

    with torch.device("meta"):
        model = UnlimitedOcrForConditionalGeneration(random_config("full"))
    assert round(parameters(model) / 1e9, 3) == 3.336


def test_experts_are_counted_where_they_are_routed() -> None:
    model = tiny("tiny")
    assert isinstance(model, Costed)
    images = [Image.new("RGB", (300, 200), colour) for colour in ("white", "black")]
    routers = [layer.mlp.gate for layer in model.network.model.language_model.layers[1:]]
    chosen: list[torch.Tensor] = []
    hooks = [router.register_forward_hook(lambda *given: chosen.append(given[2][2])) for router in routers]
    tokens = list(model.generate(images, INFER, Counter()))
    for hook in hooks:
        hook.remove()
    distinct = [len(set(indices.flatten().tolist())) for indices in chosen]
    found = model.costs(images, INFER, lengths(tokens, 2)).details
    assert found["experts_counted"]
    assert found["experts_prefill"] == sum(distinct[:3])
    assert found["experts_decode_step"] == sum(distinct[3:]) / 4
    assert not any(router._forward_hooks for router in routers)
    alone = model.costs(images[:1], INFER, [5]).details
    assert alone["experts_decode_step"] == 3 * 2  # three layers, top 2
    assert alone["decode_steps"] == 4


def test_without_routers_to_watch_the_expected_number_is_taken_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("tiny")
    monkeypatch.setattr(model, "generate_with", lambda *_: iter(()))  # as an engine that never calls their modules
    found = model.costs([Image.new("RGB", (300, 200))] * 2, INFER, [5, 3])
    assert found.details["experts_counted"] is False
    assert "expected of even routing" in found.note
    text = model.network.config.text_config
    assert (text.n_routed_experts, text.num_experts_per_tok) == (6, 2)
    assert found.details["experts_decode_step"] == pytest.approx(3 * 6 * (1 - (4 / 6) ** 2))


def test_costs_grow_as_the_work_does() -> None:
    config = random_config("tiny")

    def of(**changes: Any) -> dict[str, Any]:
        shape: dict[str, Any] = {"overview": 512, "crops": 0, "prompts": (80,), "steps": 10}
        return dict(costs.batch_costs(config, costs.Batch(**{**shape, **changes}), 4).phases)

    one, longer, crops = of(), of(steps=20), of(crops=2)
    assert longer["prefill"] == one["prefill"]
    assert longer["decode"].flops > 2 * one["decode"].flops  # the cache grows
    assert crops["sam"].parts["weights"] == 2 * one["sam"].parts["weights"]  # a second pass
    assert "decode" not in of(steps=0)
    both = of(prompts=(80, 80))
    assert both["prefill"].flops == 2 * one["prefill"].flops
    assert both["prefill"].bytes < 2 * one["prefill"].bytes
