"""What tests came to: the verdict on one test, and the controller's record of all of them.

A test's outcome travels as plain data in its report (`report.llmprof`), so it is the same with and without
xdist; `Results` makes run.json, benchmark.json and the summary's rows of it.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pytest_llmprof.errors import LlmprofError

if TYPE_CHECKING:
    from types import FrameType

    from pytest_llmprof.plugin.items import ItemState
    from pytest_llmprof.run.directory import RunLog

__all__ = ["Results", "failure", "judge", "one_line", "row"]


def row(
    item: pytest.Item, state: ItemState, kind: str, out_dir: Path, round_seconds: Sequence[float]
) -> dict[str, Any]:
    """What *item* came to, as plain data, from its metrics.json in *out_dir*."""
    from pytest_llmprof.records.files import read_json
    from pytest_llmprof.report.findings import card_warnings

    metrics = read_json(out_dir / "metrics.json")
    place = out_dir / "environment.json"
    environment = read_json(place) if place.exists() else {}  # a tool that never ran its child has none
    callspec = item.callspec  # type: ignore[attr-defined]
    figures = {**metrics["figures"], **(metrics["quality"] or {})}
    extra = {name: value for name, value in figures.items() if value is not None}
    if hasattr(item.config, "workerinput"):  # numbers of tests that ran beside others
        extra["xdist_workers"] = item.config.workerinput["workercount"]
    return {
        "id": item.nodeid,
        "name": state.name,
        "stage": state.stage,
        "kind": kind,
        "dir": state.directory,
        "figures": metrics["figures"],
        "quality": metrics["quality"],
        "quality_reason": metrics["quality_reason"],
        "card_warnings": card_warnings(metrics, environment),
        "round_seconds": list(round_seconds),
        "params": {name: _param(value) for name, value in callspec.params.items()},
        "param": callspec.id,
        "extra_info": extra,
    }


def _param(value: object) -> object:
    """A parameter as JSON has it: what is no number, bool or None becomes text, that travels between processes too."""
    if (type(value) is float and math.isfinite(value)) or type(value) in (bool, int, type(None)):
        return value
    return str(value).encode("utf-8", "replace").decode()  # JSON has no lone surrogates


def judge(state: ItemState) -> pytest.ExceptionInfo[BaseException] | None:
    """The failure of a test whose figures break a limit, or that has limits and no figures."""
    if not state.gates:
        return None
    if state.row is None:
        return failure("llmprof_gate: the test called neither llmprof.run() nor llmprof.measure()")
    broken = [verdict for verdict in state.verdicts if verdict.outcome == "failed"]
    if not broken:
        return None
    text = "; ".join(f"{verdict.name} is {verdict.figure:.6g}, limit {verdict.limit}" for verdict in broken)
    return failure(f"llmprof_gate: {text}")


def failure(text: str) -> pytest.ExceptionInfo[BaseException]:
    """An exception that pytest shows as *text* alone, without a traceback."""
    try:
        pytest.fail(text, pytrace=False)
    except pytest.fail.Exception as error:
        return pytest.ExceptionInfo.from_exception(error)


def one_line(error: BaseException) -> str:
    """An exception's first line, with its type where the text alone may say too little."""
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    if text and isinstance(error, (LlmprofError, AssertionError, pytest.fail.Exception)):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class Results:
    """The controller's record (without xdist: the session's)."""

    def __init__(self, config: pytest.Config) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        """By node id."""
        self.log: RunLog | None = None
        """run.json, once the run has begun."""
        self.close_errors: list[str] = []
        """What models could not be closed, in all workers."""
        self._config = config
        self._legacy: dict[str, None] = {}
        self._legacy_logged = False
        self._took_sigterm = False

    @property
    def trouble(self) -> str | None:
        """Why the record of the run is not whole."""
        return self.log.trouble if self.log is not None else None

    def begin(self, run_dir: Path) -> RunLog:
        """Begin run.json, once; from here on SIGTERM ends the run as Ctrl-C does."""
        if self.log is None:
            from pytest_llmprof.run.directory import RunLog

            self.log = RunLog(run_dir, [str(arg) for arg in self._config.invocation_params.args])
            self.log.write("running")
            main = threading.current_thread() is threading.main_thread()
            if main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                signal.signal(signal.SIGTERM, _interrupt)
                self._took_sigterm = True
        return self.log

    def running(self, item: pytest.Item, state: ItemState, run_dir: Path) -> None:
        """A test begins in this process."""
        self.begin(run_dir).test(
            item.nodeid, stage=state.stage, outcome="running", directory=state.directory, kind=None, error=None
        )

    def take(self, report: pytest.TestReport, told: Mapping[str, Any], run_dir: Path) -> None:
        """One report of a test of ours, with what its process told."""
        self.legacy(told["legacy"])
        row = told["row"]
        if row is not None:
            self.rows[report.nodeid] = row
        if report.when != "teardown" or not report.passed:
            begun = report.when == "setup" and report.passed
            self.begin(run_dir).test(
                report.nodeid,
                stage=told["stage"],
                outcome="running" if begun else report.outcome,
                directory=told["dir"],
                kind=row["kind"] if row else None,
                error=told["error"],
            )

    def take_foreign(self, report: pytest.TestReport, stage: str) -> None:
        """A report that tells nothing of ours: xdist's on a test whose worker crashed, or one of a test not ours."""
        assert self.log is not None
        if report.when == "setup":
            self.log.forget(report.nodeid)
        elif report.when not in ("call", "teardown"):
            self.log.test(
                report.nodeid, stage=stage, outcome="failed", directory=None, kind=None, error="worker crashed"
            )

    def legacy(self, keys: Sequence[str]) -> None:
        """Legacy keys were met."""
        self._legacy.update(dict.fromkeys(keys))

    @property
    def legacy_message(self) -> str | None:
        """One text for all legacy keys met so far."""
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
        """Write benchmark.json and close run.json with *status*. Nothing where no run has begun."""
        if self.log is None:
            return
        self.log_legacy()
        rows = [row for row in self.rows.values() if row["round_seconds"]]
        if rows:
            from pytest_llmprof.plugin.benchmark_sink import benchmark_json
            from pytest_llmprof.records.files import write_json

            try:
                write_json(self.log.path / "benchmark.json", benchmark_json(rows, self._config))
            except OSError as error:
                self.log.trouble = f"cannot write {self.log.path / 'benchmark.json'}: {error.strerror}"
        self.log.finish(status)
        if self._took_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt("SIGTERM")
