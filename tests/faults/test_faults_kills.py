"""A run that is killed or interrupted at any moment leaves whole files and an honest run.json."""

from __future__ import annotations

import random
import signal

import pytest
from fault_bench import LONG, options, some

SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]


@pytest.mark.parametrize("number", SIGNALS)
def test_at_any_operation_on_files(faults, number):
    whole = faults.run({})
    assert whole.code == 0, whole.text
    for at in some(whole.moments, 7):
        ended = faults.kill(number, at=at)
        expected = (-number,) if number == signal.SIGKILL else (-number, 2)
        assert ended.code in expected, (at, ended.code, ended.text)
        assert ended.runs or at < 16


@pytest.mark.parametrize("number", SIGNALS[1:])
def test_at_any_line_of_the_begin_and_the_end_of_a_session(faults, number):
    """Between config.yaml and run.json, while benchmark.json is made, and everywhere else."""
    whole = faults.run({"lines": True})
    assert whole.code == 0, whole.text
    for at in some(whole.moments, 8, 120):
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
