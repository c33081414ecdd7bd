"""Properties of what reads foreign input, over generated and broken input: `pytest tests/fuzz`.

The profile `short` (the default) takes seconds; `LLMPROF_FUZZ=long` runs thousands of cases for each property and says
at the end how many there were: those that went through the property to its end.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

ROOMS = ("analysis", "compare", "datasets", "quality", "report")
"""Where helpers of other tests lie."""
sys.path[:0] = [str(Path(__file__).parents[1] / room) for room in ROOMS]

LONGEST_S = 60
"""A case that takes longer counts as a hang. The slowest takes about a second on a quiet machine."""
_CASES = "cases"
_PROFILE = os.environ.get("LLMPROF_FUZZ", "short")

# Files are written for each case, and machines differ: neither is a fault of a property.
_COMMON = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True)
settings.register_profile("short", _COMMON, max_examples=15, derandomize=True)
settings.register_profile("long", _COMMON, max_examples=4_000)
settings.load_profile(_PROFILE)


def _hangs(signum: int, frame: FrameType | None) -> None:
    raise AssertionError(f"hangs: not done after {LONGEST_S} s")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Count the cases of a property, each with a time limit."""
    handle = getattr(getattr(item, "obj", None), "hypothesis", None)
    if handle is None:
        return (yield)
    inner, cases = handle.inner_test, 0

    @functools.wraps(inner)
    def counted(*args: Any, **kwargs: Any) -> None:
        nonlocal cases
        signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
        try:
            inner(*args, **kwargs)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        cases += 1

    before = signal.signal(signal.SIGALRM, _hangs)
    handle.inner_test = counted
    try:
        return (yield)
    finally:
        handle.inner_test = inner
        signal.signal(signal.SIGALRM, before)
        item.user_properties.append((_CASES, cases))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    found: Counter[str] = Counter()  # by property; one with parameters runs once for each
    for report in reports:
        if report.when == "call":
            found[report.nodeid.rpartition("/")[2].partition("[")[0]] += dict(report.user_properties).get(_CASES, 0)
    if not found.total():
        return
    terminalreporter.section("cases by property")
    for name, cases in sorted((+found).items()) if _PROFILE == "long" else ():
        terminalreporter.write_line(f"{cases:>8,}  {name}")
    terminalreporter.write_line(f"{found.total():>8,}  in all")
