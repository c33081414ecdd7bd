"""LoRA directories and quantized checkpoints, with peft, bitsandbytes and compressed-tensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
import zoo
from safetensors.torch import load_file, save_file
from test_any_model import ALONE, BANNED, BOXES, images, ours, preset, theirs

from pytest_llmprof.errors import ModelError
from pytest_llmprof.models.from_transformers.costs import quantized_layers
from pytest_llmprof.models.from_transformers.loader import keep_unpacked, load


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [package for package in packages if find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{' and '.join(missing)} not installed")


PEFT = needs("peft")
BITSANDBYTES = needs("bitsandbytes", "accelerate")
COMPRESSED = needs("compressed_tensors")
FOUR_BITS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
METHODS = {
    "int8": {"load_in_8bit": True},
    "nf4": FOUR_BITS,
    "nf4, scales quantized, too": {**FOUR_BITS, "bnb_4bit_use_double_quant": True},
}
FORMATS = {
    "pack-quantized": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16, "symmetric": True},
    "int-quantized": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True},
    "float-quantized": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
}
"""compressed-tensors' formats and what their weights are."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.build(zoo.paddleocr_vl, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def plain(base: Path) -> Any:
    return load(preset("paddleocr_vl", base), ALONE, BOXES)


def network_of(path: Path, **options: Any) -> Any:
    return hf.AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32, **options).eval()


def lora(base: Path, path: Path) -> Any:
    """Save an adapter in *path*; gives peft's own model."""
    import peft

    torch.manual_seed(3)
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(network_of(base), config)
    model.save_pretrained(path)
    return model.eval()


def by_generate(network: Any, model: Any) -> list[list[int]]:
    """What another network answers where *model* is asked for `BANNED`."""
    inputs = model.inputs(images(2), BANNED)
    base = network.get_base_model() if hasattr(network, "get_base_model") else network
    base.generation_config = model._generation(BANNED)
    rows = network.generate(**inputs, max_new_tokens=BANNED.max_new_tokens, no_repeat_ngram_size=1)
    return [row[inputs["input_ids"].shape[1] :].tolist() for row in rows]


@PEFT
@pytest.mark.parametrize("make", [zoo.paddleocr_vl, zoo.got_ocr2], ids=lambda make: make.__name__)
def test_a_lora_directory_gives_the_tokens_of_peft(make: Callable[[], Any], tmp_path: Path):
    name, base, adapter = make.__name__, zoo.build(make, tmp_path / "base"), tmp_path / "lora"
    unmerged = lora(base, adapter)
    model, without = (load(preset(name, path), ALONE, BOXES) for path in (adapter, base))
    tokens = ours(model, images(2), BANNED)
    assert tokens == by_generate(unmerged, model)
    assert tokens != ours(without, images(2), BANNED)
    assert model.info.digest != without.info.digest
    assert model.info.parameters == without.info.parameters


@PEFT
def test_a_lora_directory_of_another_model(base: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder):
    lora(base, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name.replace("layers.1", "layers.7"): weight for name, weight in weights.items()}, file)
    recwarn.clear()
    with pytest.raises(ModelError, match=r"the adapter .* cannot be loaded: 8 of its tensors have no place") as caught:
        load(preset("paddleocr_vl", tmp_path), ALONE, BOXES)
    assert "\n" not in str(caught.value)
    assert not [warning for warning in recwarn if "adapter keys" in str(warning.message)]


@PEFT
def test_a_lora_directory_whose_tensors_peft_renames(tmp_path: Path):
    """peft 0.21 takes deepseek_ocr2's names for those of the released checkpoint, and leaves out all weights."""
    base = zoo.build(zoo.deepseek_ocr2, tmp_path / "base")
    unmerged = lora(base, tmp_path / "lora")
    try:
        model = load(preset("deepseek_ocr2", tmp_path / "lora"), ALONE, BOXES)
    except ModelError as error:
        assert "have no place in the model" in str(error)  # noqa: PT017 - newer ones may load it
    else:
        assert ours(model, images(2), BANNED) == by_generate(unmerged, model)


def quantized(base: Path, path: Path, network: Any) -> None:
    """Save *network* in *path* with all that belongs to *base* beside its weights."""
    shutil.copytree(base, path, ignore=shutil.ignore_patterns("*.safetensors"))
    network.save_pretrained(path)


@BITSANDBYTES
@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_bitsandbytes(base: Path, plain: Any, tmp_path: Path, method: dict[str, Any]):
    config = hf.BitsAndBytesConfig(**method, **({} if "load_in_8bit" in method else
                                                {"bnb_4bit_compute_dtype": torch.float32}))  # fmt: skip
    own = network_of(base, quantization_config=config, device_map={"": "cpu"})
    path = tmp_path / "checkpoint"
    quantized(base, path, own)
    keep_unpacked(quantized_layers(own))
    model = load(preset("paddleocr_vl", path), ALONE, BOXES)
    tokens = ours(model, images(2), BANNED)
    assert tokens == theirs(model, images(2), BANNED) == by_generate(own, model)
    assert model.info.parameters == plain.info.parameters
    assert model.info.details["quantized"] == "bitsandbytes"

    stored_so = load(preset("paddleocr_vl", path), ALONE, BOXES)
    for layer in quantized_layers(stored_so.network):
        layer.support_avx512bf16_for_cpu = False  # else its scales become smaller there
    mine, full = (one.costs(images(1), ALONE, [4]) for one in (stored_so, plain))
    assert "as they are stored" in mine.note
    assert {name: phase.flops for name, phase in mine.phases.items()} == {
        name: phase.flops for name, phase in full.phases.items()
    }
    # What the file holds: the weights, and the scales that go with them.
    stored = load_file(path / "model.safetensors")
    text = sum(
        tensor.numel() * tensor.element_size() for name, tensor in stored.items()
        if name.startswith(("model.layers", "model.norm", "model.embed_tokens"))  # the head is tied to the last
        and "quant_state" not in name and "weight_format" not in name
    )  # fmt: skip
    assert mine.phases["prefill"].parts["weights"] == text < full.phases["prefill"].parts["weights"]


@BITSANDBYTES
def test_layers_that_bitsandbytes_cannot_pack(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As on a CPU with AVX512-BF16, where it packs a 4-bit layer at its first product."""
    import bitsandbytes

    path, config = tmp_path / "checkpoint", hf.BitsAndBytesConfig(**FOUR_BITS)
    quantized(base, path, network_of(base, quantization_config=config, device_map={"": "cpu"}))
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    layers = quantized_layers(load(preset("paddleocr_vl", path), ALONE, BOXES).network)
    packed = {(layer.in_features, layer.out_features): layer.support_avx512bf16_for_cpu for layer in layers}
    assert (packed[64, 96], packed[96, 64], packed[32, 64]) == (True, False, False), packed


@BITSANDBYTES
@pytest.mark.parametrize("method", list(METHODS)[:2])
def test_bitsandbytes_of_a_class_whose_tensors_are_fused(tmp_path: Path, method: str):
    """Seen with transformers 5.24: the scales of tensors that it fuses at load are lost."""
    base, path = zoo.build(zoo.qianfan_ocr, tmp_path / "base"), tmp_path / "checkpoint"
    config = hf.BitsAndBytesConfig(**METHODS[method])
    quantized(base, path, network_of(base, quantization_config=config, device_map={"": "cpu"}))
    try:
        model = load(preset("qianfan_ocr", path), ALONE, BOXES)
    except ModelError as error:
        assert "cannot load this class's weights as bitsandbytes stores them" in str(error)  # noqa: PT017 - as above
    else:
        assert ours(model, images(2), BANNED) == theirs(model, images(2), BANNED)


def compress(base: Path, path: Path, kind: str) -> None:
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )

    arguments = FORMATS[kind]
    network = network_of(base)
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**arguments), format=kind)
    config = QuantizationConfig(
        config_groups={"all": scheme}, format=kind, ignore=["lm_head", "re:.*vis.*"], quantization_status="initialized"
    )
    apply_quantization_config(network, config)
    top = 448.0 if arguments["type"] == "float" else 2 ** (arguments["num_bits"] - 1) - 1
    for module in network.modules():
        if hasattr(module, "weight_scale"):
            groups = module.weight.detach().abs().unflatten(1, (-1, arguments.get("group_size", module.in_features)))
            module.weight_scale.data.copy_(groups.amax(2) / top)
    compressor = ModelCompressor.from_pretrained_model(network)
    compressor.compress_model(network)
    quantized(base, path, network)
    compressor.update_config(path)


@COMPRESSED
@pytest.mark.parametrize("kind", FORMATS)
def test_compressed_tensors(base: Path, plain: Any, tmp_path: Path, kind: str):
    path = tmp_path / "checkpoint"
    compress(base, path, kind)
    assert json.loads((path / "config.json").read_text())["quantization_config"]["format"] == kind
    model = load(preset("paddleocr_vl", path), ALONE, BOXES)
    assert ours(model, images(2), BANNED) == theirs(model, images(2), BANNED)
    name = "model.language_model.layers.1.self_attn.q_proj.weight"
    mine, full = (one.network.state_dict()[name] for one in (model, plain))
    error = float((mine - full).abs().max() / full.abs().max())
    assert 0 < error <= {"pack-quantized": 1 / 14, "int-quantized": 1 / 254, "float-quantized": 1 / 16}[kind] * 1.01
    # Unpacked at load: the bytes are those of plain weights.
    assert model.info.parameters == plain.info.parameters
    assert model.costs(images(1), ALONE, [4]) == plain.costs(images(1), ALONE, [4])
    assert model.info.details["quantized"] == "compressed-tensors"


@COMPRESSED
def test_packed_weights_that_transformers_cannot_unpack(tmp_path: Path):
    """Seen with transformers 5.24 for a class whose tensors it renames."""
    base, path = zoo.build(zoo.deepseek_ocr2, tmp_path / "base"), tmp_path / "checkpoint"
    compress(base, path, "pack-quantized")
    try:
        model = load(preset("deepseek_ocr2", path), ALONE, BOXES)
    except ModelError as error:
        assert "cannot load this class's weights as compressed-tensors stores them" in str(error)  # noqa: PT017 - newer ones may load it
    else:
        assert ours(model, images(2), BANNED) == theirs(model, images(2), BANNED)
