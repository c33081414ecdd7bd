"""Seeded random weights, made on the device they run on: for timing; the answers mean nothing.

Sizes: "full" is the released model's (3.3 B parameters), "tiny" has 9.2 M for a laptop's CPU. Weights are scaled by
their fan-in and embeddings have unit variance, so that answers vary from token to token: with the usual 0.02 a greedy
decoder repeats one token, and tests that compare tokens would prove nothing. The end token never has the highest
score, so each answer runs to its limit and the work measured does not depend on chance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llmprof.errors import ModelError
from pytest_llmprof.models.deepseek_ocr.translate import FULL_ATTENTION, RELEASED_IMAGE_TOKEN
from pytest_llmprof.models.device import check_choice

if TYPE_CHECKING:
    import torch
    from transformers import UnlimitedOcrConfig

_TINY_VOCABULARY = 1024
SIZES = ("full", "tiny")
_POSITION_STD = 0.1


def random_config(size: str) -> UnlimitedOcrConfig:
    """Return the configuration of *size*: "full" or "tiny". Raises `ModelError` for another."""
    from transformers import UnlimitedOcrConfig

    check_choice("model.size", size, SIZES)
    if size == "full":
        text: dict[str, Any] = {"max_position_embeddings": 8192, "layer_types": [FULL_ATTENTION] * 12}
        return UnlimitedOcrConfig(text_config=text, vision_config={}, image_token_id=RELEASED_IMAGE_TOKEN)
    sam = {
        "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "mlp_dim": 512, "window_size": 8,
        "global_attn_indexes": [3], "output_channels": 96, "downsample_channels": [192, 256], "image_size": 512,
    }  # fmt: skip
    clip = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {
        "vocab_size": _TINY_VOCABULARY, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 6, "num_experts_per_tok": 2,
        "n_shared_experts": 2, "moe_intermediate_size": 192, "max_position_embeddings": 8192,
        "layer_types": [FULL_ATTENTION] * 4,
    }  # fmt: skip
    return UnlimitedOcrConfig(
        text_config=text,
        vision_config={"sam_config": sam, "encoder_config": clip},
        image_token_id=_TINY_VOCABULARY - 6,
    )


def random_model(config: UnlimitedOcrConfig, seed: int, device: torch.device, dtype: torch.dtype) -> Any:
    """Return a model with weights drawn on *device* from *seed*; a CPU and a GPU draw different ones."""
    import torch

    # The class, too, before the block: torch 2.6 cannot import its compiler where meta is the default device.
    from transformers import AutoModelForImageTextToText, UnlimitedOcrForConditionalGeneration  # noqa: F401

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, owner, key in _owned(model, "_parameters"):
            made = owner._parameters[key]
            drawn = _drawn(name, torch.empty(made.shape, dtype=dtype, device=device), generator)
            # The class may keep some weights in another dtype, as transformers 5.24 does with routers.
            owner._parameters[key] = torch.nn.Parameter(drawn.to(made.dtype), requires_grad=False)
        model.lm_head.weight[config.text_config.eos_token_id] = 0  # its score is then 0, far from the highest
        _fill_buffers(model, device)
    return model.eval()


def _owned(model: Any, kind: str) -> list[tuple[str, Any, str]]:
    """Full name of each tensor, the module that owns it and its name there."""
    return [
        (f"{prefix}.{key}", module, key)
        for prefix, module in model.named_modules()
        for key, value in getattr(module, kind).items()
        if value is not None
    ]


def _drawn(name: str, weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    last, owner = name.rsplit(".", 1)[-1], name.rsplit(".", 1)[0].rsplit(".", 1)[-1]
    if last == "bias":
        return weight.zero_()
    if "norm" in owner:
        return weight.fill_(1)
    if last in {"pos_embed", "rel_pos_h", "rel_pos_w"} or owner == "position_embedding":
        std = _POSITION_STD
    elif weight.dim() == 1 or owner == "embed_tokens":
        std = 1.0
    elif weight.dim() == 3:  # experts: [expert, out, in]
        std = weight.shape[-1] ** -0.5
    else:
        std = weight[0].numel() ** -0.5
    return weight.normal_(0, std, generator=generator)


def _fill_buffers(model: Any, device: torch.device) -> None:
    """Compute the buffers, which hold no weights, as the class computes them on a real device."""
    import torch

    for name, owner, key in _owned(model, "_buffers"):
        if key == "position_ids":
            value = torch.arange(owner.num_positions).expand(1, -1)
        elif key in {"inv_freq", "original_inv_freq"}:
            value = owner.compute_default_rope_parameters(owner.config)[0]
        else:
            raise ModelError(f"transformers gave the model a buffer {name} that random weights do not know")
        owner._buffers[key] = value.to(device)
