"""Large runs: how long the page takes to make and to open, and how large it is.

Times are those of the processor, so that other work on the machine does not count.
"""

import random
import time

import pytest
from page_runs import answer_of, write_gallery, write_run

from pytest_llmprof.report.page import write_page

pytestmark = pytest.mark.slow


def words(number, count=300):
    """Text that packs about as well as a page's."""
    noise = random.Random(number)
    letters = "etaoinshrdlucmfwypvbgkq"
    return " ".join("".join(noise.choices(letters, k=noise.randint(2, 9))) for _ in range(count)) + "\n"


class Stopwatch:
    """The time that the main thread of an open page uses."""

    def __init__(self, page):
        self.page = page
        self._session = page.context.new_cdp_session(page)
        self._session.send("Performance.enable", {"timeDomain": "threadTicks"})
        self._begin = self._used()

    def _used(self):
        found = {one["name"]: one["value"] for one in self._session.send("Performance.getMetrics")["metrics"]}
        return found["TaskDuration"]

    def seconds(self):
        """What it has used since this was asked last."""
        begin, self._begin = self._begin, self._used()
        return self._begin - begin


def opened(open_page, file, route="/"):
    """An open page with a stopwatch that has seen it being opened."""
    stopwatch = Stopwatch(open_page(file, route))
    stopwatch.page.reload()
    stopwatch.page.wait_for_selector("html[data-ready]")
    stopwatch.page.wait_for_timeout(300)
    return stopwatch


@pytest.fixture(scope="module")
def many_pages(tmp_path_factory):
    """500 pages × 4 tests, each with answers of 2 kB."""
    path = write_run(tmp_path_factory.mktemp("pages"), tests=4, pages=500, rounds=3)
    answers = [
        answer_of(f"page-{number:03}", text_raw=words(number), text_scored=words(number), truth=words(number))
        for number in range(500)
    ]
    for index in range(4):
        write_gallery(path / f"test_pages/test_pages-mode{index}/one_stage", answers)
    return path


def test_2000_pages_are_made_fast_and_small(many_pages):
    begin = time.process_time()
    file = write_page(many_pages)
    seconds, size = time.process_time() - begin, file.stat().st_size
    print(f"{seconds:.2f} s of the processor, {size / 1e6:.2f} MB")
    assert seconds < 5
    assert size < 10e6


@pytest.mark.browser
@pytest.mark.parametrize("route", ["/", "/test/0", "/gallery/0"])
def test_2000_pages_open_fast(open_page, many_pages, route):
    stopwatch = opened(open_page, write_page(many_pages), route)
    seconds = stopwatch.seconds()
    print(f"{seconds:.2f} s of the processor")
    assert stopwatch.page.locator("h1").count() == 1
    assert seconds > 0
    assert seconds < 2


@pytest.fixture(scope="module")
def many_tests(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("tests"), tests=4000, pages=4, rounds=2, failed=100)


def test_4000_tests_are_made(many_tests):
    begin = time.process_time()
    file = write_page(many_tests)
    print(f"{time.process_time() - begin:.2f} s of the processor, {file.stat().st_size / 1e6:.2f} MB")
    assert file.stat().st_size < 40e6


@pytest.mark.browser
def test_4000_tests_open_fast_and_sort_fast(open_page, many_tests):
    from playwright.sync_api import expect

    stopwatch = opened(open_page, write_page(many_tests))
    page, seconds = stopwatch.page, stopwatch.seconds()
    print(f"{seconds:.2f} s of the processor")
    assert page.locator("h1").inner_text().endswith("100 of 4,000 tests failed")
    assert page.locator("main table tbody tr").count() < 400
    assert seconds < 2
    page.get_by_role("button", name="TTFT ms").click()
    expect(page.locator("main table tbody th a").first).to_have_text("test_pages[mode3999]")
    seconds = stopwatch.seconds()
    print(f"{seconds:.2f} s of the processor to sort")
    assert seconds < 1
