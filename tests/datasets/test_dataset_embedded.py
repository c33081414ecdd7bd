"""The embedded datasets: what ships is what the sources in tools/render_pages say; boxes fit the images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops

import pytest_llmprof.datasets as datasets
from pytest_llmprof.config.schema import DatasetSettings
from pytest_llmprof.datasets import DatasetPlugin, Page, builtin, dataset_digest, load_pages
from pytest_llmprof.errors import DatasetError

SHIPPED = Path(datasets.__file__).parent
TOOLS = Path(__file__).parents[2] / "tools" / "render_pages"
PLUGINS = {plugin.name: plugin for plugin in builtin()}
SAMPLES = ("card", "form", "letter", "list", "notice", "prose", "receipt", "timetable")
DOCUMENTS = ("invoice", "lecture", "manual", "paper", "report", "scan")


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))


def shipped(dataset: str) -> dict[str, Any]:
    pages = json.loads((SHIPPED / dataset / "pages.json").read_text("utf-8"))["pages"]
    return {page["name"]: page for page in pages}


def load(dataset: str, **settings: Any) -> tuple[Page, ...]:
    return load_pages(PLUGINS[dataset], DatasetSettings(name=dataset, **settings))


def without_boxes(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "blocks": entry["blocks"] and [{**block, "box": None} for block in entry["blocks"]]}


@pytest.mark.parametrize(("dataset", "expected"), [("sample_pages", SAMPLES), ("documents", DOCUMENTS)])
def test_pages(dataset: str, expected: tuple[str, ...]) -> None:
    pages = load(dataset)
    assert tuple(page.name for page in pages) == expected
    for page in pages:
        facts = shipped(dataset)[page.name]
        assert page.source == f"{dataset}/{facts['file']}"
        assert page.license in ("Apache-2.0", "public-domain")
        image = page.load()
        assert list(image.size) == facts["size"]
        assert page.truth("free") == page.truth_free
        assert page.truth("markdown") == page.truth_markdown
        assert page.truth_markdown.startswith("# ") or "\n# " in page.truth_markdown
        assert all(line == line.rstrip() for line in page.truth_markdown.split("\n"))


@pytest.mark.parametrize("dataset", ["sample_pages", "documents"])
def test_boxes_hold_the_ink_and_nothing_else_does(dataset: str) -> None:
    for page in load(dataset):
        if page.truth_boxes is None:
            assert page.name == "scan"
            continue
        image = page.load().convert("L")
        # Ink is what is much darker than the paper: thin grey rules, tint and noise are not.
        paper = int(np.median(np.asarray(image)))
        ink = np.asarray(ImageChops.subtract(Image.new("L", image.size, paper), image)) > 120
        covered = np.zeros_like(ink)
        for box in page.truth_boxes:
            x1, y1, x2, y2 = box.box
            assert 0 <= x1 < x2 <= image.width
            assert 0 <= y1 < y2 <= image.height
            inside = ink[y1:y2, x1:x2]
            assert inside.any(), (page.name, box)
            assert not covered[y1:y2, x1:x2].any(), f"{page.name}: boxes overlap at {box}"
            covered[y1:y2, x1:x2] = True
        assert not (ink & ~covered).any(), f"{page.name}: ink outside of the boxes"
        blocks = [box.text for box in page.truth_boxes if box.text]
        assert "\n\n".join(blocks) == page.truth_markdown
        assert {box.label for box in page.truth_boxes} >= {"title", "text"}


def test_sample_pages_are_what_a_small_model_can_read() -> None:
    for page in load("sample_pages"):
        assert page.load().size == (512, 512)
        assert page.truth_free is not None
        assert all(character == "\n" or " " <= character <= "~" for character in page.truth_free)
        assert 4 <= len([line for line in page.truth_free.split("\n") if line]) <= 10
        assert page.truth_boxes is not None
        assert all(len(box.text.split("\n")) <= 4 for box in page.truth_boxes)


def test_sample_truth_comes_from_its_source(tools: None) -> None:
    from render_sample_pages import FONT_DIRS, Fonts, render, truth
    from sample_source import SHEETS

    assert [sheet.name for sheet in SHEETS] == list(shipped("sample_pages"))
    fonts = Fonts(FONT_DIRS)
    for sheet in SHEETS:
        entry = shipped("sample_pages")[sheet.name]
        assert without_boxes(entry) == truth(sheet)
        if not fonts.has(sheet):
            continue  # a machine without these fonts still checks the truth, here and above
        image, boxes = render(sheet, fonts)
        # Another FreeType may round otherwise by a pixel.
        for got, block in zip(boxes, entry["blocks"], strict=True):
            assert np.abs(np.subtract(got, block["box"])).max() <= 2
        stored = Image.open(SHIPPED / "sample_pages" / entry["file"]).convert("RGB")
        assert np.asarray(ImageChops.difference(image, stored)).mean() < 4


def test_document_truth_and_images_come_from_their_source(tools: None) -> None:
    from document_source import DOCUMENTS
    from render_documents import render, truth
    from scan_source import SCAN

    entries = shipped("documents")
    assert [document.name for document in DOCUMENTS] == [name for name in entries if name != "scan"]
    assert entries["scan"] == SCAN
    for document in DOCUMENTS:
        assert without_boxes(entries[document.name]) == truth(document)
    document = DOCUMENTS[0]
    image, boxes = render(document)
    for got, block in zip(boxes, entries[document.name]["blocks"], strict=True):
        assert np.abs(np.subtract(got, block["box"])).max() <= 2
    stored = Image.open(SHIPPED / "documents" / "paper.png").convert("RGB")
    assert np.asarray(ImageChops.difference(image, stored)).mean() < 2


def test_documents_hold_what_they_promise() -> None:
    pages = {page.name: page for page in load("documents")}
    labels = {box.label for page in pages.values() for box in page.truth_boxes or ()}
    assert {"title", "sub_title", "text", "table", "equation", "image", "image_caption"} <= labels
    assert "<td>38,204</td>" in pages["report"].truth_markdown
    assert "Riverside 19,077 1,530" in pages["report"].truth_free
    assert r"\[T = 2 \pi \sqrt{\frac{l}{g}}\]" in pages["paper"].truth_markdown
    assert "```python\n" in pages["manual"].truth_markdown
    assert "- Levels jump" in pages["manual"].truth_markdown
    assert "\u2022 Levels jump" in pages["manual"].truth_free
    boxes = [box.box for box in pages["paper"].truth_boxes]
    assert any(box[0] > 1191 // 2 for box in boxes)  # the second column
    assert "spiritual gifts" in pages["scan"].truth("markdown")


def test_typst_text_sets_every_character(tools: None) -> None:
    from document_blocks import typst_text

    assert typst_text('a_b*c"#') == r"a\_b\*c\"\#"


def test_size_of_the_package_data() -> None:
    for dataset, limit in (("sample_pages", 400_000), ("documents", 3_000_000)):
        assert sum(path.stat().st_size for path in (SHIPPED / dataset).iterdir()) < limit
        assert {path.name for path in (SHIPPED / dataset).iterdir()} == {
            "pages.json",
            *(entry["file"] for entry in shipped(dataset).values()),
        }


def test_selection_applies_to_embedded_pages() -> None:
    def names(**settings: Any) -> list[str]:
        return [page.name for page in load("sample_pages", **settings)]

    assert names(pattern=("l*",)) == ["letter", "list"]
    assert names(pattern=("receipt.png", "card")) == ["card", "receipt"]
    assert names(subset=("prose", "form.png")) == ["form", "prose"]
    assert names(limit=1) == ["card"]
    assert sorted(names(shuffle=True, seed=3)) == list(SAMPLES)
    assert names(shuffle=True, seed=3) != list(SAMPLES)
    with pytest.raises(DatasetError, match=r"'recept'.*did you mean 'receipt"):
        names(subset=("recept",))
    with pytest.raises(DatasetError, match=r"pattern='x\*' matches no page .*'sample_pages' .*receipt"):
        names(pattern=("x*",))
    with pytest.raises(DatasetError, match=r"dataset\.root=/data .*image_folder"):
        names(root="/data")


def test_digest(tmp_path: Path) -> None:
    pages = load("sample_pages")
    digest = dataset_digest(pages)
    assert digest.startswith("sha256:")
    assert len(digest) == 71
    assert dataset_digest(load("sample_pages")) == digest
    assert dataset_digest(pages[:-1]) != digest
    assert dataset_digest(pages[::-1]) != digest

    def digest_of(data: bytes | None, **facts: Any) -> str:
        path = tmp_path / "a.png"
        path.unlink(missing_ok=True)
        if data is not None:
            path.write_bytes(data)
        return dataset_digest([Page(name=facts.pop("name", "a"), source="", path=path, **facts)])

    different = [
        digest_of(b"1"),
        digest_of(b"2"),
        digest_of(None),
        digest_of(b"1", name="b"),
        digest_of(b"1", truth_free="x"),
        digest_of(b"1", truth_markdown="x"),
        digest_of(b"1", truth_boxes=()),
    ]
    assert len(set(different)) == len(different)


def test_load_pages_checks_what_a_plugin_gives() -> None:
    def plugin(*names: str) -> DatasetPlugin:
        pages = [Page(name=name, source=name, path=Path(name)) for name in names]
        return DatasetPlugin(name="mine", load=lambda settings: pages)

    assert [page.name for page in load_pages(plugin("b", "a"), DatasetSettings())] == ["b", "a"]
    with pytest.raises(DatasetError, match="'mine' gave no page"):
        load_pages(plugin(), DatasetSettings())
    with pytest.raises(DatasetError, match="two pages named 'a'"):
        load_pages(plugin("a", "b", "a"), DatasetSettings())


def test_import_and_listing_are_light() -> None:
    code = (
        "import sys; from pytest_llmprof.datasets import builtin, load_pages;"
        "from pytest_llmprof.config.schema import DatasetSettings;"
        "print(len(load_pages(builtin()[0], DatasetSettings())));"
        "print([m for m in ('PIL', 'numpy', 'torch', 'transformers', 'pytest') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["8", "[]"]
