"""The engine `compiled`: it gives the reference engine's tokens, and refuses what it cannot do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ocr_helpers import INFER, Record, blocks_image, by_row, generate

from pytest_llmprof.config.schema import InferSettings, ModelSettings
from pytest_llmprof.errors import EngineUnavailable, ModelError
from pytest_llmprof.measure.compiles import CompileWatch
from pytest_llmprof.models import graphs, ngrams
from pytest_llmprof.models.deepseek_ocr import generation, vision
from pytest_llmprof.models.deepseek_ocr.engines import prefill, step
from pytest_llmprof.models.deepseek_ocr.loader import load
from pytest_llmprof.models.deepseek_ocr.random_weights import random_config, random_model

SETTINGS = ModelSettings(weights="random", size="tiny", mode="tiny", device="cpu", dtype="float32")


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    """The same weights under both engines."""
    settings = replace(SETTINGS, device=request.param)
    try:
        compiled = load(settings, InferSettings(engine="compiled"))
    except EngineUnavailable as error:
        pytest.skip(str(error))
    yield load(settings, InferSettings(engine="reference")), compiled
    compiled.close()


@pytest.mark.slow
def test_pages(pair: tuple[Any, Any], phases: Record) -> None:
    """Equal tokens and phases; a second pass compiles nothing, whatever the n-grams do to the answer."""
    reference, compiled = pair
    infer = replace(INFER, max_new_tokens=60, no_repeat_ngram_size=4)
    wanted = [by_row(list(reference.generate([blocks_image(n)], infer, phases)), 1) for n in (1, 2)]
    events, phases.events = phases.events, []
    assert [by_row(list(compiled.generate([blocks_image(n)], infer, phases)), 1) for n in (1, 2)] == wanted
    assert phases.events == events
    assert len({token for row in wanted for token, _ in row[0]}) > 20
    with CompileWatch() as watch:
        assert by_row(list(compiled.generate([blocks_image(2)], infer, phases)), 1) == wanted[1]
    assert watch.seen == []


@pytest.mark.slow
def test_leaving_early(pair: tuple[Any, Any], phases: Record) -> None:
    reference, compiled = pair
    tokens = compiled.generate([blocks_image(2)], INFER, phases)
    begun = [next(tokens).id for _ in range(3)]
    tokens.close()
    assert phases.events[-1] == "/decode"
    whole = [token.id for token in reference.generate([blocks_image(2)], INFER, phases)]
    assert begun == whole[:3]
    assert [token.id for token in compiled.generate([blocks_image(2)], INFER, phases)] == whole


@pytest.mark.slow
def test_a_page_that_is_no_number_leaves_nothing_behind(pair: tuple[Any, Any], phases: Record) -> None:
    """Its keys and values would be looked at by later, shorter pages of the same cache, if with a weight of 0.

    Nobody need have seen it: the last step is launched for nothing.
    """
    _, compiled = pair
    wanted = [token.id for token in compiled.generate([blocks_image(2)], INFER, phases)]
    cache = next(iter(compiled.engine.caches.values()))
    with torch.inference_mode():
        cache.stored[:] = torch.nan
    assert [token.id for token in compiled.generate([blocks_image(2)], INFER, phases)] == wanted


@pytest.mark.slow
def test_a_range_for_each_step_that_is_launched(
    pair: tuple[Any, Any], phases: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the answer is left early: one step runs ahead of the tokens, and is counted."""
    _, compiled = pair
    list(compiled.generate([blocks_image(2)], INFER, phases))  # what is captured for it is no step of an answer
    launched = []
    advance = compiled.engine.advance
    monkeypatch.setattr(compiled.engine, "advance", lambda *given: (launched.append(given), advance(*given)))
    for taken in (3, 10_000):
        launched.clear()
        phases.events.clear()
        tokens = compiled.generate([blocks_image(2)], INFER, phases)
        for _, token in zip(range(taken), tokens, strict=False):
            assert token.id >= 0
        tokens.close()
        assert phases.events.count("step") == len(launched)


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(490,), (9, 40)], ids=["one row, past the shortest look", "padded rows"])
@pytest.mark.parametrize("ends", [False, True])
def test_language_model(
    pair: tuple[Any, Any], lengths: tuple[int, ...], ends: bool, monkeypatch: pytest.MonkeyPatch, phases: Record
) -> None:
    """Prompts of random embeddings: rows of different lengths, ends within the batch, a longer look at the cache."""
    reference, compiled = pair
    device = torch.device(reference.info.device)
    generator = torch.Generator().manual_seed(5)
    batch = generation.pad_prompts(
        [torch.randint(3, 900, (length,), generator=generator).tolist() for length in lengths], device
    )
    embeddings = torch.randn(len(lengths), max(lengths), 256, generator=generator).to(device)
    limits = generation.Limits(40, 8192, None, 1, 4)
    with torch.inference_mode():
        wanted = by_row(generate(reference.network, batch, embeddings, limits), len(lengths))
        if ends:
            limits = replace(limits, eos=wanted[0][20][0])
            wanted = by_row(generate(reference.network, batch, embeddings, limits), len(lengths))
            assert wanted[0][-1][1] == "eos"
        monkeypatch.setattr(compiled.engine.prefill, "embeddings", lambda *_: embeddings)
        tokens = compiled.engine.generate(SimpleNamespace(prompts=batch), limits, phases)
        assert by_row(list(tokens), len(lengths)) == wanted


@pytest.mark.parametrize("grid, count", [((1, 3), 4), ((2, 2), 4), ((1, 5), 6), ((2, 3), 6), ((2, 4), 9), (None, None)])
def test_crops_come_in_few_shapes(
    crops_of: Any, grid: tuple[int, int] | None, count: int | None, phases: Record
) -> None:
    """Filled up to 2, 4, 6 or 9 for the vision tower; what they add is left out again."""
    model, prefill, shapes = crops_of
    size = (600, 400) if grid is None else (grid[0] * 640, grid[1] * 640)
    inputs = model.preprocess([blocks_image(3, size)], INFER)
    assert inputs.grids == ((1, 1) if grid is None else grid,)
    shapes.clear()
    with torch.inference_mode():
        found = prefill.embeddings(inputs, phases)
        pages = vision.page_features(model.network, inputs.overviews, inputs.crops, inputs.grids, phases)
        embeddings = model.network.model.language_model.embed_tokens(inputs.prompts.ids_to_embed)
        wanted = vision.insert_features(embeddings, pages, inputs.image_starts)
    assert shapes["sam"] == [1] if count is None else [1, count]
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    "changes",
    [{"use_rel_pos": False}, {"window_size": 7, "hidden_size": 160, "num_attention_heads": 2}, {"qkv_bias": False}],
    ids=["no relative positions", "windows that do not fit, heads of 80", "no bias"],
)
def test_vision_of_other_sams(changes: dict[str, Any], phases: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the layers share gives what each gave by itself; the compiler's part is left out."""
    config = random_config("tiny")
    for key, value in changes.items():
        setattr(config.vision_config.sam_config, key, value)
    model = random_model(config, 0, torch.device("cpu"), torch.float32)
    pixels = torch.randn(2, 3, 512, 512, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(prefill, "compile_whole", lambda function: function)
    with torch.inference_mode():
        wanted = vision.encode_views(model, pixels, phases)
        prefill.Prefill(model, graphs.Graphs(torch.device("cpu")))
        torch.testing.assert_close(vision.encode_views(model, pixels, phases), wanted)


def test_crops_of_several_pages() -> None:
    counts = {count: len(prefill.pad_crops(torch.ones(count, 3, 4, 4))) for count in (1, 2, 9, 10, 12, 13)}
    assert counts == {1: 2, 2: 2, 9: 9, 10: 12, 12: 12, 13: 16}


@pytest.fixture(scope="module")
def crops_of() -> Any:
    """The tiny model in mode gundam, its prefill with nothing compiled, and how many views each part was given."""
    model = load(replace(SETTINGS, mode="gundam"), InferSettings(engine="reference"))
    shapes: dict[Any, list[int]] = {}

    class Noted(graphs.Graphs):
        def run(self, key: Any, function: Any, *inputs: torch.Tensor) -> Any:
            shapes.setdefault(key, []).append(len(inputs[0]))
            return super().run(key, function, *inputs)

    return model, prefill.Prefill(model.network, Noted(torch.device("cpu")), compiled=False), shapes


@pytest.mark.slow
def test_prefill_that_cannot_be_captured(
    pair: tuple[Any, Any], phases: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, compiled = pair
    monkeypatch.setattr(compiled.engine.prefill, "captured", False)
    answers = [by_row(list(model.generate([blocks_image(1)], INFER, phases)), 1) for model in pair]
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_as_many_experts_asked_as_there_are(
    pair: tuple[Any, Any], phases: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three rows of two experts out of six: each is read once, instead of for each row that asks it.

    On a CPU the vision layers run as they are: to compile them for three pages, too, takes half a minute.
    """
    reference, compiled = pair
    if compiled.info.device == "cpu":
        tower = compiled.network.model.vision_tower
        for layer in (*tower.sam_encoder.layers, *tower.vision_encoder.encoder.layers):
            monkeypatch.delattr(layer, "forward")
    pages = [blocks_image(n) for n in range(1, 4)]
    assert by_row(list(compiled.generate(pages, INFER, phases)), 3) == by_row(
        list(reference.generate(pages, INFER, phases)), 3
    )


@pytest.mark.slow
def test_scores_that_are_not_numbers(pair: tuple[Any, Any], phases: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    _, compiled = pair
    embeddings = torch.full((1, 30, 256), torch.nan, device=compiled.info.device)
    batch = generation.pad_prompts([list(range(3, 33))], embeddings.device)
    monkeypatch.setattr(compiled.engine.prefill, "embeddings", lambda *_: embeddings)
    limits = generation.Limits(5, 8192, None, 1, 4)
    with torch.inference_mode(), pytest.raises(ModelError, match="scores of token 1 are not numbers"):
        list(compiled.engine.generate(SimpleNamespace(prompts=batch), limits, phases))


@pytest.mark.gpu
def test_bfloat16_agrees_with_the_reference(phases: Record) -> None:
    """Rounding differs, so answers part somewhere; at the start they agree. Prints the share of equal tokens."""
    settings = replace(SETTINGS, device="cuda", dtype="bfloat16")
    infer = replace(INFER, max_new_tokens=64)
    reference = load(settings, replace(infer, engine="reference"))
    compiled = load(settings, replace(infer, engine="compiled"))
    models, shares = (reference, compiled), []
    for number in range(1, 7):
        one, other = ([token.id for token in model.generate([blocks_image(number)], infer, phases)] for model in models)
        shares.append(sum(map(int.__eq__, one, other)) / len(one))
    print("share of equal tokens in bfloat16:", [round(share, 2) for share in shares])
    assert max(shares) > 0.5


@pytest.mark.parametrize("ngram", [0, 1, 2, 3, 6, 35])
def test_ban_within_a_longer_buffer(ngram: int) -> None:
    """What lies past the filled places, or is padding, bans nothing."""
    generator = torch.Generator().manual_seed(ngram)
    for length in range(1, 40):
        ids = torch.randint(0, 4, (3, 40), generator=generator)
        ids[1, : min(length - 1, 5)] = -1
        scores = torch.randn(3, 9, generator=generator)
        wanted = ngrams.ban_repeats(ids[:, :length], scores, ngram)
        assert torch.equal(step.ban_repeats_in_buffer(scores, ids, torch.tensor([length]), ngram), wanted)


@pytest.mark.parametrize("vocabulary", [1, 127, 128, 300])
def test_highest_is_the_first_of_the_highest(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    scores = torch.randint(0, 20, (5, vocabulary), generator=generator).float()
    best, chosen = step.highest_score(scores)
    assert torch.equal(best, scores.max(-1).values)
    assert chosen.tolist() == [row.index(max(row)) for row in scores.tolist()]
    scores[2, vocabulary // 2] = torch.nan
    assert step.highest_score(scores)[0].isnan().tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("key, value", [("hidden_act", "gelu"), ("topk_method", "group_limited_greedy")])
def test_other_layers_are_refused(key: str, value: str) -> None:
    with pytest.raises(ModelError, match=f"whose {key} is .* this one has '{value}': use infer=reference"):
        step.check_layers(SimpleNamespace(**{key: value}))


@pytest.mark.parametrize("heading", ["", "backend='inductor' raised:\n"], ids=["torch of today", "torch 2.6"])
def test_no_compiler(heading: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: Any) -> Any:
        raise RuntimeError(f"{heading}No working C++ compiler found\nlong story")

    monkeypatch.setattr(graphs, "compile_whole", broken)
    with pytest.raises(EngineUnavailable) as caught:
        load(SETTINGS, InferSettings(engine="compiled"))
    assert str(caught.value).splitlines() == [
        "infer=compiled needs torch.compile, which does not work on cpu here: No working C++ compiler found; "
        "use infer=reference"
    ]


def test_a_full_device_is_no_missing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tests would be skipped."""

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(torch.OutOfMemoryError):
        graphs.require_compiler("compiled", torch.device("cpu"))


def test_tritons_cache_is_that_of_torch_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever torch.compile did in this process; a directory that the user set stays."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", "")  # so that what is set below is undone, too
    monkeypatch.delenv("TRITON_CACHE_DIR")
    monkeypatch.setattr(graphs, "compile_whole", lambda function: lambda tensor: tensor)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *sizes, device: zeros(*sizes))
    graphs.require_compiler("fast", torch.device("cpu"))
    assert "TRITON_CACHE_DIR" not in os.environ
    graphs.require_compiler("fast", torch.device("cuda", 1))
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "triton" / "1")
    monkeypatch.setenv("TRITON_CACHE_DIR", "mine")
    graphs.require_compiler("fast", torch.device("cuda"))
    assert os.environ["TRITON_CACHE_DIR"] == "mine"
