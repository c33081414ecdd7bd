"""HTML of a report's Markdown: what is kept, what is removed, where links lead."""

import pytest

from pytest_llmprof.report.page.safe_html import place, sanitised, to_html


def test_markdown_of_a_report():
    text = "**bold** `code`\n\n| A | B |\n| --- | ---: |\n| x | 1 |\n"
    assert to_html(text, "a/b").replace("\n", "") == (
        '<p><strong>bold</strong> <code>code</code></p><table><thead><tr><th>A</th><th class="number">B</th></tr>'
        '</thead><tbody><tr><td>x</td><td class="number">1</td></tr></tbody></table>'
    )


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[a](javascript:alert(1))",
        "[a](JaVaScRiPt:alert(1))",
        "[a](&#106;avascript:alert(1))",
        "![a](https://example.com/track.png)",
        "[a](//example.com/x)",
        "[a](data:text/html,hello)",
        "[a](../../../../etc/passwd)",
        "[a](/etc/passwd)",
        "[a](file:///etc/passwd)",
        "<svg onload=alert(1)>",
        "</textarea><iframe src=x>",
    ],
)
def test_hostile_markdown_becomes_text(text):
    shown = to_html(text, "a/b", inline=True)
    for part in ("<script", "<img", "<a ", "<svg", "<iframe", "<textarea"):
        assert part not in shown


@pytest.mark.parametrize(
    "text",
    [
        '<p onclick="x()">text</p>',
        '<p style="position:fixed">text</p>',
        "<p><script>alert(1)</script>text</p>",
        "<p>text<style>*{display:none}</style></p>",
        '<p>text<a href="javascript:x()"></a>',
        '<base href="https://example.com"><p>text<input autofocus><button></button></p>',
        '<meta http-equiv="refresh" content="0"><form action="x"><p>text<video src="x"></video></p></form>',
    ],
)
def test_hostile_html_loses_what_acts(text):
    assert sanitised(text, "").replace("<a>", "").replace("</a>", "") == "<p>text</p>"


def test_elements_are_closed():
    assert sanitised("<ul><li><strong>a", "") == "<ul><li><strong>a</strong></li></ul>"
    assert sanitised("a</div></p></strong>", "") == "a"


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("operators.csv", "t/one/operators.csv"),
        ("viz/a b.md", "t/one/viz/a%20b.md"),
        ("../two/report.md", "t/two/report.md"),
        ("a%2Fb", "t/one/a/b"),
        ("../../../x", None),
        ("%2e%2e/%2e%2e/%2e%2e/x", None),
        ("a\\b", None),
        ("", None),
        ("#top", None),
        ("c:/windows", None),
    ],
)
def test_links_start_where_the_run_lies(target, found):
    assert place(target, "t/one") == found


def test_https_links_do_not_tell_where_they_come_from():
    assert to_html("[a](https://pytorch.org)", "", inline=True) == (
        '<a href="https://pytorch.org" rel="noopener noreferrer">a</a>'
    )
