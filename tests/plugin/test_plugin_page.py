"""index.html: written at the end of a session, with and without workers, with a baseline; and where it cannot be."""

from __future__ import annotations

import json
import re

import pytest

STAGE = ["--llmprof-stage=direct_inference"]
TESTS = """
import pytest
def test_good(llmprof):
    llmprof.run()
@pytest.mark.llmprof_gate(ttft_ms="<=0.000001")
def test_bad(llmprof):
    llmprof.run()
"""
ECHO = ("model=echo", "dataset=blank")


def block(page, name):
    """A block of the page's data."""
    text = re.search(rf'id="data-{name}">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)[1]
    return json.loads(text)


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["serial", "workers"])
def test_a_session_leaves_a_page_of_all_its_tests(bench, workers):
    bench.echo()
    bench.test(TESTS)
    result = bench.run_apart(*ECHO, "infer.prompt='hello world'", args=[*STAGE, *workers])
    result.assert_outcomes(passed=1, failed=1)
    page = bench.run_dir / "index.html"
    overview = block(page, "overview")
    outcomes = {row["id"]: row["outcome"] for row in overview["rows"]}
    assert outcomes == {
        "test_it.py::test_good[direct_inference]": "passed",
        "test_it.py::test_bad[direct_inference]": "failed",
    }
    for index, row in enumerate(overview["rows"]):
        assert row["id"] in block(page, f"test-{index}")["repeat"].replace("'", "")
        # The gallery is on by default: each page has its answer and its image.
        (answer,) = block(page, f"answers-{index}")
        assert (bench.run_dir / answer["image"]).is_file()
        assert answer["raw"]


def test_with_a_baseline_it_has_the_comparison_and_the_answers_that_differ(bench):
    bench.echo()
    bench.test("def test_good(llmprof):\n    llmprof.run()\n")
    arguments = [*STAGE, "--llmprof-run-dir=one"]
    bench.passed(*ECHO, "measure.rounds=3", "infer.prompt='hello world'", args=arguments)
    arguments = [*STAGE, "--llmprof-compare=one", "--llmprof-run-dir=two"]
    bench.passed(*ECHO, "measure.rounds=3", "infer.prompt='goodbye world'", args=arguments)
    page = bench.path / "two" / "index.html"
    assert block(page, "overview")["compared"] is True
    assert block(page, "comparison")["before"]["name"] == "one"
    (old,), (new,) = block(page, "before-0"), block(page, "answers-0")
    assert old["page"] == new["page"]
    assert old["raw"] != new["raw"]


def test_where_it_cannot_be_written_the_run_fails_and_says_so(bench):
    bench.echo()
    bench.test(
        """
from pathlib import Path
def test_good(llmprof):
    llmprof.run()
    Path("taken/index.html/full").mkdir(parents=True)
"""
    )
    result = bench.run(*ECHO, args=[*STAGE, "--llmprof-run-dir=taken"])
    assert result.ret == 1
    result.stdout.fnmatch_lines(["ERROR: cannot write *taken/index.html: *"])
    assert (bench.path / "taken/summary.md").is_file()


def test_an_interrupt_meanwhile_leaves_it_whole_and_ends_the_session(bench):
    bench.echo()
    conftest = bench.path / "conftest.py"
    before = conftest.read_text() if conftest.exists() else ""
    conftest.write_text(
        before
        + """
import os
import signal

import pytest_llmprof.report.run_summary as run_summary

real = run_summary.write_summary


def interrupted(*args, **options):
    os.kill(os.getpid(), signal.SIGINT)
    real(*args, **options)


run_summary.write_summary = interrupted
"""
    )
    bench.test("def test_good(llmprof):\n    llmprof.run()\n")
    result = bench.run_apart(*ECHO, args=STAGE)
    assert result.ret == 2
    result.stdout.fnmatch_lines(["WARNING: interrupted at the end of the session: its comparison may be missing"])
    assert block(bench.run_dir / "index.html", "overview")["status"] == "complete"
