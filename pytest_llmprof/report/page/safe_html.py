"""Markdown of a report as HTML that can do nothing: made without HTML of its own, then held against a list of tags."""

from __future__ import annotations

import html
import posixpath
import re
from functools import cache
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

_TAGS = frozenset(
    (
        *("a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "img", "li", "ol"),
        *("p", "pre", "s", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"),
    )
)
_EMPTY = frozenset(("br", "hr", "img"))
_REMOVED = frozenset(
    ("script", "style", "iframe", "object", "template", "svg", "math", "noscript", "textarea", "title")
)
"""Tags that go with what is in them."""
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.\-]*:")


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])


def to_html(markdown: str, base: str, *, inline: bool = False) -> str:
    """*markdown* as safe HTML; with *inline* without a paragraph around it.

    Links are relative to *base*, a directory under the run directory; one that leads out of the run is left out, and
    so is one of any scheme but https. Images are files of the run.
    """
    parser = _parser()
    return sanitised(parser.renderInline(markdown) if inline else parser.render(markdown), base)


def sanitised(text: str, base: str) -> str:
    """The HTML *text* with only the tags and attributes that a report needs."""
    cleaner = _Cleaner(base)
    cleaner.feed(text)
    cleaner.close()
    return "".join(cleaner.parts) + "".join(f"</{tag}>" for tag in reversed(cleaner.open))


def place(target: str, base: str) -> str | None:
    """The relative link *target* of a file in *base*, as a link from the run directory; None where it leaves it."""
    path, mark, fragment = target.partition("#")
    path = unquote(path)
    if any(ord(letter) < 32 for letter in path) or "\\" in path or path.startswith("/") or _SCHEME.match(path):
        return None
    if not path:
        return None  # an anchor of report.md, which the page has not
    joined = posixpath.normpath(posixpath.join(base, path))
    if joined.startswith(("../", "/")) or joined == "..":
        return None
    return quote(joined) + (f"#{quote(fragment)}" if mark else "")


class _Cleaner(HTMLParser):
    """Writes what is allowed of the HTML that it is fed."""

    def __init__(self, base: str) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.open: list[str] = []
        self._base = base
        self._removed = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _REMOVED:
            self._removed += 1
        if self._removed or tag not in _TAGS:
            return
        if tag == "img" and not (dict(attrs).get("src") and place(dict(attrs)["src"] or "", self._base)):
            self.parts.append(html.escape(dict(attrs).get("alt") or ""))
            return
        self.parts.append(f"<{tag}{''.join(self._attributes(tag, dict(attrs)))}>")
        if tag not in _EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in _REMOVED:
            self._removed = max(0, self._removed - 1)
        if self._removed or tag not in self.open:
            return
        while self.open:
            last = self.open.pop()
            self.parts.append(f"</{last}>")
            if last == tag:
                return

    def handle_data(self, data: str) -> None:
        if not self._removed:
            self.parts.append(html.escape(data))

    def _attributes(self, tag: str, attrs: dict[str, str | None]) -> list[str]:
        found: dict[str, str] = {}
        if tag == "a" and (href := attrs.get("href") or ""):
            if href.lower().startswith("https://"):
                found = {"href": href, "rel": "noopener noreferrer"}
            elif inside := place(href, self._base):
                found = {"href": inside, "data-file": ""}
        elif tag == "img":
            found = {"src": place(attrs.get("src") or "", self._base) or "", "alt": attrs.get("alt") or ""}
            found |= {"loading": "lazy", "data-file": ""}
        elif tag in ("td", "th") and "right" in (attrs.get("style") or ""):
            found = {"class": "number"}
        return [f' {name}="{html.escape(value)}"' for name, value in found.items()]
