"""The picture of a terminal in README.md, and how it is made."""

from __future__ import annotations

import re
import sys
from html import unescape
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs" / "images" / "terminal.svg"


def words(svg: str) -> str:
    return re.sub(r"\s+", " ", unescape(" ".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg))).replace("\xa0", " "))


def test_what_is_on_the_screen_is_in_the_picture(tmp_path, monkeypatch):
    pytest.importorskip("pyte")
    pytest.importorskip("rich")
    import record_terminal

    code = "print('gone', end='\\r'); print('\\x1b[32mstays & <is> shown\\x1b[0m'); raise SystemExit(3)"
    monkeypatch.setattr(sys, "argv", ["record", str(tmp_path / "a.svg"), sys.executable, "-c", code])
    assert record_terminal.main() == 3
    svg = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "stays & <is> shown" in words(svg)
    assert "gone" not in words(svg).rpartition("SystemExit")[2]


def test_the_picture_is_of_a_command_of_the_readme_and_loads_nothing():
    svg = PICTURE.read_text(encoding="utf-8")
    typed = re.search(r"\$ (pytest [^=]*=\w+[^·]*?) llmprof:", words(svg))
    assert typed
    assert f"`{typed[1].strip()}`" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "passed" in words(svg)
    assert len(svg) < 100_000
    assert not re.search(r"url\(\"?http|href=\"http|<image|@import", svg)
