from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image

from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.outputs import gallery as gallery_module
from pytest_llmprof.outputs.gallery import write_gallery
from pytest_llmprof.records.predictions import Box

GOLDEN = Path(__file__).parent / "data" / "predictions.md"
LIMITS = {"max_images": None, "thumbnail_width": 60}


def write(directory: Path, records, pages, plain=None, **options) -> str:
    """Write a gallery; return predictions.md. *plain* is each page's clean text where it is not given."""
    write_gallery(
        directory,
        records=records,
        pages={page.name: page for page in pages},
        plain={record.page: record.text_clean for record in records} | (plain or {}),
        **{"title": "test_pages[base]", "prompt_kind": "free", "facts": {}} | LIMITS | options,
    )
    return (directory / "predictions.md").read_text()


def info_of(page: Path) -> dict[str, Any]:
    return json.loads((page / "info.json").read_text())


def outside_code(markdown: str) -> str:
    """The lines of *markdown* that CommonMark reads as Markdown: not those in fences and in <pre> blocks."""
    kept, fence, pre = [], None, False
    for line in markdown.split("\n"):
        if fence is not None:
            if re.fullmatch(fence + r"`*", line):
                fence = None
        elif pre:
            pre = "</pre>" not in line
        elif opening := re.match(r"(`{3,})[a-z]*$", line):
            fence = opening[1]
        elif line == "<pre>":
            pre = True
        else:
            kept.append(line)
    assert fence is None
    assert not pre
    return "\n".join(kept)


def test_times_are_said_to_be_of_the_first_round(tmp_path: Path, make_record, make_page) -> None:
    records = [make_record("a", "one", total_ms=12.34), make_record("b", "two", total_ms=5.0)]
    text = write(tmp_path, records, [make_page("a"), make_page("b")])
    assert "2 pages. Times are of the first round; report.md has the medians of all.\n" in text
    for page, time in (("a", "12.3"), ("b", "5.00")):
        result = (tmp_path / "pages" / page / "result.md").read_text()
        assert f" · round 1: {time} ms · " in result
    untimed = [make_record("a", "one", total_ms=None, ttft_ms=None, tokens_per_s=None)]
    assert "round" not in write(tmp_path / "untimed", untimed, [make_page("a")])


def test_golden(tmp_path: Path, make_record, make_page) -> None:
    """The whole of a small gallery. To renew the file after a wanted change, copy what the test wrote."""
    boxes = (
        Box("title", (5, 2, 110, 20), "INVOICE 12"),
        Box("image", (10, 10, 40, 30)),
        Box("text", (9, 9, 9, 9)),
    )
    invoice = make_page("a/invoice [1]", truth_free="INVOICE 12\n\nTotal due: 12.30 EUR\nThank you")
    answer = "# INVOICE 12\n\nTotal due: 72.3 EUR\nThank you"
    raw = f"<|ref|>title<|/ref|><|det|>[[1,2,3,4]]<|/det|>\n{answer}<｜end▁of▁sentence｜>"
    records = [
        make_record(
            "a/invoice [1]",
            raw,
            text_clean=answer,
            boxes=boxes,
            bad_boxes=1,
            cer=0.0645,
            wer=0.125,
            box_iou=0.5,
            repetition=0.0,
        ),
        make_record(
            "b",
            "",
            status="error",
            error="cannot read b.png: truncated",
            tokens=0,
            finish_reason=None,
            total_ms=None,
            ttft_ms=None,
            tokens_per_s=None,
        ),
        make_record("c", "loop " * 9, finish_reason="length", runaway=True),
    ]
    text = write(
        tmp_path / "viz",
        records,
        [invoice, make_page("c")],
        max_images=2,
        plain={"a/invoice [1]": answer},
        facts={"Model": "deepseek_ocr (tiny)", "Device": "cpu"},
    )
    assert text == GOLDEN.read_text()


def test_files_of_a_page(tmp_path: Path, make_record, make_page) -> None:
    page = make_page("a", size=(120, 80))
    boxes = (Box("text", (0, 0, 1, 1)), Box("Image", (10, 10, 40, 30)), Box("image", (300, 10, 400, 30)))
    write(tmp_path, [make_record("a", boxes=boxes, bad_boxes=2)], [page])
    directory = tmp_path / "pages" / "a"
    found = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    assert found == {"thumbnail.jpg", "boxes.jpg", "result.md", "info.json", "crops/2.jpg"}
    with Image.open(directory / "thumbnail.jpg") as image:
        assert image.size == (60, 40)
    with Image.open(directory / "boxes.jpg") as image:
        assert image.size == (120, 80)
    with Image.open(directory / "crops" / "2.jpg") as image:
        assert image.size == (30, 20)
        red, green, blue = image.getpixel((15, 10))
        assert red > 240
        assert max(green, blue) < 16
    info = info_of(directory)
    assert info["picture"] == {"width": 120, "height": 80}
    assert (info["drawn_boxes"], info["skipped_boxes"], info["picture_error"]) == (2, 3, None)
    assert info["crops"] == [{"file": "crops/2.jpg", "box": [10, 10, 40, 30]}]
    assert info["page"] == "a"
    assert (info["text_raw"], info["text_scored"], info["truth"]) == ("Hello", "Hello", None)
    assert "![a, thumbnail](thumbnail.jpg)" in (directory / "result.md").read_text()


def test_permissions_are_those_of_other_files(tmp_path: Path, make_record, make_page) -> None:
    (tmp_path / "usual").mkdir()
    write(tmp_path, [make_record("a")], [make_page("a")])
    usual = (tmp_path / "usual").stat().st_mode
    assert (tmp_path / "pages").stat().st_mode == usual
    assert (tmp_path / "pages/a").stat().st_mode == usual


HOSTILE = [
    "```\n````\n`````\nout of the fence\n~~~\n",
    "</details></pre></code></table>\n\n<script>alert(1)</script>\n\n<img src=x onerror=alert(1)>",
    "\x1b[31mred\x1b]0;title\x07\x00\x9b31m\r\rover",
    "\u202etxet desrever\u202c\u200b\u2066x\u2069",
    "# heading\n\n| a | b |\n|---|---|\n\n[x](javascript:alert(1)) ![y](http://tracker/p.png)\n\n[1]: http://x",
    "http://tracker.org www.tracker.org WWW.tracker.org",
    "\ud800 lone \udfff",
    "x" * 300_000,
    "- [ ] task\n> quote\n<!-- comment\n--- \n===\n<pre>\n<![CDATA[",
    "\n\n   \n\t\n",
]


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.tags.append(f"/{tag}")


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_stays_text(tmp_path: Path, make_record, make_page, text: str) -> None:
    """As answer, raw text, truth, label, error, page name, title and fact, all at once."""
    name = f"p {text[:200]}"
    page = make_page(name, truth_free=text)
    good = make_record(
        name,
        text,
        boxes=(Box(text[:500], (1, 1, 50, 50), text[:500]),),
        cer=0.5,
        image=text[:500],
        finish_reason="length",
    )
    bad = make_record("bad", text, status="error", error=text, finish_reason=None)
    write(
        tmp_path,
        [good, bad],
        [page],
        title=text[:900],
        facts={text[:99]: text[:500]},
        plain={name: text + " x"},
    )
    assert len(os.listdir(tmp_path / "pages")) == 2
    for path in (tmp_path / "predictions.md", *tmp_path.glob("pages/*/result.md")):
        data = path.read_bytes().decode("utf-8")
        assert not re.search(
            "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069]", data
        )
        markdown = outside_code(data)
        tags = _Tags()
        tags.feed(markdown)
        allowed = ["details", "summary", "/summary", "/details"]
        opened = [tag for tag in tags.tags if tag not in ("a", "/a")]
        assert opened == allowed * (len(opened) // 4)
        # The only links and images are ours.
        targets = re.findall(r"(?<!\\)\]\(([^)]*)\)", markdown)
        assert all(
            re.fullmatch(r"#page-\d+|(pages/[^/()\s]+/)?(thumbnail|boxes|crops/\d+)\.(jpg)", target)
            for target in targets
        )
        assert not re.search(r"^\[[^\]\\]*\]:", markdown, re.MULTILINE)
        headings = [line for line in markdown.split("\n") if line.startswith("#")]
        assert len(headings) == (3 if path.name == "predictions.md" else 1)
        # Preformatted text holds no tag at all.
        for block in re.findall(r"</summary>\n\n<pre>\n(.*?)\n</pre>", data, re.DOTALL):
            assert not re.search(r"[<>\[\]`~]", block)


def test_links_lead_to_files(tmp_path: Path, make_record, make_page) -> None:
    names = ["a b", "ü/[1](2)#?%41", "../../etc/passwd", "A", "a", "CON", "x" * 400, "<b>|`"]
    pages = [make_page(name) for name in names]
    box = (Box("image", (10, 10, 40, 30)),)
    write(tmp_path / "here", [make_record(name, boxes=box) for name in names], pages)
    moved = (tmp_path / "here").rename(tmp_path / "there")
    text = (moved / "predictions.md").read_text()
    targets = re.findall(r"(?<!\\)\]\((pages/[^)\s]*)\)", text)
    assert len(targets) == 4 * len(names)
    assert all((moved / unquote(target)).is_file() for target in targets)
    anchors = re.findall(r'<a id="([^"]+)"></a>', text)
    assert re.findall(r"\]\(#([^)]+)\)", text) == anchors
    assert len(os.listdir(moved / "pages")) == len(names)
    assert sorted(os.listdir(tmp_path)) == ["source", "there"]


def test_images_that_cannot_be_read(tmp_path: Path, make_record, make_page) -> None:
    broken = make_page("broken", truth_free="x")
    broken.path.write_bytes(b"\x89PNG\r\n\x1a\n truncated")
    text = write(
        tmp_path,
        [make_record("broken"), make_record("gone"), make_record("fine")],
        [broken, make_page("fine")],
    )
    assert text.count("\n## ") == 3
    assert text.count("**The image could not be read**") == 2
    assert f"cannot read {broken.path}: " in text
    assert "page 'broken'" not in text  # the section is named so
    assert "the dataset has no such page" in text
    assert text.count("thumbnail.jpg") == 1
    assert sorted(os.listdir(tmp_path / "pages/broken")) == ["info.json", "result.md"]


@pytest.mark.parametrize(("limit", "sections"), [(0, 0), (2, 2), (5, 3), (None, 3)])
def test_max_images(tmp_path: Path, make_record, make_page, limit: int | None, sections: int) -> None:
    names = ["a", "b", "c"]
    write(tmp_path, [make_record("old")], [make_page("old")])
    records = [make_record(name) for name in names]
    text = write(tmp_path, records, [make_page(name) for name in names], max_images=limit)
    pages = tmp_path / "pages"
    assert (sorted(os.listdir(pages)) if pages.exists() else []) == names[:sections]
    assert len(re.findall(r"^\| \[?[abc]\b", text, re.MULTILINE)) == 3
    assert text.count("\n## ") == sections
    assert "old" not in text


def test_the_text_as_scored_is_shown(tmp_path: Path, make_record, make_page) -> None:
    """Also where the record keeps the tags, as it does unless `strip_special_tokens` is set."""
    raw = "<|ref|>title<|/ref|><|det|>[[1,2,3,4]]<|/det|>\n# Head<｜end▁of▁sentence｜>"
    text = write(tmp_path, [make_record("a", raw)], [make_page("a")], plain={"a": "\n# Head"})
    clean, raw_text = text.split("<summary>Raw text</summary>")
    assert "# Head" in clean
    assert "ref" not in clean
    assert "det" in raw_text


@pytest.mark.parametrize(
    ("raw", "clean", "shown"),
    [
        ("Hello", "Hello", False),
        ("\nHello\n", "Hello", False),
        ("<｜begin▁of▁sentence｜>Hello <b>x</b><｜end▁of▁sentence｜><｜▁pad▁｜>", "Hello <b>x</b>", False),
        ("Hello<|im_end|>", "Hello", False),
        ("<｜end▁of▁sentence｜>", "", False),
        ("", "", False),
        ("Hello there", "Hello", True),
        ("<|ref|>Hello<|/ref|><|det|>[[1,2,3,4]]<|/det|>", "Hello", True),
        ("Hello", "", True),
        ("<|end|>", "Hello", True),
    ],
)
def test_the_raw_text_is_shown_where_it_says_more(
    tmp_path: Path, make_record, make_page, raw: str, clean: str, shown: bool
) -> None:
    text = write(tmp_path, [make_record("a", raw)], [make_page("a")], plain={"a": clean})
    assert ("Raw text" in text) == shown


def test_no_second_image_without_boxes(tmp_path: Path, make_record, make_page) -> None:
    outside = (Box("text", (300, 300, 400, 400)),)
    text = write(tmp_path, [make_record("a"), make_record("b", boxes=outside)], [make_page("a"), make_page("b")])
    assert text.count("thumbnail.jpg") == 2
    assert "boxes.jpg" not in text
    assert sorted(os.listdir(tmp_path / "pages/b")) == ["info.json", "result.md", "thumbnail.jpg"]


def test_one_by_one_pixel(tmp_path: Path, make_record, make_page) -> None:
    page = make_page("dot", size=(1, 1))
    write(
        tmp_path,
        [make_record("dot", boxes=(Box("image", (0, 0, 1, 1)), Box("text", (0, 0, 0, 1))))],
        [page],
    )
    assert info_of(tmp_path / "pages/dot")["skipped_boxes"] == 1
    assert (tmp_path / "pages/dot/crops/1.jpg").is_file()


def test_crops_are_bounded(tmp_path: Path, make_record, make_page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery_module, "MAX_CROPS", 3)
    boxes = tuple(Box("image", (number, 0, number + 10, 10)) for number in range(5))
    text = write(tmp_path, [make_record("a", boxes=boxes)], [make_page("a")])
    assert len(os.listdir(tmp_path / "pages/a/crops")) == 3
    assert "**Crops** of `image` boxes and 2 more" in text


def test_a_page_given_twice_counts_once(tmp_path: Path, make_record, make_page) -> None:
    text = write(tmp_path, [make_record("a", "first"), make_record("a", "second")], [make_page("a")])
    assert text.count("\n## ") == 1
    assert "second" in text


def test_a_low_error_rate_is_not_zero(tmp_path: Path, make_record, make_page) -> None:
    text = write(tmp_path, [make_record("a", cer=0.0000402)], [make_page("a")])
    assert text.count("0.0000402") == 2  # in the table and in the section


def test_random_weights_are_not_compared(tmp_path: Path, make_record, make_page) -> None:
    page = make_page("a", truth_free="The truth")
    text = write(tmp_path, [make_record("a", cer=None)], [page])
    assert "The truth" in text
    assert "not scored, so not compared" in text
    assert "```diff" not in text


def test_a_long_text_is_cut_here_and_whole_in_result(tmp_path: Path, make_record, make_page) -> None:
    text = "word " * 20_000
    write(tmp_path, [make_record("a", text)], [make_page("a")])
    assert "The first 40,000 of 100,000 characters" in (tmp_path / "predictions.md").read_text()
    assert (tmp_path / "predictions.md").stat().st_size < 100_000
    assert text in (tmp_path / "pages/a/result.md").read_text()


def test_a_failed_gallery_leaves_the_earlier_one(
    tmp_path: Path, make_record, make_page, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = make_page("a")
    write(tmp_path, [make_record("a", "first")], [page])

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(ArtifactError, match=r"cannot write the gallery in .*: No space left on device"):
        write(tmp_path, [make_record("a", "second")], [page])
    assert "first" in (tmp_path / "predictions.md").read_text()
    assert sorted(os.listdir(tmp_path)) == ["pages", "predictions.md", "source"]
    assert (tmp_path / "pages/a/thumbnail.jpg").is_file()


def test_what_a_killed_run_left_is_cleared(tmp_path: Path, make_record, make_page) -> None:
    (tmp_path / ".tmp-pages-0123").mkdir()
    (tmp_path / ".tmp-pages-0123/half").write_text("")
    write(tmp_path, [make_record("a")], [make_page("a")])
    assert sorted(os.listdir(tmp_path)) == ["pages", "predictions.md", "source"]


def test_a_foreign_pages_directory_is_not_replaced(tmp_path: Path, make_record, make_page) -> None:
    foreign = tmp_path / "pages"
    (foreign / "thesis").mkdir(parents=True)
    (foreign / "thesis/draft.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match=r"holds 'thesis'.*set another save_dir"):
        write(tmp_path, [make_record("a")], [make_page("a")])
    assert (foreign / "thesis/draft.txt").read_text() == "years of work"
    foreign.rename(tmp_path / "elsewhere")
    foreign.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="is not a directory"):
        write(tmp_path, [make_record("a")], [make_page("a")])


def test_no_page_at_all(tmp_path: Path) -> None:
    assert write(tmp_path, [], []) == "# test_pages\\[base\\]\n\n0 pages.\n"
