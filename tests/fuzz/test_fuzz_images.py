"""Images and folders of them: an RGB image as it was drawn, or an error that names the page; never anything else."""

from __future__ import annotations

import io
import os
import re
import struct
import tempfile
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from broken import SLOW, assert_one_line, mutated
from file_makers import tiff
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, UnidentifiedImageError

from pytest_llmprof.config.schema import DatasetSettings
from pytest_llmprof.datasets.image_folder import image_folder_dataset
from pytest_llmprof.datasets.images import load_image, page_frames
from pytest_llmprof.datasets.select import Entry, matching
from pytest_llmprof.errors import DatasetError, PageError

MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"]
MODES += ["I", "I;16", "I;16B", "F"]
FORMATS = ["PNG", "TIFF", "BMP", "GIF", "JPEG", "JPEG2000", "WEBP", "PPM", "TGA", "ICO", "PCX", "SGI", "DDS", "MPO"]
FORMATS += ["PDF"]
STARTS = [b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"GIF89a", b"BM", b"\xff\xd8\xff", b"P5 ", b""]


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """The image in a file; nothing where Pillow can't write that."""
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, **options)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, SystemError):
        return b""
    return buffer.getvalue()


FILES = st.builds(
    lambda mode, kind, size, value: saved(Image.new(mode, size, value), kind),
    st.sampled_from(MODES),
    st.sampled_from(FORMATS),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(0, 255),
)
DAMAGE = st.lists(st.tuples(st.integers(0, 4000), st.binary(max_size=6)), max_size=4)


def damaged(data: bytes, damage: list[tuple[int, bytes]], keep: int) -> bytes:
    changed = bytearray(data)
    for place, piece in damage:
        changed[place % max(len(changed), 1) : place % max(len(changed), 1) + len(piece)] = piece
    return bytes(changed[:keep])


def read(data: bytes, suffix: str = ".png") -> Image.Image | None:
    """The image; None where the page fails by name."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, f"a{suffix}")
        path.write_bytes(data)
        before = warnings.filters[:], Image.MAX_IMAGE_PIXELS
        try:
            frames = page_frames(path)
            image = load_image(path, "a")
        except PageError as error:
            assert_one_line(error, f"page 'a': cannot read {path}: ")
            return None
        finally:
            assert (warnings.filters[:], Image.MAX_IMAGE_PIXELS) == before
    assert frames == sorted(set(frames))
    assert image.mode == "RGB"
    assert image.size[0] > 0
    assert image.size[1] > 0
    assert image.getexif().get(0x0112) is None
    return image


def samples_of(data: bytes) -> np.ndarray:
    """The samples of an image that must be read, as whole numbers that can be subtracted."""
    image = read(data)
    assert image is not None
    return np.asarray(image).astype(int)


@given(FILES, DAMAGE, st.integers(0, 6000))
def test_damaged_files(data: bytes, damage: list[tuple[int, bytes]], keep: int) -> None:
    read(damaged(data, damage, keep))


@given(st.binary(max_size=300), st.sampled_from(STARTS))
def test_any_bytes(data: bytes, start: bytes) -> None:
    read(start + data)


# Each sample is drawn: an image of one colour looks the same however it is turned.
COLOURS = arrays.arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5), st.just(3)), fill=st.nothing())
GREYS = arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), fill=st.nothing())


@given(st.sampled_from(["PNG", "TIFF", "BMP", "PPM", "TGA", "WEBP", "JPEG2000"]), COLOURS | GREYS)
def test_what_is_drawn_is_read(kind: str, samples: np.ndarray) -> None:
    """8-bit samples come out of formats without loss as they went in."""
    data = saved(Image.fromarray(samples), kind, **({"lossless": True} if kind == "WEBP" else {}))
    expected = samples if samples.ndim == 3 else np.repeat(samples[..., None], 3, axis=2)
    assert np.array_equal(samples_of(data), expected)


@given(st.sampled_from(["PNG", "TIFF", "WEBP"]), COLOURS, st.integers(0, 255))
def test_transparency_is_laid_over_white(kind: str, samples: np.ndarray, alpha: int) -> None:
    layer = np.dstack([samples, np.full(samples.shape[:2], alpha, np.uint8)])
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    got = samples_of(saved(Image.fromarray(layer), kind, **options))
    assert np.abs(got - (255 + (samples.astype(float) - 255) * alpha / 255)).max() <= 1


TURNS = {1: lambda one: one, 2: np.fliplr, 3: lambda one: np.rot90(one, 2), 4: np.flipud}
TURNS |= {5: lambda one: one.swapaxes(0, 1), 6: lambda one: np.rot90(one, -1)}
TURNS |= {7: lambda one: np.rot90(one, 2).swapaxes(0, 1), 8: np.rot90}


@pytest.mark.parametrize("orientation", [*range(10), 65535])
@SLOW
@given(st.sampled_from(["PNG", "TIFF", "WEBP"]), COLOURS)
def test_orientation(orientation: int, kind: str, samples: np.ndarray) -> None:
    """As the standard of EXIF draws it; a number that it does not know turns nothing."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(samples), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(samples_of(data), TURNS.get(orientation, TURNS[1])(samples))


@given(st.sampled_from(["PNG", "TIFF"]), arrays.arrays(np.uint16, st.tuples(st.integers(1, 6), st.integers(1, 6))))
def test_deep_samples_are_scaled_and_not_clipped(name: str, samples: np.ndarray) -> None:
    """Darker stays darker; black is 0 and full white 255."""
    samples[0, 0] = 65535
    grey = samples_of(saved(Image.fromarray(samples), name))[..., 0]
    assert np.abs(grey - samples.astype(float) / 257).max() <= 0.5


@pytest.mark.parametrize("kind", ["uint8", "uint16", "uint32", "int8", "int16", "int32", "float32"])
@SLOW
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.sampled_from("<>"), st.booleans())
def test_tiff_samples_of_any_kind(kind: str, shares: list[float], order: str, inverted: bool) -> None:
    """A file that uses its whole range: each sample is as bright as its share of that range."""
    dtype = np.dtype(kind)
    low, high = (0.0, 1.0) if dtype.kind == "f" else (float(np.iinfo(dtype).min), float(np.iinfo(dtype).max))
    exact = np.array([0, 1, *shares]) * (high - low) + low
    samples = (exact if dtype.kind == "f" else np.clip(np.rint(exact), low, high)).astype(dtype)[None]
    data = tiff(samples, order=order, photometric=0 if inverted else None)
    image = read(data)
    if image is None:
        with pytest.raises(UnidentifiedImageError):  # Pillow has no reader for some of them
            Image.open(io.BytesIO(data))
        return
    grey = np.asarray(image)[0, :, 0].astype(int)
    expected = (samples[0].astype(float) - low) / (high - low) * 255
    assert np.abs(grey - (255 - expected if inverted else expected)).max() <= 0.51


def png(samples: np.ndarray, chunks: list[tuple[bytes, bytes, bool]]) -> bytes:
    """A PNG of 8 bits with *chunks* (name, data, whether behind the image) put in."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    more = [b"".join(chunk(name, data) for name, data, late in chunks if late == behind) for behind in (False, True)]
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", head), more[0], chunk(b"IDAT", zlib.compress(rows)), more[1], chunk(b"IEND", b"")]
    return STARTS[0] + b"".join(parts)


HARMLESS = [b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"tIME", b"bKGD", b"sBIT", b"hIST"]
HARMLESS += [b"sPLT", b"orNT", b"vpAg", b"caNv"]
COMPRESSED = [b"a\0\0" + zlib.compress(b"x" * length) for length in (100_000, 3_000_000)]
PAYLOADS = st.binary(max_size=20) | st.sampled_from([*COMPRESSED, b"XML:com.adobe.xmp\0\1\0\0\0x"])


@given(COLOURS, st.lists(st.tuples(st.sampled_from(HARMLESS), PAYLOADS, st.booleans()), max_size=4))
def test_chunks_of_a_png_beside_its_image(samples: np.ndarray, chunks: list[tuple[bytes, bytes, bool]]) -> None:
    """They don't change a sample, whatever is in them. Pillow refuses texts that are too large or cut off."""
    image = read(png(samples, chunks))
    assert image is None or np.array_equal(np.asarray(image), samples)


ANIMATION = [(b"acTL", struct.pack(">II", frames, 0), False) for frames in (0, 1, 2, 2**32 - 1)]


@given(COLOURS, st.sampled_from(ANIMATION), st.lists(st.tuples(st.just(b"fdAT"), PAYLOADS, st.just(True)), max_size=2))
def test_the_still_image_of_an_animated_png(
    samples: np.ndarray, head: tuple[bytes, bytes, bool], frames: list[tuple[bytes, bytes, bool]]
) -> None:
    image = read(png(samples, [head, *frames]))
    assert image is None or np.array_equal(np.asarray(image), samples)


# Tags that say where samples lie and what they mean; orientation has a property of its own.
STRUCTURE = {*range(254, 264), 266, 273, 274, 277, 278, 279, 284, 292, 293, 301, 317, 318, 320, 322, 323, 324, 325}
STRUCTURE |= {330, 332, 338, 339, 340, 341, 347, 529, 530, 531, 532, 34665, 34853, 37724}
TAGS = st.dictionaries(
    st.integers(0, 65535).filter(lambda tag: tag not in STRUCTURE),
    st.lists(st.integers(0, 65535) | st.floats(width=32), max_size=5),
    max_size=4,
)


@given(GREYS, TAGS, st.sampled_from("<>"))
def test_tags_of_a_tiff_beside_its_image(samples: np.ndarray, tags: dict[int, list[float]], order: str) -> None:
    assert np.array_equal(samples_of(tiff(samples, tags=tags, order=order))[..., 0], samples)


@given(st.dictionaries(st.sampled_from(sorted(STRUCTURE)), st.lists(st.integers(0, 65535), max_size=5), max_size=3))
def test_wrong_tags_of_a_tiff(tags: dict[int, list[float]]) -> None:
    read(tiff(np.arange(16, dtype=np.uint8).reshape(4, 4), tags=tags), ".tif")


@given(mutated(tiff(*(np.full((4, 5), grey, np.uint16) for grey in (0, 40_000, 65_535)))), st.integers(0, 3))
def test_pages_of_a_broken_tiff(data: bytes, frame: int) -> None:
    """The pages that are counted are read, or fail by name."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "a.tif")
        path.write_bytes(data)
        for number in [*page_frames(path), frame]:
            try:
                assert load_image(path, "a", number).mode == "RGB"
            except PageError as error:
                assert_one_line(error)


PARTS = ["**", "*", "a", "b.png", ".x", "?", "[ab]*", "a*b*c*"]


def as_regex(pattern: str) -> str:
    """A pattern of PARTS as a regular expression over the parts of a path, each followed by a slash."""
    one = {"**": r"(?:[^./][^/]*/)*", "*": r"[^./][^/]*/", "?": r"[^./]/", "[ab]*": r"[ab][^/]*/"}
    one |= {"a*b*c*": r"a[^/]*b[^/]*c[^/]*/"}
    parts = pattern.split("/")
    return "".join(one.get(part, re.escape(part) + "/") for part in (*parts, *["*"] * (parts[-1] == "**")))


@given(
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map("/".join),
    st.lists(st.sampled_from(["a", "b.png", ".x", "aabbcc", "c"]), min_size=1, max_size=6).map("/".join),
)
def test_patterns_match_as_globs_do(pattern: str, path: str) -> None:
    found = matching([Entry(path, path)], DatasetSettings(pattern=(pattern,)))
    assert bool(found) == bool(re.fullmatch(as_regex(pattern), path + "/"))


@given(
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=60).map("/".join),
    st.lists(st.sampled_from(["a", "b.png", ".x", "aabbcc", "c"]), min_size=1, max_size=60).map("/".join),
)
@example("/".join(["**"] * 40 + ["x"]), "/".join(["a"] * 40))
@example("/".join(["**", "a"] * 30 + ["x"]), "/".join(["a"] * 60))
def test_no_pattern_takes_long(pattern: str, path: str) -> None:
    begin = time.monotonic()
    matching([Entry(path, path)], DatasetSettings(pattern=(pattern,)))
    assert time.monotonic() - begin < 5


NAMES = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["a", "a.png", "a.PNG", "a.md", "a.txt", "a.pdf", "0001.md", "\udc80", ".b.png"]),
)
GOOD = saved(Image.new("L", (4, 4), 9), "PNG")


@given(
    st.lists(
        st.tuples(st.lists(NAMES, min_size=1, max_size=3), st.sampled_from([b"", b"x", b"\xff", GOOD])), max_size=6
    )
)
def test_any_folder(files: list[tuple[list[str], bytes]]) -> None:
    """Names that are unique, whatever the files are called; a text that is not UTF-8 is an error of one line."""
    with tempfile.TemporaryDirectory() as directory:
        for parts, data in files:
            names = [part.replace("/", "_").replace("\0", "_") or "_" for part in parts]
            if not {".", ".."}.isdisjoint(names):
                continue
            path = Path(directory, *names)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            except (OSError, UnicodeEncodeError):  # a file where a directory should be
                continue
        inside = os.path.realpath(directory)
        try:
            pages = image_folder_dataset().load(DatasetSettings(name="image_folder", root=inside))
        except DatasetError as error:
            assert_one_line(error)
            return
        assert len({page.name for page in pages}) == len(pages)
        for page in pages:
            assert page.name.isprintable()
            page.name.encode()


STEMS = st.sampled_from(["a", "b", "page 1", "é", "x.y"])
SUFFIXES = st.sampled_from([".png", ".jpg", ".txt", ".docx", ""])


@given(st.sets(st.tuples(st.sampled_from(["", "in", ".hidden"]), STEMS, SUFFIXES), max_size=10))
def test_each_image_of_a_folder_is_one_page(files: set[tuple[str, str, str]]) -> None:
    """The others are named as left out, but for texts beside an image, and what is hidden."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(os.path.realpath(directory))
        for folder, stem, suffix in files:
            (root / folder).mkdir(exist_ok=True)
            (root / folder / (stem + suffix)).write_bytes(GOOD if suffix in (".png", ".jpg") else b"text")
        expected = {root / folder / (stem + suffix) for folder, stem, suffix in files
                    if suffix in (".png", ".jpg") and folder != ".hidden"}
        try:
            pages = image_folder_dataset().load(DatasetSettings(name="image_folder", root=str(root)))
        except DatasetError as error:
            assert not expected
            assert_one_line(error)
            return
        assert {page.path for page in pages} == expected
        assert len(pages) == len(expected)
        for page in pages:
            beside = page.path is not None and page.path.with_suffix(".txt").exists()
            assert page.truth_free == ("text" if beside else None)
            assert np.asarray(page.load()).max() == 9
