from __future__ import annotations

import subprocess
import sys

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
    assert [fixed(0.25), fixed(0.25, ".3f"), fixed(None), fixed(None, missing="–")] == ["0.2", "0.250", "", "–"]


def test_names_are_safe_distinct_and_short() -> None:
    names = ["a/b", "A_B", "con", "-x", "..", "\x00", "x" * 300, "x" * 301, "ü" * 150, "plain"]
    safe = unique_names(names)
    assert len({name.casefold() for name in safe.values()}) == len(names)
    assert all(len(name.encode()) <= 200 and "/" not in name for name in safe.values())
    assert (safe["plain"], safe["con"], safe["-x"]) == ("plain", "_con", "_-x")
    assert safe["a/b"].startswith("a_b-")


def test_import_is_light() -> None:
    code = (
        "import sys; from pytest_llmprof.text import escape, markdown, names, numbers;"
        "print([m for m in ('numpy', 'torch', 'PIL', 'msgspec', 'pytest') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
