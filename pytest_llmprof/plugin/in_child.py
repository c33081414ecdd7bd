"""Hooks of a child process that runs one test under a tool: they write its outcome for the parent."""

from __future__ import annotations

import linecache
import sys
import traceback
from collections.abc import Generator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmprof.errors import ArtifactError, text_of
from pytest_llmprof.measure.phases import DOMAIN
from pytest_llmprof.plugin.items import ITEM
from pytest_llmprof.stages.child import Nvtx, Outcome

if TYPE_CHECKING:
    from pytest_llmprof.plugin.shared import SharedState


class ChildHooks:
    """Registered beside the manager, in the child alone."""

    def __init__(self, shared: SharedState) -> None:
        self._shared = shared
        self._outcome = Outcome()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Generator[None, object, object]:
        """Pass a test that computes with a time, which is null here, and note the line for the parent."""
        try:
            return (yield)
        except TypeError as error:
            state = pyfuncitem.stash.get(ITEM, None)
            frame = traceback.extract_tb(error.__traceback__)[-1]
            in_test = frame.filename == str(pyfuncitem.path)
            if state is None or state.row is None or not in_test or "NoneType" not in text_of(error):
                raise
            line = linecache.getline(frame.filename, frame.lineno or 0).strip()
            self._outcome.notes.append(f"{pyfuncitem.path.name}:{frame.lineno}: {line}")
            return True

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the first of setup, call and teardown that did not pass; write the outcome when the test has ended."""
        data: dict[str, Any] | None = getattr(report, "llmprof", None)
        if data is None:
            return
        outcome, run_dir = self._outcome, self._shared.session.run_dir
        if outcome.outcome == "passed" and not report.passed:
            outcome.outcome = report.outcome
            outcome.error = data["error"] or _reason(report)
        if data["row"] is not None:
            outcome.measured = True
            outcome.dir = str(run_dir / data["dir"])
        if report.when == "teardown":
            outcome.nvtx = _nvtx()
            try:
                outcome.write(run_dir)
            except ArtifactError as error:  # the parent finds the line in the output
                print(f"ERROR: {error}", file=sys.stderr)


def _reason(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return report.longreprtext


def _nvtx() -> Nvtx:
    import nvtx

    # Without a tool that listens, nvtx returns a domain that does nothing.
    return Nvtx(version("nvtx"), type(nvtx.get_domain(DOMAIN)).__name__ != "DummyDomain")
