"""The pytest hooks. They call the modules beside this one and the rooms below.

Importing this module is cheap: nothing is composed or imported before an option or a test asks for it.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_llmprof.errors import ArtifactError, ConfigError, LlmprofError
from pytest_llmprof.measure.duet import Duet
from pytest_llmprof.measure.openmp import host_is_busy, shorten_waits
from pytest_llmprof.plugin import options
from pytest_llmprof.plugin.items import (
    ITEM,
    STAGE_FIXTURE,
    ItemState,
    check_marks,
    has_rounds,
    outside,
    prepare_items,
    state_of,
    uses_llmprof,
)
from pytest_llmprof.plugin.remote import CHANNEL, Away, check_paths, may_be_apart
from pytest_llmprof.plugin.results import Results, failure, judge, one_line, uninterrupted
from pytest_llmprof.plugin.shards import Shards
from pytest_llmprof.plugin.shared import DUET, SHARED, SharedState
from pytest_llmprof.plugin.terminal import clean, columns, gate_lines, header, relative, summary, untraced
from pytest_llmprof.plugin.workers import CHANNEL as GROUPS
from pytest_llmprof.plugin.workers import WorkerHooks, auto_workers, check_spread, send_groups, take_share
from pytest_llmprof.text.escape import encodable, visible

pytest_plugins = ("pytest_llmprof.plugin.fixtures",)


def pytest_addoption(parser: pytest.Parser) -> None:
    options.add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    from pytest_llmprof.plugin import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


_WAITS_CHOSEN = pytest.StashKey[bool]()


def _choose_waits(config: pytest.Config) -> None:
    """Choose how torch's threads wait, once for a session: a look at the host takes up to 20 ms."""
    if not config.stash.get(_WAITS_CHOSEN, False):
        config.stash[_WAITS_CHOSEN] = True
        shorten_waits(os.environ, sys.modules, host_is_busy)


def _say_hello(config: pytest.Config) -> None:
    """Connect to the process that measures beside this one, where there is one, once for a session."""
    if DUET not in config.stash:
        with options.usage_errors():
            config.stash[DUET] = Duet.from_environment(os.environ)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Before a conftest can import torch: its threads' way to wait, in sessions that configure this plugin. And the
    hello of a duet, for which the process beside this one waits."""
    _say_hello(early_config)
    if options.configured_early(early_config):
        _choose_waits(early_config)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    doctor = config.getoption("llmprof_doctor")
    if doctor is not None:
        from pytest_llmprof.records.files import write_json
        from pytest_llmprof.run.doctor import examine

        with options.usage_errors():
            options.check_ini(config)
            write_json(Path(doctor), examine(SharedState(config).session))
        return 0
    if not config.getoption("llmprof_show_config"):
        return None
    from pytest_llmprof.records.files import write_output
    from pytest_llmprof.run.gates import gates_of

    with options.usage_errors():
        options.check_ini(config)
        session = SharedState(config).session
        gates_of(session.composer.session(), (), session.catalogue, session.stages_measuring, None)
        if isinstance(sys.stdout, io.TextIOWrapper):  # YAML is UTF-8, whatever the locale's encoding
            sys.stdout.reconfigure(encoding="utf-8", errors="replace")
        write_output(session.composer.show(), sys.stdout)
    return 0


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """For `-n auto`, before `pytest_configure`."""
    with options.usage_errors():
        return auto_workers(SharedState(config))


def pytest_configure(config: pytest.Config) -> None:
    for line in options.MARKERS:
        config.addinivalue_line("markers", line)
    _say_hello(config)
    shared = config.stash[SHARED] = SharedState(config)
    if not shared.worker:  # a worker's controller has checked it
        with options.usage_errors():
            options.check_ini(config)
    manager = Manager(shared)
    config.pluginmanager.register(manager, "llmprof-manager")
    if shared.child:
        from pytest_llmprof.plugin.in_child import ChildHooks

        config.pluginmanager.register(ChildHooks(shared), "llmprof-in-child")
    manager.shards.collect_all()
    if shared.controller:
        manager.register_workers()
    if shared.worker:
        if GROUPS in config.workerinput:  # type: ignore[attr-defined]
            config.option.loadgroup = False  # it would append the groups of marks to node ids
    else:
        with options.usage_errors():
            manager.shards.check()
            manager.greet_other()
            if options.configured(config, ini=shared.controller):
                manager.check()


class Manager:
    """The hooks of one session, and their state."""

    def __init__(self, shared: SharedState) -> None:
        self._shared = shared
        self.shards = Shards(shared)
        self._config = config = shared.config
        self._runs_nothing = bool(config.option.collectonly or config.option.setupplan)
        self._config_error: str | None = None
        """Why no test of ours can run."""
        self._header: str | None = None
        self._header_shown = False
        self._used = False
        """Whether a collected test asks for us."""
        self._results = Results(config)
        self.workers = WorkerHooks(shared)
        self._strict = options.strict(config) and not shared.child  # a child's parent judges its gates
        self._interrupted = False

    def register_workers(self) -> None:
        """In the process that starts workers: let xdist find the hooks for them."""
        self._config.pluginmanager.register(self.workers, "llmprof-workers")
        if self.workers.note is not None:
            self._results.warnings.append(self.workers.note)

    def greet_other(self) -> None:
        """In a duet: wait for the hello of the process beside this one. Raises `ConfigError` where none comes."""
        if self._shared.duet is not None:
            if self._shared.controller:
                raise ConfigError(
                    "--duet measures in one process on each side, and workers of pytest-xdist are more: leave -n and "
                    "--tx out"
                )
            self._shared.duet.greet()

    # -- the session's configuration --------------------------------------------------------------------

    def check(self) -> tuple[str, ...]:
        """Check the session's configuration and name its run directory; give its stages. Raises `LlmprofError`."""
        if self._header is None:
            settings = self._shared.session.check()
            if not (self._shared.worker or self._shared.child):
                self._shared.baselines.check()
            self._results.columns = columns(self._shared.session.catalogue, *options.columns(self._config))
            self._header = header(settings, self._shared.session.run_dir, self._config.invocation_params.dir)
        return self._shared.session.composer.session().stages

    # -- collection -------------------------------------------------------------------------------------

    @pytest.hookimpl(trylast=True)
    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if STAGE_FIXTURE not in metafunc.fixturenames:
            return
        _choose_waits(self._config)
        stages: Sequence[str] = ("invalid-configuration",)
        if self._config_error is None:
            try:
                stages = self.check()
            except LlmprofError as error:
                self._config_error = str(error)
        metafunc.parametrize(STAGE_FIXTURE, stages, indirect=True, ids=str)

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Let `--benchmark-only` and `--benchmark-skip` see tests with rounds: they look for a fixture's name."""
        option = self._config.option
        asked = getattr(option, "benchmark_only", False) or getattr(option, "benchmark_skip", False)
        if asked and self._config_error is None and has_rounds(item, self._shared):
            # A copy, as the items of all stages share one list.
            item.fixturenames = [*item.fixturenames, "benchmark"]  # type: ignore[attr-defined]
            state_of(item).named_for_benchmark = True

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        check_marks(items, self._config)
        ours = [item for item in items if uses_llmprof(item)]
        for item in ours:
            if state_of(item).named_for_benchmark:
                item.fixturenames.remove("benchmark")  # type: ignore[attr-defined]
        if ours:
            self._used = True
            if self._config_error is not None:
                self._refuse(ours, self._config_error)
            else:  # all tests, whatever the shard, so that they have the same directories in each
                prepare_items(ours, self._shared.session, self._refuse)
        self.shards.select(items)

    def _refuse(self, items: Sequence[pytest.Item], text: str) -> None:
        """Stop with a usage error. In an xdist worker that would be an internal error, so fail *items* there."""
        if not self._shared.worker:
            raise pytest.UsageError(visible(text))
        for item in items:
            state_of(item).error = text

    def pytest_report_header(self) -> str | None:
        self._header_shown = self._header is not None
        return self._header

    def pytest_report_collectionfinish(self) -> str | None:
        if not self._used or self._header_shown or self._runs_nothing:
            return None
        self._header_shown = True
        return self._header

    # -- running ----------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """In a worker: make the run directory before the controller gets the tests and looks for it."""
        if self._shared.worker:
            send_groups(session.items, self._config)
        if not (self._shared.worker and self._used) or self._runs_nothing:
            return
        try:
            if self._config_error is None:
                check_spread(self._shared)
                take_share(self._shared)
            if self._shared.away is None:
                self._shared.session.begin()
            else:
                self._shared.away.begin(self._shared.session)
        except LlmprofError as error:
            text = str(error)
            self._refuse([item for item in session.items if uses_llmprof(item)], text)
            report = pytest.CollectReport(session.nodeid, "failed", visible(text), [], llmprof_refused=visible(text))
            self._config.hook.pytest_collectreport(report=report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """In the controller: stop with a usage error where a worker could not begin the run."""
        text: str | None = getattr(report, "llmprof_refused", None)
        if text is not None and not self._shared.worker:
            raise pytest.UsageError(text)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self) -> None:
        if self._shared.session.begun():
            self._results.catch_sigterm()
            self._results.begin(self._shared.session)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Begin the run where tests use it and will run."""
        stopped = session.testsfailed and not self._config.option.continue_on_collection_errors
        if not self._used or self._shared.worker or self._runs_nothing or stopped:
            return
        self._results.legacy(self._shared.session.legacy_keys)
        self._results.log_legacy()
        self._results.catch_sigterm()
        with options.usage_errors(), uninterrupted():
            self._shared.session.begin()
            self._results.begin(self._shared.session)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        state = item.stash.get(ITEM, None)
        if state is None or self._runs_nothing:
            return
        if state.error is not None:
            raise LlmprofError(state.error)
        if not self._shared.worker:
            self._results.running(item, state)
        if state.tool:
            # Only the child runs the test and its fixtures.
            item.fixturenames = [STAGE_FIXTURE]  # type: ignore[attr-defined]

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> bool | None:
        """Run a test whose stage is a tool in a child, instead of its body."""
        state = pyfuncitem.stash.get(ITEM, None)
        if state is None or not state.tool:
            return None
        from pytest_llmprof.plugin.tool_items import run_tool_item

        run_tool_item(pyfuncitem, state, self._shared)
        return True

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        self._shared.progress.clear()
        state = item.stash.get(ITEM, None)
        if state is not None and call.when == "call" and call.excinfo is None:
            call.excinfo = judge(state, strict=self._strict)
        report = yield
        error = call.excinfo.value if call.excinfo is not None else None
        if isinstance(error, LlmprofError):
            if details := getattr(error, "details", None):
                report.sections.append(("llmprof: where it failed", visible(details)))
            if report.failed and not self._config.option.fulltrace:
                report.longrepr = item.repr_failure(failure(str(error)))
        if state is None or not uses_llmprof(item):
            return report
        report.longrepr = clean(report.longrepr)
        report.sections = untraced(report.sections)
        if call.when == "call" and state.verdicts:
            report.sections.append(("llmprof gates", gate_lines(state.verdicts)))
        report.llmprof = {  # type: ignore[attr-defined]
            "stage": state.stage,
            "dir": state.directory or None,
            "error": one_line(error) if error is not None and report.failed else None,
            "unavailable": state.unavailable,
            "legacy": self._shared.session.legacy_keys,
            "row": state.row.encode() if call.when == "call" and state.row is not None else None,
        }
        if self._shared.away is not None and self._shared.away.apart and call.when != "setup":
            self._send_home(item, state, report, self._shared.away)
        return report

    def _send_home(self, item: pytest.Item, state: ItemState, report: pytest.TestReport, away: Away) -> None:
        """On a machine that does not see the run directory: send the test's files. Without them it fails."""
        data: dict[str, Any] = report.llmprof
        directories = [name for name in (state.directory, f"{state.test}/tmp" if state.tool else "") if name]
        data["elsewhere"] = list(map(str, outside(state, self._shared.session)))
        lost: ArtifactError | None = None
        try:
            away.send(directories)
        except ArtifactError as error:
            lost = error
        if lost is not None and not state.files_lost:  # told once, and tried again at the teardown
            state.files_lost = True
            report.outcome = "failed"
            report.longrepr = item.repr_failure(failure(f"its files are lost: {lost}"))
            data["error"] = one_line(lost)
        if report.when == "teardown":
            away.remove(directories)

    @pytest.hookimpl(wrapper=True)
    def pytest_report_to_serializable(self) -> Generator[None, Any, Any]:
        """In a worker: xdist sends no text that is not valid Unicode, and a failure's text may hold any."""
        data = yield
        return encodable(data) if self._shared.worker else data

    # -- reports (in the controller) --------------------------------------------------------------------

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """In xdist's controller, which has no items: record that a test begins in a worker."""
        if self._shared.controller and self._results.log is not None and (stage := self._stage_in(nodeid)):
            self._results.log.test(nodeid, stage, "running")

    def _stage_in(self, nodeid: str) -> str | None:
        """The stage that a node id seems to name; a test that is not ours may have a parameter of that name."""
        return next((stage for stage in self.check() if f"[{stage}]" in nodeid or f"-{stage}]" in nodeid), None)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self._shared.worker or self._runs_nothing:
            return
        data: dict[str, Any] | None = getattr(report, "llmprof", None)
        if data is not None:
            self._results.take(report, data)
        elif self._results.log is not None and (stage := self._stage_in(report.nodeid)):
            self._results.take_foreign(report, stage)

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_xdist_setupnodes(self, specs: Sequence[Any]) -> None:
        with options.usage_errors():
            check_paths(self._config, specs)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        from pytest_llmprof.plugin.tool_items import child_options

        apart = may_be_apart(node.gateway.spec)
        node.workerinput["llmprof"] = self._shared.to_worker(
            child_options(self._config), place=self.workers.place(node), apart=apart, each=self.workers.each
        )
        if self.workers.grouped:
            node.workerinput[GROUPS] = self.workers.connect(node)
        node.workerinput["llmprof_shards"] = self.shards.to_worker()
        if apart:
            node.workerinput[CHANNEL] = self._shared.home.connect(node.gateway.newchannel())

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Collect the errors of a worker that has ended; one that crashed sends none."""
        sent = getattr(node, "workeroutput", {})
        self._results.warnings += sent.get("llmprof_warnings", ())
        self.shards.take(sent.get("llmprof_shards"))

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Note Ctrl-C, SIGTERM and pytest.exit, but not the interrupts by which pytest and xdist stop a session."""
        in_worker = "received keyboard-interrupt" in str(excinfo.value)  # xdist's text for it
        self._interrupted = excinfo.type in (KeyboardInterrupt, pytest.exit.Exception) or in_worker

    def _status(self, session: pytest.Session, exitstatus: int | pytest.ExitCode) -> str:
        """How the session ended, for run.json."""
        if self._interrupted or exitstatus == pytest.ExitCode.INTERNAL_ERROR:
            return "interrupted"
        # With --stepwise, xdist goes on to the end.
        return "stopped" if session.shouldfail or exitstatus == pytest.ExitCode.INTERRUPTED else "complete"

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(
        self, session: pytest.Session, exitstatus: int | pytest.ExitCode
    ) -> Generator[None, None, None]:
        ours = self._shared.session if self._shared.has_session else None
        results = self._results
        try:
            self._end(self._status(session, exitstatus))  # first of all, as the rest takes time
            self._shared.progress.clear()
            if ours is not None:
                ours.close()
                results.legacy(ours.legacy_keys)
                results.warnings += ours.close_errors
            if results.log is not None:
                results.log_legacy()
                results.write_benchmark_json(results.log)
        except KeyboardInterrupt:
            session.exitstatus = pytest.ExitCode.INTERRUPTED
            results.warnings.append("interrupted at the end of the session: benchmark.json may be missing")
        results.release_sigterm()
        if self._shared.worker:
            self._config.workeroutput["llmprof_warnings"] = encodable(results.warnings)  # type: ignore[attr-defined]
            self._config.workeroutput["llmprof_shards"] = self.shards.to_controller()  # type: ignore[attr-defined]
            if self._shared.away is not None:
                self._shared.away.close()
        if self.shards.chose_none and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
            session.exitstatus = pytest.ExitCode.OK  # else an empty shard would fail its job
        baselines = self._shared.baselines
        if results.log is not None and not self._shared.child:
            gates = {row.id: row.gates for row in results.rows.values()}
            try:
                baselines.finish(results.log.path, self._shared.session.terms, gates)
                with uninterrupted():
                    results.write_report(results.log, baselines.not_compared, baselines.directory)
            except KeyboardInterrupt:
                session.exitstatus = pytest.ExitCode.INTERRUPTED
                results.warnings.append("interrupted at the end of the session: its comparison may be missing")
        if (results.trouble or baselines.errors) and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        yield

    def pytest_unconfigure(self) -> None:
        """End the run where an interrupt, or an error in another plugin, kept `pytest_sessionfinish` from it, and one
        that a worker began meanwhile: by now pytest-xdist has ended its workers."""
        self._end("interrupted")
        self._results.release_sigterm()

    def _end(self, status: str) -> None:
        """End run.json with *status*, also that of a run whose worker came no further than to begin it."""
        with uninterrupted():
            if self._shared.controller and self._shared.has_session and self._shared.session.begun():
                self._results.begin(self._shared.session)
            self._results.finish(status)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        results, baselines = self._results, self._shared.baselines
        rows, width = list(results.rows.values()), terminalreporter._tw.fullwidth
        lines = summary(rows, results.columns, width, results.unavailable)
        if self.shards.line is not None:
            lines.append(self.shards.line)
        if results.log is not None:
            if not self._header_shown:  # under xdist it was not known in time
                self.check()
                lines.insert(0, str(self._header))
            shown = {"run directory": results.log.path, "page": results.page}
            here = self._config.invocation_params.dir
            lines += [f"{name}: {relative(path, here)}" for name, path in shown.items() if path is not None]
            lines += [*baselines.notes, *(f"ERROR: {text}" for text in (results.trouble, *baselines.errors) if text)]
        lines += [f"WARNING: {text}" for text in (*results.warnings, *results.stayed)]
        lines += [f"INFO: {results.legacy_message}"] if results.legacy_message else []
        if lines:
            terminalreporter.write_sep("=", "llmprof")
            for line in lines:
                terminalreporter.write_line(visible(line).replace("\n", " "))
        if baselines.table:
            terminalreporter.write_sep("=", "llmprof comparison")
            for line in baselines.table.splitlines():
                terminalreporter.write_line(line)
