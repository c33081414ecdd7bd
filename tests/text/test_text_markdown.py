from __future__ import annotations

import re
import subprocess
import sys
import unicodedata

import pytest

from pytest_llmprof.text.markdown import table
from pytest_llmprof.text.names import unique_names
from pytest_llmprof.text.numbers import count, fixed


def test_table_alignment() -> None:
    assert table(["a", "b", "c"], [["1", "2", "3"]]) == "| a | b | c |\n| --- | ---: | ---: |\n| 1 | 2 | 3 |\n"
    assert table(["a", "b", "c"], [["", "", ""]], 2).splitlines()[1] == "| --- | --- | ---: |"
    assert table(["a", "b", "c"], [["", "", ""]], (0, 2)).splitlines()[1] == "| --- | ---: | --- |"


def test_counts_and_fixed_numbers() -> None:
    assert [count(1, "page"), count(0, "page")] == ["1 page", "0 pages"]
    assert count(1234, "entry", "entries") == "1,234 entries"
    assert [fixed(0.25), fixed(0.25, ".3f"), fixed(None)] == ["0.2", "0.250", ""]


def test_names_are_safe_distinct_and_short() -> None:
    names = ["a/b", "A_B", "con", "-x", "..", "\x00", "x" * 300, "x" * 301, "ü" * 150, "plain"]
    safe = unique_names(names)
    assert len({name.casefold() for name in safe.values()}) == len(names)
    assert all(len(name.encode()) <= 200 and "/" not in name for name in safe.values())
    assert (safe["plain"], safe["con"], safe["-x"]) == ("plain", "_con", "_-x")
    assert safe["a/b"].startswith("a_b-")


@pytest.mark.parametrize(
    "names",
    [
        ["A_b", "a_B"],
        ["caf\u00e9", "cafe\u0301"],
        ["\u212bngström", "\u00c5ngström"],
        ["\ud55c\uae00", unicodedata.normalize("NFD", "\ud55c\uae00")],
        ["straße", "STRASSE"],
        ["a/b", "a\\b", "a_b", "a:b"],
        ["x" * 256, "x" * 255 + "y", "X" * 300],
        ["字" * 85, "字" * 86],
        [".hidden", "hidden.", "hidden"],
        ["\ud800", "\udfff"],
        ["", ".", ".."],
    ],
)
def test_names_that_would_be_one_file_get_a_digest_each(tmp_path, names) -> None:
    """On a file system that ignores case and Unicode forms, and with 255 bytes a name."""
    safe = unique_names(names)
    assert all(re.search(r"-[0-9a-f]{10}$", name) for name in safe.values())
    folded = {unicodedata.normalize("NFKC", unicodedata.normalize("NFD", name).casefold()) for name in safe.values()}
    assert len(folded) == len(names)
    assert unique_names(reversed(names)) == safe
    for name in safe.values():
        (tmp_path / name).mkdir()


def test_names_with_one_readable_form_and_names_that_are_taken() -> None:
    safe = unique_names({"v1.0/test_y.py": "v1.0.test_y", "v1/0/test_y.py": "v1.0.test_y", "z.py": "z"})
    assert len(set(safe.values())) == 3
    assert all(safe[name].startswith("v1.0.test_y-") for name in ("v1.0/test_y.py", "v1/0/test_y.py"))
    assert safe["z.py"] == "z"
    assert unique_names(["run.json", "x"], taken=["Run.JSON"])["run.json"].startswith("run.json-")
    # A name that looks like another one's with its digest.
    other = unique_names(["a/b", "a_b"])["a/b"]
    assert len(set(unique_names(["a/b", "a_b", other]).values())) == 3


def test_import_is_light() -> None:
    code = (
        "import sys; from pytest_llmprof.text import escape, markdown, names, numbers;"
        "print([m for m in ('numpy', 'torch', 'PIL', 'msgspec', 'pytest') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
