"""Text that is not valid Unicode, and exceptions without a text, end no session."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

TESTS = """
import pytest
class Silent(Exception):
    def __str__(self):
        raise ValueError("no text")
def fail(error):
    raise error
def test_raises(llmprof_config):
    raise ValueError("\\udcff bad \\ud800")
def test_asserts(llmprof_config):
    assert "\\udcff" == "x"
def test_silent(llmprof_config):
    raise Silent
def test_measured(llmprof):
    llmprof.measure(fail, RuntimeError("\\udc80 x"))
def test_measured_silent(llmprof):
    llmprof.measure(fail, Silent())
@pytest.mark.parametrize("x", ["\\udc80", 2**70, Silent()])
def test_parameter(llmprof, x):
    llmprof.measure(int)
def test_pages(llmprof):
    print("\\udc80")
    llmprof.run()
def test_skips(llmprof_config):
    pytest.skip("\\udc81")
@pytest.mark.llmprof(overrides=["infer.prompt='\\udc80'"])
def test_prompt(llmprof):
    llmprof.run()
"""
OVERRIDES = ("model=echo", "dataset=blank", "infer.prompt='hello world'", "output/torch=full", "measure.rounds=1")
ERRORS = {
    "test_raises": "ValueError: \ufffd bad \ufffd",
    "test_silent": "Silent: (its text cannot be read: ValueError)",
    "test_measured": "RuntimeError: \ufffd x",
    "test_measured_silent": "Silent: (its text cannot be read: ValueError)",
}


def run(bench, *args, cwd=None):
    """Run the tests in a process of their own."""
    words = bench.args(OVERRIDES, ["--llmprof-stage=direct_inference", *args])
    return subprocess.run([sys.executable, "-m", "pytest", *words], cwd=cwd or bench.path, capture_output=True)


def check(done, run_dir):
    """Five failures, one skip, five passed; run.json and all records are whole."""
    out = (done.stdout + done.stderr).decode("utf-8", "replace")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, out
    assert "INTERNALERROR" not in out
    assert "5 failed, 5 passed, 1 skipped" in out
    record = json.loads((run_dir / "run.json").read_bytes())
    assert record["status"] == "complete"
    errors = {test["id"].partition("::")[2].partition("[")[0]: test["error"] for test in record["tests"]}
    for name, text in ERRORS.items():
        assert text in errors[name]
    for path in run_dir.rglob("*.json"):
        json.loads(path.read_bytes())
    return record


@pytest.mark.parametrize("workers", [[], ["-n1"]])
def test_failures_parameters_and_prompts(bench, workers):
    bench.echo()
    bench.test(TESTS)
    check(run(bench, *workers), bench.run_dir)


def test_arguments_and_directories(bench):
    """pytest-xdist itself refuses such arguments."""
    name = os.fsdecode(b"dir-\xff\xe9")
    here = bench.path / name
    here.mkdir()
    bench.echo()
    for path in list(bench.path.iterdir()):
        if path != here:
            path.rename(here / path.name)
    (here / "test_it.py").write_text(TESTS)
    record = check(run(bench, f"--llmprof-run-dir=run-{name}", "--junit-prefix=\udcff", cwd=here), here / f"run-{name}")
    assert "--llmprof-run-dir=run-dir-\ufffd\ufffd" in record["argv"]
