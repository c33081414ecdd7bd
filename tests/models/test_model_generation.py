"""Generation: the n-gram ban, batches, ends, limits, phases, and a consumer that stops early."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from ocr_helpers import INFER, Ids, Record, blocks_image, by_row, generate
from PIL import Image

from pytest_llmprof.config.schema import InferSettings, ModelSettings
from pytest_llmprof.errors import ModelError
from pytest_llmprof.models.checkpoint import open_checkpoint
from pytest_llmprof.models.deepseek_ocr import generation, vision
from pytest_llmprof.models.deepseek_ocr.loader import EMBEDDED, load, load_weights
from pytest_llmprof.models.deepseek_ocr.model import DeepseekOcr
from pytest_llmprof.models.deepseek_ocr.preprocessing import Mode, crop_grid, image_tokens
from pytest_llmprof.models.ngrams import ban_repeats


@pytest.mark.parametrize("seed", range(8))
def test_ban_is_what_transformers_bans(seed: int) -> None:
    from transformers import NoRepeatNGramLogitsProcessor

    generator = torch.Generator().manual_seed(seed)
    for length in range(1, 60, 3):
        for ngram in (1, 2, 3, 5, 20):
            ids = torch.randint(0, 2 + seed, (3, length), generator=generator)
            scores = torch.randn(3, 9, generator=generator)
            wanted = NoRepeatNGramLogitsProcessor(ngram)(ids, scores.clone())
            assert torch.equal(ban_repeats(ids, scores.clone(), ngram), wanted)


def test_no_ban() -> None:
    scores = torch.randn(1, 9)
    assert ban_repeats(torch.zeros(1, 50, dtype=torch.int64), scores, 0) is scores


@pytest.mark.parametrize("ngram", [1, 2, 3, 6])
def test_padding_does_not_change_the_ban(ngram: int) -> None:
    generator = torch.Generator().manual_seed(ngram)
    for length in range(1, 12):
        ids = torch.randint(0, 3, (1, length), generator=generator)
        padded = torch.cat([torch.full((1, 7), -1), ids], dim=1)
        scores = torch.randn(1, 5, generator=generator)
        assert torch.equal(ban_repeats(padded, scores, ngram), ban_repeats(ids, scores, ngram))


def test_answers_never_repeat_an_ngram(tiny: Any, phases: Record) -> None:
    tokens = list(tiny.generate([blocks_image(1)], replace(INFER, max_new_tokens=120, no_repeat_ngram_size=3), phases))
    ids = [token.id for token in tokens]
    windows = list(zip(ids, ids[1:], ids[2:], strict=False))
    assert len(ids) == 120
    assert len(set(windows)) == len(windows)


def test_random_weights_give_varied_answers(tiny: Any, phases: Record) -> None:
    """Else equal tokens would prove nothing: see `random_weights`."""
    first, second = ([t.id for t in tiny.generate([blocks_image(n)], INFER, phases)] for n in (1, 4))
    assert first != second
    assert len(set(first)) > 6


def test_a_batch_gives_what_its_pages_give_alone(tiny: Any, phases: Record) -> None:
    pages = [blocks_image(n) for n in range(1, 5)]
    alone = [by_row(list(tiny.generate([page], INFER, phases)), 1)[0] for page in pages]
    assert by_row(list(tiny.generate(pages, INFER, phases)), 4) == alone
    assert len({tuple(row) for row in alone}) == 4


def test_a_padded_batch_gives_what_its_pages_give_alone(cropping: DeepseekOcr, phases: Record) -> None:
    """Pages with and without crops have prompts of different lengths, padded on the left."""
    pages = [blocks_image(1), blocks_image(2, (900, 500)), blocks_image(3, (500, 645))]
    assert len({cropping.shape_key(page, INFER) for page in pages}) == 3
    infer = replace(INFER, max_new_tokens=8)
    alone = [by_row(list(cropping.generate([page], infer, phases)), 1)[0] for page in pages]
    assert by_row(list(cropping.generate(pages, infer, phases)), 3) == alone
    assert len({tuple(row) for row in alone}) > 1


def test_padding_in_long_answers(tiny: Any) -> None:
    """The language model alone, prompts of 9, 40 and 23 random embeddings: equal answers, alone and padded."""
    generator = torch.Generator().manual_seed(5)
    lengths = (9, 40, 23)
    prompts = [torch.randint(3, 900, (1, length), generator=generator) for length in lengths]
    embeddings = [torch.randn(1, length, 256, generator=generator) for length in lengths]
    limits = generation.Limits(40, 8192, None, 1, 4)

    def answers(ids: list[list[int]], inputs: torch.Tensor) -> list[list[tuple[int | None, str | None]]]:
        batch = generation.pad_prompts(ids, torch.device("cpu"))
        with torch.inference_mode():
            return by_row(generate(tiny.network, batch, inputs, limits), len(ids))

    alone = [answers(ids.tolist(), inputs)[0] for ids, inputs in zip(prompts, embeddings, strict=True)]
    padded = torch.cat([torch.nn.functional.pad(inputs, (0, 0, 40 - inputs.shape[1], 0)) for inputs in embeddings])
    assert answers([ids[0].tolist() for ids in prompts], padded) == alone
    assert len({tuple(row) for row in alone}) == 3


@pytest.fixture
def cropping(tiny: Any) -> DeepseekOcr:
    """The tiny model with crops, and a small global view to be quick."""
    model = DeepseekOcr(tiny.network, tiny.tokenizer, mode="gundam", engine="reference", weights="random", digest="")
    model.mode = Mode(256, pad=True, crops=True)
    return model


@pytest.fixture
def ending(official_weights: Any) -> tuple[DeepseekOcr, list[Image.Image], list[list[int]]]:
    """A model whose end token is one that its answers hold, three pages, and their answers without an end."""
    settings = {"mode": "tiny", "engine": "reference", "weights": "checkpoint", "digest": ""}
    model = DeepseekOcr(official_weights, Ids(511), **settings)
    pages = [blocks_image(n) for n in (1, 2, 3)]
    infer = InferSettings(prompt="<image>7 8 9", max_new_tokens=30, no_repeat_ngram_size=2)
    model.eos = -5
    answers = [[token.id for token in model.generate([page], infer, Record())] for page in pages]
    return model, pages, answers


def test_rows_end_on_their_own(ending: tuple[DeepseekOcr, list[Image.Image], list[list[int]]], phases: Record) -> None:
    model, pages, answers = ending
    places = {token: [row.index(token) if token in row else 99 for row in answers] for token in set(chain(*answers))}
    model.eos = next(token for token, at in places.items() if len(set(at)) == 3 and min(at) > 0)
    infer = InferSettings(prompt="<image>7 8 9", max_new_tokens=25, no_repeat_ngram_size=2)

    rows = by_row(list(model.generate(pages, infer, phases)), 3)

    for row, answer, at in zip(rows, answers, places[model.eos], strict=True):
        expected = answer[: min(at + 1, 25)]
        assert [token for token, _ in row] == expected
        assert [finish for _, finish in row] == [None] * (len(expected) - 1) + ["eos" if at < 25 else "length"]


def test_an_answer_of_one_token(ending: tuple[DeepseekOcr, list[Image.Image], list[list[int]]], phases: Record) -> None:
    model, pages, answers = ending
    model.eos = answers[0][0]
    (token,) = model.generate(pages[:1], InferSettings(prompt="<image>7 8 9"), phases)
    assert token.finish == "eos"
    assert "decode" not in phases.events


def test_phases(tiny: Any, phases: Record) -> None:
    list(tiny.generate([blocks_image(1)], replace(INFER, max_new_tokens=3), phases))
    assert " ".join(phases.events) == (
        "preprocess /preprocess vision sam /sam clip /clip projector /projector /vision prefill /prefill "
        "decode step /step step /step /decode"
    )
    assert {event.strip("/") for event in phases.events} - {"step"} == set(tiny.capabilities.phases)


def test_crops_go_through_the_vision_phases_too(cropping: DeepseekOcr, phases: Record) -> None:
    list(cropping.generate([blocks_image(1, (500, 700))], replace(INFER, max_new_tokens=1), phases))
    assert phases.events.count("sam") == phases.events.count("projector") == 2


def test_the_encoder_alone_gives_each_pages_features(cropping: DeepseekOcr) -> None:
    small, large = blocks_image(1, (100, 100)), blocks_image(2, (500, 700))
    encode = cropping.encoder([small, large])
    first, second = encode(), encode()
    grids = [crop_grid(page.size, cropping.mode) for page in (small, large)]
    assert grids[0] == (1, 1) != grids[1]
    assert [len(page) for page in first] == [image_tokens(grid, cropping.mode) for grid in grids]
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    (alone,) = cropping.encoder([small])()
    assert torch.allclose(alone, first[0], atol=1e-5)


def test_leaving_early(tiny: Any, phases: Record) -> None:
    """Closing the iterator closes the phases, and leaves the model and torch's mode as they were."""
    whole = [token.id for token in tiny.generate([blocks_image(2)], INFER, Record())]
    tokens = tiny.generate([blocks_image(2)], INFER, phases)
    assert [next(tokens).id for _ in range(3)] == whole[:3]
    assert not torch.is_inference_mode_enabled()
    tokens.close()
    assert phases.events[-1] == "/decode"
    assert not torch.is_inference_mode_enabled()
    assert [token.id for token in tiny.generate([blocks_image(2)], INFER, Record())] == whole


def test_a_failing_consumer_of_phases(tiny: Any) -> None:
    """What a phase raises goes up as it is (a memory error, say), with the phases left in order."""

    class Full(Record):
        def step(self) -> Any:
            if self.events.count("step") == 2:
                raise torch.OutOfMemoryError("full")
            return super().step()

    record = Full()
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        list(tiny.generate([blocks_image(2)], INFER, record))
    assert record.events[-1] == "/decode"


@pytest.mark.parametrize("tokens", [1, 4])
def test_scores_that_are_no_numbers_are_no_answer(tiny: Any, phases: Record, tokens: int) -> None:
    weight = tiny.network.model.language_model.norm.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.fill_(torch.nan)
        with pytest.raises(ModelError, match="scores of the last token are not numbers"):
            list(tiny.generate([blocks_image(1)], replace(INFER, max_new_tokens=tokens), phases))
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_times_rise(tiny: Any, phases: Record) -> None:
    times = [token.time_ns for token in tiny.generate([blocks_image(2)], INFER, phases)]
    assert times == sorted(set(times))


def test_nothing_to_read(tiny: Any, phases: Record) -> None:
    assert list(tiny.generate([], INFER, phases)) == []


def test_answers_stop_where_the_positions_end(tiny: Any, phases: Record) -> None:
    prompt = 1 + 73 + len(tiny.tokenizer.encode("\nFree OCR."))
    model = DeepseekOcr(tiny.network, tiny.tokenizer, mode="tiny", engine="reference", weights="random", digest="")
    model.positions = prompt + 4
    infer = replace(INFER, prompt="free")
    assert by_row(list(model.generate([blocks_image(1)], infer, phases)), 1)[0][-1][1] == "length"
    assert len(list(model.generate([blocks_image(1)], infer, phases))) == 4
    model.positions = prompt
    with pytest.raises(ModelError, match=f"the prompt has {prompt} tokens; the model has {prompt} positions"):
        next(model.generate([blocks_image(1)], infer, phases))


def test_closed(phases: Record) -> None:
    model = load(ModelSettings(weights="random", size="tiny", mode="tiny", device="cpu"), InferSettings())
    model.close()
    model.close()
    with pytest.raises(ModelError, match="the model was closed"):
        next(model.generate([blocks_image(1)], INFER, phases))


def test_position_tables_are_kept(official_weights: Any) -> None:
    """Remembered tables equal those that transformers makes, for each layer, direction and size."""
    from transformers.models.unlimited_ocr.modeling_unlimited_ocr import UnlimitedOcrSamVisionAttention

    vision.cache_position_tables(official_weights)
    for layer in official_weights.model.vision_tower.sam_encoder.layers:
        for table in (layer.attn.rel_pos_h, layer.attn.rel_pos_w):
            for side in (7, 32, 40):
                wanted = UnlimitedOcrSamVisionAttention.get_rel_pos(layer.attn, side, side, table)
                assert torch.equal(layer.attn.get_rel_pos(side, side, table), wanted)
                assert layer.attn.get_rel_pos(side, side, table) is layer.attn.get_rel_pos(side, side, table)


def test_seeds() -> None:
    """Equal seeds give equal weights; another seed other ones; the digest tells."""
    one, same, other = (
        load(ModelSettings(weights="random", size="tiny", seed=seed, device="cpu"), InferSettings())
        for seed in (3, 3, 4)
    )
    weights, equal, different = (dict(model.network.named_parameters()) for model in (one, same, other))
    assert all(torch.equal(weights[name], equal[name]) for name in weights)
    assert not torch.equal(weights["lm_head.weight"], different["lm_head.weight"])
    assert (one.info.digest, other.info.digest) == ("random:tiny:3", "random:tiny:4")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_models_are_whole(dtype: torch.dtype) -> None:
    """Every weight drawn and finite, in the dtype that a checkpoint's has; every buffer as the class makes it."""
    from transformers import UnlimitedOcrForConditionalGeneration

    from pytest_llmprof.models.deepseek_ocr.random_weights import random_config, random_model

    config = random_config("tiny")
    model = random_model(config, 0, torch.device("cpu"), dtype)
    made = UnlimitedOcrForConditionalGeneration(random_config("tiny"))
    assert not model.training
    read = load_weights(open_checkpoint(EMBEDDED), torch.device("cpu"), dtype)
    kept = {name.split(".", 4)[-1] for name, p in read.named_parameters() if p.dtype != dtype}
    assert kept <= {"mlp.gate.weight"}  # transformers 5.24 keeps routers in float32
    for name, p in model.named_parameters():
        assert p.dtype == (torch.float32 if name.endswith(tuple(kept)) else dtype)
    assert all(bool(p.isfinite().all()) and p.abs().max() < 12 for p in model.parameters())
    buffers, wanted = dict(model.named_buffers()), dict(made.named_buffers())
    assert buffers.keys() == wanted.keys()
    assert all(torch.equal(buffers[key], wanted[key]) and buffers[key].dtype == wanted[key].dtype for key in wanted)


def test_full_size_is_the_released_size() -> None:
    from transformers import UnlimitedOcrForConditionalGeneration

    from pytest_llmprof.models.deepseek_ocr.random_weights import random_config

    config = random_config("full")
    with torch.device("meta"):
        model = UnlimitedOcrForConditionalGeneration(config)
    assert sum(p.numel() for p in model.parameters()) == 3_335_504_128
    assert set(config.text_config.layer_types) == {"full_attention"}
    assert config.text_config.max_position_embeddings == 8192


def test_bfloat16(phases: Record) -> None:
    model = load(
        ModelSettings(weights="random", size="tiny", mode="tiny", device="cpu", dtype="bfloat16"), InferSettings()
    )
    assert model.info.dtype == "bfloat16"
    assert len(list(model.generate([blocks_image(1), blocks_image(2)], INFER, phases))) == 48


def test_info(tiny: Any) -> None:
    assert (tiny.info.weights, tiny.info.device, tiny.info.mode) == ("random", "cpu", "tiny")
    assert 8e6 < tiny.info.parameters < 10e6
