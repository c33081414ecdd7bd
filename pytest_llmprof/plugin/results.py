"""Results of tests: the gates of one test, and the controller's record of all tests.

A test's result travels as plain data in its report (`report.llmprof`), with and without xdist. `Results` writes
run.json and benchmark.json and keeps the rows of the summary.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pytest_llmprof.errors import ArtifactError, LlmprofError, text_of
from pytest_llmprof.measure.signals import held_back
from pytest_llmprof.text.escape import visible

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

    from pytest_llmprof.plugin.items import ItemState
    from pytest_llmprof.plugin.rows import Row
    from pytest_llmprof.records.catalogue import Declaration
    from pytest_llmprof.run.directory import RunLog
    from pytest_llmprof.run.session import Session


def judge(state: ItemState, *, strict: bool) -> pytest.ExceptionInfo[BaseException] | None:
    """The failure of a test whose metrics break a gate, or that has gates and measured nothing.

    In a *strict* run a gate without a value is broken too, and an unclear one where `gate.unclear` says so.
    """
    if not state.gates:
        return None
    if state.row is None:
        if not state.gates.marked:
            return None
        return failure("llmprof_gate: the test called neither llmprof.run() nor llmprof.measure()")
    from pytest_llmprof.records.metrics import gate_texts

    outcomes = ["failed", *(("not applicable", "not measured") if strict else ())]
    if state.settings is not None and state.settings.gate.unclear == "fail":
        outcomes.append("unclear")
    broken = gate_texts(gate for gate in state.verdicts if gate.outcome in outcomes)
    return failure(f"llmprof_gate: {'; '.join(broken)}") if broken else None


def failure(text: str) -> pytest.ExceptionInfo[BaseException]:
    """An exception that pytest shows as *text* alone, without a traceback."""
    try:
        pytest.fail(visible(text), pytrace=False)
    except pytest.fail.Exception as error:
        return pytest.ExceptionInfo.from_exception(error)


def one_line(error: BaseException) -> str:
    """An exception's first line, with its type where the text alone may say too little."""
    if isinstance(error, pytest.FixtureLookupError):  # its own text is a tuple
        return error.msg or f"fixture '{error.argname}' not found"
    text = next((line for line in text_of(error).splitlines() if line.strip()), "")
    if text and isinstance(error, (LlmprofError, AssertionError, pytest.fail.Exception)):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class Results:
    """The controller's record (without xdist: the session's)."""

    def __init__(self, config: pytest.Config) -> None:
        self.rows: dict[str, Row] = {}
        """By node id."""
        self.columns: list[Declaration] = []
        """The metrics that the summary's table shows."""
        self.log: RunLog | None = None
        """run.json, once the run has begun."""
        self.page: Path | None = None
        """index.html, once it is written."""
        self.warnings: list[str] = []
        """What went wrong in this process, or in a worker, and costs no test: a model that could not be closed, say."""
        self.unavailable: dict[str, list[str]] = {}
        """Tests that were skipped, by what this machine lacks for them."""
        self._elsewhere: dict[tuple[str, str], list[str]] = {}
        """Tests whose outputs are on another machine: by its worker, and their directory."""
        self._config = config
        self._seconds: dict[str, float] = {}
        """Wall time of each test so far."""
        self._legacy: dict[str, None] = {}
        self._legacy_logged = False
        self._took_sigterm = False

    @property
    def trouble(self) -> str | None:
        """Why run.json, benchmark.json, summary.md or index.html is not complete."""
        return self.log.trouble if self.log is not None else None

    @property
    def stayed(self) -> list[str]:
        """A line for each directory of outputs that stayed on another machine."""
        found = []
        for (worker, path), (first, *others) in self._elsewhere.items():
            more = f" and {len(others)} more" if others else ""
            found.append(
                f"{path} of {first}{more} is on the machine of worker {worker}, as it lies outside of the run "
                "directory: a relative save_dir comes here"
            )
        return found

    def catch_sigterm(self) -> None:
        """From here on SIGTERM ends the run as Ctrl-C does."""
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _interrupt)
            self._took_sigterm = True

    def release_sigterm(self) -> None:
        """Undo `catch_sigterm`."""
        if self._took_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._took_sigterm = False

    def begin(self, session: Session) -> None:
        """Go on with the run.json that *session* has begun, in this process or in a worker."""
        if self.log is None:
            from pytest_llmprof.run.directory import RunLog, link_latest

            self.log = RunLog(session.run_dir, session.record)
            if note := link_latest(session.run_dir):
                self.warnings.append(note)

    def running(self, item: pytest.Item, state: ItemState) -> None:
        """Record that a test begins in this process."""
        assert self.log is not None
        self.log.test(item.nodeid, state.stage, "running", directory=state.directory or None)

    def take(self, report: pytest.TestReport, data: Mapping[str, Any]) -> None:
        """Record a report of a test of ours, with the data that its process added."""
        self.legacy(data["legacy"])
        if report.skipped and data["unavailable"]:
            self.unavailable.setdefault(data["unavailable"], []).append(report.nodeid)
        for path in data.get("elsewhere", ()):
            tests = self._elsewhere.setdefault((getattr(report, "worker_id", ""), path), [])
            if report.nodeid not in tests:
                tests.append(report.nodeid)
        kind = None
        if data["row"] is not None:
            from pytest_llmprof.plugin.rows import Row

            row = self.rows[report.nodeid] = Row.decode(data["row"])
            kind = row.kind
        assert self.log is not None
        if report.when != "teardown" or not report.passed:
            again = str(report.outcome) == "rerun"  # pytest-rerunfailures runs it once more
            outcome = "running" if again or (report.when == "setup" and report.passed) else report.outcome
            if outcome == "running" and self._config.getoption("setuponly", False):  # no call follows
                outcome = "skipped"
            self.log.test(
                report.nodeid, data["stage"], outcome, directory=data["dir"], kind=kind, error=data["error"]
            )
        self._seconds[report.nodeid] = self._seconds.get(report.nodeid, 0.0) + report.duration
        if report.when == "teardown":
            self.log.took(report.nodeid, self._seconds[report.nodeid])

    def take_foreign(self, report: pytest.TestReport, stage: str) -> None:
        """Record a report without data of ours: for a test whose worker of xdist, or own process (pytest-forked),
        crashed, or of a test not ours."""
        assert self.log is not None
        if report.when == "setup":
            self.log.forget(report.nodeid)
        elif report.when not in ("call", "teardown"):
            who = "worker" if hasattr(report, "node") else "process"
            self.log.test(report.nodeid, stage, "failed", error=f"{who} crashed")

    def legacy(self, keys: Sequence[str]) -> None:
        """Record legacy keys that the configuration has."""
        self._legacy.update(dict.fromkeys(keys))

    @property
    def legacy_message(self) -> str | None:
        """One text for all legacy keys so far."""
        if not self._legacy:
            return None
        from pytest_llmprof.config.legacy import message

        return message(self._legacy)

    def log_legacy(self) -> None:
        """Log the session's one INFO (the terminal summary shows it too)."""
        text = self.legacy_message
        if text is not None and not self._legacy_logged:
            self._legacy_logged = True
            logging.getLogger("pytest_llmprof").info(text)

    def finish(self, status: str) -> None:
        """Write run.json with its last *status*, once. Does nothing where no run has begun."""
        if self.log is not None and not self.log.ended:
            self.log.finish(status)

    def write_benchmark_json(self, log: RunLog) -> None:
        """Write the rounds of all tests in pytest-benchmark's format, where there are any. It gets them, too."""
        from pytest_llmprof.plugin.benchmark_sink import benchmark_json, serve

        rows = [row for row in self.rows.values() if row.round_seconds]
        serve(rows, self._config)
        if rows:
            from pytest_llmprof.records.files import write_json

            try:
                write_json(log.path / "benchmark.json", benchmark_json(rows, self._config))
            except ArtifactError as error:
                log.trouble = str(error)

    def write_report(self, log: RunLog, not_compared: str, before: Path | None) -> None:
        """Write summary.md and index.html from the files of the run, which has ended; *not_compared*: why it has no
        comparison; *before*: the baseline's run directory, where it is one."""
        from pytest_llmprof.report.page import write_page
        from pytest_llmprof.report.run_summary import write_summary

        try:
            write_summary(log.path, not_compared=not_compared)
            self.page = write_page(log.path, before=before)
        except ArtifactError as error:
            log.trouble = log.trouble or str(error)


def uninterrupted() -> AbstractContextManager[None]:
    """Hold SIGINT and SIGTERM back until the block has ended."""
    return held_back(signal.SIGINT, signal.SIGTERM)


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt("SIGTERM")
