"""Tiny random checkpoints of document models, in the formats that their real ones have.

Each class has its own function that gives a configuration and a processor. `build` saves both with seeded weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

if (_found := find_spec("torchvision")) is not None and _found.origin is not None:
    # PyPI's torchvision is built for CUDA: beside a torch for CPUs its library does not load, and then not even its
    # Python part, for the want of these two operators. No processor calls them.
    try:
        torch.ops.load_library(str(Path(_found.origin).with_name("_C.so")))
    except OSError:
        _LIBRARY = torch.library.Library("torchvision", "DEF")
        for _name in ("nms", "qnms"):
            _LIBRARY.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

VISION = _found is not None
"""Whether the classes that need torchvision can be built."""
TEXT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4096,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SAM = {
    "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 1, "num_attention_heads": 1,
    "global_attn_indexes": [], "window_size": 4, "image_size": 256, "initializer_range": 0.02,
}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
TILES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
Made = tuple[Any, Any]


def tokenizer(special: Sequence[str], named: Mapping[str, str] | None = None) -> Any:
    """A tokenizer of bytes with these special tokens; *named* ones become its attributes."""
    words = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    made = hf.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        extra_special_tokens=dict(named or {}),
    )  # fmt: skip
    made.add_tokens([hf.AddedToken(word, special=True, normalized=False) for word in special])
    return made


def chat(image: str) -> str:
    """A chat template: the image's tokens, then the text."""
    return (
        "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
        + image
        + "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )


def text(words: Any, **changes: Any) -> dict[str, Any]:
    return {**TEXT, "vocab_size": len(words), **changes}


def experts(words: Any, **changes: Any) -> dict[str, Any]:
    """A text model with routed experts, as DeepSeek's."""
    own = {key: value for key, value in text(words).items() if key != "head_dim"}
    return {
        **own, "num_key_value_heads": 4, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1, "mlp_layer_types": ["dense", "sparse"], **changes,
    }  # fmt: skip


def image_processor(name: str, **options: Any) -> Any:
    return getattr(hf, name if VISION else f"{name}Pil")(**options)


def deepseek_ocr2() -> Made:
    words = tokenizer(["<image>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>"])
    sam = {**SAM, "downsample_channels": [24, 32], "mlp_ratio": 2.0}
    encoder = {**TOWER, "vocab_size": 8, "num_key_value_heads": 2}
    config = hf.DeepseekOcr2Config(
        vision_config={"sam_config": sam, "encoder_config": encoder}, text_config=experts(words),
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return config, hf.DeepseekOcr2Processor(image_processor("DeepseekOcr2ImageProcessor"), words)


def unlimited_ocr() -> Made:
    words = tokenizer(["<image>", "<|det|>", "<|/det|>", "<PAGE>"])
    sam = {**SAM, "downsample_channels": [24, 32], "mlp_dim": 64}
    config = hf.UnlimitedOcrConfig(
        vision_config={"sam_config": sam, "encoder_config": {**TOWER, "image_size": 56, "patch_size": 14}},
        text_config=experts(words, sliding_window=8), image_token_id=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    images = hf.UnlimitedOcrImageProcessor(size={"height": 256, "width": 256}, tile_size=192)
    return config, hf.UnlimitedOcrProcessor(images, words)


def got_ocr2() -> Made:
    words = tokenizer(["<|im_start|>", "<|im_end|>", "<img>", "</img>", "<imgpad>"])
    # 1024 pixels: its processor writes 256 image tokens, whatever the size.
    config = hf.GotOcr2Config(
        vision_config={**SAM, "mlp_dim": 64, "image_size": 1024}, text_config=text(words, model_type="qwen2"),
        image_token_index=words.convert_tokens_to_ids("<imgpad>"), image_seq_length=256,
    )  # fmt: skip
    return config, hf.GotOcr2Processor(image_processor("GotOcr2ImageProcessor", size=square(1024)), words)


def granite_docling() -> Made:
    words = tokenizer(["<image>", "<fake_token_around_image>", "<global-img>", "<doctag>", "</doctag>", *TILES])
    vision = {**TOWER, "num_hidden_layers": 3, "image_size": 64, "patch_size": 8, "out_hidden_size": 64}
    own = {key: value for key, value in text(words).items() if key != "head_dim"}
    own["embedding_multiplier"] = 1.0  # else the text drowns the image
    config = hf.GraniteDoclingConfig(
        vision_config={**vision, "deepstack_visual_indexes": [1]}, text_config=own, pad_token_id=0,
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    images = image_processor("GraniteDoclingImageProcessor", size=square(64), max_patches=4)
    return config, hf.GraniteDoclingProcessor(images, words, image_seq_len=4, chat_template=chat("<image>"))


def hunyuan_vl() -> Made:
    named = {"image_token": "<hy_img>", "image_start_token": "<hy_s>", "image_end_token": "<hy_e>"}
    words = tokenizer(["<hy_nl>"], named)
    ids = words.convert_tokens_to_ids
    config = hf.HunYuanVLConfig(
        vision_config={**TOWER, "out_hidden_size": 64, "patch_size": 16, "max_image_size": 256, "min_image_size": 64},
        text_config=text(words, rope_parameters={**ROPE, "mrope_section": [2, 2, 2, 2]}),
        image_token_id=ids("<hy_img>"), im_start_id=ids("<hy_s>"), im_end_id=ids("<hy_e>"),
        im_newline_id=ids("<hy_nl>"),
    )  # fmt: skip
    images = image_processor("HunYuanVLImageProcessor", min_pixels=32 * 32, max_pixels=192 * 192)
    return config, hf.HunYuanVLProcessor(images, words, chat_template=chat("<hy_s><hy_img><hy_e>"))


def lighton_ocr() -> Made:
    named = {"image_token": "<|image_pad|>", "image_break_token": "<|vision_pad|>",
             "image_end_token": "<|vision_end|>"}  # fmt: skip
    words = tokenizer(["<|im_start|>", "<|im_end|>"], named)
    config = hf.LightOnOcrConfig(
        vision_config={**TOWER, "model_type": "pixtral", "head_dim": 16, "image_size": 224, "patch_size": 14},
        text_config=text(words, model_type="qwen3"), image_token_id=words.convert_tokens_to_ids("<|image_pad|>"),
    )  # fmt: skip
    images = image_processor("PixtralImageProcessor", size={"longest_edge": 224}, patch_size=28)
    return config, hf.LightOnOcrProcessor(images, words, chat_template=chat("<|image_pad|>"))


def paddleocr_vl() -> Made:
    image, start, end = "<|IMAGE_PLACEHOLDER|>", "<|IMAGE_START|>", "<|IMAGE_END|>"
    words = tokenizer([start, end, "<|video|>"], {"image_token": image})
    ids = words.convert_tokens_to_ids
    config = hf.PaddleOCRVLConfig(
        vision_config={**TOWER, "image_size": 56, "patch_size": 14},
        text_config=text(words, rope_parameters={**ROPE, "mrope_section": [4, 2, 2]}),
        image_token_id=ids(image), video_token_id=ids("<|video|>"),
        vision_start_token_id=ids(start), vision_end_token_id=ids(end),
    )  # fmt: skip
    images = image_processor("PaddleOCRVLImageProcessor", size=edges(56, 224))
    return config, hf.PaddleOCRVLProcessor(images, words, chat_template=chat(f"{start}{image}{end}"))


def qianfan_ocr() -> Made:
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    words = tokenizer(["<image>", "<|im_end|>"], named)
    config = hf.QianfanOCRConfig(
        vision_config={**TOWER, "image_size": [56, 56], "patch_size": [14, 14]},
        text_config=text(words, model_type="qwen3"), image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )  # fmt: skip
    images = image_processor("GotOcr2ImageProcessor", size=square(56), crop_to_patches=True)
    return config, hf.QianfanOCRProcessor(images, words, image_seq_length=4, chat_template=chat("<image>"))


def minicpm_ocr() -> Made:
    named = {
        "image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "image_start_token": "<image>",
        "image_end_token": "</image>", "slice_start_token": "<slice>", "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>",
    }
    words = tokenizer([], named)
    linear = {
        "model_type": "qwen3_5_text", "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "rope_parameters": {**ROPE, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5},
    }
    config = hf.MiniCPMOcrConfig(
        vision_config={**TOWER, "image_size": 112, "patch_size": 14}, insert_layer_id=0,
        text_config=text(words, **linear), image_token_id=words.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=words.convert_tokens_to_ids("<|video_pad|>"),
    )  # fmt: skip
    images = hf.MiniCPMOcrImageProcessor(scale_resolution=112, patch_size=14, max_slice_nums=4)
    video = hf.MiniCPMOcrVideoProcessor(scale_resolution=112, patch_size=14)
    return config, hf.MiniCPMOcrProcessor(images, video, words, chat_template=chat("<|image_pad|>"))


def glm_ocr() -> Made:
    marks = ["<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"]
    words = tokenizer(marks, {"image_token": "<|image|>", "video_token": "<|video|>"})
    begin, end, video_begin, video_end = words.convert_tokens_to_ids(marks)
    vision = {"hidden_size": 32, "intermediate_size": 64, "depth": 2, "num_heads": 2}
    config = hf.GlmOcrConfig(
        vision_config={**vision, "image_size": 56, "out_hidden_size": 64},
        text_config=text(words, rope_parameters={**ROPE, "mrope_section": [4, 2, 2]}),
        image_token_id=words.convert_tokens_to_ids("<|image|>"), image_start_token_id=begin, image_end_token_id=end,
        video_token_id=words.convert_tokens_to_ids("<|video|>"), video_start_token_id=video_begin,
        video_end_token_id=video_end,
    )  # fmt: skip
    images = image_processor("Glm46VImageProcessor", size=edges(56, 316))
    template = chat("<|begin_of_image|><|image|><|end_of_image|>")
    return config, hf.Glm46VProcessor(
        images, words, video_processor=hf.Glm46VVideoProcessor(), chat_template=template
    )


def _qwen(version: str, patch: int, vision: Mapping[str, Any]) -> Made:
    marks = ["<|vision_start|>", "<|vision_end|>", "<|im_start|>", "<|im_end|>"]
    words = tokenizer(marks, {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"})
    ids = words.convert_tokens_to_ids
    config = getattr(hf, f"{version}Config")(
        vision_config={"depth": 2, "num_heads": 2, **vision},
        text_config=text(words, rope_parameters={**ROPE, "mrope_section": [4, 2, 2]}),
        image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids(marks[0]), vision_end_token_id=ids(marks[1]),
    )  # fmt: skip
    images = image_processor("Qwen2VLImageProcessor", size=edges(56, 224), patch_size=patch)
    video = getattr(hf, "Qwen3VLVideoProcessor" if version == "Qwen3VL" else "Qwen2VLVideoProcessor")()
    template = chat("<|vision_start|><|image_pad|><|vision_end|>")
    return config, getattr(hf, f"{version}Processor")(images, words, video_processor=video, chat_template=template)


def qwen2_vl() -> Made:
    return _qwen("Qwen2VL", 14, {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2})


def qwen2_5_vl() -> Made:
    vision = {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64, "fullatt_block_indexes": [1]}
    return _qwen("Qwen2_5_VL", 14, vision)


def qwen3_vl() -> Made:
    vision = {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64, "num_position_embeddings": 256}
    return _qwen("Qwen3VL", 16, {**vision, "deepstack_visual_indexes": [0]})


def _idefics(version: str, **others: Any) -> Made:
    words = tokenizer(["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *TILES])
    config = getattr(hf, f"{version}Config")(
        vision_config={**TOWER, "image_size": 64, "patch_size": 8}, text_config=text(words, model_type="llama"),
        image_token_id=words.convert_tokens_to_ids("<image>"), scale_factor=2,
    )  # fmt: skip
    sizes = {"size": {"longest_edge": 128}, "max_image_size": {"longest_edge": 64}}
    images = image_processor(f"{version}ImageProcessor", **sizes)
    return config, getattr(hf, f"{version}Processor")(
        images, words, image_seq_len=16, chat_template=chat("<image>"), **others
    )


def idefics3() -> Made:
    return _idefics("Idefics3")


def smolvlm() -> Made:
    return _idefics("SmolVLM", video_processor=hf.SmolVLMVideoProcessor())


def square(length: int) -> dict[str, int]:
    return {"height": length, "width": length}


def edges(short: int, long: int) -> dict[str, int]:
    """A size as pixels in all, at least and at most."""
    return {"shortest_edge": short * short, "longest_edge": long * long}


PILLOW = (
    *(deepseek_ocr2, got_ocr2, granite_docling, hunyuan_vl, lighton_ocr, paddleocr_vl, qianfan_ocr, idefics3),
)
"""Classes whose processors need Pillow alone."""
TORCHVISION = (unlimited_ocr, minicpm_ocr, glm_ocr, qwen2_vl, qwen2_5_vl, qwen3_vl, smolvlm)
"""Classes whose processors need torchvision."""
PRESETS = {"idefics3": "smoldocling", "smolvlm": "smoldocling", "hunyuan_vl": "hunyuan_ocr"} | dict.fromkeys(
    ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "qwen_vl"
)
"""The preset of a class whose name is another."""


def build(make: Callable[[], Made], directory: Path) -> Path:
    """Save a class's checkpoint in *directory*."""
    torch.manual_seed(0)
    config, processor = make()
    model = hf.AutoModelForImageTextToText.from_config(config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # scores far enough apart that rounding does not change the choice
                parameter.normal_(0, 1.2 / parameter.shape[-1] ** 0.5)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory
