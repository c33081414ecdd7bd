"""pytest hooks: wiring only. The work is in `items`, `session`, `stages.runner` and below.

Importing this module is cheap, and nothing is composed or imported before an option or a test asks for it.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pytest_llmprof import options
from pytest_llmprof.errors import LlmprofError
from pytest_llmprof.items import ITEM, STAGE_FIXTURE, ItemState, asks, needs_sink, settle, stray_gates
from pytest_llmprof.terminal import Progress, gate_lines, header, relative, summary

if TYPE_CHECKING:
    from types import FrameType

    from pytest_llmprof.rundir import RunLog
    from pytest_llmprof.session import Session
    from pytest_llmprof.stages.runner import Runner

pytest_plugins = ("pytest_llmprof.fixtures",)

MANAGER = pytest.StashKey["Manager"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    options.add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    from pytest_llmprof import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    if not config.getoption("llmprof_show_config"):
        return None
    try:
        print(Manager(config).session.composer.show(), end="")
    except LlmprofError as error:
        raise pytest.UsageError(str(error)) from None
    return 0


def pytest_configure(config: pytest.Config) -> None:
    for line in options.MARKERS:
        config.addinivalue_line("markers", line)
    manager = Manager(config)
    config.stash[MANAGER] = manager
    config.pluginmanager.register(manager, "llmprof-manager")
    if options.given_on_command_line(config) or (manager.controller and options.given_in_ini(config)):
        manager.check_early()


class Manager:
    """One session's hooks; every hook is a method, and state lives here."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.worker = hasattr(config, "workerinput")
        self.controller = not self.worker and bool(
            getattr(config.option, "tx", None) or getattr(config.option, "numprocesses", None)
        )
        self._dry = bool(config.option.collectonly or config.option.setupplan)
        """Whether no test will run."""
        self.progress = Progress(config)
        self._session: Session | None = None
        self._fatal: str | None = None
        """Why no test of ours can run."""
        self._header: str | None = None
        self._header_shown = False
        self._asked = False
        self._log: RunLog | None = None
        self._rows: dict[str, dict[str, Any]] = {}
        self._legacy: dict[str, None] = {}
        """Legacy keys that workers told of."""
        self._legacy_told = False
        self._took_sigterm = False

    # -- the session's configuration --------------------------------------------------------------------

    @property
    def session(self) -> Session:
        """Made on first use, of what plugins register."""
        if self._session is None:
            from pytest_llmprof.datasets import builtin
            from pytest_llmprof.models import packaged_models
            from pytest_llmprof.rundir import choose_run_dir
            from pytest_llmprof.session import Session
            from pytest_llmprof.stages import packaged_stages

            def run_dir() -> Path:
                if self.worker:  # chosen once, by the controller
                    return Path(self.config.workerinput["llmprof_run_dir"])  # type: ignore[attr-defined]
                return choose_run_dir(options.directory(self.config, "llmprof_run_dir"), self.config.rootpath)

            hook = self.config.hook
            self._session = Session(
                sources=options.sources(self.config),
                models=[*packaged_models(), *_flat(hook.pytest_llmprof_models(config=self.config))],
                stages=[*packaged_stages(), *_flat(hook.pytest_llmprof_stages(config=self.config))],
                datasets=[*builtin(), *_flat(hook.pytest_llmprof_datasets(config=self.config))],
                choose_run_dir=run_dir,
            )
        return self._session

    def check(self) -> tuple[str, ...]:
        """Check the session's configuration and name its run directory; give its stages. Raises `LlmprofError`."""
        settings = self.session.check()
        self._header = header(settings, self.session.run_dir, self.config.invocation_params.dir)
        return settings.stages

    def check_early(self) -> None:
        """Check what the command line says before anything is collected; a worker's controller has done it."""
        if self.worker:
            return
        try:
            self.check()
        except LlmprofError as error:
            raise pytest.UsageError(str(error)) from None

    # -- collection -------------------------------------------------------------------------------------

    @pytest.hookimpl(trylast=True)
    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if STAGE_FIXTURE not in metafunc.fixturenames:
            return
        stages: Sequence[str] = ("invalid-configuration",)
        if self._fatal is None:
            try:
                stages = self.check()
            except LlmprofError as error:
                self._fatal = str(error)
        metafunc.parametrize(STAGE_FIXTURE, stages, indirect=True, ids=str)

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Ask for pytest-benchmark's fixture where rounds will be measured, before it looks for its tests."""
        if asks(item) and needs_sink(item, self.config):
            # A copy: the list is shared between the stages' items.
            item.fixturenames = [*item.fixturenames, "benchmark"]  # type: ignore[attr-defined]
            item.stash.setdefault(ITEM, ItemState()).sink = True

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        stray_gates(items)
        mine = [item for item in items if asks(item)]
        if not mine:
            return
        self._asked = True
        if self._fatal is not None:
            self._refuse(mine, self._fatal)
        else:
            settle(mine, self.session, self._refuse)

    def _refuse(self, items: Sequence[pytest.Item], text: str) -> None:
        """Stop with a usage error; in an xdist worker, where that would be an internal error, fail the tests."""
        if not self.worker:
            raise pytest.UsageError(text)
        for item in items:
            item.stash.setdefault(ITEM, ItemState()).error = text

    def pytest_report_header(self) -> str | None:
        self._header_shown = self._header is not None
        return self._header

    def pytest_report_collectionfinish(self) -> str | None:
        if not self._asked or self._header_shown or self._dry:
            return None
        self._header_shown = True
        return self._header

    # -- running ----------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Begin the run, where a test asked and none will be kept from running."""
        stopped = session.testsfailed and not self.config.option.continue_on_collection_errors
        if not self._asked or self.worker or self._dry or stopped:
            return
        self._tell_legacy()
        try:
            self.session.begin()
        except LlmprofError as error:
            raise pytest.UsageError(str(error)) from None
        self._start_log()

    def _start_log(self) -> RunLog:
        if self._log is None:
            from pytest_llmprof.rundir import RunLog

            self._log = RunLog(self.session.run_dir, [str(arg) for arg in self.config.invocation_params.args])
            self._log.write("running")
            # Ctrl-C is pytest's; a terminated run ends the same way.
            main = threading.current_thread() is threading.main_thread()
            if main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                signal.signal(signal.SIGTERM, _interrupt)
                self._took_sigterm = True
        return self._log

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        state = item.stash.get(ITEM, None)
        if state is None or self._dry:
            return
        if state.error is not None:
            raise LlmprofError(state.error)
        if self.worker:
            self.session.begin()
        else:
            self._start_log().test(
                item.nodeid,
                stage=state.stage,
                outcome="running",
                directory=state.directory,
                kind=None,
                error=None,
            )

    def done(self, item: pytest.Item, runner: Runner, kind: str, round_seconds: Sequence[float]) -> None:
        """Keep what a test came to, as plain data: a worker sends it to the controller."""
        from pytest_llmprof.artifacts import read_json

        state = item.stash[ITEM]
        metrics = read_json(runner.artifacts.out_dir(state.stage) / "metrics.json")
        callspec = item.callspec  # type: ignore[attr-defined]
        quality = metrics.get("quality")
        figures = {**metrics["figures"], **(quality or {})}
        extra = {name: value for name, value in figures.items() if value is not None}
        if self.worker:  # the numbers of tests that ran beside others
            extra["xdist_workers"] = self.config.workerinput["workercount"]  # type: ignore[attr-defined]
        state.payload = {
            "id": item.nodeid,
            "name": state.name,
            "stage": state.stage,
            "kind": kind,
            "dir": state.directory,
            "figures": metrics["figures"],
            "quality": quality,
            "quality_reason": metrics.get("quality_reason"),
            "round_seconds": list(round_seconds),
            "params": {name: str(value) for name, value in callspec.params.items()},
            "param": callspec.id,
            "extra_info": extra,
        }

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        self.progress.clear()
        state = item.stash.get(ITEM, None)
        if state is not None and call.when == "call" and call.excinfo is None:
            call.excinfo = _judge(state)
        report = yield
        error = call.excinfo.value if call.excinfo is not None else None
        if isinstance(error, LlmprofError) and not self.config.option.fulltrace:
            details = getattr(error, "details", None)
            if details:
                report.sections.append(("llmprof: where it failed", details))
            if report.failed:
                report.longrepr = item.repr_failure(_failure(str(error)))
        if state is None or not asks(item):
            return report
        if call.when == "call" and state.runner is not None and state.runner.verdicts:
            report.sections.append(("llmprof gates", gate_lines(state.runner.verdicts)))
        report.llmprof = {  # type: ignore[attr-defined]
            "stage": state.stage,
            "dir": state.directory,
            "error": _one_line(error) if error is not None and report.failed else None,
            "legacy": self.session.legacy_keys,
            "row": state.payload if call.when == "call" else None,
        }
        return report

    # -- reports (in the controller) --------------------------------------------------------------------

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        told: dict[str, Any] | None = getattr(report, "llmprof", None)
        if told is None or self.worker or self._dry:
            return
        self._legacy.update(dict.fromkeys(told["legacy"]))
        row = told["row"]
        if row is not None:
            self._rows[report.nodeid] = row
        if report.when == "call" or not report.passed:
            self._start_log().test(
                report.nodeid,
                stage=told["stage"],
                outcome=report.outcome,
                directory=told["dir"],
                kind=row["kind"] if row else None,
                error=told["error"],
            )

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput["llmprof_run_dir"] = str(self.session.run_dir)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, exitstatus: int | pytest.ExitCode) -> Generator[None, None, None]:
        self.progress.clear()
        if self._session is not None:
            self._session.close()
        if self._log is not None:
            self._tell_legacy()
            self._write_benchmark_json(self._log)
            stopped = (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR)
            self._log.finish(interrupted=exitstatus in stopped)
            if self._took_sigterm:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
        yield

    def _write_benchmark_json(self, log: RunLog) -> None:
        rows = [row for row in self._rows.values() if row["round_seconds"]]
        if rows:
            from pytest_llmprof.artifacts import write_json
            from pytest_llmprof.measure.benchmark_sink import benchmark_json

            try:
                write_json(log.path / "benchmark.json", benchmark_json(rows, self.config))
            except OSError as error:
                log.trouble = f"cannot write {log.path / 'benchmark.json'}: {error.strerror}"

    def _legacy_message(self) -> str | None:
        from pytest_llmprof.config.legacy import message

        here = self._session.legacy_keys if self._session is not None else ()
        return message([*here, *self._legacy])

    def _tell_legacy(self) -> None:
        """Log the session's one INFO (the terminal summary shows it too)."""
        text = self._legacy_message()
        if text is not None and not self._legacy_told:
            self._legacy_told = True
            logging.getLogger("pytest_llmprof").info(text)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.worker or self._session is None:
            return
        lines = summary(list(self._rows.values()), terminalreporter._tw.fullwidth)
        if self._log is not None:
            lines.append(f"run directory: {relative(self._log.path, self.config.invocation_params.dir)}")
            lines += [f"ERROR: {self._log.trouble}"] if self._log.trouble else []
        legacy = self._legacy_message()
        lines += [f"INFO: {legacy}"] if legacy else []
        if lines:
            terminalreporter.write_sep("=", "llmprof")
            for line in lines:
                terminalreporter.write_line(line)


def _judge(state: ItemState) -> pytest.ExceptionInfo[BaseException] | None:
    """The failure of a test whose figures break a limit, or that has limits and no figures."""
    if not state.gates:
        return None
    if state.runner is None or state.payload is None:
        return _failure("llmprof_gate: the test called neither llmprof.run() nor llmprof.measure()")
    broken = [verdict for verdict in state.runner.verdicts if verdict.outcome == "failed"]
    if not broken:
        return None
    text = "; ".join(f"{verdict.name} is {verdict.figure:.6g}, limit {verdict.limit}" for verdict in broken)
    return _failure(f"llmprof_gate: {text}")


def _failure(text: str) -> pytest.ExceptionInfo[BaseException]:
    """An exception that pytest shows as *text* alone, without a traceback."""
    try:
        pytest.fail(text, pytrace=False)
    except pytest.fail.Exception as error:
        return pytest.ExceptionInfo.from_exception(error)


def _one_line(error: BaseException) -> str:
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, (LlmprofError, AssertionError, pytest.fail.Exception)) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _flat(lists: Sequence[Any]) -> list[Any]:
    return [plugin for plugins in lists for plugin in plugins or ()]


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt("SIGTERM")
