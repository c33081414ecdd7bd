"""Checkpoints that are not what they should be: one line each, before anything runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ocr_helpers import OFFICIAL
from safetensors.torch import load_file, save_file

from pytest_llmprof.config.schema import InferSettings, ModelSettings
from pytest_llmprof.errors import ModelError
from pytest_llmprof.models.checkpoint import digest, open_checkpoint
from pytest_llmprof.models.deepseek_ocr import loader
from pytest_llmprof.models.deepseek_ocr.translate import released_config, translate

CPU = torch.device("cpu")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A writable copy of the reference checkpoint."""
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(OFFICIAL / name, directory / name)
    return directory


def change_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def change_config(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = directory / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def refusal(directory: Path) -> str:
    with pytest.raises(ModelError) as caught:
        loader.load_weights(open_checkpoint(directory), CPU, torch.float32)
    text = str(caught.value)
    assert str(directory) in text
    assert "\n" not in text
    return text


def test_official_checkpoint_loads_whole(official_weights: Any) -> None:
    stored = load_file(OFFICIAL / "model.safetensors")
    assert set(official_weights.config.text_config.layer_types) == {"full_attention"}
    # All of it is in the model but CLIP's own patch embedding, which DeepSeek-OCR doesn't use (SAM feeds it).
    unused = stored["model.vision_model.embeddings.patch_embedding.weight"].numel()
    assert sum(p.numel() for p in official_weights.parameters()) == sum(t.numel() for t in stored.values()) - unused
    experts = official_weights.model.language_model.layers[1].mlp.experts
    assert torch.equal(experts.down_proj[5], stored["model.layers.1.mlp.experts.5.down_proj.weight"])
    assert torch.equal(official_weights.lm_head.weight, stored["lm_head.weight"])


@pytest.mark.parametrize(
    "key",
    [
        "lm_head.weight",
        "model.norm.weight",
        "model.image_newline",
        "model.view_seperator",
        "model.projector.layers.bias",
        "model.sam_model.pos_embed",
        "model.sam_model.blocks.0.attn.rel_pos_h",
        "model.vision_model.transformer.layers.1.self_attn.qkv_proj.weight",
        "model.layers.2.mlp.experts.3.up_proj.weight",
        "model.layers.1.mlp.gate.weight",
    ],
)
def test_missing_key(copy: Path, key: str) -> None:
    change_weights(copy, lambda weights: weights.pop(key))
    refusal(copy)


def test_missing_keys_are_named_and_counted(copy: Path) -> None:
    change_weights(copy, lambda weights: [weights.pop(f"model.layers.{n}.input_layernorm.weight") for n in range(4)])
    text = refusal(copy)
    assert "lacks 4 tensors" in text
    assert "language_model.layers.0.input_layernorm.weight" in text
    assert "and 1 more" in text


@pytest.mark.parametrize(
    "key",
    [
        "model.extra.weight",
        "model.layers.9.input_layernorm.weight",
        "lm_head.bias",
        "model.sam_model.patch_embedding.weight",
    ],
)
def test_unexpected_key(copy: Path, key: str) -> None:
    change_weights(copy, lambda weights: weights.update({key: torch.zeros(96)}))
    assert "1 tensor that config.json has no place for" in refusal(copy)


@pytest.mark.parametrize("key", ["model.norm.weight", "model.sam_model.pos_embed", "lm_head.weight"])
def test_wrong_shape(copy: Path, key: str) -> None:
    change_weights(copy, lambda weights: weights.update({key: torch.zeros(7, 5)}))
    assert "[7, 5]" in refusal(copy)


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_routed_experts", "vocab_size", "hidden_size"])
def test_config_of_another_size(copy: Path, key: str) -> None:
    def grow(config: dict[str, Any]) -> None:
        config["language_config"][key] += 3
        if key == "hidden_size":
            config["projector_config"]["n_embed"] += 3

    change_config(copy, grow)
    refusal(copy)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"model_type": "llama"}, "model_type 'llama' is not supported; supported: deepseek_vl_v2"),
        ({"model_type": "unlimited_ocr"}, "text_config is missing"),
        ({"model_type": "unlimited_ocr", "text_config": {}}, "this is Unlimited-OCR, not DeepSeek-OCR"),
        (
            {
                "model_type": "unlimited_ocr",
                "text_config": {"num_hidden_layers": 1, "layer_types": ["full_attention"]},
                "vision_config": {"sam_config": {"patch_size": 32}},
            },
            "vision_config.sam_config.patch_size is 32, but DeepSeek-OCR has 16; supported: ",
        ),
        ({"language_config": None}, "language_config is missing"),
        ({"language_config": [1]}, "language_config is [1]; expected a table"),
        ({"language_config": {"hidden_size": 96}}, "language_config.intermediate_size is missing"),
        ({"projector_config": {"projector_type": "mlp_gelu"}}, "projector_type is 'mlp_gelu'; supported: linear"),
        ({"projector_config": {"input_dim": 2048}}, "projector_config.input_dim is 2048"),
        ({"vision_config": {"width": {}}}, "vision_config.width.clip-l-14-224 is missing"),
    ],
)
def test_wrong_config(copy: Path, change: dict[str, Any], said: str) -> None:
    change_config(copy, lambda config: config.update(change))
    assert said in refusal(copy)


@pytest.mark.parametrize("key, value", [("use_mla", True), ("norm_topk_prob", True), ("rope_scaling", {"a": 1})])
def test_another_language_model(copy: Path, key: str, value: object) -> None:
    change_config(copy, lambda config: config["language_config"].update({key: value}))
    assert f"language_config.{key} is " in refusal(copy)


@pytest.mark.parametrize("value", ["many", 0, -1, 1.5])
def test_config_of_another_type(copy: Path, value: object) -> None:
    change_config(copy, lambda config: config["language_config"].update(num_hidden_layers=value))
    assert f"num_hidden_layers is {value!r}" in refusal(copy)


@pytest.mark.parametrize("key, value", [("hidden_size", "wide"), ("num_attention_heads", 5), ("hidden_act", "abc")])
def test_unusable_config(copy: Path, key: str, value: object) -> None:
    change_config(copy, lambda config: config["language_config"].update({key: value}))
    refusal(copy)


def test_saved_again_by_transformers(tmp_path: Path, official_weights: Any) -> None:
    """`save_pretrained` writes transformers' own config layout and the released key names."""
    official_weights.save_pretrained(tmp_path)
    again = loader.load_weights(open_checkpoint(tmp_path), CPU, torch.float32)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "unlimited_ocr"
    mine, theirs = again.state_dict(), official_weights.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_released_layout_round_trip() -> None:
    config = translate(json.loads((OFFICIAL / "config.json").read_text()), "here")
    again = translate(released_config(config), "there")
    assert again.to_dict() == config.to_dict()


def test_real_sizes_where_the_released_config_is_silent() -> None:
    released = json.loads((OFFICIAL / "config.json").read_text())
    released["vision_config"] = {
        "width": {
            "clip-l-14-224": {"heads": 16, "layers": 24, "width": 1024},
            "sam_vit_b": {"heads": 12, "layers": 12, "width": 768, "global_attn_indexes": [2, 5, 8, 11]},
        }
    }
    released["projector_config"] = {"projector_type": "linear", "input_dim": 2048}
    vision = translate(released, "here").vision_config
    sam, clip = vision.sam_config, vision.encoder_config
    assert (sam.mlp_dim, sam.window_size, sam.output_channels, sam.image_size) == (3072, 14, 256, 1024)
    assert (clip.intermediate_size, clip.image_size, clip.patch_size) == (4096, 224, 14)


def test_no_config(copy: Path) -> None:
    (copy / "config.json").unlink()
    assert "config.json is missing" in refusal(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00\x01", "[" * 200_000])
def test_broken_config(copy: Path, text: str) -> None:
    (copy / "config.json").write_text(text)
    refusal(copy)


def test_pickled_weights_only(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert "pickled" in refusal(copy)


def test_no_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert "has no weights" in refusal(copy)


def test_weights_under_another_name(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "weights.safetensors")
    assert "weights.safetensors without its model.safetensors.index.json" in refusal(copy)


@pytest.mark.parametrize("keep", [0, 4, 5000, 2_000_000])
def test_cut_off_weights(copy: Path, keep: int) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert "is not a whole safetensors file" in refusal(copy)


def split(directory: Path) -> list[str]:
    """Cut the weights into two shards with an index; return the shards' names."""
    file = directory / "model.safetensors"
    weights = load_file(file)
    file.unlink()
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    keys = sorted(weights)
    halves = [keys[:100], keys[100:]]
    for name, half in zip(names, halves, strict=True):
        save_file({key: weights[key] for key in half}, directory / name, metadata={"format": "pt"})
    index = {
        "metadata": {},
        "weight_map": {key: name for name, half in zip(names, halves, strict=True) for key in half},
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return names


def test_shards(copy: Path, official_weights: Any) -> None:
    split(copy)
    model = loader.load_weights(open_checkpoint(copy), CPU, torch.float32)
    assert torch.equal(model.lm_head.weight, official_weights.lm_head.weight)


def test_missing_shard(copy: Path) -> None:
    (copy / split(copy)[1]).unlink()
    assert "model-00002-of-00002.safetensors" in refusal(copy)


@pytest.mark.parametrize(
    "index, said",
    [
        ({}, "lacks its weight_map or metadata"),
        ({"weight_map": {}, "metadata": {}}, "lacks its weight_map"),
        ({"weight_map": {"a": "model.safetensors"}}, "or metadata"),
        ({"weight_map": {"a": 1}, "metadata": {}}, "names files that are missing: 1"),
        ({"weight_map": {"a": "../x.safetensors"}, "metadata": {}}, "is no file of this directory"),
    ],
)
def test_broken_index(copy: Path, index: dict[str, Any], said: str) -> None:
    (copy / "model.safetensors").rename(copy / "model-00001-of-00001.safetensors")  # else no index is read
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert said in refusal(copy)


def test_no_code_of_the_checkpoint_runs(copy: Path) -> None:
    """`auto_map` names modelling code; a file of that name must never be imported."""
    (copy / "modeling_deepseekocr.py").write_text("raise SystemExit('remote code ran')")
    loader.load_weights(open_checkpoint(copy), CPU, torch.float32)


def test_digest(tmp_path: Path, copy: Path) -> None:
    files = open_checkpoint(copy).weights
    whole = digest(files)
    assert whole == digest(files)
    assert whole.startswith("sha256:")
    big = tmp_path / "big.safetensors"
    big.write_bytes(bytes(5 << 20))
    sampled = digest((big,), whole=1 << 20)
    assert sampled.startswith("sha256-sampled:")
    content = bytearray(big.read_bytes())
    content[-1] = 1
    big.write_bytes(content)
    assert digest((big,), whole=1 << 20) != sampled
    change_weights(copy, lambda weights: weights["lm_head.weight"].add_(1))
    assert digest(files) != whole


def load(**settings: Any) -> object:
    return loader.load(ModelSettings(**settings), InferSettings())


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"path": None}, "needs model.path"),
        ({"path": "/no/such/directory"}, "model.path=/no/such/directory does not exist"),
        ({"path": __file__}, "is a file"),
        ({"path": str(OFFICIAL)}, "tokenizer.json is missing"),
        ({"path": str(OFFICIAL), "revision": "main"}, "model.revision=main is for hub ids"),
        ({"path": str(OFFICIAL), "mode": "gundm"}, "did you mean 'gundam'?"),
        ({"weights": "rando"}, "did you mean 'random'?"),
        ({"weights": "random", "size": "huge"}, "model.size=huge is not one of full, tiny"),
        ({"device": "tpu"}, "model.device=tpu is not one of"),
        ({"device": "cuda:x"}, "model.device=cuda:x is not one of"),
        ({"device": "cpu:0"}, "model.device=cpu:0 is not one of"),
        ({"device": "cuda:999"}, "model.device=cuda:999, but torch sees"),
        ({"dtype": "bf16"}, "did you mean 'bfloat16'?"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(**settings)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_engine() -> None:
    with pytest.raises(ModelError, match="engine=referenc is not one of"):
        loader.load(ModelSettings(weights="random", size="tiny"), InferSettings(engine="referenc"))


def test_hub_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="no-such-model is no directory here") as caught:
        load(path="owner/no-such-model", revision="v1")
    assert "at revision v1" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hub_asks_for_weights_and_texts_only(monkeypatch: pytest.MonkeyPatch, copy: Path) -> None:
    asked: dict[str, Any] = {}

    def snapshot(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        return str(copy)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing"):
        load(path="owner/model", revision="abc")
    assert (asked["repo"], asked["revision"]) == ("owner/model", "abc")
    assert not any(pattern.endswith((".py", ".bin", "*")) for pattern in asked["allow_patterns"])


def test_broken_tokenizer(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="is not a tokenizer"):
        load(path=str(copy))


def test_checkpoint_with_tokenizer(copy: Path) -> None:
    from tokenizers import Tokenizer, decoders, models

    names = ["<s>", "</s>", "\n", *"Fre OCR."]
    tokenizer = Tokenizer(models.BPE(vocab=dict(zip(names, range(len(names)), strict=True)), merges=[]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<image>"])
    tokenizer.save(str(copy / "tokenizer.json"))

    model = loader.load(ModelSettings(path=str(copy), mode="tiny", device="cpu"), InferSettings())

    assert model.info.weights == "checkpoint"
    files = open_checkpoint(copy).weights, (copy / "config.json", copy / "tokenizer.json")
    assert model.info.digest == digest(*files)
    tokenizer.add_tokens(["more"])  # another tokenizer over the same weights is another model
    tokenizer.save(str(copy / "tokenizer.json"))
    assert digest(*files) != model.info.digest
    assert model.info.dtype == "float32"
    assert model.text([2, 3, 1]) == "\nF</s>"
    assert model.parse("F</s>", (9, 9)).plain == "F"


def test_tokenizer_of_another_model(copy: Path) -> None:
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.BPE(vocab={f"t{n}": n for n in range(600)}, merges=[]))
    tokenizer.add_special_tokens(["<image>"])
    tokenizer.save(str(copy / "tokenizer.json"))
    with pytest.raises(ModelError, match="<image> has id 600, beyond a vocabulary of 512"):
        load(path=str(copy), device="cpu")


def test_transformers_talks_as_before(capfd: pytest.CaptureFixture[str], copy: Path) -> None:
    """Loading prints nothing, and leaves transformers' own settings as they were."""
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    change_weights(copy, lambda weights: weights.pop("lm_head.weight"))
    refusal(copy)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")
