"""The page in Chromium, from the disk and without a network."""

import re

import pytest
from page_runs import write_run

from pytest_llmprof.report.page import write_page

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
pytestmark = pytest.mark.browser


def texts(page, selector):
    return [text.strip() for text in page.locator(selector).all_inner_texts()]


@pytest.fixture
def page_file(tmp_path):
    return write_page(write_run(tmp_path, tests=12, pages=5, failed=1))


def test_overview_sorts_filters_and_chooses_columns(open_page, page_file):
    page = open_page(page_file)
    assert texts(page, "h1") == ["✕1 of 12 tests failed"]
    names = "main table tbody th a"
    assert texts(page, names)[:2] == ["test_pages[mode0]", "test_pages[mode1]"]
    page.get_by_role("button", name="TTFT ms").click()
    assert texts(page, names)[0] == "test_pages[mode11]"
    assert page.get_by_role("columnheader", name="TTFT ms").get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="TTFT ms").click()
    assert texts(page, names)[0] == "test_pages[mode0]"
    page.keyboard.press("/")
    page.keyboard.type("mode11")
    expect(page.locator("main table tbody tr")).to_have_count(1)
    assert texts(page, "[role=status]") == ["1 of 12 tests"]
    page.get_by_label("Search tests").fill("")
    page.get_by_label("All outcomes").select_option("failed")
    expect(page.locator("main table tbody tr")).to_have_count(1)
    page.get_by_text("Columns", exact=True).click()
    page.get_by_label("Decode (ms)").check()
    assert page.get_by_role("columnheader", name="Decode (ms)").count() == 1


def test_the_failure_is_two_clicks_away(open_page, page_file):
    page = open_page(page_file)
    page.get_by_role("link", name="test_pages[mode11]").first.click()
    page.wait_for_selector("text=Why it failed")
    assert "cer is 0.2, limit <=0.05" in page.locator(".box.bad").inner_text()
    assert "page-000: cannot be read" in page.locator(".box.bad").inner_text()


def test_a_tests_rounds_phases_and_tables(open_page, page_file):
    page = open_page(page_file, "/test/0")
    page.wait_for_selector(".chart canvas")
    assert page.locator(".wide-bar .bar > span").count() == 5  # the phases that are no part of another
    page.get_by_role("button", name="page-004").click()
    assert page.locator(".page-row.sub").count() == 2
    box = page.locator(".chart .u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.1, box["y"] + box["height"] * 0.5)
    expect(page.locator(".readout")).to_have_text(re.compile(r"page-\d+, round \d: [\d,.]+ ms"))
    page.get_by_placeholder("Search names").fill("op29")
    expect(page.locator(".tall tbody tr")).to_have_count(1)
    assert texts(page, ".markdown th") == ["Row", "Value"]
    link = page.get_by_role("link", name="operators.csv").first.get_attribute("href")
    assert (page_file.parent / link).is_file()


def test_keys(open_page, page_file):
    page = open_page(page_file)
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"#/test/\d+$"))
    page.keyboard.press("Escape")
    expect(page).to_have_url(re.compile("#/$"))
    page.keyboard.press("?")
    assert page.get_by_role("dialog").is_visible()


def test_theme_follows_the_system_and_the_button(open_page, page_file):
    background = "getComputedStyle(document.body).backgroundColor"
    light = open_page(page_file, color_scheme="light").evaluate(background)
    page = open_page(page_file, color_scheme="dark")
    assert page.evaluate(background) != light
    page.get_by_label("Light or dark").click()
    assert page.evaluate(background) == light
    page.reload()
    assert page.evaluate(background) == light


@pytest.mark.parametrize("route", ["/", "/test/0"])
def test_nothing_is_wider_than_a_phone(open_page, page_file, route):
    page = open_page(page_file, route, width=400)
    assert page.evaluate("document.documentElement.scrollWidth") == 400


def test_an_unknown_test_says_so(open_page, page_file):
    assert texts(open_page(page_file, "/test/99"), "h1") == ["There is no such test"]
    assert texts(open_page(page_file, "/nowhere"), "h1") == ["✕1 of 12 tests failed"]
