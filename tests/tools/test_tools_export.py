"""Export and evaluation, through the project's own loader, generation and scores."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import evaluate
import pytest
import torch
from evaluate import answers, samples, table
from export import export, write
from model import SIZES, TINY_SIZES, build
from tokens import EOS, encode
from train import main

from pytest_llmprof.config.schema import InferSettings, ModelSettings
from pytest_llmprof.errors import ModelError
from pytest_llmprof.models.checkpoint import open_checkpoint
from pytest_llmprof.models.deepseek_ocr.loader import EMBEDDED, load, load_weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def reader(exported: Path) -> Any:
    return load(ModelSettings(path=str(exported), mode="tiny", device="cpu"), InferSettings())


def test_every_weight_comes_through(exported: Path) -> None:
    """Nothing is missing or left over (`load_weights` refuses that), and each value is the one that was written."""
    wanted = dict(build(TINY_SIZES).named_parameters())
    model = load_weights(open_checkpoint(exported), CPU, torch.float32)
    found = dict(model.named_parameters())
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value.detach().bfloat16().float()), name


def test_a_lacking_weight_is_refused(exported: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(exported, tmp_path / "broken")
    file = tmp_path / "broken" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.image_newline"]
    save_file(tensors, file)
    with pytest.raises(ModelError, match="image_newline"):
        load_weights(open_checkpoint(tmp_path / "broken"), CPU, torch.float32)


def test_the_embedded_reader_is_of_the_tools_size(tmp_path: Path) -> None:
    """An export of a fresh model of that size has the same files but for the weights' values."""
    write(build(SIZES), SIZES, tmp_path)
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (EMBEDDED / name).read_bytes()
    assert (tmp_path / "model.safetensors").stat().st_size == (EMBEDDED / "model.safetensors").stat().st_size
    assert open_checkpoint(tmp_path).keys == open_checkpoint(EMBEDDED).keys
    assert sum(file.stat().st_size for file in EMBEDDED.iterdir()) <= 20_000_000


def test_a_run_is_exported_averaged(tmp_path: Path) -> None:
    flags = "--tiny --no-half --batch 2 --workers 0 --log-every 1 --device cpu --steps 1".split()  # noqa: SIM905
    trainer = main(["--run", str(tmp_path / "run"), *flags])
    assert export(tmp_path / "run", tmp_path / "out")["step"] == 1
    model = load_weights(open_checkpoint(tmp_path / "out"), CPU, torch.float32)
    average = trainer.optimizer.ema
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, average[f"model.{name}"].bfloat16().float()), name


def test_held_out_pages_are_the_same_each_time() -> None:
    pages, again = samples(None, 8), samples(None, 8)
    assert [sample.group for sample in pages] == [
        *["prose6"] * 2, *["prose10"] * 2, *["unseen"] * 2, *["layouts"] * 2, *["framed"] * 4, *["tables"] * 4
    ]  # fmt: skip
    for one, other in zip(pages, again, strict=True):
        assert one.page.grounded == other.page.grounded
        assert one.image.tobytes() == other.image.tobytes()
    assert all(sample.page.line_count <= 6 for sample in pages[:2])
    assert all(7 <= sample.page.line_count <= 10 for sample in pages[2:4])
    assert samples(None, 8, seed=1)[0].page.free != pages[0].page.free


def test_answers_are_the_models(reader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[list[int]] = []
    text = reader.text

    def recorded(row: list[int]) -> str:
        rows.append(row)
        return text(row)

    monkeypatch.setattr(reader, "text", recorded)
    images = [sample.image for sample in samples(None, 4)][:3]
    found = list(answers(reader, images, "free", most=5, batch=2))
    assert found == [(text(row), row[-1] == EOS) for row in rows]
    assert len(found) == 3
    assert all(len(row) == 5 or row[-1] == EOS for row in rows)


@pytest.mark.parametrize("wrong", [False, True])
def test_figures(reader: Any, monkeypatch: pytest.MonkeyPatch, wrong: bool) -> None:
    """Of perfect answers, and of perfect ones but for a page without an answer."""
    pages = samples(None, 8)

    def perfect(_model: Any, images: list[Any], prompt: str, **_: Any) -> Any:
        assert images == [sample.image for sample in pages]
        for index, sample in enumerate(pages):
            text = sample.page.free if prompt == "free" else sample.page.grounded
            yield ("", False) if wrong and index == 0 else (reader.text([*encode(text), EOS]), True)

    monkeypatch.setattr(evaluate, "answers", perfect)
    metrics = evaluate.evaluate(reader, pages)
    assert metrics["pages"] == 8
    first, second = (len(" ".join(sample.page.free.split())) for sample in pages[:2])
    expected = round(first / (first + second), 4) if wrong else 0.0
    for prompt in ("free", "markdown"):
        assert metrics[prompt]["cer"] == dict.fromkeys(evaluate.GROUPS | evaluate.APART, 0.0) | {"prose6": expected}
        assert metrics[prompt]["runaway"] == int(wrong)
    counted = [sample.page.blocks for sample in pages if sample.group in evaluate.GROUPS]
    blocks = [sum(block.label != "image" for block in page) for page in counted]
    assert metrics["found"]["all"] == round((sum(blocks) - wrong * blocks[0]) / sum(blocks), 4)
    assert metrics["worst"][0]["cer"] == float(wrong)
    assert metrics["structure"] == 1.0
    assert f"| prose6 | {expected:.4f} | {expected:.4f} |" in table(metrics)


def test_tables_are_judged_by_their_cells() -> None:
    two = "<table><tr><td>a</td><td>b</td></tr><tr><td></td><td>1 &amp; 2</td></tr></table>"
    assert evaluate.shape(two) == [2, 2]
    assert evaluate.shape("<table><tr><td>a b</td></tr></table>") == [1]
    assert evaluate.shape("<table><tr></tr></table>") == [0]
    assert evaluate.without_tags(f"x\n{two}").split() == ["x", "a", "b", "1", "&", "2"]
