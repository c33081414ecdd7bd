from __future__ import annotations

import pytest
from PIL import Image, ImageFont

from pytest_llmprof.outputs.images import boxes_image, colour, crop, place_boxes, thumbnail
from pytest_llmprof.records.predictions import Box


def test_boxes_are_cut_at_the_edges_and_bad_ones_skipped() -> None:
    boxes = [
        Box("text", (-20, -5, 30, 40)),
        Box("text", (10, 10, 10, 50)),  # no width
        Box("text", (50, 60, 40, 70)),  # turned round
        Box("text", (200, 10, 300, 20)),  # outside
        Box("text", (90, 70, 500, 500)),
        Box("text", (float("nan"), 0, 5, 5)),  # type: ignore[arg-type]
        Box("text", (1, 2, 3)),  # type: ignore[arg-type]
    ]
    placed, skipped = place_boxes(boxes, (100, 80))
    assert [(box.number, box.corners) for box in placed] == [(1, (0, 0, 30, 40)), (5, (90, 70, 100, 80))]
    assert skipped == 5


@pytest.mark.parametrize(
    ("size", "width", "expected"),
    [
        ((1000, 500), 480, (480, 240)),
        ((300, 900), 480, (300, 900)),  # never enlarged
        ((480, 10), 480, (480, 10)),
        ((20_000, 3), 480, (480, 1)),
        ((1, 1), 480, (1, 1)),
        ((999, 1000), 1, (1, 1)),
        ((30, 40_000), 480, (12, 16_384)),  # JPEG has an end
    ],
)
def test_thumbnail(size: tuple[int, int], width: int, expected: tuple[int, int]) -> None:
    assert thumbnail(Image.new("RGB", size), width).size == expected


def test_colours_are_stable_and_apart() -> None:
    known = ["title", "text", "table", "image", "equation", "list", "header", "footer", "page_number"]
    assert len({colour(label) for label in known}) == len(known)
    assert colour(" Title ") == colour("title")
    # Written down, so that a change of the palette or of the hash is seen: galleries would differ.
    assert colour("title") == (214, 39, 40)
    assert colour("figure") == (0, 128, 128)
    assert colour("表格") == (0, 160, 110)
    assert colour("\ud800") == colour("\ud800")


def test_boxes_image_draws_in_the_labels_colour_and_leaves_the_image_clean() -> None:
    image = Image.new("RGB", (400, 300), "white")
    placed, _ = place_boxes(
        [Box("title", (100, 100, 200, 150)), Box("image", (0, 0, 400, 300))], image.size
    )
    drawn = boxes_image(image, placed)
    assert drawn.size == (400, 300)
    assert drawn.getpixel((150, 149)) == colour("title")
    assert drawn.getpixel((399, 299)) == colour("image")
    assert drawn.getpixel((150, 125)) == (255, 255, 255)
    assert image.getcolors() == [(120_000, (255, 255, 255))]


def test_a_large_image_is_scaled_with_its_boxes() -> None:
    image = Image.new("RGB", (8192, 4096), "white")
    placed, _ = place_boxes([Box("title", (4096, 2048, 8192, 4096))], image.size)
    drawn = boxes_image(image, placed)
    assert drawn.size == (2048, 1024)
    assert drawn.getpixel((1024, 800)) == colour("title")
    assert drawn.getpixel((1500, 700)) == (255, 255, 255)


@pytest.mark.parametrize("size", [(1, 1), (2, 700), (512, 512)])
@pytest.mark.parametrize("label", ["", "text", "表格 جدول 👩‍🔬", "\ud800\x00\n\x1b[31m", "long " * 99])
def test_any_label_on_any_image(size: tuple[int, int], label: str) -> None:
    image = Image.new("RGB", size, "white")
    placed, skipped = place_boxes([Box(label, (0, 0, *size))] * 3, size)
    assert skipped == 0
    assert boxes_image(image, placed).size == size


def test_pillow_without_freetype(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(ImageFont, "load_default_imagefont"):
        pytest.skip("this Pillow makes its bitmap font only where it has no FreeType")
    monkeypatch.setattr(ImageFont, "load_default", lambda size: ImageFont.load_default_imagefont())
    image = Image.new("RGB", (200, 200), "white")
    placed, _ = place_boxes([Box("表格", (20, 50, 150, 150))], image.size)
    assert boxes_image(image, placed).getpixel((149, 149)) == colour("表格")


def test_three_hundred_labels_do_not_hide_each_other() -> None:
    boxes = [
        Box(f"label {number % 7}", (40 + column * 130, 30 + row * 30, 140 + column * 130, 46 + row * 30))
        for number, (row, column) in enumerate((row, column) for row in range(30) for column in range(10))
    ]
    image = Image.new("RGB", (1400, 1000), "white")
    placed, skipped = place_boxes(boxes, image.size)
    assert (len(placed), skipped) == (300, 0)
    drawn = boxes_image(image, placed)
    assert all(
        drawn.getpixel((box.corners[2] - 1, box.corners[3] - 1)) != (255, 255, 255) for box in placed
    )


def test_crop_is_cut_from_the_image() -> None:
    image = Image.new("RGB", (100, 80), "white")
    image.paste("red", (10, 10, 30, 20))
    (box,), _ = place_boxes([Box("image", (10, 10, 30, 20))], image.size)
    part = crop(image, box)
    assert part.size == (20, 10)
    assert part.getcolors() == [(200, (255, 0, 0))]
