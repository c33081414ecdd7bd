"""Checkpoints that cannot be used: one line each, which says what can be."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import zoo
from ocr_helpers import Record, blocks_image
from PIL import Image
from test_any_model import ALONE, BOXES, ours, preset, session, theirs

from pytest_llmprof.config.schema import ModelSettings
from pytest_llmprof.datasets.base import Page
from pytest_llmprof.errors import EngineUnavailable, ModelError
from pytest_llmprof.measure.phases import PhaseRecorder
from pytest_llmprof.models import packaged_models
from pytest_llmprof.models.from_transformers import checkpoint, loader
from pytest_llmprof.models.from_transformers import checks as doctor_checks
from pytest_llmprof.models.from_transformers.loader import load
from pytest_llmprof.records.checks import Check
from pytest_llmprof.run.model_cache import ModelCache
from pytest_llmprof.stages.runner import PagesWorkload


def change(path: Path, name: str = "config.json", **values: Any) -> None:
    file = path / name
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | values))


def change_text(path: Path, **values: Any) -> None:
    change(path, text_config=json.loads((path / "config.json").read_text())["text_config"] | values)


def refused(path: Path, preset_name: str = "paddleocr_vl") -> str:
    with pytest.raises(ModelError) as caught:
        load(preset(preset_name, path), ALONE, BOXES)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


def without_processor(path: Path) -> None:
    for name in ("processor_config.json", "preprocessor_config.json"):
        (path / name).unlink(missing_ok=True)


def of_another_tokenizer(path: Path) -> None:
    words = zoo.tokenizer([f"<extra_{number}>" for number in range(400)], {"image_token": "<|IMAGE_PLACEHOLDER|>"})
    words.save_pretrained(path)


def without_the_image_token(path: Path) -> None:
    zoo.tokenizer([], {"image_token": "a"}).save_pretrained(path)


def without_a_template(path: Path) -> None:
    (path / "chat_template.jinja").unlink()


def truncated(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def without_a_weight(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = path / "model.safetensors"
    weights = load_file(file)
    del weights[next(name for name in weights if "layers.1" in name)]
    save_file(weights, file, metadata={"format": "pt"})


def gguf(path: Path) -> None:
    (path / "model.safetensors").rename(path / "model.gguf")


def rewrite(path: Path, changed: Callable[[Any], Any], name: str = "mlp.down_proj.weight") -> None:
    """Change a tensor of the weights' file."""
    from safetensors.torch import load_file, save_file

    file = path / "model.safetensors"
    weights = load_file(file)
    key = next(key for key in weights if key.endswith(name))
    weights[key] = changed(weights[key])
    save_file(weights, file, metadata={"format": "pt"})


def pointer(path: Path, name: str) -> None:
    """What Git LFS keeps in a file's place."""
    (path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")


def without_a_tokenizers_file(path: Path) -> None:
    (path / "tokenizer.json").unlink()
    (path / "tokenizer.json").symlink_to(path / "gone")


def adapter(path: Path, kind: str = "LORA") -> None:
    (path / "model.safetensors").unlink()  # beside a config.json, as some trainers save it
    change(path, "adapter_config.json", base_model_name_or_path=str(path), peft_type=kind)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (without_processor, ["has no processor", "preprocessor_config.json"]),
        (of_another_tokenizer, ["the tokenizer has", "do not belong together"]),
        (without_the_image_token, ["the tokenizer has no token", "the model's image token", "do not belong together"]),
        (without_a_template, ["has no chat template: choose the model's own preset, or set model.family.template"]),
        (truncated, ["is not a whole safetensors file"]),
        (without_a_weight, ["lacks 1 tensor that config.json asks for"]),
        (
            lambda path: rewrite(path, lambda tensor: tensor.to(torch.int8)),
            ["nothing says how its weights are quantized", "mlp.down_proj.weight I8", "use the plain checkpoint"],
        ),
        (lambda path: rewrite(path, lambda tensor: tensor.to(torch.float8_e4m3fn)), ["mlp.down_proj.weight F8_E4M3"]),
        (lambda path: pointer(path, "model.safetensors"), ["model.safetensors is a pointer of Git LFS"]),
        (lambda path: pointer(path, "tokenizer.json"), ["tokenizer.json is a pointer of Git LFS", "git lfs pull"]),
        (lambda path: pointer(path, "config.json"), ["config.json is a pointer of Git LFS"]),
        (without_a_tokenizers_file, ["has no tokenizer"]),
        (
            lambda path: change(path, "adapter_config.json", base_model_name_or_path="other", peft_type="LORA"),
            ["holds a whole checkpoint and an adapter (adapter_config.json)", "keep them in two directories"],
        ),
        (
            lambda path: change(path, "processor_config.json", processor_class="NoSuchProcessor"),
            ["its processor", "has no tokenizer: its processor_config.json (processor_class) is of another model"],
        ),
        (gguf, ["GGUF", "*.safetensors"]),
        (adapter, ["is a LoRA directory: it needs the package peft: pip install 'pytest-llmprof[adapters]'"]),
        (lambda path: adapter(path, "IA3"), ["is an adapter of the kind IA3: only LORA is merged"]),
        (lambda path: (path / "tokenizer.json").unlink(), ["has no tokenizer", "tokenizer.json"]),
        (lambda path: (path / "processor_config.json").write_text("{"), ["processor_config.json cannot be read as"]),
        (lambda path: (path / "tokenizer_config.json").write_text("[]"), ["tokenizer_config.json holds no JSON"]),
        (lambda path: (path / "chat_template.jinja").write_bytes(b"\xff"), ["chat_template.jinja cannot be read as"]),
        (lambda path: (path / "generation_config.json").write_text("{"), ["generation_config.json cannot be read"]),
        (lambda path: change(path, "generation_config.json", eos_token_id="</s>"), ["eos_token_id '</s>'", "number"]),
        (lambda path: change(path, "generation_config.json", eos_token_id={"a": 1}), ["eos_token_id {'a': 1}, which"]),
        (lambda path: change(path, "generation_config.json", bos_token_id="<s>"), ["bos_token_id '<s>', which is no"]),
        (lambda path: change(path, "generation_config.json", pad_token_id=[0]), ["generation_config.json has the pad"]),
        (lambda path: change(path, "generation_config.json", bos_token_id=1 << 99), ["bos_token_id 633", "no token's"]),
        (lambda path: change(path, eos_token_id=["a"]), ["/config.json has the eos_token_id 'a', which is no token's"]),
        (lambda path: change_text(path, pad_token_id="0"), ["/config.json has the pad_token_id '0', which is no"]),
        (lambda path: change_text(path, pad_token_id=9999), ["the model that config.json describes", "ing_i"]),
        (lambda path: change_text(path, hidden_act="no"), ["the model that config.json describes cannot be"]),
        (lambda path: change_text(path, rms_norm_eps="x"), [": config.json cannot be loaded", "'rms_norm_eps'"]),
        (
            lambda path: change(path, "generation_config.json", cache_implementation="no"),
            [": generation_config.json cannot be loaded: Invalid `cache_implementation` (no)"],
        ),
        (
            lambda path: change(path, "generation_config.json", eos_token_id=[-1, 99999]),
            ["the eos_token_id -1, which is outside the model's vocabulary of"],
        ),
        (lambda path: change(path, model_type=["llama"]), ["model_type ['llama'] is unknown"]),
        (lambda path: change(path, model_type="a\n" * 9000), ["… is unknown"]),
        (lambda path: change(path, quantization_config={"quant_method": "a" * 9000}), ["quantized by aaa", "…: only"]),
        (lambda path: adapter(path, "a" * 9000), ["an adapter of the kind aaa"]),
        (lambda path: change(path, text_config=[1]), ["cannot be loaded", "text_config"]),
        (lambda path: change(path, quantization_config=[1]), ["quantized by an unnamed method"]),
        (lambda path: change(path, model_type="llama"), ["'llama' reads text alone", "docs/models.md"]),
        (lambda path: change(path, model_type="florence2"), ["encoder-decoder"]),
        (lambda path: change(path, model_type="nobody_vl", auto_map={}), ["by the code in its repository alone"]),
        (lambda path: change(path, model_type="deepseek_vl_v2"), ["model=deepseek_ocr"]),
        (lambda path: change(path, quantization_config={"quant_method": "gptq"}), ["quantized by gptq", "plain"]),
        (
            lambda path: change(path, quantization_config={"quant_method": "bitsandbytes"}),
            ["quantized by bitsandbytes: it needs the package bitsandbytes: pip install 'pytest-llmprof[quantized]'"],
        ),
        (
            lambda path: change(path, quantization_config={"quant_method": "compressed-tensors"}),
            ["quantized by compressed-tensors: it needs the package compressed-tensors: pip install"],
        ),
    ],
)
def test_broken_checkpoints(path: Path, broken: Callable[[Path], None], words: list[str], monkeypatch):
    monkeypatch.setattr(checkpoint, "find_spec", lambda package: None)  # a machine without the extras
    broken(path)
    text = refused(path)
    assert all(word in text for word in words), text


def test_a_file_beside_the_weights_that_may_not_be_read(path: Path, monkeypatch):
    (path / "vocab.txt").touch()
    real = Path.open

    def opened(file: Path, *given: Any, **named: Any) -> Any:
        if file.name == "vocab.txt":
            raise PermissionError(13, "Permission denied")
        return real(file, *given, **named)

    monkeypatch.setattr(Path, "open", opened)
    assert refused(path).endswith("vocab.txt cannot be read: Permission denied")


def test_a_family_of_another_model(path: Path):
    assert "model.family.stop names '<|im_end|>', which the tokenizer does not have" in refused(path, "qianfan_ocr")


@pytest.mark.parametrize(("token", "shown"), [("", "''"), ("\n", r"'\n'"), ("\u202e", r"'\u202e'")])
def test_a_stop_token_that_cannot_be_seen_is_shown(path: Path, token: str, shown: str):
    settings = preset("paddleocr_vl", path)
    settings = replace(settings, family=replace(settings.family, stop=(token,)))
    with pytest.raises(ModelError, match=f"model.family.stop names {re.escape(shown)}, which"):
        load(settings, ALONE, BOXES)


@pytest.mark.skipif(zoo.VISION, reason="torchvision is installed")
@pytest.mark.parametrize("processor", ["UnlimitedOcrProcessor", "Glm46VProcessor"])
def test_a_missing_package(path: Path, processor: str):
    change(path, "processor_config.json", processor_class=processor)
    change(path, "processor_config.json", image_processor={"image_processor_type": "UnlimitedOcrImageProcessor"})
    text = refused(path)
    assert "needs the package torchvision: pip install 'pytest-llmprof[models]'" in text, text


def test_bitsandbytes_without_accelerate(path: Path, monkeypatch):
    monkeypatch.setattr(checkpoint, "find_spec", lambda package: None if package == "accelerate" else object())
    change(path, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    wanted = "quantized by bitsandbytes: it needs the package accelerate: pip install 'pytest-llmprof[quantized]'"
    assert wanted in refused(path)


def test_a_lora_directory_over_bitsandbytes(path: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(checkpoint, "find_spec", lambda package: object())
    change(path, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    lora = tmp_path / "lora"
    lora.mkdir()
    change(lora, "adapter_config.json", base_model_name_or_path=str(path), peft_type="LORA")
    (lora / "adapter_model.safetensors").touch()
    assert "its weights would be rounded anew: name the plain checkpoint as base_model_name_or_path" in refused(lora)


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("/nowhere", "base_model_name_or_path=/nowhere does not exist; give a checkpoint's directory or a hub id"),
        ("", "adapter_config.json names no base_model_name_or_path"),
        ("LORA", "is an adapter, too: name the plain checkpoint there"),
    ],
)
def test_the_base_of_a_lora_directory(path: Path, tmp_path: Path, monkeypatch, base: str, words: str):
    monkeypatch.setattr(checkpoint, "find_spec", lambda package: object())
    lora = tmp_path / "lora"
    lora.mkdir()
    base = str(lora) if base == "LORA" else base
    change(lora, "adapter_config.json", base_model_name_or_path=base, peft_type="LORA")
    (lora / "adapter_model.safetensors").touch()
    text = refused_anywhere(lora)
    assert words in text
    assert "model.path" not in text
    assert doctor(lora)[0].found == text


def refused_anywhere(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        checkpoint.open_source(ModelSettings(path=str(path)))
    return str(caught.value)


def test_a_whole_file_beside_an_index(path: Path):
    """transformers reads the file, so the digest and all checks are of that, too."""
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00001.safetensors"}}
    change(path, "model.safetensors.index.json", **index)
    assert checkpoint.open_source(ModelSettings(path=str(path))).weights == (path / "model.safetensors",)


@pytest.mark.parametrize("kind", ["greedy", "checkpoint"])
def test_weights_that_are_no_numbers(path: Path, kind: str):
    rewrite(path, lambda tensor: tensor * float("nan"), "layers.1.mlp.down_proj.weight")
    change(path, "generation_config.json", do_sample=True)
    model = load(preset("paddleocr_vl", path), ALONE, BOXES)
    with pytest.raises(ModelError, match=r"the model's scores are no numbers \(NaN\).*beyond float32; try"):
        list(model.generate([blocks_image(1)], replace(ALONE, generation=kind), Record()))


@pytest.mark.parametrize(("kind", "factor"), [("greedy", "nan"), ("checkpoint", "nan"), ("checkpoint", "inf")])
def test_scores_that_are_no_numbers_amid_an_answer(path: Path, monkeypatch, kind: str, factor: str):
    """As where values outgrow float16 after some tokens; on a GPU a draw from them would end all further work."""
    change(path, "generation_config.json", do_sample=True)
    model = load(preset("paddleocr_vl", path), ALONE, BOXES)
    owner, calls = type(model.network), []

    @functools.wraps(owner.forward)  # generate() reads its signature
    def forward(*given: Any, **options: Any) -> Any:
        calls.append(given)
        output = forward.__wrapped__(*given, **options)
        if len(calls) > 3:
            output.logits = output.logits.abs() * float(factor)
        return output

    monkeypatch.setattr(owner, "forward", forward)
    with pytest.raises(ModelError, match=r"the model's scores are no numbers \(NaN\)"):
        list(model.generate([blocks_image(1)], replace(ALONE, generation=kind), Record()))


class Blocked:
    """Finds no package of a name, as where it is not installed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, name: str, *_: Any) -> None:
        if name.partition(".")[0] == self.name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_package_that_transformers_asks_for(path: Path, monkeypatch):
    """Whatever asks for it, and however: here where the weights are read."""

    def ask(*_: Any, **options: Any) -> None:
        import accelerate  # noqa: F401

    for name in [name for name in sys.modules if name.partition(".")[0] == "accelerate"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Blocked("accelerate"), *sys.meta_path])
    monkeypatch.setattr(checkpoint, "find_spec", lambda package: None)
    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", ask)
    wanted = "the weights cannot be loaded: it needs the package accelerate: pip install 'pytest-llmprof[quantized]'"
    assert wanted in refused(path)


def test_a_directory_that_is_called_as_a_package(path: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(checkpoint, "find_spec", lambda package: None)
    place = path.rename(tmp_path / "peft")
    change(place, "processor_config.json", image_processor={"image_processor_type": "NoSuchImageProcessor"})
    text = refused(place)
    assert "the processor cannot be loaded: Unrecognized image processor" in text
    assert "package" not in text


def test_an_import_that_fails_names_its_cause(path: Path, monkeypatch):
    """As beside a torchvision that is built for another torch."""

    def broken(*_: Any, **options: Any) -> None:
        raise ImportError("Could not import module 'AutoProcessor'") from RuntimeError("operator torchvision::nms")

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", broken)
    assert refused(path).endswith("the processor cannot be loaded: operator torchvision::nms")


def full_error() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total of 1 GiB")


def full(*_: Any, **options: Any) -> None:
    raise full_error()


def test_gpu_memory_that_runs_out_at_load(path: Path, monkeypatch):
    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", full)
    cache = ModelCache({one.name: one for one in packaged_models()})
    with pytest.raises(ModelError) as caught:
        cache.get(session("paddleocr_vl", path), lambda text: None)
    text = str(caught.value)
    assert text.startswith("out of device memory while the model was loaded: CUDA out of memory. Tried to allocate 20")
    assert "\n" not in text


@pytest.mark.parametrize("part", ["get_image_features", "forward"])
def test_gpu_memory_that_runs_out_while_it_reads(path: Path, monkeypatch, part: str):
    model = load(preset("paddleocr_vl", path), ALONE, BOXES)
    owner = type(model.network.base_model if part == "get_image_features" else model.network)
    failed: list[str] = []
    pages = [Stored(name=name, source=name, path=path) for name in ("one", "two")]
    work = PagesWorkload(
        model, pages, replace(ALONE, batch_size=2), on_answer=lambda *_: None,
        on_failure=lambda page, batch, size, text: failed.append(text), progress=lambda *_: None,
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(owner, part, functools.wraps(getattr(owner, part))(full))  # generate() reads its signature
        work.round(0, PhaseRecorder("cpu"))
    phase = "vision" if part == "get_image_features" else "prefill"
    assert failed == 2 * [
        f"out of device memory in phase {phase}, batch of 2 (one ... two), 20.00 GiB more asked for: "
        "lower infer.batch_size, infer.max_new_tokens or the pages' size (model.mode)"
    ]
    assert ours(model, [blocks_image(1)], ALONE), "it reads the next page"


class Stored(Page):
    def load(self) -> Image.Image:
        return blocks_image(1)


def test_too_little_gpu_memory(path: Path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1024, 2048))
    source = checkpoint.open_source(preset("paddleocr_vl", path))
    with pytest.raises(ModelError, match=r"the weights are 0\.0 GiB, and cuda:0 has 0\.0 GiB free: use a larger GPU"):
        loader.check_memory(source, torch.device("cuda", 0))


def test_generation_config(path: Path):
    change(path, "generation_config.json", repetition_penalty=5.0, use_cache=False, num_beams=1, stop_strings=[])
    model = load(preset("paddleocr_vl", path), ALONE, BOXES)
    plain = load(preset("paddleocr_vl", path), ALONE, BOXES)
    assert model.info.details["generation_config"] == {"repetition_penalty": 5.0}
    # Whatever infer.generation is: one model runs both.
    follows = "infer.generation=checkpoint follows that, greedy leaves it out."
    assert model.info.note.endswith(f"repetition_penalty=5.0: {follows}")
    follow = replace(ALONE, generation="checkpoint")

    def answer(infer: Any) -> list[Any]:
        return [token.id for token in model.generate([blocks_image(1)], infer, Record())]

    assert answer(ALONE) == [token.id for token in plain.generate([blocks_image(1)], ALONE, Record())]
    assert len(set(answer(follow))) > len(set(answer(ALONE))), "the penalty of 5 forbids repeats in practice"
    assert [answer(follow)] == theirs(model, [blocks_image(1)], follow)


def test_sampling_is_seeded(path: Path):
    change(path, "generation_config.json", do_sample=True, temperature=5.0)
    follow = replace(ALONE, generation="checkpoint")
    found = {}
    for seed in (0, 1):
        model = load(replace(preset("paddleocr_vl", path), seed=seed), ALONE, BOXES)
        rows = [[token.id for token in model.generate([blocks_image(1)], follow, Record())] for _ in range(2)]
        assert rows[0] == rows[1]
        found[seed] = rows[0]
    assert found[0] != found[1]
    assert model.info.details["generation_config"] == {"do_sample": True, "temperature": 5.0}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"num_beams": 4}, "asks for num_beams=4, which is not followed: use infer.generation=greedy"),
        ({"stop_strings": ["a"]}, "asks for stop_strings=['a'], which is not followed"),
        ({"do_sample": True, "num_return_sequences": 3}, "asks for num_return_sequences=3"),
        ({"repetition_penalty": "x"}, "cannot generate: `penalty` has to be"),
        ({"no_repeat_ngram_size": "2"}, "asks for no_repeat_ngram_size='2', which is no whole number"),
        ({"suppress_tokens": "x"}, "cannot generate: "),
        ({"do_sample": True, "temperature": -1.0}, "cannot generate: `temperature` (=-1.0) has to be"),
    ],
)
def test_a_generation_config_that_cannot_be_followed(path: Path, asked: dict[str, Any], words: str):
    change(path, "generation_config.json", **asked)
    model = load(preset("paddleocr_vl", path), ALONE, BOXES)
    assert len(list(model.generate([blocks_image(1)], ALONE, Record()))) == ALONE.max_new_tokens
    with pytest.raises(ModelError, match=re.escape(words)) as caught:
        list(model.generate([blocks_image(1)], replace(ALONE, generation="checkpoint"), Record()))
    assert "\n" not in str(caught.value)


def test_what_narrows_the_draws_is_followed(path: Path):
    """Without a word about it, transformers' own answers would be others."""
    asked = {"do_sample": True, "temperature": 5.0, "top_k": 0, "epsilon_cutoff": 0.02}
    change(path, "generation_config.json", **asked)
    model = load(preset("paddleocr_vl", path), ALONE, BOXES)
    follow = replace(ALONE, generation="checkpoint", max_new_tokens=24)
    narrow = [token.id for token in model.generate([blocks_image(1)], follow, Record())]
    assert model.info.details["generation_config"] == asked
    change(path, "generation_config.json", epsilon_cutoff=None)
    model = load(preset("paddleocr_vl", path), ALONE, BOXES)
    wide = [token.id for token in model.generate([blocks_image(1)], follow, Record())]
    assert len(set(narrow)) < len(set(wide))


def test_end_tokens_beyond_the_vocabulary_are_left_out(path: Path):
    change(path, "generation_config.json", eos_token_id=[2, 99999])
    assert load(preset("paddleocr_vl", path), ALONE, BOXES).eos == {2}


def test_a_generation_configs_least_length_and_ban(path: Path):
    end = 2
    change(path, "generation_config.json", eos_token_id=end, sequence_bias=[[[end], 1000.0]], min_new_tokens=5)
    model = load(preset("paddleocr_vl", path), ALONE, BOXES)
    follow = replace(ALONE, generation="checkpoint", ignore_eos=False)
    tokens = list(model.generate([blocks_image(1)], follow, Record()))
    assert [token.id == end for token in tokens] == [False] * 5 + [True]
    (path / "generation_config.json").unlink()
    change(path, "generation_config.json", no_repeat_ngram_size=1)
    model = load(preset("paddleocr_vl", path), ALONE, BOXES)
    ids = {
        kind: [token.id for token in model.generate([blocks_image(1)], replace(ALONE, generation=kind), Record())]
        for kind in ("greedy", "checkpoint")
    }
    assert len(set(ids["checkpoint"])) == len(ids["checkpoint"]) > len(set(ids["greedy"]))


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for x in", "its chat template cannot be used: TemplateSyntaxError"),
        ("{{ raise_exception('no') }}", "its chat template cannot be used: TemplateError: no"),
    ],
)
def test_a_broken_chat_template(path: Path, template: str, words: str):
    (path / "chat_template.jinja").write_text(template)
    assert words in refused(path)  # not page after page


def test_a_chat_template_without_an_image(path: Path):
    (path / "chat_template.jinja").write_text("no image")
    model = load(preset("paddleocr_vl", path), ALONE, BOXES)
    with pytest.raises(ModelError, match="its processor does not take the images with this prompt") as caught:
        list(model.generate([blocks_image(1)], ALONE, Record()))
    assert "\n" not in str(caught.value)


def processor(path: Path, **sizes: Any) -> None:
    """Change sizes of the image processor."""
    file = path / "processor_config.json"
    content = json.loads(file.read_text())
    content["image_processor"] |= sizes
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"patch_size": 16}, "has the patch_size 16, config.json's vision_config the patch_size 14; the former has"),
        ({"merge_size": 4}, "has the merge_size 4, config.json's vision_config the spatial_merge_size 2; the former"),
        # Seen at the first page alone.
        ({"patch_size": 28}, "the model does not take what its processor gives (size: "),
        ({"temporal_patch_size": 2}, "patch_size=14, merge_size=2): copy processor_config.json or preprocessor_config"),
    ],
    ids=["patches", "merged patches", "larger patches", "two frames"],
)
def test_a_processor_with_other_sizes_than_the_model(path: Path, sizes: dict[str, int], words: str):
    processor(path, **sizes)
    with pytest.raises(ModelError) as caught:
        list(load(preset("paddleocr_vl", path), ALONE, BOXES).generate([blocks_image(1)], ALONE, Record()))
    text = str(caught.value)
    assert words in text
    assert "from where the weights are from" in text
    assert "=None" not in text
    assert len(text) < 600 + len(str(path))


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"image_mean": [0.5, float("nan"), 0.5]}, "the image_mean (0.5, nan, 0.5), which leaves nothing of a page"),
        ({"image_std": [0.5, 0.5, 0]}, "the image_std (0.5, 0.5, 0), which"),
        ({"image_std": float("inf")}, "the image_std inf, which"),
        ({"rescale_factor": 0.0}, "the rescale_factor 0.0, which"),
    ],
    ids=["NaN", "zero", "infinity", "all equal"],
)
def test_a_processor_whose_numbers_leave_no_pixel(path: Path, numbers: dict[str, Any], words: str):
    processor(path, **numbers)
    assert words in refused(path)  # not at the first page, as NaN of the weights
    processor(path, do_normalize=False, do_rescale=False)
    load(preset("paddleocr_vl", path), ALONE, BOXES)  # then they are not used


def test_an_image_size_that_a_model_has_no_places_for(tmp_path: Path):
    zoo.build(zoo.granite_docling, tmp_path)
    processor(tmp_path, size=zoo.square(128))
    model = load(preset("granite_docling", tmp_path), ALONE, BOXES)
    with pytest.raises(ModelError, match=r"what its processor gives \(size: height=128, width=128\): copy processor"):
        list(model.generate([blocks_image(1)], ALONE, Record()))


def test_an_error_that_is_not_of_shapes_keeps_its_traceback(path: Path, monkeypatch):
    model = load(preset("paddleocr_vl", path), ALONE, BOXES)
    for error in (RuntimeError("CUDA error: an illegal memory access"), full_error()):

        def broken(*_: Any, error: Exception = error, **options: Any) -> None:
            raise error

        monkeypatch.setattr(model.network.base_model, "forward", broken)
        with pytest.raises(type(error)) as caught:
            list(model.generate([blocks_image(1)], ALONE, Record()))
        assert caught.value is error


def test_a_quantized_model_whose_layers_do_not_run(path: Path, monkeypatch):
    """As bitsandbytes' 8 bits in SAM."""
    model = load(preset("paddleocr_vl", path), ALONE, BOXES)
    model.info.details["quantized"] = "bitsandbytes"

    def broken(*_: Any, **options: Any) -> None:
        raise RuntimeError("The size of tensor a (4) must match the size of tensor b (32)")

    monkeypatch.setattr(model.network.base_model, "forward", broken)
    wanted = r"cannot run this class's layers as bitsandbytes stores them: use the plain checkpoint \(The size of "
    with pytest.raises(ModelError, match=wanted):
        list(model.generate([blocks_image(1)], ALONE, Record()))


def test_an_image_that_the_processor_does_not_take(path: Path):
    model = load(preset("paddleocr_vl", path), ALONE, BOXES)
    pages = [blocks_image(1), Image.new("RGB", (1, 3000)), blocks_image(2)]
    with pytest.raises(ModelError, match=r"its processor does not take the images .* aspect ratio"):
        list(model.generate(pages, ALONE, Record()))
    # The measured loop asks for each page's shape, to name the one.
    assert model.shape_key(pages[0], ALONE) == model.shape_key(pages[2], ALONE)
    with pytest.raises(ModelError, match="aspect ratio"):
        model.shape_key(pages[1], ALONE)


def test_a_prompt_beyond_the_positions(path: Path):
    config = json.loads((path / "config.json").read_text())
    change(path, text_config=config["text_config"] | {"max_position_embeddings": 20})
    model = load(preset("paddleocr_vl", path), ALONE, BOXES)
    with pytest.raises(ModelError, match=r"the prompt has \d+ tokens; the model has 20 positions"):
        list(model.generate([blocks_image(1)], ALONE, Record()))


def test_a_class_that_cannot_be_compiled(path: Path, monkeypatch):
    monkeypatch.setattr(loader, "check_compiler", lambda device: None)
    change(path, model_type="unlimited_ocr")
    wanted = "infer=compiled: the static cache of unlimited_ocr has the length of each prompt, .*: use infer=reference$"
    with pytest.raises(ModelError, match=wanted):
        load(preset("unlimited_ocr", path), replace(ALONE, engine="compiled"), BOXES)


def test_a_torch_that_cannot_compile_these_models(monkeypatch):
    monkeypatch.setattr(loader, "require_compiler", lambda engine, device: None)
    monkeypatch.setattr(torch, "__version__", "2.6.0+cpu")
    with pytest.raises(EngineUnavailable, match=r"torch 2\.6\.0\+cpu cannot compile this model; use a newer torch"):
        loader.check_compiler(torch.device("cpu"))
    monkeypatch.setattr(torch, "__version__", "2.11.0")
    loader.check_compiler(torch.device("cpu"))


def doctor(path: Path, engine: str = "reference") -> list[Check]:
    return list(doctor_checks.checks(preset("paddleocr_vl", path), replace(ALONE, engine=engine)))


def test_doctor_reads_the_checkpoint_and_its_processor(path: Path):
    model, engine = doctor(path)
    assert (model.status, engine.status) == ("ok", "ok")
    assert model.found.startswith(f"{path}, paddleocr_vl, PaddleOCRVLProcessor, 0.00 GiB")
    (path / "tokenizer.json").unlink()
    model, engine = doctor(path)
    assert model.status == "problem"
    assert "has no tokenizer" in model.found
    assert engine.status == "ok"


def test_doctor_says_what_does_not_fit_the_processor(path: Path):
    (path / "chat_template.jinja").unlink()
    model, _ = doctor(path)
    assert (model.status, "has no chat template: choose" in model.found) == ("problem", True)
    settings = preset("paddleocr_vl", path)
    settings = replace(settings, family=replace(settings.family, template="{image}{prompt}", stop=("<|done|>",)))
    model, _ = doctor_checks.checks(settings, ALONE)
    assert (model.status, "model.family.stop names '<|done|>', which" in model.found) == ("problem", True)


def test_a_processor_that_needs_the_tokenizers_configuration(path: Path):
    (path / "tokenizer_config.json").unlink()
    text = refused(path)
    assert "the processor cannot be loaded: " in text
    assert "; it has no tokenizer_config.json, which may be why: copy it from where" in text


@pytest.mark.skipif(zoo.VISION, reason="torchvision is installed")
def test_doctor_names_a_missing_package(path: Path):
    change(path, "processor_config.json", processor_class="UnlimitedOcrProcessor")
    change(path, "processor_config.json", image_processor={"image_processor_type": "UnlimitedOcrImageProcessor"})
    model, _ = doctor(path)
    assert model.status == "problem"
    assert "pip install 'pytest-llmprof[models]'" in model.found


def test_doctor_downloads_no_base_of_an_adapter(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(checkpoint, "find_spec", lambda package: object())
    config = {"peft_type": "LORA", "base_model_name_or_path": "nobody/no-such-base"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapter_model.safetensors").touch()
    model, _ = doctor(tmp_path)
    assert (model.status, model.mend) == ("warning", "the first run downloads it")
    assert model.found.endswith("base_model_name_or_path=nobody/no-such-base is not in the cache")


def test_doctor_tells_a_setting_from_an_engine(path: Path, monkeypatch):
    settings = preset("paddleocr_vl", path)
    _, engine = doctor_checks.checks(replace(settings, device="cuda:99"), ALONE)
    assert (engine.status, engine.mend) == ("problem", "change the setting as that says")
    assert engine.found.startswith("model.device=cuda:99, but torch sees ")
    (path / "processor_config.json").unlink()
    model, _ = doctor(path)
    assert model.mend.startswith("do as that says, or set model.path to another")


def test_doctor_tries_the_engine(path: Path, monkeypatch):
    def broken(engine: str, device: torch.device) -> None:
        raise EngineUnavailable(f"infer={engine} needs a compiler")

    monkeypatch.setattr(loader, "TORCH", (0, 0))
    monkeypatch.setattr(loader, "require_compiler", broken)
    _, engine = doctor(path, engine="compiled")
    assert (engine.status, engine.found) == ("problem", "infer=compiled needs a compiler")
    assert engine.mend == "choose another engine (infer=reference runs everywhere)"
    monkeypatch.setattr(loader, "require_compiler", lambda engine, device: None)
    assert doctor(path, engine="compiled")[1].status == "ok"
    source = replace(checkpoint.open_source(ModelSettings(path=str(path))), config={"model_type": "unlimited_ocr"})
    monkeypatch.setattr(doctor_checks, "open_source", lambda settings, download: source)
    _, engine = doctor(path, engine="compiled")
    assert engine.status == "problem"
    assert "use infer=reference" in engine.found
