"""Make untrusted text safe to show: valid Unicode, visible control characters, no live HTML or Markdown.

All text from a model, a dataset or a file system goes through here before it is shown.
"""

from __future__ import annotations

import html
import re
from typing import Any

# Control characters (C0 without tab and line feed, DEL, C1), invisible or direction-changing marks, and separators that
# some programs read as line ends. Zero-width joiners stay: Persian, Indic scripts and emoji need them.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0e\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
# An underscore inside a word is no emphasis, so it is not escaped: names stay readable in the source. GitHub makes a
# link of what begins with a scheme or with www.
_MARKDOWN = re.compile(r"([\\`*\[\]#|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=//)|(?<=[Ww]{3})\.)")
_FENCE_RUN = re.compile(r"`+")
# HTML entities for what would be Markdown inside <pre> where a viewer has switched HTML off.
_INERT = str.maketrans({"[": "&#91;", "]": "&#93;", "`": "&#96;", "~": "&#126;"})


def whole(text: str) -> str:
    """*text* as valid Unicode: surrogate pairs joined, a lone surrogate becomes U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def encodable(value: Any) -> Any:
    """Plain data with each text as valid Unicode, as JSON and pytest-xdist need it."""
    if isinstance(value, str):
        return whole(value)
    if isinstance(value, dict):
        return {encodable(key): encodable(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(encodable, value))
    return value


def visible(text: str) -> str:
    """*text* with line feeds as line ends, and hidden characters shown: U+2400 and on for C0, else ``<U+202E>``."""
    return _HIDDEN.sub(_show, whole(text).replace("\r\n", "\n"))


def shorten(text: str, limit: int) -> str:
    """*text* with at most *limit* characters, the last one an ellipsis where it was cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def one_line(text: str, limit: int = 300) -> str:
    """*text* as one visible line of at most *limit* characters."""
    return shorten(" ".join(visible(text[: 4 * limit]).split()), limit)


def quoted(value: object, limit: int = 100) -> str:
    """`repr` of a stranger's *value* as one visible line of at most *limit* characters."""
    return one_line(repr(value), limit)


def inline(text: str, limit: int = 300) -> str:
    """*text* as one line of plain text in Markdown: a heading, a table cell, the text of a link."""
    return _MARKDOWN.sub(r"\\\1", html.escape(one_line(text, limit), quote=False))


def fenced(text: str, language: str = "text") -> str:
    """*text* in a code fence that it cannot close: longer than any run of backticks inside."""
    shown = visible(text)
    mark = "`" * max(3, 1 + max((len(run) for run in _FENCE_RUN.findall(shown)), default=0))
    end = "" if shown.endswith("\n") or not shown else "\n"
    return f"{mark}{language}\n{shown}{end}{mark}\n"


def preformatted(text: str) -> str:
    """*text* as an HTML `<pre>` block that it cannot close, also inside `<details>`.

    Markdown ends other HTML blocks at an empty line, `<pre>` only at its closing tag. Where a viewer shows no HTML,
    brackets and backticks still make no links, images or fences.
    """
    return f"<pre>\n{html.escape(visible(text)).translate(_INERT)}\n</pre>\n"


def _show(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"<U+{code:04X}>"
