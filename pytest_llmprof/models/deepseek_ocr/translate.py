"""Translate a checkpoint's config.json to transformers' `UnlimitedOcrConfig`.

transformers has the architecture under the name of its descendant, Unlimited-OCR, whose decoder attends through a
sliding window. With full attention in every layer it computes what DeepSeek-OCR's released code computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pytest_llmprof.errors import ModelError
from pytest_llmprof.text.escape import quoted

if TYPE_CHECKING:
    from transformers import UnlimitedOcrConfig

FULL_ATTENTION = "full_attention"
RELEASED_IMAGE_TOKEN = 128815
"""Id of ``<image>`` in the released vocabulary; the released config.json lacks it."""
_SUPPORTED = "deepseek_vl_v2 (DeepSeek-OCR as released) or unlimited_ocr with full attention"
_TEXT_KEYS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
    "n_routed_experts", "n_shared_experts", "num_experts_per_tok", "moe_intermediate_size",
)  # fmt: skip
_TEXT_OPTIONAL = (
    "num_key_value_heads", "max_position_embeddings", "first_k_dense_replace", "rms_norm_eps", "hidden_act",
    "attention_bias", "routed_scaling_factor", "topk_method", "n_group", "topk_group", "bos_token_id", "eos_token_id",
)  # fmt: skip
# Released name: transformers' name.
_CLIP_KEYS = {
    "heads": "num_attention_heads", "image_size": "image_size", "intermediate_size": "intermediate_size",
    "layers": "num_hidden_layers", "patch_size": "patch_size", "width": "hidden_size",
}  # fmt: skip
_SAM_KEYS = {
    "downsample_channels": "downsample_channels", "global_attn_indexes": "global_attn_indexes",
    "heads": "num_attention_heads", "layers": "num_hidden_layers", "output_channels": "output_channels",
    "width": "hidden_size", "window_size": "window_size",
}  # fmt: skip
_FIXED: Mapping[str, Any] = {
    "use_mla": False,
    "norm_topk_prob": False,
    "scoring_func": "softmax",
    "moe_layer_freq": 1,
    "rope_scaling": None,
    "tie_word_embeddings": False,
}
"""Values of the language model that the architecture requires; with another value it is another model."""
_PATCH = 16
"""Pixels of a side of SAM's patches: a prompt's image tokens are counted by it."""


def translate(config: Mapping[str, Any], where: str) -> UnlimitedOcrConfig:
    """Return the config of transformers' class for the parsed config.json *config* found at *where*.

    Raises `ModelError` for another kind of model, a missing key or a value that the class cannot express.
    """
    kind = config.get("model_type")
    if kind == "deepseek_vl_v2":
        return _released(config, where)
    if kind == "unlimited_ocr":
        return _native(config, where)
    raise ModelError(f"{where}: model_type {quoted(kind)} is not supported; supported: {_SUPPORTED}; other "
                     "document models run through model=transformers")  # fmt: skip


def released_config(config: UnlimitedOcrConfig) -> dict[str, Any]:
    """Return *config* in the layout of the released config.json: the inverse of `translate`."""
    text, sam, clip = config.text_config, config.vision_config.sam_config, config.vision_config.encoder_config
    language: dict[str, Any] = {key: getattr(text, key) for key in _TEXT_KEYS}
    language |= {key: getattr(text, key) for key in _TEXT_OPTIONAL if key != "first_k_dense_replace"}
    language["first_k_dense_replace"] = text.mlp_layer_types.count("dense")
    language |= {"rope_theta": text.rope_parameters["rope_theta"], "use_mla": False, "torch_dtype": "float32"}
    return {
        "architectures": ["DeepseekOCRForCausalLM"],
        "model_type": "deepseek_vl_v2",
        "image_token_id": config.image_token_id,
        "language_config": language,
        "projector_config": {
            "input_dim": clip.hidden_size + sam.downsample_channels[-1],
            "model_type": "mlp_projector",
            "n_embed": text.hidden_size,
            "projector_type": "linear",
        },
        "vision_config": {
            "image_size": sam.image_size,
            "model_type": "vision",
            "width": {
                "clip-l-14-224": {key: getattr(clip, name) for key, name in _CLIP_KEYS.items()},
                "sam_vit_b": {key: getattr(sam, name) for key, name in _SAM_KEYS.items()},
            },
        },
    }


def _released(config: Mapping[str, Any], where: str) -> UnlimitedOcrConfig:
    language = _table(config, "language_config", where)
    for key, value in _FIXED.items():
        if language.get(key, value) != value:
            raise ModelError(
                f"{where}: language_config.{key} is {quoted(language[key])}, but DeepSeek-OCR has {value!r}; "
                f"supported: {_SUPPORTED}"
            )
    text = {key: _value(language, key, where, "language_config") for key in _TEXT_KEYS}
    text |= {key: language[key] for key in _TEXT_OPTIONAL if language.get(key) is not None}
    text.setdefault("max_position_embeddings", 8192)
    theta = float(language.get("rope_theta") or 10000)
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    layers = text["num_hidden_layers"]
    if not isinstance(layers, int) or isinstance(layers, bool) or layers < 1:
        raise ModelError(f"{where}: language_config.num_hidden_layers is {quoted(layers)}; expected a whole number "
                         "from 1")  # fmt: skip
    text["layer_types"] = [FULL_ATTENTION] * layers

    vision = _table(config, "vision_config", where)
    width = _table(vision, "width", where, "vision_config")
    clip, sam = _clip(width, where), _sam(width, vision, where)
    projector = config.get("projector_config") or {}
    if projector.get("projector_type", "linear") != "linear":
        kind = projector["projector_type"]
        raise ModelError(f"{where}: projector_config.projector_type is {quoted(kind)}; supported: linear")
    features = clip["hidden_size"] + sam["downsample_channels"][-1]
    for key, size in (("input_dim", features), ("n_embed", text["hidden_size"])):
        if projector.get(key, size) != size:
            found = projector[key]
            raise ModelError(f"{where}: projector_config.{key} is {quoted(found)}, but the other sizes make it {size}")
    return _build(
        where,
        text_config=text,
        vision_config={"sam_config": sam, "encoder_config": clip},
        image_token_id=config.get("image_token_id", RELEASED_IMAGE_TOKEN),
    )


def _clip(width: Mapping[str, Any], where: str) -> dict[str, Any]:
    path = "vision_config.width.clip-l-14-224"
    source = _table(width, "clip-l-14-224", where, "vision_config.width")
    # The released code hard-codes what the config leaves out: an MLP four times as wide (4096).
    defaults = {"intermediate_size": 4 * _value(source, "width", where, path), "image_size": 224, "patch_size": 14}
    return _renamed(source, _CLIP_KEYS, defaults, where, path)


def _sam(width: Mapping[str, Any], vision: Mapping[str, Any], where: str) -> dict[str, Any]:
    path = "vision_config.width.sam_vit_b"
    source = _table(width, "sam_vit_b", where, "vision_config.width")
    defaults = {
        "downsample_channels": [512, 1024], "global_attn_indexes": [2, 5, 8, 11],
        "output_channels": 256, "window_size": 14,
    }  # fmt: skip
    sizes = _renamed(source, _SAM_KEYS, defaults, where, path)
    channels = sizes["downsample_channels"]
    if not isinstance(channels, list) or len(channels) != 2:
        raise ModelError(f"{where}: {path}.downsample_channels is {quoted(channels)}; expected two numbers")
    mlp = source.get("mlp_dim", 4 * sizes["hidden_size"])
    return {**sizes, "mlp_dim": mlp, "image_size": vision.get("image_size", 1024)}


def _renamed(
    source: Mapping[str, Any], names: Mapping[str, str], defaults: Mapping[str, Any], where: str, path: str
) -> dict[str, Any]:
    """The values of *source* under transformers' *names*; a key without a default must be there."""
    return {
        name: source.get(key, defaults[key]) if key in defaults else _value(source, key, where, path)
        for key, name in names.items()
    }


def _native(config: Mapping[str, Any], where: str) -> UnlimitedOcrConfig:
    text = _table(config, "text_config", where)
    layers = text.get("layer_types")
    if not isinstance(layers, list) or set(layers) != {FULL_ATTENTION}:
        raise ModelError(
            f"{where}: text_config.layer_types is not {FULL_ATTENTION} throughout, so this is Unlimited-OCR, "
            f"not DeepSeek-OCR; supported: {_SUPPORTED}"
        )
    known = {key: config[key] for key in ("text_config", "vision_config", "image_token_id") if key in config}
    built = _build(where, **known)
    if (patch := built.vision_config.sam_config.patch_size) != _PATCH:
        raise ModelError(f"{where}: vision_config.sam_config.patch_size is {quoted(patch)}, but DeepSeek-OCR has "
                         f"{_PATCH}; supported: {_SUPPORTED}")  # fmt: skip
    return built


def _build(where: str, **values: Any) -> UnlimitedOcrConfig:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import UnlimitedOcrConfig

    try:
        return UnlimitedOcrConfig(**values)
    except (StrictDataclassError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{where}: not a usable configuration: {reason}") from error


def _table(config: Mapping[str, Any], key: str, where: str, parent: str = "") -> Mapping[str, Any]:
    value = _value(config, key, where, parent)
    if not isinstance(value, Mapping):
        raise ModelError(f"{where}: {_path(parent, key)} is {quoted(value)}; expected a table")
    return value


def _value(config: Mapping[str, Any], key: str, where: str, parent: str = "") -> Any:
    if config.get(key) is None:
        raise ModelError(f"{where}: {_path(parent, key)} is missing; supported: {_SUPPORTED}")
    return config[key]


def _path(parent: str, key: str) -> str:
    return f"{parent}.{key}" if parent else key
