"""An answer's markup -> the text that is scored. The one place that knows HTML, DocTags and JSON in answers.

Markdown needs nothing: heading marks are left out where texts are compared (`pytest_llmprof.quality.text`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from typing import Any

_BLOCKS = frozenset(
    (
        *("address", "article", "blockquote", "br", "caption", "dd", "div", "dl", "dt", "figcaption", "figure"),
        *("footer", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "ol", "p", "pre", "section"),
        *("table", "tr", "ul"),
    )
)
_SILENT = frozenset(("script", "style", "head"))
_TAG = re.compile(r"</?[a-z_][a-z_0-9]*>")
_CELLS = re.compile(r"<(?:fcel|ecel|lcel|ucel|xcel|ched|rhed|srow)>")
_NO_TAG = re.compile(r"<(?=!\[|(?!!--)[^<>]*(?:<|\Z))")
"""What opens no tag: nothing closes it before the next one, over which Python's parser takes long; or it begins a
section (Word's and XML's have some), at an unknown one of which that parser raises."""
_TEXTS = ("text", "text_content", "content", "markdown", "html", "latex")
_FENCE = re.compile(r"```(?:json)?[^\S\n]*\n(.*?)```", re.DOTALL)


def plain_text(answer: str, markup: str) -> str:
    """The text of *answer*, written in *markup*: text, html, doctags or json. Broken markup stays as text."""
    if markup == "html":
        return _html(answer)
    if markup == "doctags":
        cells = _CELLS.sub(" ", answer.replace("<nl>", "\n"))
        return unescape(_TAG.sub("\n", cells)).strip()
    if markup == "json":
        return _json(answer)
    return answer


def is_tag(token: str, markup: str) -> bool:
    """Whether `plain_text` reads the *token*: a tokenizer may have DocTags among its special ones."""
    return markup == "doctags" and _TAG.fullmatch(token) is not None


class _Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._silent = 0 if tag == "body" else self._silent + (tag in _SILENT)  # the head's own end may be left out
        self.parts.append("\n" if tag in _BLOCKS else " " if tag in ("td", "th") else "")

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in _SILENT and self._silent > 0
        self.parts.append("\n" if tag in _BLOCKS else "")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.parts.append(data)


def _html(answer: str) -> str:
    begin, end, rest = answer.rpartition("-->")
    # A comment without an end is none: Python's parser would look for it behind each one.
    answer = begin + end + rest.replace("<!--", "&lt;!--")
    parser = _Texts()
    parser.feed(_NO_TAG.sub("&lt;", answer))
    parser.close()
    return "".join(parser.parts).strip()


def _json(answer: str) -> str:
    fenced = _FENCE.search(answer)
    try:
        value = json.loads(fenced[1] if fenced else answer)
        return "\n".join(_texts(value))
    except (ValueError, RecursionError):
        return answer


def _texts(value: Any) -> Iterator[str]:
    """The texts of a page's elements: what stands under a key for text, else all texts below it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        named = [value[key] for key in _TEXTS if isinstance(value.get(key), str) and value[key].strip()]
        if named:
            yield named[0]
        else:
            for item in value.values():
                if isinstance(item, (list, dict)):
                    yield from _texts(item)
