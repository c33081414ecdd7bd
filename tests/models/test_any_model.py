"""Each class of the zoo through the adapter: its tokens are those of transformers' own `generate`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from ocr_helpers import OFFICIAL, Record, blocks_image, by_row
from PIL import Image, ImageOps

from pytest_llmprof.config.compose import Composer, ConfigSources
from pytest_llmprof.config.registry import Registry
from pytest_llmprof.config.schema import InferSettings, ModelSettings, Settings
from pytest_llmprof.datasets import builtin
from pytest_llmprof.errors import EngineUnavailable, ModelError
from pytest_llmprof.measure.compiles import CompileWatch
from pytest_llmprof.models import packaged_models
from pytest_llmprof.models.deepseek_ocr.model import DeepseekOcr
from pytest_llmprof.models.deepseek_ocr.prompts import MARKDOWN
from pytest_llmprof.models.deepseek_ocr.tokenizers import FileTokenizer
from pytest_llmprof.models.engine_choice import dotted, older
from pytest_llmprof.models.from_transformers import checkpoint
from pytest_llmprof.models.from_transformers.auto import TORCH
from pytest_llmprof.models.from_transformers.boxes import FORMATS
from pytest_llmprof.models.from_transformers.costs import _weights, attention_of
from pytest_llmprof.models.from_transformers.loader import check_compilable, load
from pytest_llmprof.stages import packaged_stages

ALONE = InferSettings(prompt="Read it.", max_new_tokens=8, no_repeat_ngram_size=0, ignore_eos=True)
BANNED = replace(ALONE, no_repeat_ngram_size=1, max_new_tokens=12)
"""No token twice: an answer of random weights would else say little."""
SIZES = ((320, 160), (160, 320))
CASES = {"one page": (1, ALONE), "two pages, with a ban": (2, BANNED)}
CLASSES = [
    *(pytest.param(make, id=make.__name__) for make in zoo.PILLOW),
    *(
        pytest.param(
            make, id=make.__name__, marks=pytest.mark.skipif(not zoo.VISION, reason="torchvision is not installed")
        )
        for make in zoo.TORCHVISION
    ),
]
BOXES = {one.name: one for one in FORMATS}


def session(name: str, path: Path, device: str = "cpu") -> Settings:
    """`model=NAME model.path=PATH` in float32."""
    registry = Registry.of(packaged_models(), packaged_stages(), builtin())
    model = {"path": path, "device": device, "dtype": "float32"}
    keys = (f"model={zoo.PRESETS.get(name, name)}", *(f"model.{key}={value}" for key, value in model.items()))
    sources = ConfigSources(invocation_dir=path, rootdir=path, cli_overrides=keys)
    return Composer(sources, registry).session()


def preset(name: str, path: Path, device: str = "cpu") -> ModelSettings:
    """The model's part of `session`."""
    return session(name, path, device).model


@pytest.fixture(scope="module", params=CLASSES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One class, built, saved and loaded."""
    make = request.param
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are so small that a second thread only waits
    path = zoo.build(make, tmp_path_factory.mktemp(make.__name__))
    loaded = load(preset(make.__name__, path), ALONE, BOXES)
    yield loaded
    loaded.close()
    torch.set_num_threads(threads)


def images(count: int) -> list[Any]:
    return [blocks_image(seed, SIZES[seed]) for seed in range(count)]


def theirs(model: Any, pages: Sequence[Any], infer: InferSettings, **options: Any) -> list[list[int]]:
    """What transformers' own loop generates."""
    inputs = model.inputs(pages, infer).to(model.network.device)
    model.network.generation_config = model._generation(infer)
    rows = model.network.generate(
        **inputs, max_new_tokens=infer.max_new_tokens, no_repeat_ngram_size=infer.no_repeat_ngram_size, **options
    )
    return [row[inputs["input_ids"].shape[1] :].tolist() for row in rows]


def ours(model: Any, pages: Sequence[Any], infer: InferSettings, phases: Any = None) -> list[list[int | None]]:
    tokens = list(model.generate(pages, infer, phases or Record()))
    return [[number for number, _ in row] for row in by_row(tokens, len(pages))]


@pytest.fixture(scope="module")
def expected(model: Any) -> dict[str, list[list[int]]]:
    """What transformers' own loop generates, by case."""
    return {name: theirs(model, images(count), infer) for name, (count, infer) in CASES.items()}


@pytest.fixture(params=["reference", "static"])
def engine(request: pytest.FixtureRequest, model: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """`static`: as `compiled`, without compiling."""
    monkeypatch.setattr(model, "_compiled", request.param == "static")
    monkeypatch.setattr(model, "_forward", lambda: model.network)
    monkeypatch.setattr(model, "_caches", {})
    return str(request.param)


# A class that fails is named by the test's id, its cause by the first assertion.
def test_tokens_and_phases_are_those_of_generate(model, expected, engine):
    for name, (count, infer) in CASES.items():
        phases = Record()
        assert ours(model, images(count), infer, phases) == expected[name], f"{engine}, {name}"
        steps = ["step", "/step"] * (infer.max_new_tokens - 1)
        tops = ["preprocess", "/preprocess", "vision", "/vision", "prefill", "/prefill", "decode", *steps, "/decode"]
        assert phases.events == tops, f"{engine}, {name}"
    rows = expected["two pages, with a ban"]
    kept = {shape: id(cache) for shape, cache in model._caches.items()}  # CUDA graphs need their addresses again
    ours(model, images(1), BANNED)  # as the last batch of a dataset, with fewer pages
    assert ours(model, images(2), BANNED) == rows
    assert {shape: id(cache) for shape, cache in model._caches.items()} == kept
    assert {count for count, _ in kept} == (set() if engine == "reference" else {1, 2})
    assert all(len(set(row)) == len(row) for row in rows)
    assert rows[0] != rows[1]


def test_an_end_token_ends_its_row_alone(model, expected, engine, monkeypatch):
    first, second = expected["two pages, with a ban"]
    end = next(token for token in second[1:] if token not in first or first.index(token) > second.index(token))
    monkeypatch.setattr(model, "eos", frozenset((end,)))
    rows = by_row(list(model.generate(images(2), replace(BANNED, ignore_eos=False), Record())), 2)
    ended = [row[: row.index(end) + 1] if end in row else row for row in (first, second)]
    assert [[token for token, _ in row] for row in rows] == ended, engine
    assert [row[-1][1] for row in rows] == ["eos" if end in first else "length", "eos"]


@pytest.mark.skipif(older(torch.__version__, TORCH), reason=f"torch is older than {dotted(TORCH)}")
def test_one_traced_step_serves_all_pages(model, monkeypatch):
    """As `compiled`, but what torch.compile has traced runs without the C++ or Triton code that it would become."""
    source = checkpoint.open_source(ModelSettings(path=model._where))
    if model.info.details["model_type"] == "unlimited_ocr":
        with pytest.raises(ModelError, match="use infer=reference"):
            check_compilable(source)
        return
    check_compilable(source)
    asked = (BANNED, replace(BANNED, prompt="Read all of it."))  # prompts of two lengths
    eager = [ours(model, [blocks_image(seed, SIZES[seed])], asked[seed]) for seed in (0, 1)]
    torch._dynamo.reset()
    step = torch.compile(model.network.__call__, backend="eager", fullgraph=True)
    for name, value in {"_compiled": True, "_caches": {}, "_forward": lambda: step}.items():
        monkeypatch.setattr(model, name, value)
    with CompileWatch() as watch:
        assert [ours(model, [blocks_image(seed, SIZES[seed])], asked[seed]) for seed in (0, 1)] == eager
    assert len(watch.seen) == 1, watch.seen


def test_costs_are_counted(model):
    infer = replace(ALONE, max_new_tokens=2)
    before = [implementation for _, implementation in attention_of(model.network)]
    costs = {steps: model.costs(images(1), infer, [steps + 1]) for steps in (0, 1, 2, 3, 6)}
    network = model.network
    head = network.get_output_embeddings().weight
    assert set(costs[0].phases) == {"vision", "prefill"}
    one, six = costs[1].phases, costs[6].phases
    assert one["vision"] == six["vision"]
    assert one["prefill"].flops > one["decode"].flops >= 2 * head.numel()
    assert 0 < one["vision"].bytes + one["decode"].parts["weights"] <= sum(
        parameter.numel() * parameter.element_size() for parameter in network.parameters()
    ) + head.numel() * head.element_size()
    # The seventh step lies on the line that the first three make.
    growth = [costs[steps].phases["decode"].flops for steps in (1, 2, 3)]
    steps = [growth[0], growth[1] - growth[0], growth[2] - growth[1]]
    assert six["decode"].flops == pytest.approx(6 * steps[0] + 15 * (steps[2] - steps[0]) / 2)
    layers = [module for name, module in network.named_modules() if name.endswith(".experts")]
    experts = sum(parameter.numel() * parameter.element_size() for layer in layers for parameter in layer.parameters())
    read = one["decode"].parts["weights"] - _weights(network)["text"]
    assert bool(layers) == (read > 0)
    assert read <= experts / 2, "two of four experts a token"
    assert [implementation for _, implementation in attention_of(network)] == before
    assert model.info.details["attention"] == network.get_decoder().config._attn_implementation
    assert ours(model, images(1), ALONE) == theirs(model, images(1), ALONE)


@pytest.mark.parametrize("asked", [0, None, 99_999], ids=str)
def test_a_tokenizer_without_padding(tmp_path, asked):
    """Its processor takes no batch, so it pads with the checkpoint's token, else with an end token."""
    zoo.build(zoo.paddleocr_vl, tmp_path)
    whole = load(preset("paddleocr_vl", tmp_path), ALONE, BOXES)
    for name, key, value in (("tokenizer_config", "pad_token", None), ("generation_config", "pad_token_id", asked)):
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    bare = load(preset("paddleocr_vl", tmp_path), ALONE, BOXES)
    assert bare.tokenizer.pad_token_id == (0 if asked == 0 else 2)
    assert ours(bare, images(2), BANNED) == ours(whole, images(2), BANNED)


@pytest.mark.skipif(not zoo.VISION, reason="torchvision is not installed")
@pytest.mark.parametrize("page", ["blocks", "the reference's page"])
def test_unlimited_ocr_gives_the_tokens_of_deepseek_ocr(official_weights, tmp_path, page):
    """DeepSeek-OCR's released layout: our own adapter, and transformers' processor and loop, on the same weights.

    Pages have the model's size already: torchvision resizes with other roundings than Pillow does.
    """
    from transformers import UnlimitedOcrImageProcessor, UnlimitedOcrProcessor

    words = zoo.tokenizer([f"<{number}>" for number in range(259, 511)])
    words.add_tokens(["<image>"], special_tokens=True)
    assert words.convert_tokens_to_ids("<image>") == 511
    images = UnlimitedOcrImageProcessor(size=zoo.square(512))
    UnlimitedOcrProcessor(images, words).save_pretrained(tmp_path)
    official_weights.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"image_token_id": 511}))
    given = Image.open(OFFICIAL / "page_300x200.png").convert("RGB")
    image = blocks_image(3, (512, 512)) if page == "blocks" else ImageOps.pad(given, (512, 512), color=(127,) * 3)
    infer = replace(ALONE, prompt="markdown", max_new_tokens=40, no_repeat_ngram_size=20)
    tokenizer = FileTokenizer(tmp_path / "tokenizer.json")
    own = DeepseekOcr(official_weights, tokenizer, mode="tiny", engine="reference", weights="checkpoint", digest="")
    settings = preset("unlimited_ocr", tmp_path)
    # The released prompt; <pad> has the id that the weights take as the begin.
    family = replace(settings.family, template="<pad>{image}{prompt}", markdown=MARKDOWN.removeprefix("<image>"))
    any_model = load(replace(settings, family=family), infer, BOXES)
    assert ours(any_model, [image], infer) == ours(own, [image], infer)


@pytest.mark.skipif(not zoo.VISION, reason="torchvision is not installed")
def test_smolvlm_without_num2words(tmp_path, monkeypatch):
    from transformers.models.smolvlm import processing_smolvlm

    path = zoo.build(zoo.smolvlm, tmp_path)
    monkeypatch.setattr(processing_smolvlm, "num2words", None)  # as where its import fails
    monkeypatch.setattr(checkpoint, "find_spec", lambda package: None)
    wanted = "the processor cannot be loaded: it needs the package num2words: pip install 'pytest-llmprof.models.'$"
    with pytest.raises(ModelError, match=wanted):
        load(preset("smolvlm", path), ALONE, BOXES)


@pytest.mark.slow
@pytest.mark.skipif("LLMPROF_EXTRAS" not in os.environ, reason="LLMPROF_EXTRAS names no directory (CONTRIBUTING.md)")
def test_with_the_packages_of_the_extras():
    """In a process of their own: PyPI's torchvision beside a torch for CPUs would keep transformers from loading."""
    path = os.pathsep.join((os.environ["LLMPROF_EXTRAS"], os.environ.get("PYTHONPATH", "")))
    names = " or ".join(["quantized", "deepseek_ocr", *(make.__name__ for make in zoo.TORCHVISION)])
    files = [__file__, str(Path(__file__).with_name("test_any_model_quantized.py"))]
    command = [sys.executable, "-m", "pytest", *files, "-q", "-p", "no:cacheprovider", "-k", names]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, env={**alone, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "skipped" not in done.stdout, done.stdout[-3000:]


def check_compiled(compiled, reference):
    """Equal tokens, and nothing is compiled or captured once the shapes of all pages were met."""
    for _ in range(2):
        with CompileWatch() as watch:
            for seed in (0, 1):
                pages = [blocks_image(seed, SIZES[seed])]
                assert ours(compiled, pages, BANNED) == ours(reference, pages, BANNED)
    assert not watch.seen


@pytest.mark.slow
def test_compiled_gives_the_tokens_of_the_reference(tmp_path):
    path = zoo.build(zoo.paddleocr_vl, tmp_path)
    settings = preset("paddleocr_vl", path)
    try:
        compiled = load(settings, replace(ALONE, engine="compiled"), BOXES)
    except EngineUnavailable as error:
        pytest.skip(str(error))
    reference = load(settings, ALONE, BOXES)
    assert compiled.info.engine == "compiled"
    check_compiled(compiled, reference)
