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
from pytest_llmprof.models.checkpoint import open_checkpoint
from pytest_llmprof.models.deepseek_ocr import generation, preprocessing, vision
from pytest_llmprof.models.deepseek_ocr.loader import load_weights
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


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A CPU, and a GPU in true float32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert torch.get_float32_matmul_precision() == "highest"
    return torch.device(request.param)


@pytest.fixture
def weights(device: torch.device, official_weights: Any) -> Any:
    return official_weights if device.type == "cpu" else load_weights(open_checkpoint(OFFICIAL), device, torch.float32)


@pytest.fixture
def limit(device: torch.device) -> float:
    """How far logits may lie apart."""
    return 1e-4 if device.type == "cpu" else 1e-3


def logits_of(weights: Any, views: preprocessing.PageViews, ids: list[int], device: torch.device) -> torch.Tensor:
    """[length, vocabulary], on the CPU, through our vision tower and merge."""
    pixels = preprocessing.normalize([views.overview], torch.float32).to(device)
    crops = None if views.crops is None else preprocessing.normalize(list(views.crops), torch.float32).to(device)
    with torch.inference_mode():
        features = vision.page_features(weights, pixels, crops, [views.grid], Record())
        text = weights.model.language_model
        embeddings = text.embed_tokens(torch.tensor([ids], device=device))
        embeddings = vision.insert_features(embeddings, features, [ids.index(IMAGE_TOKEN)])
        return weights.lm_head(text(inputs_embeds=embeddings).last_hidden_state)[0].cpu()


def test_logits(page: Image.Image, reference: dict[str, Any], weights: Any, device: torch.device, limit: float) -> None:
    mode = preprocessing.MODES[reference["mode"]]
    ids = reference["input_ids"].astype(int).tolist()
    assert ids.count(IMAGE_TOKEN) == preprocessing.image_tokens((1, 1), mode)

    logits = logits_of(weights, preprocessing.page_views(page, mode), ids, device)

    difference = np.abs(logits[-32:].numpy() - reference["logits_last32"]).max()
    assert difference < limit
    assert logits.argmax(-1).tolist() == reference["logits_argmax"].tolist()


def test_logits_with_crops(
    official_weights: Any, weights: Any, device: torch.device, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image large enough for gundam's crops, against transformers' own forward pass on the CPU.

    That one gives the released code's logits with crops too; the stored reference has a small image only.
    """
    mode = preprocessing.MODES["gundam"]
    noise = np.random.default_rng(0).integers(0, 256, (160, 100, 3), dtype=np.uint8)
    views = preprocessing.page_views(Image.fromarray(noise).resize((1000, 1600)), mode)
    columns, rows = views.grid
    assert (columns, rows) == (2, 3)
    assert views.crops is not None
    ids = [0, *[IMAGE_TOKEN] * preprocessing.image_tokens(views.grid, mode), 7, 8, 9]

    monkeypatch.setattr(official_weights.model.config, "image_token_id", IMAGE_TOKEN)

    with torch.inference_mode():
        theirs = official_weights(
            input_ids=torch.tensor([ids]),
            pixel_values=preprocessing.normalize([views.overview], torch.float32),
            pixel_values_local=preprocessing.normalize(list(views.crops), torch.float32),
            num_local_patches=[columns * rows],
            patches_grid=[[columns, rows]],
        ).logits[0]
    ours = logits_of(weights, views, ids, device)

    assert (ours - theirs).abs().max() < limit
    blank = preprocessing.PageViews(views.overview, torch.zeros_like(views.crops), views.grid)
    assert (logits_of(weights, blank, ids, device) - theirs)[-3:].abs().max() > 10 * limit  # crops matter


def test_greedy_tokens(page: Image.Image, reference: dict[str, Any], weights: Any, phases: Record) -> None:
    """From the image to the last token: all 60 tokens."""
    ids = reference["input_ids"].astype(int).tolist()
    after = ids[ids.index(IMAGE_TOKEN) + ids.count(IMAGE_TOKEN) :]
    model = DeepseekOcr(
        weights, Ids(IMAGE_TOKEN), mode=reference["mode"], engine="reference", weights="checkpoint", digest=""
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
    prompts = generation.pad_prompts([[0, 5, 6]], torch.device("cpu"))
    limits = generation.Limits(5, 8192, None, 1, 0)
    with torch.inference_mode():
        embeddings = official_weights.model.language_model.embed_tokens(prompts.ids_to_embed)
        free = [token.id for token in generate(official_weights, prompts, embeddings, limits)]
        assert len(free) == 5
        ends = generation.Limits(5, 8192, free[0], 1, 0)
        (only,) = generate(official_weights, prompts, embeddings, ends)
    assert only.finish == "eos"
