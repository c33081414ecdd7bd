"""summary.md: written at the end of a session, with and without workers, with a baseline, on a full disk."""

from __future__ import annotations

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


def summary(bench) -> str:
    return (bench.run_dir / "summary.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["serial", "workers"])
def test_outcomes_metrics_and_why_tests_failed(bench, workers):
    bench.echo()
    bench.test(TESTS)
    arguments = [*STAGE, *workers]
    result = bench.run_apart("model=echo", "dataset=blank", "infer.prompt='hello world'", args=arguments)
    result.assert_outcomes(passed=1, failed=1)
    text = summary(bench)
    assert text.startswith("**2 tests: 1 passed, 1 failed.** CPU: Time to first token ")
    assert "| `test_it.py::test_good[direct_inference]` | passed | " in text
    assert "- `test_it.py::test_bad[direct_inference]`: llmprof_gate: ttft_ms is " in text


def test_against_a_baseline_it_begins_with_the_verdict(bench):
    bench.echo()
    bench.test("def test_good(llmprof):\n    llmprof.measure(int)\n")
    overrides = ("model=echo", "dataset=blank", "measure.rounds=3")
    bench.passed(*overrides, args=[*STAGE, "--llmprof-save", "main", "--llmprof-run-dir", "one"])
    bench.passed(*overrides, args=[*STAGE, "--llmprof-compare", "main", "--llmprof-run-dir", "two"])
    text = (bench.path / "two" / "summary.md").read_text(encoding="utf-8")
    first = text.splitlines()[0]
    # Which verdict, depends on the machine.
    assert re.match(r"\*\*(Slower than|Faster than|Unclear against|Not measured against|The same as) main", first)
    assert "\n## Compared with main\n" in text
    (first_of_table,) = {line for line in text.splitlines() if line.startswith("- before: ")}
    assert "main (1 run" in first_of_table


def test_a_comparison_that_was_refused_is_named(bench):
    bench.echo()
    bench.test("def test_good(llmprof):\n    llmprof.run()\n")
    single_round = ("model=echo", "dataset=blank", "measure.rounds=1")
    bench.passed(*single_round, args=[*STAGE, "--llmprof-save=main", "--llmprof-run-dir=one"])
    bench.passed(*single_round, args=[*STAGE, "--llmprof-compare=main", "--llmprof-run-dir=two"])
    text = (bench.path / "two" / "summary.md").read_text(encoding="utf-8")
    assert text.startswith("**Not compared:** main: every test has a single round on one side, ")


def test_a_run_directory_with_a_foreign_summary_is_refused(bench):
    bench.echo()
    bench.test()
    (bench.path / "mine").mkdir()
    (bench.path / "mine" / "summary.md").write_text("mine")
    text = bench.usage_error("model=echo", "dataset=blank", args=[*STAGE, "--llmprof-run-dir=mine"])
    assert "holds a summary.md that is no run's" in text
    assert (bench.path / "mine" / "summary.md").read_text() == "mine"


def test_where_it_cannot_be_written_the_run_fails_and_says_so(bench):
    bench.echo()
    # A directory that is not empty cannot be replaced by a file.
    bench.test(
        """
from pathlib import Path
def test_good(llmprof):
    llmprof.run()
    Path("taken/summary.md/full").mkdir(parents=True)
"""
    )
    result = bench.run("model=echo", "dataset=blank", args=[*STAGE, "--llmprof-run-dir=taken"])
    assert result.ret == 1
    result.stdout.fnmatch_lines(["ERROR: cannot write *taken/summary.md: *"])


def test_sessions_without_our_tests_write_none(bench):
    bench.test("def test_plain():\n    pass\n")
    bench.passed()
    assert not (bench.path / "llmprof-runs").exists()
