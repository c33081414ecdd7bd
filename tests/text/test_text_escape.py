from __future__ import annotations

import re

import pytest

from pytest_llmprof.text.escape import fenced, inline, one_line, preformatted, shorten, visible, whole


def test_visible() -> None:
    assert visible("tab\tline\nret\r\n") == "tab\tline\nret\n"
    assert visible("\x00\x1b[31m\r\x7f\x9b") == "␀␛[31m␍␡<U+009B>"
    assert visible("a\u202eb\u200fc\u2028d\ufeff") == "a<U+202E>b<U+200F>c<U+2028>d<U+FEFF>"
    assert visible("\ud800") == "\ufffd"
    # Joiners are part of words and emoji, combining marks of letters.
    kept = "می\u200cخواهم 👩\u200d🔬 e\u0301 日本語 \u00a0"
    assert visible(kept) == kept


def test_whole_joins_pairs() -> None:
    assert whole("\ud83d\ude00 \ude00\ud83d") == "😀 \ufffd\ufffd"


def test_shorten_and_one_line() -> None:
    assert shorten("abcdef", 4) == "abc…"
    assert shorten("abcd", 4) == "abcd"
    assert one_line(" a\n\n b\tc " * 1000, 5) == "a b …"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("test_pages[base-x]", r"test_pages\[base-x\]"),
        ("_a_ *b* `c` ~~d~~ $e$", r"\_a\_ \*b\* \`c\` \~\~d\~\~ \$e\$"),
        ("a | b\n# c", r"a \| b \# c"),
        ("<script>&amp;</script>", "&lt;script&gt;&amp;amp;&lt;/script&gt;"),
        ("![x](javascript:alert(1))", r"!\[x\](javascript:alert(1))"),
        ("\x1b]0;title\x07", r"␛\]0;title␇"),
    ],
)
def test_inline(text: str, expected: str) -> None:
    assert inline(text) == expected


@pytest.mark.parametrize("text", ["", "a", "a\n", "```", "a\n````js\n`````\n```", "`" * 40, "~~~\n~~~~"])
def test_fence_holds(text: str) -> None:
    lines = fenced(text).split("\n")
    fence = re.fullmatch(r"(`{3,})text", lines[0])
    assert fence is not None
    assert lines[-1] == ""
    assert lines[-2] == fence[1]
    assert "\n".join(lines[1:-2]).rstrip("\n") == text.rstrip("\n")
    # Only a run as long as the opening one closes a fence.
    assert not any(fence[1] in line for line in lines[1:-2])


def test_preformatted_holds() -> None:
    block = preformatted("</pre></details>\n\n<script>x</script> [a](b) `c`\n~~~\n&lt;")
    assert block == (
        "<pre>\n&lt;/pre&gt;&lt;/details&gt;\n\n&lt;script&gt;x&lt;/script&gt; &#91;a&#93;(b) &#96;c&#96;\n"
        "&#126;&#126;&#126;\n&amp;lt;\n</pre>\n"
    )
