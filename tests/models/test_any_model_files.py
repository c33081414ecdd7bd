"""The files beside a checkpoint's weights: those in the model's digest, and an adapter's, which are not used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from safetensors.torch import save_file
from test_any_model import ALONE, BOXES, preset

from pytest_llmprof.config.schema import ModelSettings
from pytest_llmprof.models.checkpoint import digest
from pytest_llmprof.models.from_transformers import checkpoint, loader
from pytest_llmprof.models.from_transformers.loader import load


@pytest.fixture(scope="module")
def base(whole: Path) -> Any:
    return load(preset("paddleocr_vl", whole), ALONE, BOXES)


def digest_of(path: Path, whole: int = 1 << 30) -> str:
    source = checkpoint.open_source(ModelSettings(path=str(path)))
    return digest(source.weights, source.beside, whole)


def test_the_digest_is_of_all_that_changes_answers(path: Path):
    found = {"": digest_of(path)}
    assert load(preset("paddleocr_vl", path), ALONE, BOXES).info.digest == found[""]
    for name in (
        *("chat_template.jinja", "config.json", "generation_config.json", "processor_config.json", "tokenizer.json"),
        *("tokenizer_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "merges.txt"),
        *("special_tokens_map.json", "added_tokens.json", "tokenizer.model", "additional_chat_templates/ocr.jinja"),
    ):
        (path / name).parent.mkdir(exist_ok=True)
        with (path / name).open("a") as file:  # a line more, or a new file
            file.write("\n")
        found[name] = digest_of(path)
    assert len(set(found.values())) == len(found)
    (path / "README.md").write_text("# A model")
    for name in ("trainer_state.json", "chat_template.jinja.bak", "chat_template.md", "vocab.md"):
        (path / name).write_text("{}")
    assert digest_of(path) == list(found.values())[-1]


def test_small_files_count_whole_beside_large_weights(path: Path):
    words = path / "tokenizer.json"
    text = words.read_bytes() + b" " * (3 << 20)
    digests = set()
    for change in (b" ", b"\n"):
        words.write_bytes(text[: len(text) // 2] + change + text[len(text) // 2 :])
        digests.add(digest_of(path, whole=1000))
    assert len(digests) == 2
    assert all(one.startswith("sha256-sampled:") for one in digests)


@pytest.mark.parametrize(
    ("boxes", "answer", "plain", "text"),
    [
        ("unlimited", "<|det|>title [0, 0, 999, 999]<|/det|>Hi</s>", "Hi", "Hi"),
        ("deepseek", "<s><|ref|>Hello<|/ref|><|det|>[[0, 0, 999, 999]]<|/det|></s>", "Hello", "Hello"),
        ("unlimited", "<|det|>title [0, 0, 999, 999]<|/det|>Hi<|IMAGE_END|>", "Hi", "Hi"),
        ("unlimited", "<|det|>title [0, 0, 999, 999]<|/det|>aHi aa", "aHi a", "aHi a"),
    ],
    ids=["text", "labels", "an end token that the tokenizer does not name", "a word that ends answers"],
)
def test_what_frames_an_answer_is_no_text_of_a_box(path: Path, boxes: str, answer: str, plain: str, text: str):
    settings = preset("paddleocr_vl", path)
    words = load(settings, ALONE, BOXES).tokenizer.get_vocab()
    config = {"eos_token_id": [words["</s>"], words["<|IMAGE_END|>"], words["a"]]}
    (path / "generation_config.json").write_text(json.dumps(config))
    model = load(replace(settings, family=replace(settings.family, boxes=boxes)), ALONE, BOXES)
    found = model.parse(answer, (1000, 500))
    assert (found.plain.strip(), [box.text for box in found.boxes]) == (plain, [text])


def test_doctags_that_are_special_tokens(tmp_path: Path):
    """They part the cells of a table."""
    model = load(preset("granite_docling", zoo.build(zoo.granite_docling, tmp_path)), ALONE, BOXES)
    model.tokenizer.add_special_tokens({"extra_special_tokens": ["<fcel>", "<nl>", "<|own|>"]})
    answer = "<otsl><fcel>a<fcel>b<nl><fcel>c</otsl><|own|></s>"
    assert model.parse(answer, (500, 500)).plain.split() == ["a", "b", "c"]


TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def with_a_template(lora: Path) -> None:
    (lora / "chat_template.jinja").write_text("<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>Read.")


def with_tokens(lora: Path) -> None:
    zoo.tokenizer(["<own>"], {"image_token": "<|IMAGE_PLACEHOLDER|>"}).save_pretrained(lora)


def with_sizes(lora: Path) -> None:
    content = json.loads((lora / "processor_config.json").read_text())
    content["image_processor"]["size"] = zoo.edges(56, 448)
    (lora / "processor_config.json").write_text(json.dumps(content))


def broken(lora: Path) -> None:
    (lora / "tokenizer.json").write_text("{")


@pytest.mark.parametrize(
    ("copied", "change", "words"),
    [
        ((), None, None),
        (TOKENIZER, None, None),
        ((*TOKENIZER, "processor_config.json"), None, None),
        (TOKENIZER, with_a_template, "has another chat template than its base; what is used is the base's."),
        (("tokenizer_config.json",), with_tokens, "has another vocabulary than its base"),
        ((*TOKENIZER, "processor_config.json"), with_sizes, "has another image processor than its base"),
        (TOKENIZER, broken, "own tokenizer and processor are not used: "),
    ],
)
def test_the_tokenizer_beside_an_adapter(
    whole: Path, base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    copied: tuple[str, ...], change: Callable[[Path], None] | None, words: str | None,
):  # fmt: skip
    monkeypatch.setattr(checkpoint, "find_spec", lambda package: object())  # peft
    monkeypatch.setattr(loader, "_with_adapter", lambda model, source: model)
    config = {"peft_type": "LORA", "base_model_name_or_path": str(whole)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file({"a.lora_A.weight": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    for name in copied:
        shutil.copy(whole / name, tmp_path)
    if change is not None:
        change(tmp_path)
    settings = preset("paddleocr_vl", tmp_path)
    model = load(settings, ALONE, BOXES)
    assert (model.prompt(ALONE), len(model.tokenizer)) == (base.prompt(ALONE), len(base.tokenizer))
    if words is None:
        assert model.info.note is None
    else:
        assert words in model.info.note
        assert "\n" not in model.info.note
    if change is with_a_template:
        family = replace(settings.family, template="{image}{prompt}")
        assert load(replace(settings, family=family), ALONE, BOXES).info.note is None, "no chat template is read"
