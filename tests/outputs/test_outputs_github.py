"""predictions.md as GitHub shows it: rendered by GitHub's own parser (cmark-gfm), then read as HTML."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from test_outputs_gallery import GOLDEN, HOSTILE, write

from pytest_llmprof.records.predictions import Box

cmarkgfm = pytest.importorskip("cmarkgfm")

_EMPTY = {"img", "br", "hr", "input"}


class Html(HTMLParser):
    """What a reader sees: headings, table rows, images, links, preformatted texts, and all tags."""

    def __init__(self, markdown: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.rows: list[list[str]] = []
        self.images: list[str] = []
        self.links: list[str] = []
        self.pre: list[str] = []
        self.tags: set[str] = set()
        self.ids: set[str] = set()
        self._open: list[str] = []
        options = cmarkgfm.cmark.Options.CMARK_OPT_UNSAFE  # GitHub keeps HTML, and then removes what is not allowed
        self.feed(cmarkgfm.github_flavored_markdown_to_html(markdown, options))
        assert self._open == [], "a tag is never closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = dict(attrs)
        assert not {name for name in given if name.startswith("on")}
        self.images += [given["src"] or ""] if tag == "img" else []
        self.links += [given["href"] or ""] if "href" in given else []
        self.ids |= {given["id"] or ""} if "id" in given else set()
        if tag in ("h1", "h2"):
            self.headings.append("")
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "pre":
            self.pre.append("")
        if tag not in _EMPTY:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _EMPTY:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "pre" in self._open:
            self.pre[-1] += data
        elif self._open[-1:] and self._open[-1] in ("h1", "h2"):
            self.headings[-1] += data
        elif {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data


def test_the_golden_gallery() -> None:
    page = Html(GOLDEN.read_text(encoding="utf-8"))
    assert page.headings == ["test_pages[base]", "a/invoice [1]", "b"]
    assert page.rows == [
        ["Page", "Status", "Time (ms)", "Tokens", "Tokens/s", "CER", "End"],
        ["a/invoice [1]", "ok", "92.0", "12", "183", "0.0645", "ended by itself"],
        ["b", "error", "–", "0", "–", "–", "–"],
        ["c", "ok", "92.0", "12", "183", "–", "cut at max_new_tokens, in a loop"],
    ]
    directory = "pages/a_invoice_%5B1%5D"
    assert page.images == [f"{directory}/thumbnail.jpg", f"{directory}/boxes.jpg", f"{directory}/crops/2.jpg"]
    assert page.ids == {"page-1", "page-2"}
    assert {link.removeprefix("#") for link in page.links if link.startswith("#")} == page.ids
    answer, raw, truth, differences, *_ = page.pre
    assert answer == "# INVOICE 12\n\nTotal due: 72.3 EUR\nThank you\n"
    assert raw.strip().startswith("<|ref|>title<|/ref|><|det|>[[1,2,3,4]]<|/det|>\n# INVOICE 12\n\nTotal due: 72.3 EUR")
    assert truth.strip() == "INVOICE 12\n\nTotal due: 12.30 EUR\nThank you"
    assert "- Total due: 12.30 EUR\n" in differences


OUR_TAGS = {
    *("h1", "h2", "p", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "pre", "details", "summary"),
    *("a", "img", "strong", "em", "code", "br"),
}


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_shown_as_text(tmp_path: Path, make_record, make_page, text: str) -> None:
    name = f"p {text[:200]}"
    good = make_record(name, text, boxes=(Box(text[:500], (1, 1, 50, 50), text[:500]),), cer=0.5, image=text[:500])
    bad = make_record("bad", text, status="error", error=text, finish_reason=None)
    page = make_page(name, truth_free=text)
    write(tmp_path, [good, bad], [page], title=text[:900], facts={text[:99]: text[:500]}, plain={name: text})
    for file in (tmp_path / "predictions.md", *tmp_path.glob("pages/*/result.md")):
        shown = Html(file.read_text(encoding="utf-8"))
        assert shown.tags <= OUR_TAGS
        assert len(shown.headings) == (3 if file.name == "predictions.md" else 1)
        assert all((file.parent / unquote(image)).is_file() for image in shown.images)
        assert not [link for link in shown.links if not re.match(r"#page-\d+$|(pages/[^/]+/)?crops/\d+\.jpg$", link)]
        if file.name == "predictions.md":
            assert [len(row) for row in shown.rows] == [7, 7, 7]
            assert [row[1] for row in shown.rows[1:]] == ["ok", "error"]
        texts = "".join(shown.pre)
        assert all(word in texts for word in re.findall(r"[A-Za-z]{3,}", text[:2000]))
