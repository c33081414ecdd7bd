"""The child's side of a test that runs under a tool: what came of it, for the process that started it."""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Generator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmprof.measure.phases import DOMAIN
from pytest_llmprof.plugin.items import ITEM
from pytest_llmprof.stages.child import OUTCOME

if TYPE_CHECKING:
    from pytest_llmprof.plugin.shared import SharedState

__all__ = ["InChild"]


class InChild:
    """Hooks of the child; registered beside the manager."""

    def __init__(self, shared: SharedState) -> None:
        self._shared = shared
        self._notes: list[str] = []
        self._told: dict[str, Any] = {"outcome": "passed", "error": None, "measured": False, "dir": None}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Generator[None, object, object]:
        """End a test quietly where it computes with a time, which is null here; the parent notes where."""
        try:
            return (yield)
        except TypeError as error:
            state = pyfuncitem.stash.get(ITEM, None)
            frame = traceback.extract_tb(error.__traceback__)[-1]
            in_test = frame.filename == str(pyfuncitem.path)
            if state is None or state.row is None or not in_test or "NoneType" not in str(error):
                raise
            line = linecache.getline(frame.filename, frame.lineno or 0).strip()
            self._notes.append(f"{pyfuncitem.path.name}:{frame.lineno}: {line}")
            return True

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the worst of setup, call and teardown; write it when the test has ended."""
        told: dict[str, Any] | None = getattr(report, "llmprof", None)
        if told is None:
            return
        mine = self._told
        if mine["outcome"] == "passed" and not report.passed:
            mine["outcome"] = report.outcome
            mine["error"] = told["error"] or _reason(report)
        if told["row"] is not None:
            mine["measured"] = True
            mine["dir"] = str(self._shared.session.run_dir / told["dir"])
        if report.when == "teardown":
            from pytest_llmprof.records.files import write_json

            write_json(self._shared.session.run_dir / OUTCOME, {**mine, "notes": self._notes, "nvtx": _nvtx()})


def _reason(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return report.longreprtext


def _nvtx() -> dict[str, object]:
    """Whether nvtx has something to record with: it gives a silent stand-in for a domain that nobody listens to."""
    import nvtx

    return {"version": version("nvtx"), "records": type(nvtx.get_domain(DOMAIN)).__name__ != "DummyDomain"}
