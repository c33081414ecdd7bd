"""Views, grids and token counts, by the released rules."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from pytest_llmprof.config.schema import InferSettings
from pytest_llmprof.models.deepseek_ocr.preprocessing import (
    MODES,
    crop_grid,
    image_tokens,
    normalize,
    page_views,
)

GUNDAM = MODES["gundam"]


def released_grid(width: int, height: int) -> tuple[int, int]:
    """The released rule, written as it is released (`dynamic_preprocess`, `find_closest_aspect_ratio`)."""
    if width <= 640 and height <= 640:
        return 1, 1
    pairs = {(i, j) for n in range(2, 10) for i in range(1, n + 1) for j in range(1, n + 1) if 2 <= i * j <= 9}
    best, best_difference = (1, 1), float("inf")
    for ratio in sorted(pairs, key=lambda pair: pair[0] * pair[1]):
        difference = abs(width / height - ratio[0] / ratio[1])
        if difference < best_difference:
            best, best_difference = ratio, difference
        elif difference == best_difference and width * height > 0.5 * 640 * 640 * ratio[0] * ratio[1]:
            best = ratio
    return best


@pytest.mark.parametrize("mode, tokens", [("tiny", 73), ("small", 111), ("base", 273), ("large", 421), ("gundam", 273)])
def test_image_tokens_of_the_global_view(mode: str, tokens: int) -> None:
    assert image_tokens((1, 1), MODES[mode]) == tokens


def test_image_tokens_with_crops() -> None:
    assert image_tokens((2, 3), GUNDAM) == 903
    assert image_tokens((3, 3), GUNDAM) == 273 + 31 * 30


@pytest.mark.parametrize(
    "size, grid",
    [
        ((640, 640), (1, 1)),
        ((300, 200), (1, 1)),
        ((641, 640), (2, 2)),
        ((1275, 1650), (2, 3)),
        ((1650, 1275), (3, 2)),
        ((3000, 400), (7, 1)),
        ((400, 3000), (1, 8)),
        ((2000, 2000), (3, 3)),
        ((1000, 1600), (2, 3)),
        ((20000, 1), (9, 1)),
        ((650, 1300), (1, 2)),
        ((1000, 2000), (2, 4)),
    ],
)
def test_grids(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert crop_grid(size, GUNDAM) == grid
    assert crop_grid(size, GUNDAM) == released_grid(*size)


def test_grids_follow_the_release_everywhere() -> None:
    for width in range(100, 4000, 97):
        for height in range(100, 4000, 89):
            assert crop_grid((width, height), GUNDAM) == released_grid(width, height)


def test_grids_follow_the_release_at_ties() -> None:
    """Aspects halfway between two grids, at small and big sizes."""
    ratios = sorted({i / j for i in range(1, 10) for j in range(1, 10) if i * j <= 9})
    for low, high in pairwise(ratios):
        for height in (720, 1440, 2520, 5040):
            size = (round((low + high) / 2 * height), height)
            assert crop_grid(size, GUNDAM) == released_grid(*size)


@pytest.mark.parametrize("mode", ["tiny", "small", "base", "large"])
def test_other_modes_have_no_crops(mode: str) -> None:
    assert crop_grid((3000, 2000), MODES[mode]) == (1, 1)


def gradient(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("size", [(1000, 700), (700, 1000), (1275, 1650), (3000, 400), (512, 512)])
@pytest.mark.parametrize("mode", ["base", "gundam"])
def test_padded_views(mode: str, size: tuple[int, int]) -> None:
    from PIL import ImageOps

    overview = page_views(gradient(*size), MODES[mode]).overview
    wanted = ImageOps.pad(gradient(*size), (1024, 1024), color=(127, 127, 127))
    assert torch.equal(overview, torch.from_numpy(np.array(wanted)).permute(2, 0, 1))


@pytest.mark.parametrize("mode, side", [("tiny", 512), ("small", 640)])
def test_stretched_views(mode: str, side: int) -> None:
    overview = page_views(gradient(900, 300), MODES[mode]).overview
    wanted = gradient(900, 300).resize((side, side), Image.Resampling.BICUBIC)
    assert torch.equal(overview, torch.from_numpy(np.array(wanted)).permute(2, 0, 1))


def test_crops_lie_row_by_row() -> None:
    image = gradient(1275, 1650)
    views = page_views(image, GUNDAM)
    assert views.grid == (2, 3)
    assert views.crops is not None
    canvas = image.resize((1280, 1920))
    for index, crop in enumerate(views.crops):
        x, y = index % 2 * 640, index // 2 * 640
        wanted = np.array(canvas.crop((x, y, x + 640, y + 640)))
        assert torch.equal(crop, torch.from_numpy(wanted).permute(2, 0, 1))


@pytest.mark.parametrize("size", [(1, 1), (20000, 1), (1, 20000), (20000, 3), (5, 9000)])
@pytest.mark.parametrize("mode", MODES)
def test_odd_shapes(mode: str, size: tuple[int, int]) -> None:
    views = page_views(Image.new("RGB", size, (9, 9, 9)), MODES[mode])
    side = MODES[mode].size
    assert views.overview.shape == (3, side, side)
    assert int(views.overview.min()) == 9  # some of the image is in it


@pytest.mark.parametrize("kind", ["L", "1", "P", "RGBA", "CMYK", "LA"])
def test_other_kinds_of_pictures(kind: str) -> None:
    assert page_views(Image.new(kind, (60, 40)), MODES["tiny"]).overview.shape == (3, 512, 512)


def test_normalize_rounds_as_released() -> None:
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, 16, 16)
    values = normalize([every, every], torch.float32)
    assert values.shape == (2, 3, 16, 16)
    assert torch.equal(values, values.to(torch.bfloat16).float())
    exact = (every.double() / 255 - 0.5) / 0.5
    assert float((values[0] - exact).abs().max()) < 2**-9
    assert normalize([every], torch.bfloat16).dtype == torch.bfloat16


def test_shape_key(tiny: object) -> None:
    from pytest_llmprof.models.deepseek_ocr.model import DeepseekOcr

    assert isinstance(tiny, DeepseekOcr)
    infer = InferSettings()
    small, large = Image.new("RGB", (300, 200)), Image.new("RGB", (1275, 1650))
    assert tiny.shape_key(small, infer) == tiny.shape_key(large, infer)
    assert tiny.shape_key(small, infer) != tiny.shape_key(small, InferSettings(prompt="free"))
    gundam = DeepseekOcr(tiny.network, tiny.tokenizer, mode="gundam", engine="reference", weights="random", digest="")
    assert gundam.shape_key(small, infer) != gundam.shape_key(large, infer)
    assert hash(gundam.shape_key(large, infer)) == hash(gundam.shape_key(Image.new("RGB", (1270, 1650)), infer))
