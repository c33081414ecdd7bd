"""Against the released code: the same views, logits and tokens, through our loader, rules and loop."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ocr_helpers import OFFICIAL, Ids, Record, generate
from PIL import Image

from pytest_llmprof.config.schema import InferSettings
from pytest_llmprof.models.deepseek_ocr import generation, preprocessing, vision
from pytest_llmprof.models.deepseek_ocr.model import DeepseekOcr

IMAGE_TOKEN = 511


@pytest.fixture(scope="module")
def page() -> Image.Image:
    return Image.open(OFFICIAL / "page_300x200.png").convert("RGB")


@pytest.fixture(scope="module", params=["tiny", "gundam"])
def reference(request: pytest.FixtureRequest) -> dict[str, Any]:
    with np.load(OFFICIAL / "reference.npz", allow_pickle=False) as stored:
        found = {key.partition("_")[2]: stored[key] for key in stored if key.startswith(request.param)}
    return {"mode": request.param} | found


def test_views_equal_the_released_ones_to_the_bit(page: Image.Image, reference: dict[str, Any]) -> None:
    views = preprocessing.page_views(page, preprocessing.MODES[reference["mode"]])

    digest = hashlib.sha256(views.overview.contiguous().numpy().tobytes()).hexdigest()
    assert digest == str(reference["view_sha256"])
    assert views.grid == (1, 1)
    assert views.crops is None


def test_logits(page: Image.Image, reference: dict[str, Any], official_weights: Any, phases: Record) -> None:
    mode = preprocessing.MODES[reference["mode"]]
    ids = reference["input_ids"].astype(int).tolist()
    assert ids.count(IMAGE_TOKEN) == preprocessing.image_tokens((1, 1), mode)

    with torch.inference_mode():
        pixels = preprocessing.normalize([preprocessing.page_views(page, mode).overview], torch.float32)
        features = vision.page_features(official_weights, pixels, None, [(1, 1)], phases)
        text = official_weights.model.language_model
        embeddings = vision.merge(text.embed_tokens(torch.tensor([ids])), features, [ids.index(IMAGE_TOKEN)])
        logits = official_weights.lm_head(text(inputs_embeds=embeddings).last_hidden_state)[0]

    difference = np.abs(logits[-32:].numpy() - reference["logits_last32"]).max()
    assert difference < 1e-4
    assert logits.argmax(-1).tolist() == reference["logits_argmax"].tolist()


def test_greedy_tokens(page: Image.Image, reference: dict[str, Any], official_weights: Any, phases: Record) -> None:
    """The whole way from the picture: all 60 tokens."""
    ids = reference["input_ids"].astype(int).tolist()
    after = ids[ids.index(IMAGE_TOKEN) + ids.count(IMAGE_TOKEN) :]
    model = DeepseekOcr(
        official_weights, Ids(IMAGE_TOKEN), mode=reference["mode"], engine="reference", weights="checkpoint", digest=""
    )
    infer = InferSettings(prompt=f"<image>{' '.join(map(str, after))}", max_new_tokens=60, no_repeat_ngram_size=20)

    tokens = list(model.generate([page], infer, phases))

    assert [token.id for token in tokens] == reference["greedy"].tolist()
    assert [token.finish for token in tokens] == [None] * 59 + ["length"]
    if reference["mode"] == "tiny":  # there the ban is in what was compared
        unbanned = list(model.generate([page], replace(infer, no_repeat_ngram_size=0), phases))
        assert [token.id for token in unbanned] != reference["greedy"].tolist()


def test_ignore_eos_goes_past_the_answers_end(phases: Record) -> None:
    """The trained reader ends its answer; told to ignore that, it goes on to the limit with the same beginning."""
    from pytest_llmprof.config.schema import ModelSettings
    from pytest_llmprof.models.deepseek_ocr.loader import load

    white = Image.new("RGB", (512, 512), "white")
    infer = InferSettings(prompt="free", max_new_tokens=40)
    model = load(ModelSettings(weights="embedded", size="tiny", mode="tiny", device="cpu"), infer)
    answer = list(model.generate([white], infer, phases))
    longer = list(model.generate([white], replace(infer, ignore_eos=True), phases))
    model.close()
    assert answer[-1].finish == "eos"
    assert len(answer) < len(longer) == 40
    assert [token.id for token in longer[: len(answer)]] == [token.id for token in answer]
    assert longer[-1].finish == "length"


def test_limits_can_ignore_the_end_token(official_weights: Any) -> None:
    """`eos=None` goes on to the limit, whatever comes."""
    prompts = generation.layout([[0, 5, 6]], torch.device("cpu"))
    limits = generation.Limits(5, 8192, None, 1, 0)
    with torch.inference_mode():
        embeddings = official_weights.model.language_model.embed_tokens(prompts.embeddable)
        free = [token.id for token in generate(official_weights, prompts, embeddings, limits)]
        assert len(free) == 5
        ends = generation.Limits(5, 8192, free[0], 1, 0)
        (only,) = generate(official_weights, prompts, embeddings, ends)
    assert only.finish == "eos"
