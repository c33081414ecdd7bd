"""Decoding: whatever Pillow reads becomes RGB, the rest is one clear line."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from pytest_llmprof.datasets.images import MAX_PIXELS, image_suffixes, load_image
from pytest_llmprof.errors import PageError


def pixels(path: Path) -> np.ndarray:
    image = load_image(path, "page")
    assert image.mode == "RGB"
    return np.asarray(image)


def error_of(path: Path) -> str:
    with pytest.raises(PageError) as caught:
        load_image(path, "letters/a")
    text = str(caught.value)
    assert "\n" not in text
    assert "'letters/a'" in text
    assert str(path) in text
    return text


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds one byte of data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


def test_plain_modes(tmp_path: Path) -> None:
    grey = Image.fromarray(np.array([[0, 128, 255]], np.uint8))
    grey.save(tmp_path / "grey.png")
    assert pixels(tmp_path / "grey.png").tolist() == [[[0] * 3, [128] * 3, [255] * 3]]
    Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1").save(tmp_path / "bit.png")
    assert pixels(tmp_path / "bit.png").tolist() == [[[0] * 3, [255] * 3]]
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "one.png")
    assert pixels(tmp_path / "one.png").tolist() == [[[1, 2, 3]]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putdata([0, 1])
    palette.save(tmp_path / "palette.png")
    assert pixels(tmp_path / "palette.png").tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_cmyk_jpeg_and_tiff(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    red = pixels(tmp_path / "red.jpg")[4, 4]
    assert red[0] > 240
    assert red[1] < 15
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "white.tif")
    assert pixels(tmp_path / "white.tif").min() == 255


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    samples = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(samples).save(tmp_path / f"deep.{suffix}")
    assert pixels(tmp_path / f"deep.{suffix}")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_16_bit_pgm_and_big_endian_tiff(tmp_path: Path) -> None:
    samples = np.array([[0, 32896, 65535]], ">u2")
    (tmp_path / "deep.pgm").write_bytes(b"P5 3 1 65535\n" + samples.tobytes())
    assert pixels(tmp_path / "deep.pgm")[0, :, 0].tolist() == [0, 128, 255]
    Image.frombytes("I;16B", (3, 1), samples.tobytes()).save(tmp_path / "deep.tif")
    assert pixels(tmp_path / "deep.tif")[0, :, 0].tolist() == [0, 128, 255]


def test_tiff_whose_zero_is_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 65535]], np.uint16)).save(tmp_path / "deep.tif", tiffinfo={262: 0})
    assert pixels(tmp_path / "deep.tif")[0, :, 0].tolist() == [255, 0]
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "byte.tif", tiffinfo={262: 0})
    assert pixels(tmp_path / "byte.tif")[0, :, 0].tolist() == [0, 255]  # the saving inverts these


def test_32_bit_and_float_tiff(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 2**30, 2**31 - 1]], np.int32)).save(tmp_path / "int.tif")
    assert pixels(tmp_path / "int.tif")[0, :, 0].tolist() == [0, 128, 255]
    Image.fromarray(np.array([[0, 0.5, 1]], np.float32)).save(tmp_path / "unit.tif")
    assert pixels(tmp_path / "unit.tif")[0, :, 0].tolist() == [0, 128, 255]
    Image.fromarray(np.array([[0, 128, 255, np.nan]], np.float32)).save(tmp_path / "byte.tif")
    assert pixels(tmp_path / "byte.tif")[0, :, 0].tolist() == [0, 128, 255, 0]


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert pixels(tmp_path / "clear.png").min() == 255
    Image.new("RGBA", (2, 2), (0, 0, 0, 128)).save(tmp_path / "half.png")
    assert abs(int(pixels(tmp_path / "half.png")[0, 0, 0]) - 127) <= 1
    Image.new("LA", (2, 2), (0, 0)).save(tmp_path / "la.png")
    assert pixels(tmp_path / "la.png").min() == 255
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 9, 9, 200, 100, 50])
    palette.putdata([0, 1])
    palette.save(tmp_path / "one.png", transparency=0)
    assert pixels(tmp_path / "one.png").tolist() == [[[255] * 3, [200, 100, 50]]]
    palette.save(tmp_path / "bytes.png", transparency=b"\x00\xff")
    assert pixels(tmp_path / "bytes.png").tolist() == [[[255] * 3, [200, 100, 50]]]
    Image.new("RGB", (1, 1), (7, 8, 9)).save(tmp_path / "key.png", transparency=(7, 8, 9))
    assert pixels(tmp_path / "key.png").tolist() == [[[255] * 3]]
    Image.fromarray(np.array([[0, 65535]], np.uint16)).save(tmp_path / "deep.png", transparency=0)
    assert pixels(tmp_path / "deep.png").min() == 255


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    # Left half black, right half white, 32x16; where the black half must come out says the EXIF standard.
    image = Image.new("RGB", (32, 16), "white")
    image.paste((0, 0, 0), (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    image.save(path, exif=exif)
    got = load_image(path, "page")
    assert got.size == ((32, 16) if orientation <= 4 else (16, 32))
    black = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom", 8: "bottom"}
    width, height = got.size
    spots = {
        "left": (2, height // 2),
        "right": (width - 3, height // 2),
        "top": (width // 2, 2),
        "bottom": (width // 2, height - 3),
    }
    assert got.getpixel(spots[black[orientation]])[0] < 40
    # Applied once, and nothing left that a later reader could apply again.
    assert got.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_line5_orientation_of_an_uncompressed_grey_tiff(tmp_path: Path, orientation: int, kind: type) -> None:
    # Given a path, Pillow 13 maps such a file into memory with width and height swapped.
    samples = np.array([[0, 50, 100], [150, 200, 255]])
    stored = samples.astype(kind) * (257 if kind is np.uint16 else 1)
    Image.fromarray(stored).save(tmp_path / "a.tif", tiffinfo={0x0112: orientation})
    right = {
        1: samples,
        2: samples[:, ::-1],
        3: samples[::-1, ::-1],
        4: samples[::-1],
        5: samples.T,
        6: np.rot90(samples, -1),
        7: samples[::-1, ::-1].T,
        8: np.rot90(samples),
    }[orientation]
    assert pixels(tmp_path / "a.tif")[..., 0].tolist() == right.tolist()


def test_broken_exif_does_not_cost_the_page(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8), "white").save(path, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\x01\x12broken")
    assert pixels(path).shape == (8, 8, 3)


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for suffix in ("gif", "webp", "png", "tif"):
        path = tmp_path / f"moving.{suffix}"
        extra = {"lossless": True} if suffix == "webp" else {}
        frames[0].save(path, save_all=True, append_images=frames[1:], **extra)
        assert pixels(path)[0, 0].tolist() == [255, 0, 0], suffix


def test_unreadable_files_name_page_path_and_cause(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    assert "empty" in error_of(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("I am a text")
    assert "not an image" in error_of(tmp_path / "text.png")
    assert "No such file" in error_of(tmp_path / "missing.png")
    (tmp_path / "folder.png").mkdir()
    assert "directory" in error_of(tmp_path / "folder.png")
    (tmp_path / "paper.png").write_bytes(b"%PDF-1.7\n%%EOF")
    assert "PDF" in error_of(tmp_path / "paper.png")
    (tmp_path / "lfs.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git lfs pull" in error_of(tmp_path / "lfs.png")
    (tmp_path / "script.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    assert "not an image" in error_of(tmp_path / "script.eps")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tif", "webp"])
def test_truncated_and_corrupt(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    path = tmp_path / f"noise.{suffix}"
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    error_of(path)
    path.write_bytes(whole[:20])
    error_of(path)


def test_corrupt_data_in_a_png(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(path)
    data = bytearray(path.read_bytes())
    data[200:400] = bytes(200)
    path.write_bytes(data)
    error_of(path)


def test_long_image_is_read(tmp_path: Path) -> None:
    Image.new("L", (20_000, 100), 255).save(tmp_path / "long.png")
    assert pixels(tmp_path / "long.png").shape == (100, 20_000, 3)


@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_bomb_names_size_and_limit(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bomb.{suffix}"
    if suffix == "png":
        path.write_bytes(png_header(20_000, 20_000))
    else:
        head = struct.pack("<IiiHHIIiiII", 40, 20_000, 20_000, 1, 24, 0, 0, 0, 0, 0, 0)
        path.write_bytes(b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head)
    before = Image.MAX_IMAGE_PIXELS
    text = error_of(path)
    assert "20000x20000" in text
    assert f"{MAX_PIXELS:,}" in text
    assert before == Image.MAX_IMAGE_PIXELS


def test_own_limit_holds_where_pillow_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(20_000, 20_000))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert "20000x20000" in error_of(tmp_path / "bomb.png")


def test_lower_limit_of_the_process_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "2000 pixels" in error_of(tmp_path / "a.png")


def test_no_warning_gets_out_and_no_state_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 100x150 pixels lie between Pillow's warning and its refusal here, as 10,000x10,000 do by default.
    Image.new("L", (100, 150)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filters = list(warnings.filters)
        assert pixels(tmp_path / "large.png").shape == (150, 100, 3)
        assert warnings.filters == filters
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_image_is_whole_after_the_file_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (3, 3), "red").save(path)
    image = load_image(path, "a")
    path.unlink()
    assert image.getpixel((2, 2)) == (255, 0, 0)


def test_suffixes() -> None:
    assert {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".gif", ".bmp"} <= image_suffixes()
    assert not {".pdf", ".md", ".txt", ".json", ".eps", ".ps", ".mpg", ".h5"} & image_suffixes()
