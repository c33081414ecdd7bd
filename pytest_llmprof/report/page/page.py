"""Writes index.html: styles, scripts and data in one file, which loads nothing but the images of its run.

The page's content-security policy names the digests of its styles and script, so nothing else can run in it, whatever
the data holds. Data lies in blocks of JSON, which a browser does not run.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import quote

from pytest_llmprof.compare.result import COMPARISON, SCHEMA, Comparison
from pytest_llmprof.records.files import decode_record, encode_json, read_bytes, write_text
from pytest_llmprof.report.page.collect import collect
from pytest_llmprof.report.page.data import PageData
from pytest_llmprof.text.templates import render_template

PAGE = "index.html"
"""Its name in the run directory."""
PACKED_FROM = 30_000
"""Bytes from which a block of answers or of a timeline is packed."""
_ASSETS = Path(__file__).parent / "assets"
_STYLES = ("uplot/uPlot.min.css", "page.css")
_SCRIPTS = ("uplot/uPlot.iife.min.js", "dom.js", "format.js", "diff.js", "answer_text.js", "rounds.js")
"""Come before the views, which come before `main.js`."""


def write_page(
    run_dir: Path, target: Path | None = None, comparison: Comparison | None = None, before: Path | None = None
) -> Path:
    """Write the page of the run in *run_dir* to *target* (default: index.html there). Gives its path.

    *comparison* is one with a baseline, in place of the run's own (comparison.json); *before* is the baseline's run
    directory, where there is one, for the answers that differ. Raises `ArtifactError` where run.json or comparison.json
    cannot be read, or the page cannot be written.
    """
    path = target or run_dir / PAGE
    own = run_dir / COMPARISON
    if comparison is None and own.is_file():
        comparison = decode_record(read_bytes(own), Comparison, SCHEMA, own)
    base = Path(os.path.relpath(run_dir.resolve(), path.parent.resolve())).as_posix()
    link = "" if base == "." else f"{quote(os.fsencode(base))}/"
    data = collect(run_dir, comparison, link, before)
    write_text(path, render_page(data))
    return path


def render_page(data: PageData) -> str:
    """The page as HTML."""
    style, script = _style(), _script()
    return render_template(
        Path(__file__).parent / "page.html.j2",
        title=data.overview.name,
        policy=_policy(style, script),
        style=style,
        script=script,
        blocks=list(_blocks(data)),
    )


@cache
def _style() -> str:
    return "\n".join(_asset(name) for name in _STYLES)


@cache
def _script() -> str:
    views = sorted(path.relative_to(_ASSETS).as_posix() for path in (_ASSETS / "views").glob("*.js"))
    # One scope for all, so that a file's functions are there for the others and nothing is global but uPlot.
    library, *own = [_asset(name) for name in (*_SCRIPTS, *views, "main.js")]
    licence = f"/*\nuPlot:\n\n{_asset('uplot/LICENSE').strip()}\n*/\n"  # which each copy must have
    return licence + library + '\n(() => {\n"use strict";\n' + "\n".join(own) + "\n})();\n"


def _asset(name: str) -> str:
    text = (_ASSETS / name).read_text(encoding="utf-8")
    # Where one of these stood in a script or style, a browser would end it there.
    if "</script" in text.lower() or "</style" in text.lower() or "<!--" in text:
        raise ValueError(f"{name} would end the element that it stands in")
    return text


def _policy(style: str, script: str) -> str:
    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return "; ".join(
        (
            "default-src 'none'",
            "img-src 'self' data: file:",
            f"style-src {digest(style)}",
            f"script-src {digest(script)}",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def _blocks(data: PageData) -> Iterator[tuple[str, str]]:
    """The name and text of each block of data."""
    yield "overview", _json(data.overview)
    if data.comparison is not None:
        yield "comparison", _json(data.comparison)
    for index, test in enumerate(data.tests):
        yield f"test-{index}", _json(test)
    for kind, blocks in (("answers", data.answers), ("before", data.before), ("timeline", data.timelines)):
        for index, block in blocks.items():
            yield f"{kind}-{index}", _packed(block)


def _packed(value: object) -> str:
    """*value* as JSON that is packed where it is long: a text, the base64 of its gzip."""
    data = encode_json(value)
    if len(data) < PACKED_FROM:
        return _json(value)
    return f'"{base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()}"'


def _json(value: object) -> str:
    """*value* as JSON that cannot end the element that it stands in, nor a line of script."""
    text = encode_json(value).decode()
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text
