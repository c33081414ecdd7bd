"""A run that is killed or interrupted at any moment leaves whole files and an honest run.json."""

from __future__ import annotations

import random
import shutil
import signal

import msgspec
import pytest
from fault_bench import LONG, check_run, options, some

from pytest_llmprof.records.run import RunRecord

SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]


@pytest.mark.parametrize("number", SIGNALS)
def test_at_any_operation_on_files(faults, number):
    whole = faults.run({})
    assert whole.code == 0, whole.text
    for at in some(whole.moments, 4):
        ended = faults.kill(number, at=at)
        # pytest's own code is 130 where it is interrupted before the session begins.
        expected = (-number,) if number == signal.SIGKILL else (-number, 2, 130)
        assert ended.code in expected, (at, ended.code, ended.text)
        assert ended.runs or at < 16


@pytest.mark.parametrize("number", SIGNALS[1:])
def test_at_any_line_of_the_begin_and_the_end_of_a_session(faults, number):
    """Between config.yaml and run.json, while benchmark.json is made, and everywhere else."""
    whole = faults.run({"lines": True})
    assert whole.code == 0, whole.text
    for at in some(whole.moments, 5, 120):
        ended = faults.kill(number, at=at, lines=True)
        # Before the session begins, and after it has ended, pytest itself handles SIGINT, and nobody SIGTERM.
        # A busy host adds lines (its warnings): a moment that only the first run had did not come, and hit nothing.
        assert ended.code in (2, 130, -number) or 0 < ended.moments < at, (at, ended.code, ended.text)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_session_with_workers_at_random(faults, number):
    """The controller is hit; what its workers had finished is kept."""
    args = [*options(), "-n2"]
    whole = faults.run({}, args)
    assert whole.code == 0, whole.text
    moments = random.Random(number)
    for _ in range(10 if LONG else 1):
        faults.kill(number, args, after=moments.uniform(0.1, 1.0) * whole.seconds)


SIX_TESTS = """
import pytest
@pytest.mark.parametrize("x", range(6))
def test_pages(llmprof, x):
    llmprof.run()
"""


def test_a_worker_at_random(faults, tmp_path):
    """Its test has failed, all others are there, none twice."""
    shutil.copytree(faults.root, tmp_path / "six", ignore=shutil.ignore_patterns("llmprof-runs", "*.pyc"))
    root = tmp_path / "six"
    (root / "test_it.py").write_text(SIX_TESTS)
    args = [*options("measure.rounds=300"), "-n2"]
    whole = faults.run({}, args, root)
    assert whole.code == 0, whole.text
    moments, crashed = random.Random(1), 0
    for number in range(20 if LONG else 1):
        after = moments.uniform(0.3, 0.95) * whole.seconds
        ended = faults.run({"signal": signal.SIGKILL, "after": after, "worker": number % 2}, args, root)
        faults.kills += 1
        faults.lost += 1
        check_run(ended, killed=True)  # the worker's temporary files may be left
        (run,) = ended.runs
        record = msgspec.json.decode((run / "run.json").read_bytes(), type=RunRecord)
        assert record.status == "complete", ended.text
        assert sorted(test.id for test in record.tests) == [
            f"test_it.py::test_pages[{x}-direct_inference]" for x in range(6)
        ], ended.text
        failed = [test.error for test in record.tests if test.outcome != "passed"]
        assert failed in ([], ["worker crashed"]), ended.text
        assert ended.code == len(failed), ended.text
        crashed += len(failed)
        faults.lost -= 1
    assert not LONG or crashed > 5  # others hit a worker that ran no test
