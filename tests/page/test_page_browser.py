"""The page in Chromium, from the disk and without a network."""

import json
import os
import re
from pathlib import Path

import msgspec
import pytest
from page_runs import answer_of, run_record, write_gallery, write_run, write_timeline

from pytest_llmprof.cli import main
from pytest_llmprof.records.files import write_json
from pytest_llmprof.records.run import TestRecord
from pytest_llmprof.report.page import collect, write_page
from pytest_llmprof.text import numbers

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
pytestmark = pytest.mark.browser

AXE = Path(os.environ.get("LLMPROF_AXE", Path(__file__).parent / "axe.min.js"))
"""axe-core (MPL-2.0), which is not ours to ship."""


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
    expect(page.locator(names).first).to_have_text("test_pages[mode11]")
    expect(page.get_by_role("columnheader", name="TTFT ms")).to_have_attribute("aria-sort", "descending")
    page.get_by_role("button", name="TTFT ms").click()
    expect(page.locator(names).first).to_have_text("test_pages[mode0]")
    page.keyboard.press("/")
    page.keyboard.type("mode11")
    expect(page.locator("main table tbody tr")).to_have_count(1)
    assert texts(page, "[role=status]") == ["1 of 12 tests"]
    page.get_by_label("Search tests").fill("")
    page.get_by_label("All outcomes").select_option("failed")
    expect(page.locator("main table tbody tr")).to_have_count(1)
    page.get_by_text("Columns", exact=True).click()
    page.get_by_label("Decode (ms)").check()
    expect(page.get_by_role("columnheader", name="Decode (ms)")).to_have_count(1)
    expect(page.get_by_role("columnheader", name="TTFT ms")).to_have_attribute("aria-sort", "ascending")


def test_what_follows_a_long_list_stays_in_its_place(open_page, tmp_path):
    """A list that grows as the reader comes to it would push what is below away, from under the pointer too."""
    file = write_page(write_run(tmp_path, tests=300, pages=80, rounds=2, failed=100))
    rows = ".tall li, .tall tbody tr, .tall .page-row"
    for route in ("/", "/test/0"):
        page = open_page(file, route)
        if route != "/":
            page.get_by_role("button", name="Show all 80 pages").click()
            expect(page.locator(".page-row")).to_have_count(50)
        before, shown = page.evaluate("document.documentElement.scrollHeight"), page.locator(rows).count()
        for box in page.locator(".tall").all():
            box.evaluate("element => (element.scrollTop = element.scrollHeight)")
        page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
        expect(page.locator(rows)).not_to_have_count(shown)
        assert page.evaluate("document.documentElement.scrollHeight") == before


def test_each_kind_of_list_has_a_box_and_long_texts_little_room(open_page, tmp_path):
    tests = [
        TestRecord(f"test_a.py::test_{'long_' * 60}{at}", "one_stage", "pages", "failed", None, "a reason " * 900)
        for at in range(2)
    ]
    for name, day in (("before", 23), ("after", 24)):
        run = write_run(tmp_path / name, tests=30, rounds=3, started=f"2026-11-{day}T10:15:00+00:00")
    written = json.loads((run / "run.json").read_text())
    write_json(run / "run.json", {**written, "tests": [*written["tests"], *json.loads(msgspec.json.encode(tests))]})
    for at, path in enumerate(run.glob("test_pages/*/one_stage/report.md")):
        path.write_text(path.read_text().replace("The GPU waits", f"`kernel {at}` waits").replace("12 %", f"{at} %"))
    assert main(["report", str(run), "--baseline", str(tmp_path / "before")]) == 0
    page = open_page(run / "index.html", height=800)
    boxes = page.locator(".tall").evaluate_all("boxes => boxes.map(box => box.scrollHeight > box.offsetHeight)")
    assert boxes == [False, True, True, True]  # failures, tests, findings, doubts
    assert page.locator("main").evaluate("element => element.offsetHeight") < 3000
    page.goto(f"{(run / 'index.html').as_uri()}#/compare")
    expect(page.locator(".tall table tbody tr").first).to_be_visible()


def test_what_stands_beside_a_note_is_a_line_a_test(open_page, tmp_path):
    run = write_run(tmp_path, tests=5)
    written = json.loads((run / "run.json").read_text())
    for test in written["tests"][:4]:
        test["id"] = f"test_a.py::test_{'long_' * 60}[{test['dir']}]"
    written["tests"][4]["dir"] = None
    write_json(run / "run.json", written)
    page = open_page(write_page(run))
    where = page.locator(".notes .where").first
    assert where.inner_text().splitlines()[3:] == ["and 1 more"]
    assert where.evaluate("element => element.offsetHeight") < 120


def test_an_interrupted_test_is_not_called_failed(open_page, tmp_path):
    outcomes = {"interrupted": None, "skipped": "needs a GPU", "passed": None}
    tests = [TestRecord(f"t.py::test_{one}", "one_stage", None, one, None, why) for one, why in outcomes.items()]
    write_json(tmp_path / "run.json", run_record(tests, status="interrupted"))
    file = write_page(tmp_path)
    page = open_page(file)
    expect(page.get_by_role("heading", name="The interrupted test")).to_be_visible()
    assert texts(page, ".failures .error") == ["the run ended while this test ran"]
    page = open_page(file, "/test/1")
    assert texts(page, ".box") == ["Why it was skipped\nneeds a GPU"]


def test_outcomes_are_in_sight_on_a_phone(open_page, tmp_path):
    run = write_run(tmp_path / "one", tests=2)
    page = open_page(write_page(run), width=390)
    box = page.locator("main table tbody .badge").first.bounding_box()
    assert box["x"] + box["width"] <= 390
    expect(page.get_by_role("columnheader", name="Stage")).to_have_count(0)  # the head names the only one
    expect(page.locator(".verdict")).to_contain_text("UTC · one_stage · cpu")
    written = json.loads((run / "run.json").read_text())
    written["tests"][0]["stage"] = "another"
    write_json(run / "run.json", written)
    expect(open_page(write_page(run)).get_by_role("columnheader", name="Stage")).to_have_count(1)


def test_a_reader_comes_back_to_the_test_and_the_search(open_page, tmp_path):
    page = open_page(write_page(write_run(tmp_path, tests=12)))
    page.get_by_role("button", name="TTFT ms").click()
    page.get_by_placeholder("Search tests").fill("mode1")
    expect(page.locator("main table tbody tr")).to_have_count(3)
    page.keyboard.press("Escape")
    for _ in range(2):
        page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="test_pages[mode10]")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("link", name="test_pages[mode10]").first).to_be_focused()
    expect(page.locator("[role=status]")).to_have_text("3 of 12 tests")
    expect(page.get_by_placeholder("Search tests")).to_have_value("mode1")
    expect(page.get_by_role("columnheader", name="TTFT ms")).to_have_attribute("aria-sort", "descending")


@pytest.mark.parametrize("chosen", [False, True])
def test_paper_is_white(open_page, page_file, chosen):
    page = open_page(page_file, color_scheme="light" if chosen else "dark")
    if chosen:
        page.get_by_role("button", name="Light or dark").click()
    colour = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(colour) == "rgb(20, 23, 27)"
    page.emulate_media(media="print")
    assert page.evaluate(colour) == "rgb(255, 255, 255)"


def test_numbers_are_rounded_as_in_the_reports(open_page, page_file):
    source = (Path(collect.__file__).parent / "assets/format.js").read_text()
    values = [0, 0.5, 2.5, 12.4, 99.94, 99.95, 100.5, 128.5, 129.5, 2812.46, -100.5, 134562.0]
    shown = open_page(page_file).evaluate(f"values => {{ {source}; return values.map(number) }}", values)
    assert shown == [numbers.number(one) for one in values]
    ranges = [[1.012, 1.03], [0.6, 1.1], [0.6, 250.0], [120.0, 250.0]]
    shown = open_page(page_file).evaluate(
        f"ranges => {{ {source}; return ranges.map(([low, high]) => changeRange(low, high)) }}", ranges
    )
    assert [text.replace("−", "-") for text in shown] == [numbers.change_range(*one) for one in ranges]


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
    expect(page.locator(".page-row.sub")).to_have_count(2)
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
    expect(page.get_by_role("link", name="All tests")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page).to_have_url(re.compile("#/$"))
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()


def test_theme_follows_the_system_and_the_button(open_page, page_file):
    background = "getComputedStyle(document.body).backgroundColor"
    light = open_page(page_file, color_scheme="light").evaluate(background)
    page = open_page(page_file, color_scheme="dark")
    assert page.evaluate(background) != light
    page.get_by_label("Light or dark").click()
    expect(page.locator("body")).to_have_css("background-color", light)
    page.reload()
    expect(page.locator("body")).to_have_css("background-color", light)


@pytest.mark.parametrize("route", ["/", "/test/0"])
def test_nothing_is_wider_than_a_phone(open_page, page_file, route):
    page = open_page(page_file, route, width=400)
    assert page.evaluate("document.documentElement.scrollWidth") == 400


def test_an_unknown_test_says_so(open_page, page_file):
    assert texts(open_page(page_file, "/test/99"), "h1") == ["There is no such test"]
    assert texts(open_page(page_file, "/nowhere"), "h1") == ["✕1 of 12 tests failed"]


@pytest.fixture
def gallery_file(tmp_path):
    run = write_run(tmp_path, tests=1)
    boxes = [
        {"label": "title", "box": [10, 10, 90, 40], "text": "A title"},
        {"label": "table", "box": [5, 50, 150, 90]},
    ]
    answers = [
        answer_of("bad", cer=0.00104, boxes=boxes, text_scored="# Total\n\nabc 12.30 more", truth="Total abc 72.30"),
        *(answer_of(f"page-{number:04}", text_scored="same", truth="# same", cer=0.0) for number in range(2000)),
    ]
    write_gallery(run / "test_pages/test_pages-mode0/one_stage", answers)
    return write_page(run)


def test_gallery_boxes_show_and_hide(open_page, gallery_file):
    page = open_page(gallery_file, "/gallery/0")
    expect(page.locator(".page-detail h1")).to_have_text("bad")
    rects = page.locator(".overlay rect")
    assert rects.count() == 2
    page.locator(".overlay .box-blue").hover()
    expect(page.locator(".tip")).to_have_text("title A title")
    page.get_by_label("title (1)").uncheck()
    expect(page.locator(".overlay .box-blue")).to_be_hidden()
    expect(page.locator(".overlay .box-vermilion")).to_be_visible()


def test_gallery_shows_what_differs(open_page, gallery_file):
    page = open_page(gallery_file, "/gallery/0/bad")
    expect(page.locator(".page-detail")).to_contain_text("CER 0.00104")
    expect(page.locator(".page-detail")).to_contain_text(" · tokens 12 · ")
    assert texts(page, ".diff del") == ["7"]
    assert texts(page, ".diff ins") == ["1", "more"]
    page.goto(page.url.replace("bad", "page-0007"))
    expect(page.locator(".page-detail")).to_contain_text("No differences.")


def test_gallery_of_thousands_is_a_short_list_of_elements(open_page, gallery_file):
    page = open_page(gallery_file, "/gallery/0")
    expect(page.locator(".page-list [role=status]")).to_have_text("2,001 pages, CER")
    assert texts(page, ".virtual-row .number")[:2] == ["0.00104", "0"]
    assert page.locator(".virtual-row").count() < 60
    page.keyboard.press("j")
    expect(page.locator(".page-detail h1")).to_have_text("page-0000")
    page.locator(".virtual").evaluate("element => (element.scrollTop = 34 * 1500)")
    expect(page.get_by_text("page-1500", exact=True)).to_be_visible()
    page.keyboard.press("/")
    page.keyboard.type("page-1999")
    expect(page.locator(".virtual-row")).to_have_count(1)
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(page).to_have_url(re.compile("#/test/0$"))


def test_timeline_zooms_finds_and_sums(open_page, tmp_path):
    run = write_run(tmp_path, tests=1)
    write_timeline(run / "test_pages/test_pages-mode0/one_stage", 60_000)
    page = open_page(write_page(run), "/test/0")
    canvas = page.locator(".timeline canvas")
    readout = page.locator(".timeline .readout")
    expect(readout).to_have_text("180 ms of 180 ms shown, under the profiler.")
    expect(page.locator(".timeline .legend")).to_contain_text("idle: launch, 60.0 ms")
    drawn = canvas.evaluate("element => element.toDataURL().length")
    assert drawn > 2000
    canvas.focus()
    for _ in range(14):
        page.keyboard.press("+")
    expect(readout).to_have_text(re.compile(r"^11\.0 µs of 180 ms"))
    assert canvas.evaluate("element => element.toDataURL().length") != drawn
    box = canvas.bounding_box()
    lane = box["y"] + 26 + 25 + 12  # the second lane
    middle = 116 + (box["width"] - 116) / 2  # at 90 ms, where a kernel of 2 µs begins
    page.mouse.move(box["x"] + middle + (box["width"] - 116) / 11, lane)
    expect(readout).to_have_text("gemm · 2.00 µs · from 90.0 ms · GPU stream 1")
    page.mouse.down()
    page.mouse.up()
    expect(page.locator(".timeline .notice")).to_contain_text("20,000 events, 40.0 ms in all, 2.00 µs on average")
    page.get_by_role("button", name="Show all").click()
    page.get_by_placeholder("Highlight names").fill("gemm")


@pytest.mark.parametrize(("scheme", "ink"), [("light", "#ffffff"), ("dark", "#000000")])
def test_a_label_of_the_timeline_stands_out_from_its_colour(open_page, tmp_path, scheme, ink):
    run = write_run(tmp_path, tests=1)
    write_timeline(run / "test_pages/test_pages-mode0/one_stage", 100)
    page = open_page(write_page(run), "/test/0", color_scheme=scheme)  # the blue of decode differs between the two
    inks = page.locator(".timeline canvas").evaluate(
        """element => {
            const context = element.getContext('2d');
            const real = context.fillText.bind(context);
            const inks = {};
            context.fillText = (text, ...place) => { inks[text] = context.fillStyle; real(text, ...place); };
            element.dispatchEvent(new KeyboardEvent('keydown', { key: '0' }));
            return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(inks))));
        }"""
    )
    assert inks["decode"] == ink


def test_timeline_draws_60_000_kernels_fast(open_page, tmp_path):
    run = write_run(tmp_path, tests=1)
    write_timeline(run / "test_pages/test_pages-mode0/one_stage", 60_000)
    page = open_page(write_page(run), "/test/0")
    canvas = page.locator(".timeline canvas")
    expect(page.locator(".timeline .readout")).to_contain_text("180 ms")
    # Drawing touches one pixel of a crowded lane once, however many kernels lie in it.
    assert canvas.evaluate(
        """element => {
            const context = element.getContext('2d');
            const real = context.fillRect.bind(context);
            let drawn = 0;
            context.fillRect = (...box) => { drawn += 1; real(...box); };
            element.dispatchEvent(new KeyboardEvent('keydown', { key: '0' }));
            return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(drawn))));
        }"""
    ) in range(100, 12_000)


def test_comparison_shows_verdicts_and_changed_answers(open_page, tmp_path):
    for name, day, text in (("before", 23, "Total 12.30"), ("after", 24, "Total 13.30")):
        run = write_run(tmp_path / name, tests=2, rounds=3, started=f"2026-11-{day}T10:15:00+00:00")
        stage_dir = run / "test_pages/test_pages-mode0/one_stage"
        answers = [answer_of("same"), answer_of("other", text_raw=text)]
        write_gallery(stage_dir, answers)
        environment = stage_dir / "environment.json"
        git = {"commit": "0123456789abcdef", "dirty": None if name == "before" else True}
        environment.write_text(json.dumps({**json.loads(environment.read_text()), "git": git}))
    assert main(["report", str(tmp_path / "after"), "--baseline", str(tmp_path / "before")]) == 0
    page = open_page(tmp_path / "after/index.html")
    assert page.get_by_role("columnheader", name="Against the baseline").count() == 1
    assert set(texts(page, "main table tbody .badge")) == {"✓ passed", "? unclear"}
    counted = sum(map(int, re.findall(r"(\d+) [a-z]", page.locator(".notice").inner_text())))
    page.get_by_role("link", name="test_pages[mode1]").first.click()
    expect(page.get_by_role("heading", name="Against before")).to_be_visible()
    expect(page.get_by_role("table", name="Metrics before and after").locator("tbody tr")).to_have_count(5)
    page.get_by_role("link", name="The whole comparison").click()
    rows = page.locator("main table tbody tr")
    assert counted > 4
    expect(page.locator("main dl").first).to_contain_text("commit 0123456789ab, local changes not known")
    expect(page.locator("main dl").first).to_contain_text("commit 0123456789ab with changes")
    expect(rows).to_have_count(counted)  # waits until the view before it has gone
    shown = rows.count()
    page.get_by_label("Which metrics").select_option("all")
    expect(rows).not_to_have_count(shown)
    page.locator("details.changed summary").click()
    expect(page.locator("article")).to_have_count(1)
    expect(page.locator("article del")).to_have_text("2")
    expect(page.locator("article ins")).to_have_text("3")


def test_a_comparison_on_a_phone_shows_verdicts_in_low_rows(open_page, tmp_path):
    for name, day in (("before", 23), ("after", 24)):
        write_run(tmp_path / name, tests=2, rounds=3, started=f"2026-11-{day}T10:15:00+00:00")
    assert main(["report", str(tmp_path / "after"), "--baseline", str(tmp_path / "before")]) == 0
    page = open_page(tmp_path / "after/index.html", "/compare", width=400)
    box = page.locator("main table tbody .badge").first.bounding_box()
    assert box["x"] + box["width"] <= 400
    heights = "rows => rows.map(row => row.offsetHeight)"
    assert max(page.locator("main table tbody tr").evaluate_all(heights)) < 120


def test_why_a_test_has_no_times_is_told_once_for_it(open_page, tmp_path):
    for name, day in (("before", 23), ("after", 24)):
        run = write_run(tmp_path / name, tests=3, rounds=3, started=f"2026-11-{day}T10:15:00+00:00")
        for path in run.glob("test_pages/*/one_stage/metrics.json"):
            metrics = json.loads(path.read_text())
            metrics["figures"]["contended"] = 1.0
            path.write_text(json.dumps(metrics))
    assert main(["report", str(tmp_path / "after"), "--baseline", str(tmp_path / "before")]) == 0
    why = "before and after: the host was contended in 100 % of the rounds"
    page = open_page(tmp_path / "after/index.html", "/compare")
    first = "benchmarks/test_pages.py::test_pages[mode0-one_stage]"
    expect(page.get_by_text(why)).to_have_text(f"Not measured: {first} and 2 more tests: {why}")
    page = open_page(tmp_path / "after/index.html", "/test/0")
    expect(page.get_by_text(why)).to_have_text(f"Not measured: {why}")


def test_commands_wrap_between_words(open_page, page_file):
    page = open_page(page_file, "/test/0", width=400)
    words = page.locator(".command code span")
    assert " ".join(texts(page, ".command code span")) == page.locator(".command code").inner_text()
    heights = words.evaluate_all("words => words.map(word => [word.textContent, word.offsetHeight])")
    assert {height for word, height in heights if len(word) < 30} == {min(height for _, height in heights)}


def test_contended_rounds_are_told_apart(open_page, tmp_path):
    run = write_run(tmp_path, tests=1, pages=1, rounds=2)
    path = tmp_path / "test_pages/test_pages-mode0/one_stage/metrics.json"
    metrics = json.loads(path.read_text())
    metrics["round_host"][1]["contended"] = True
    path.write_text(json.dumps(metrics))
    page = open_page(write_page(run), "/test/0")
    expect(page.get_by_text("rounds in which the host was contended")).to_be_visible()
    page.locator(".chart .u-over").scroll_into_view_if_needed()
    box = page.locator(".chart .u-over").bounding_box()
    for share, text in ((0.3, r"round 1: [\d,]+ ms$"), (0.7, r"round 2: [\d,]+ ms \(the host was contended\)$")):
        page.mouse.move(box["x"] + box["width"] * share, box["y"] + 20)
        expect(page.locator(".readout").first).to_have_text(re.compile(text))


def test_a_callable_shows_its_rounds(open_page, tmp_path):
    run = write_run(tmp_path, tests=1)
    path = tmp_path / "test_pages/test_pages-mode0/one_stage/metrics.json"
    metrics = json.loads(path.read_text())
    metrics |= {"kind": "callable", "callable": "torch.mm", "pages": 0}
    metrics["samples"] = [{**one, "page": "torch.mm", "phases": {}, "ttft_ms": None} for one in metrics["samples"]]
    path.write_text(json.dumps(metrics))
    page = open_page(write_page(run), "/test/0")
    expect(page.get_by_role("heading", name="Rounds", exact=True)).to_be_visible()
    expect(page.locator(".chart canvas")).to_be_visible()
    assert page.locator(".page-row").count() == 0


def test_a_page_in_another_directory_finds_the_runs_images(open_page, tmp_path):
    run = write_run(tmp_path / "a run#1 ü", tests=1)
    write_gallery(run / "test_pages/test_pages-mode0/one_stage", [answer_of("a")])
    (tmp_path / "elsewhere").mkdir()
    file = write_page(run, tmp_path / "elsewhere/page.html")
    image = open_page(file, "/gallery/0").locator(".overlay img")
    expect(image).to_be_visible()
    assert image.evaluate("element => element.decode().then(() => element.naturalWidth)") == 1


def test_a_large_timeline_is_opened_from_its_file(open_page, tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "TIMELINE_BYTES", 10)
    run = write_run(tmp_path, tests=1)
    stage_dir = run / "test_pages/test_pages-mode0/one_stage"
    write_timeline(stage_dir, 100)
    page = open_page(write_page(run), "/test/0")
    page.get_by_label("timeline.json of this test").set_input_files(stage_dir / "timeline.json")
    expect(page.locator(".timeline .readout")).to_have_text("300 µs of 300 µs shown, under the profiler.")


HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</textarea><img src=x onerror=alert(1)>",
    "[a](javascript:alert(1)) <a href='javascript:alert(1)'>b</a>",
    "\x1b[31mred\x1b[0m \u202eright to left\u202c \u2066",
    "x" * 200_000,
    "<table><tr><td onclick=alert(1)><img src=x onerror=alert(1)>cell</td></tr></table>",
    "<table><script>alert(1)</script><style>*{display:none}</style>",
    "<svg onload=alert(1)><foreignObject>",
    "# " + "\u0301" * 500 + "\n```\nnever closed",
]


def test_hostile_answers_do_nothing(open_page, tmp_path):
    run = write_run(tmp_path, tests=1)
    answers = [
        answer_of(
            f"../../{number}-{text[:40]}",
            text_raw=text,
            text_clean=text,
            text_scored=text,
            truth=text[::-1],
            error=text,
            boxes=[{"label": text[:60], "box": [1, 1, 50, 50], "text": text}],
        )
        for number, text in enumerate(HOSTILE)
    ]
    write_gallery(run / "test_pages/test_pages-mode0/one_stage", answers)
    file = write_page(run)
    for width in (1400, 400):
        page = open_page(file, "/gallery/0", width=width)
        for _ in HOSTILE:
            expect(page.locator(".page-detail h1")).to_contain_text("../../")
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert page.locator(".page-detail a, .page-detail script, .page-detail iframe").count() == 0
            assert page.locator(".page-detail img").count() == 1  # the page's own
            page.locator(".overlay rect").first.focus()
            page.keyboard.press("j")
        assert page.locator(".page-detail [onclick], .page-detail [onerror]").count() == 0


def test_hostile_records_do_nothing(open_page, tmp_path):
    tests = [
        TestRecord(f"t.py::test[{text[:2000]}-{text[:50]}]", text[:50], "pages", "failed", None, text[:5000])
        for text in HOSTILE
    ]
    write_json(tmp_path / "run.json", run_record(tests, argv=["--llmprof-override", *HOSTILE[:5]]))
    file = write_page(tmp_path)
    for route in ("/", *(f"/test/{number}" for number in range(len(HOSTILE)))):
        page = open_page(file, route, width=400)
        assert page.evaluate("document.documentElement.scrollWidth") == 400, route


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("route", ["/", "/test/0", "/gallery/0", "/compare"])
def test_axe_finds_no_serious_fault(open_page, tmp_path, route, width, scheme):
    if not AXE.is_file():
        pytest.skip(f"axe-core is not there: npm pack axe-core, and its axe.min.js as {AXE}")
    for name, day in (("before", 23), ("after", 24)):
        run = write_run(tmp_path / name, tests=3, failed=1, started=f"2026-11-{day}T10:15:00+00:00")
        write_gallery(run / "test_pages/test_pages-mode0/one_stage", [answer_of("a"), answer_of("b")])
        write_timeline(run / "test_pages/test_pages-mode0/one_stage", 50)
    assert main(["report", str(tmp_path / "after"), "--baseline", str(tmp_path / "before")]) == 0
    page = open_page(tmp_path / "after/index.html", route, width=width, color_scheme=scheme, bypass_csp=True)
    page.wait_for_timeout(300)
    page.evaluate(AXE.read_text())
    found = page.evaluate("async () => (await axe.run()).violations")
    faults = [
        f"{one['id']}: {one['help']}: {[node['html'][:150] for node in one['nodes'][:3]]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert not faults, "\n".join(faults)
