"""Images of more than 8 bits: white is 255 and black 0, whatever the file's own range is (issue 15, line 5)."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
from file_makers import tiff
from PIL import Image

from pytest_llmprof.datasets.images import load_image
from pytest_llmprof.errors import PageError


def row(path: Path) -> list[int]:
    """The red samples of the first row; the image must be grey."""
    got = np.asarray(load_image(path, "page"))
    assert (got[..., 0] == got[..., 1]).all()
    assert (got[..., 0] == got[..., 2]).all()
    return got[0, :, 0].tolist()


def png(colour_type: int, *samples: int, key: tuple[int, ...] = ()) -> bytes:
    """A PNG of 16 bits with one row."""
    width = len(samples) // {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, 1, 16, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + (chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)) if key else b"")
        + chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(f">{len(samples)}H", *samples)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("kind", "samples"),
    [
        ("uint16", [0, 32896, 65535]),
        ("uint16", [0, 2048, 4095]),  # 12 bits stored in 16
        ("uint16", [0, 128, 255]),
        ("int16", [-32768, 0, 32767]),
        ("int16", [0, 16384, 32767]),
        ("int16", [0, 2048, 4095]),
        ("int8", [-128, 0, 127]),
        ("uint32", [0, 2**31, 2**32 - 1]),
        ("uint32", [0, 32896, 65535]),
        ("int32", [-(2**31), 0, 2**31 - 1]),
        ("int32", [0, 2**30, 2**31 - 1]),
        ("int32", [0, 128, 255]),
        ("float32", [0, 0.5, 1]),
        ("float32", [-1, 0, 1]),
        ("float32", [0, 127.5, 255]),
        ("float32", [0, 32767.5, 65535]),
    ],
)
def test_line5_tiff_black_is_0_and_white_255(tmp_path: Path, kind: str, samples: list[float], order: str) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(np.array([samples], kind), order=order))
    if (kind, order) == ("uint32", ">"):  # Pillow has no reader for it
        with pytest.raises(PageError, match="samples of a kind that Pillow does not know"):
            load_image(tmp_path / "a.tif", "a")
        return
    low, middle, high = row(tmp_path / "a.tif")
    assert (low, high) == (0, 255)
    assert 127 <= middle <= 128


def test_line5_tiff_of_12_packed_bits(tmp_path: Path) -> None:
    packed = bytes.fromhex("000" "800" "fff" "000")
    (tmp_path / "a.tif").write_bytes(tiff(np.zeros((1, 4), np.uint16), bits=12, packed=packed))
    assert row(tmp_path / "a.tif") == [0, 128, 255, 0]
    # Its own bits say where white is: nothing is guessed from a dark page.
    (tmp_path / "b.tif").write_bytes(tiff(np.zeros((1, 2), np.uint16), bits=12, packed=bytes.fromhex("0000ff")))
    assert row(tmp_path / "b.tif") == [0, 16]


def test_line5_tiff_whose_zero_is_white(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(np.array([[0, 32896, 65535]], np.uint16), photometric=0))
    assert row(tmp_path / "a.tif") == [255, 127, 0]
    # A white page with a little dust stays white.
    (tmp_path / "b.tif").write_bytes(tiff(np.array([[0, 200]], np.uint16), photometric=0))
    assert row(tmp_path / "b.tif") == [255, 254]
    (tmp_path / "c.tif").write_bytes(tiff(np.array([[0, 0.5, 1]], np.float32), photometric=0))
    assert row(tmp_path / "c.tif") == [255, 127, 0]


def test_line5_tiff_that_declares_its_range(tmp_path: Path) -> None:
    samples = np.array([[100, 120, 200]], np.uint16)
    (tmp_path / "a.tif").write_bytes(tiff(samples, tags={340: [100], 341: [200]}))
    assert row(tmp_path / "a.tif") == [0, 51, 255]
    (tmp_path / "b.tif").write_bytes(tiff(np.array([[0.25, 0.5]], np.float32), tags={340: [0.0], 341: [0.5]}))
    assert row(tmp_path / "b.tif") == [128, 255]
    (tmp_path / "c.tif").write_bytes(tiff(np.array([[0, 1]], np.float32), tags={340: [1.0], 341: [float("nan")]}))
    assert row(tmp_path / "c.tif") == [0, 255]


def test_line5_values_a_little_outside_do_not_change_the_range(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(np.array([[-0.02, 0.5, 1.02, np.inf, -np.inf, np.nan]], np.float32)))
    assert row(tmp_path / "a.tif") == [0, 128, 255, 255, 0, 0]
    (tmp_path / "b.tif").write_bytes(tiff(np.array([[-9999, 0, 1]], np.float32)))  # "no data"
    assert row(tmp_path / "b.tif") == [0, 0, 255]
    (tmp_path / "c.tif").write_bytes(tiff(np.array([[-3, 0, 32767]], np.int16)))
    assert row(tmp_path / "c.tif") == [0, 0, 255]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("depth", [3, 4])
@pytest.mark.parametrize("white", [65535, 4095])
def test_line5_tiff_in_colour(tmp_path: Path, white: int, depth: int, order: str) -> None:
    samples = np.array([[[0] * 3, [white // 2 + 1] * 3, [white] * 3]], np.uint16)
    if depth == 4:
        samples = np.concatenate([samples, np.full((1, 3, 1), white, np.uint16)], axis=2)
    (tmp_path / "a.tif").write_bytes(tiff(samples, order=order, tags={338: [2]} if depth == 4 else {}))
    low, middle, high = row(tmp_path / "a.tif")
    assert (low, high) == (0, 255)
    assert abs(middle - 128) <= 8  # of 12 bits in 16 Pillow keeps 4


def test_line5_png_of_16_bits(tmp_path: Path) -> None:
    for name, data in {
        "grey": png(0, 0, 32896, 65535),
        "colour": png(2, *[0] * 3, *[32896] * 3, *[65535] * 3),
        "grey and alpha": png(4, 0, 65535, 32896, 65535, 0, 0),
        "colour and alpha": png(6, 0, 0, 0, 65535, 32896, 32896, 32896, 65535, 0, 0, 0, 0),
    }.items():
        (tmp_path / "a.png").write_bytes(data)
        assert row(tmp_path / "a.png") == [0, 128, 255], name
    # A dark page stays dark: PNG says where white is.
    (tmp_path / "a.png").write_bytes(png(0, 0, 257, 4095))
    assert row(tmp_path / "a.png") == [0, 1, 16]


def test_line5_png_of_16_bits_with_a_transparent_colour(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(2, *[0x1234] * 3, *[0] * 3, key=(0x1234,) * 3))
    assert row(tmp_path / "a.png") == [255, 0]
    (tmp_path / "b.png").write_bytes(png(0, 0x1234, 0, key=(0x1234,)))
    assert row(tmp_path / "b.png") == [255, 0]


@pytest.mark.parametrize("highest", [1023, 4095, 65535])
def test_line5_pgm_and_ppm(tmp_path: Path, highest: int) -> None:
    samples = np.array([0, highest // 2 + 1, highest], ">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 %d\n" % highest + samples.tobytes())
    assert row(tmp_path / "a.pgm") == [0, 128, 255]
    (tmp_path / "b.pgm").write_text(f"P2 3 1 {highest}\n{' '.join(map(str, samples))}\n")
    assert row(tmp_path / "b.pgm") == [0, 128, 255]
    (tmp_path / "c.ppm").write_bytes(b"P6 3 1 %d\n" % highest + samples.repeat(3).tobytes())
    assert row(tmp_path / "c.ppm") == [0, 128, 255]


def test_line5_pgm_that_is_dark_stays_dark(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 65535\n" + np.array([0, 4095], ">u2").tobytes())
    assert row(tmp_path / "a.pgm") == [0, 16]


def test_line5_pfm(tmp_path: Path) -> None:
    (tmp_path / "a.pfm").write_bytes(b"Pf\n3 1\n-1.0\n" + np.array([0, 0.5, 1], "<f4").tobytes())
    assert row(tmp_path / "a.pfm") == [0, 128, 255]


def test_line5_jpeg_2000(tmp_path: Path) -> None:
    path = tmp_path / "a.jp2"
    samples = np.repeat(np.array([[0, 32768, 65535]], np.uint16), 8, axis=0)
    try:
        Image.fromarray(samples).save(path, irreversible=False)
    except OSError:
        pytest.skip("this Pillow has no JPEG 2000")
    assert row(path) == [0, 128, 255]


def test_line5_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = ["SIMPLE  =                    T", "BITPIX  =                   16", "NAXIS   =                    2"]
    cards += ["NAXIS1  =                    3", "NAXIS2  =                    1", "END"]
    head = "".join(card.ljust(80) for card in cards).ljust(2880).encode()
    (tmp_path / "a.fits").write_bytes(head + np.array([-32768, 0, 32767], ">i2").tobytes().ljust(2880, b"\0"))
    if int(PIL.__version__.partition(".")[0]) >= 13:
        assert row(tmp_path / "a.fits") == [0, 128, 255]
    monkeypatch.setattr(PIL, "__version__", "12.3.0")
    with pytest.raises(PageError, match=r"a\.fits: FITS with more than 8 bits needs Pillow 13, this is 12\.3\.0"):
        load_image(tmp_path / "a.fits", "a")


@pytest.mark.parametrize("kind", ["float16", "float64"])
def test_line5_samples_that_pillow_does_not_know_fail_by_name(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(np.array([[0, 1]], kind)))
    with pytest.raises(PageError, match=r"page 'a': .*a\.tif: .*samples of a kind that Pillow does not know"):
        load_image(tmp_path / "a.tif", "a")
