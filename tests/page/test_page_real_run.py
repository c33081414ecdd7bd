"""The page of a real run, in Chromium from the disk: every view, wide and narrow."""

import json
import re

import pytest

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
pytestmark = [pytest.mark.browser, pytest.mark.slow]

TESTS = """
import pytest

@pytest.mark.parametrize("prompt", ["markdown", "free"])
@pytest.mark.llmprof_gate(cer="<=0.0001")
def test_pages(llmprof, prompt):
    llmprof.run()

def test_sum(llmprof):
    llmprof.measure(lambda: sum(range(20_000)))
"""
OPTIONS = (
    "--llmprof-stage=torch_profiler,static_analysis",
    "--llmprof-run-dir=run",
    *("--llmprof-override", "dataset.limit=2"),
    *("--llmprof-override", "infer.max_new_tokens=24"),
    *("--llmprof-override", "measure.rounds=2"),
)


@pytest.fixture
def run_dir(pytester):
    pytester.makepyfile(TESTS)
    pytester.runpytest_subprocess("-p", "no:cacheprovider", *OPTIONS)
    return pytester.path / "run"


def test_every_view_of_a_real_run(open_page, run_dir):
    record = json.loads((run_dir / "run.json").read_text())
    file = run_dir / "index.html"
    page = open_page(file)
    expect(page.locator("main table tbody tr")).to_have_count(len(record["tests"]))
    failed = [test["id"] for test in record["tests"] if test["outcome"] == "failed"]
    assert failed  # 24 tokens are no page
    expect(page.locator(".failures li")).to_have_count(len(failed))
    for index, test in enumerate(record["tests"]):
        for width in (1400, 400):
            page = open_page(file, f"/test/{index}", width=width)
            expect(page.locator(".chart canvas").or_(page.locator("text=Run it again"))).not_to_have_count(0)
            assert page.evaluate("document.documentElement.scrollWidth") == width
        shown = page.locator("main").inner_text()
        metrics = json.loads((run_dir / test["dir"] / "metrics.json").read_text())
        report = (run_dir / test["dir"] / "report.md").read_text()
        for title in re.findall(r"^## (Profiled window|Roofline.*)$", report, re.MULTILINE):
            assert title in shown
        # Every link leads to a file of the run.
        for link in page.locator("main a[href]:not([href^='#'])").all():
            href = link.evaluate("element => decodeURIComponent(new URL(element.href).pathname)")
            assert (run_dir / href).exists(), href
        if (run_dir / test["dir"] / "timeline.json").is_file():
            expect(page.locator(".timeline .readout")).to_contain_text("under the profiler")
        if metrics["kind"] == "pages" and (run_dir / test["dir"] / "viz").is_dir():
            page = open_page(file, f"/gallery/{index}")
            expect(page.locator(".virtual-row")).to_have_count(2)
            expect(page.locator(".overlay img")).to_be_visible()
            expect(page.get_by_role("heading", name="Against the truth")).to_be_visible()
