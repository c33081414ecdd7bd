"""PDFs, multi-page TIFFs, HEIC and AVIF in an image folder (issue 15, line 25), and what is left out (line 23)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from file_makers import black_left, pdf, tiff
from PIL import Image, features

from pytest_llmprof.config.schema import DatasetSettings
from pytest_llmprof.datasets import Pages, builtin, dataset_digest, images, load_pages
from pytest_llmprof.datasets import pdf as pdf_reader
from pytest_llmprof.errors import DatasetError, PageError

PLUGIN = {plugin.name: plugin for plugin in builtin()}["image_folder"]
PDFIUM = pytest.mark.skipif(not pdf_reader.can_read(), reason="needs pypdfium2")
HEIF = pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is None, reason="needs pillow-heif")


def load(root: Path, **settings: Any) -> Pages:
    return load_pages(PLUGIN, DatasetSettings(name="image_folder", root=str(root), **settings))


def names(root: Path, **settings: Any) -> list[str]:
    return [page.name for page in load(root, **settings)]


def refused(root: Path, **settings: Any) -> str:
    with pytest.raises(DatasetError) as caught:
        load(root, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def failures(root: Path) -> dict[str, str]:
    """The line of each page that cannot be loaded."""
    found: dict[str, str] = {}
    paths: list[str] = []
    for page in load(root):
        try:
            page.load()
        except PageError as error:
            found[page.name] = str(error)
            paths.append(f"page {page.name!r}: cannot read {page.path}: ")
    assert all(text.startswith(path) and "\n" not in text for text, path in zip(found.values(), paths, strict=True))
    return found


def grey_pages(*levels: int) -> bytes:
    return tiff(*(np.full((3, 4), level, np.uint8) for level in levels))


@pytest.fixture
def without_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where neither pypdfium2 nor pillow-heif is installed."""
    monkeypatch.setattr(pdf_reader, "can_read", lambda: False)
    known = images.image_suffixes()
    monkeypatch.setattr(images, "image_suffixes", lambda: known - {".heic", ".heif", ".hif"})


@PDFIUM
def test_line25_each_page_of_a_pdf(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/a.pdf").write_bytes(pdf(black_left(), "", *[black_left(72)] * 9))
    pages = load(tmp_path)
    assert [page.name for page in pages] == [f"letters/a.pdf.{number:04d}" for number in range(1, 12)]
    assert {page.source for page in pages} == {str(tmp_path / "letters/a.pdf")}
    first, second, third = (np.asarray(page.load()) for page in pages[:3])
    assert first.shape == (72, 144, 3)  # 72 x 36 points at 144 dpi
    assert (first[:, :71].max(), first[:, 73:].min()) == (0, 255)
    assert second.min() == 255  # an empty page is white, not black
    assert third.max() == 0
    assert pages[0].load().mode == "RGB"
    assert load(tmp_path, dpi=72)[0].load().size == (72, 36)


@PDFIUM
def test_line25_dpi_is_part_of_the_datasets_digest(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf(black_left(), ""))
    digests = {dataset_digest(load(tmp_path, dpi=dpi)) for dpi in (72, 144)}
    assert len(digests) == 2
    Image.new("L", (1, 1)).save(tmp_path / "b.png")
    assert len({dataset_digest(load(tmp_path, dpi=dpi, pattern=("*.png",))) for dpi in (72, 144)}) == 1


@PDFIUM
def test_line25_truth_of_a_pdfs_pages(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf(*[black_left()] * 3))
    (tmp_path / "a").mkdir()
    (tmp_path / "a.pdf.0001.md").write_text("# One")
    (tmp_path / "a/0002.md").write_text("# Two")
    (tmp_path / "a/0002.txt").write_text("Two")
    (tmp_path / "a.md").write_text("the whole document is no page's truth")
    first, second, third = load(tmp_path)
    assert first.truth_markdown == "# One"
    assert (second.truth_markdown, second.truth_free) == ("# Two", "Two")
    assert third.truth("markdown") is None
    (tmp_path / "single.pdf").write_bytes(pdf(black_left()))
    (tmp_path / "single.md").write_text("of its only page")
    page = load(tmp_path, pattern=("single.pdf",))[0]
    assert (page.name, page.truth_markdown) == ("single.pdf.0001", "of its only page")


@PDFIUM
def test_line25_pages_of_a_pdf_can_be_chosen(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf(*[""] * 12))
    (tmp_path / "b.pdf").write_bytes(pdf(""))
    Image.new("L", (1, 1)).save(tmp_path / "a.png")
    assert names(tmp_path, pattern=("b*",)) == ["b.pdf.0001"]
    assert len(names(tmp_path, pattern=("*.pdf",))) == 13
    assert names(tmp_path, pattern=("a.pdf.000[12]",)) == ["a.pdf.0001", "a.pdf.0002"]
    assert names(tmp_path, subset=("a.pdf.0012", "b.pdf")) == ["a.pdf.0012", "b.pdf.0001"]
    assert len(names(tmp_path, subset=("a.pdf",))) == 12
    assert names(tmp_path, limit=2) == ["a.pdf.0001", "a.pdf.0002"]
    assert sorted(names(tmp_path, shuffle=True)) == sorted(names(tmp_path))
    assert "did you mean 'a.pdf.0012'" in refused(tmp_path, subset=("a.pdf.12",))


@PDFIUM
def test_line25_pdfs_that_cannot_be_read_fail_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "encrypted.pdf").write_bytes(pdf("", encrypted=True))
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7\nnothing\n%%EOF\n")
    (tmp_path / "empty.pdf").write_bytes(b"")
    (tmp_path / "no pages.pdf").write_bytes(pdf())
    (tmp_path / "text.pdf").write_text("I am a text")
    (tmp_path / "gone.pdf").symlink_to(tmp_path / "nowhere.pdf")
    (tmp_path / "huge.pdf").write_bytes(pdf("", size=(14_400, 14_400)))
    found = failures(tmp_path)
    assert sorted(found) == sorted(
        ["encrypted.pdf", "broken.pdf", "empty.pdf", "no pages.pdf", "text.pdf", "gone.pdf", "huge.pdf.0001"]
    )
    assert "encrypted: save it without a password" in found["encrypted.pdf"]
    assert "PDFium cannot read it" in found["broken.pdf"]
    assert "PDFium cannot read it" in found["text.pdf"]
    assert "empty (zero bytes)" in found["empty.pdf"]
    assert "no pages" in found["no pages.pdf"]
    assert "No such file" in found["gone.pdf"]
    assert "28800x28800" in found["huge.pdf.0001"]
    assert "lower dataset.dpi" in found["huge.pdf.0001"]
    assert failures(tmp_path) == found  # nothing is kept from one reading to the next


@PDFIUM
def test_line25_a_pdf_with_an_odd_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(pdf(black_left()))
    (tmp_path / "a").rename(Path(str(tmp_path) + "/\udcff ü.PDF"))
    (page,) = load(tmp_path)
    assert page.name == "\\xff ü.PDF.0001"
    assert page.load().size == (144, 72)


@PDFIUM
def test_line25_a_truncated_pdf_costs_no_other_page(tmp_path: Path) -> None:
    whole = pdf(black_left(), "")
    for cut in range(0, len(whole), 37):
        (tmp_path / "a.pdf").write_bytes(whole[:cut])
        failures(tmp_path)


def test_line25_each_page_of_a_tiff(tmp_path: Path) -> None:
    (tmp_path / "fax.tif").write_bytes(grey_pages(10, 20, 30))
    (tmp_path / "one.tif").write_bytes(grey_pages(40))
    (tmp_path / "fax").mkdir()
    (tmp_path / "fax.tif.0001.txt").write_text("one")
    (tmp_path / "fax/0003.txt").write_text("three")
    pages = load(tmp_path)
    assert [page.name for page in pages] == ["fax.tif.0001", "fax.tif.0002", "fax.tif.0003", "one"]
    assert [page.load().getpixel((0, 0))[0] for page in pages] == [10, 20, 30, 40]
    assert [page.truth_free for page in pages] == ["one", None, "three", None]


def test_line25_thumbnails_and_masks_in_a_tiff_are_no_pages(tmp_path: Path) -> None:
    levels = [np.full((3, 4), level, np.uint8) for level in (10, 11, 20, 21, 22)]
    (tmp_path / "scan.tif").write_bytes(tiff(*levels, subfiles=(2, 1, 2, 4, 5)))
    pages = load(tmp_path)
    assert [page.name for page in pages] == ["scan.tif.0001", "scan.tif.0002"]
    assert [page.load().getpixel((0, 0))[0] for page in pages] == [10, 20]
    (tmp_path / "scan.tif").write_bytes(tiff(*levels[:2], subfiles=(1, 0)))
    (page,) = load(tmp_path)
    assert (page.name, page.load().getpixel((0, 0))[0]) == ("scan", 11)


def test_line25_pages_of_one_tiff_may_differ(tmp_path: Path) -> None:
    deep = [np.array([[0, 65535]], np.uint16), np.array([[-1.0, 0, 1]], np.float32), np.array([[0, 255]], np.uint8)]
    (tmp_path / "a.tif").write_bytes(tiff(*deep))
    got = [np.asarray(page.load())[0, :, 0].tolist() for page in load(tmp_path)]
    assert got == [[0, 255], [0, 128, 255], [0, 255]]
    turned = Image.Exif()
    turned[0x0112] = 6
    rows = np.array([[10, 20], [30, 40], [50, 60]], np.uint8)
    first, second = Image.fromarray(rows), Image.fromarray(rows + 1)
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second], exif=turned)
    for number, page in enumerate(load(tmp_path)):
        assert (np.asarray(page.load())[..., 0] - number).tolist() == [[50, 30, 10], [60, 40, 20]]


def test_line25_a_page_of_a_tiff_that_cannot_be_read(tmp_path: Path) -> None:
    levels = [np.full((1, 2), 10, np.uint8), np.array([[0, 1]], np.float64), np.full((1, 2), 30, np.uint8)]
    (tmp_path / "a.tif").write_bytes(tiff(*levels))
    assert names(tmp_path) == ["a.tif.0001", "a.tif.0002", "a.tif.0003"]
    assert list(failures(tmp_path)) == ["a.tif.0002"]
    whole = tiff(*levels[::2])
    for cut in range(0, len(whole), 11):
        (tmp_path / "a.tif").write_bytes(whole[:cut])
        failures(tmp_path)


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_that_is_cut_short_loses_no_page_in_silence(tmp_path: Path, big: bool) -> None:
    """Where a directory's end is missing, Pillow takes it for the last one."""
    path = tmp_path / "a.tif"
    if big:
        first, second = (Image.new("L", (2, 1), level) for level in (10, 20))
        first.save(path, save_all=True, append_images=[second], big_tiff=True)
    else:
        path.write_bytes(grey_pages(10, 20))
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        pages = load(tmp_path)
        failed = failures(tmp_path)
        levels = [page.load().getpixel((0, 0))[0] for page in pages if page.name not in failed]
        assert failed or levels == [10, 20], cut
        assert levels in ([], [10], [10, 20]), cut
    path.write_bytes(grey_pages(10, 20)[:-1])
    assert "cut short" in failures(tmp_path)["a.tif.0002"]
    path.write_bytes(grey_pages(10)[:12])
    assert "cut short" in failures(tmp_path)["a"]
    path.write_bytes(grey_pages(10)[:-1])
    assert "cut short" in failures(tmp_path)["a"]


@HEIF
def test_line25_heic(tmp_path: Path) -> None:
    images.image_suffixes()  # registers the format
    image = Image.new("RGB", (64, 32), "white")
    image.paste((0, 0, 0), (0, 0, 32, 32))
    turned = Image.Exif()
    turned[0x0112] = 6
    try:
        image.save(tmp_path / "a.heic", quality=95)
        image.info["exif"] = turned.tobytes()
        image.save(tmp_path / "b.HEIC", quality=95)
    except (OSError, RuntimeError) as error:
        pytest.skip(f"this pillow-heif has no encoder: {error}")
    first, second = (page.load() for page in load(tmp_path))
    assert first.size == (64, 32)
    assert first.getpixel((5, 5))[0] < 20
    assert first.getpixel((60, 5))[0] > 235
    assert second.size == (32, 64)  # turned once, not twice
    assert second.getpixel((5, 5))[0] < 20
    assert second.getpixel((5, 60))[0] > 235


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_line25_avif(tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 32), "white")
    image.paste((0, 0, 0), (0, 0, 32, 32))
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(tmp_path / "a.avif", quality=95, exif=turned)
    (page,) = load(tmp_path)
    assert page.load().size == (32, 64)
    assert page.load().getpixel((5, 5))[0] < 20


def test_line25_exclude(tmp_path: Path) -> None:
    for name in ("a.png", "draft-a.png", "old/b.png", "old/keep.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (1, 1)).save(tmp_path / name)
    assert names(tmp_path, exclude=("draft-*",)) == ["a", "old/b", "old/keep"]
    assert names(tmp_path, exclude=("old/**", "draft-a")) == ["a"]
    assert names(tmp_path, exclude=("**/*b.png",), pattern=("old/*",)) == ["old/keep"]
    assert "dataset.exclude='**/*'" in refused(tmp_path, exclude=("**/*",))
    assert "dataset.exclude='../x' is not allowed" in refused(tmp_path, exclude=("../x",))


def test_line23_files_that_are_left_out(tmp_path: Path, without_extras: None) -> None:
    for name in ("a.png", "a.md", "x.heic", "y.HEIC", "scan.pdf", "sub/data.json", "README", "Mr. Smith",
                 ".hidden", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    pages = load(tmp_path)
    assert [page.name for page in pages] == ["a"]
    assert {reason: [Path(file).name for file in files] for reason, files in pages.left_out.items()} == {
        ".heic: pip install 'pytest-llmprof[heif]' reads them": ["x.heic", "y.HEIC"],
        ".pdf: pip install 'pytest-llmprof[pdf]' reads them": ["scan.pdf"],
        ".json: no images that Pillow reads": ["data.json"],
        "other files: no images that Pillow reads": ["Mr. Smith", "README"],
        ".txt: the truth of no page": ["notes.txt"],
    }
    # What the user has not asked for is not left out.
    assert load(tmp_path, pattern=("*.png",)).left_out == {}
    assert list(load(tmp_path, exclude=("**/*.json", "README", "Mr*", "*.heic", "*.HEIC", "*.txt")).left_out) == [
        ".pdf: pip install 'pytest-llmprof[pdf]' reads them"
    ]
    assert load(tmp_path, subset=("a",)).left_out == {}


def test_line23_a_folder_of_nothing_but_what_is_left_out(tmp_path: Path, without_extras: None) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf(""))
    (tmp_path / "a.heic").write_bytes(b"")
    text = refused(tmp_path)
    assert "files seen: 2, images among them: 0" in text
    assert "pip install 'pytest-llmprof[heif,pdf]' reads more of them" in text


def test_line28_image_is_the_path_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scans").mkdir()
    Image.new("L", (1, 1)).save(tmp_path / "scans/a.png")
    for given, source in (("scans", "scans/a.png"), ("./scans/", "scans/a.png"), ("~/scans", "~/scans/a.png")):
        assert load(tmp_path / "scans", root_as_given=given)[0].source == source
    assert load(tmp_path / "scans")[0].source == str(tmp_path / "scans/a.png")
