"""pytest hooks: wiring only. The work is in `session`, `stages.runner` and below.

Importing this module is cheap, and nothing is composed or imported before an option or a test asks for it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pytest_llmprof import options
from pytest_llmprof.errors import ConfigError, LlmprofError

if TYPE_CHECKING:
    from types import FrameType

    from pytest_llmprof.compare.gates import Gate
    from pytest_llmprof.config.schema import Settings
    from pytest_llmprof.session import RunLog, Session
    from pytest_llmprof.stages.runner import Runner

pytest_plugins = ("pytest_llmprof.fixtures",)

ITEM = pytest.StashKey["ItemState"]()
MANAGER = pytest.StashKey["Manager"]()
_MARKER_ORDER = (pytest.Package, pytest.Module, pytest.Class)
_PROGRESS_EVERY_S = 10.0


class ItemState:
    """What the plugin knows of one test in one stage."""

    def __init__(self) -> None:
        self.error: str | None = None
        """Why it cannot run (its marker's fault, or a shared directory)."""
        self.settings: Settings | None = None
        self.gates: tuple[Gate, ...] = ()
        self.test = ""
        self.stage = ""
        self.runner: Runner | None = None
        self.payload: dict[str, Any] | None = None


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
    config.addinivalue_line(
        "markers",
        "llmprof(overrides=[...]): Hydra overrides for this test alone; "
        "module < class < function < parameter, all below the command line.",
    )
    config.addinivalue_line(
        "markers",
        'llmprof_gate(cer="<=0.05", ttft_ms="<=200", ...): limits on the test\'s own figures; it fails where one '
        "is broken. A figure that is not applicable (no truth, random weights, a CPU) does not fail.",
    )
    manager = Manager(config)
    config.stash[MANAGER] = manager
    config.pluginmanager.register(manager, "llmprof-manager")
    if not manager.worker and (
        options.given_on_command_line(config) or (manager.controller and options.given_in_ini(config))
    ):
        try:
            manager.check()
        except LlmprofError as error:
            raise pytest.UsageError(str(error)) from None


def failure(text: str) -> pytest.ExceptionInfo[BaseException]:
    """An exception that pytest shows as *text* alone, without a traceback."""
    try:
        pytest.fail(text, pytrace=False)
    except pytest.fail.Exception as error:
        return pytest.ExceptionInfo.from_exception(error)


class Manager:
    """One session's hooks; every hook is a method, and state lives here."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.worker = hasattr(config, "workerinput")
        self.controller = not self.worker and bool(
            getattr(config.option, "tx", None) or getattr(config.option, "numprocesses", None)
        )
        self._session: Session | None = None
        self._log: RunLog | None = None
        self._asked = False
        self._old_sigterm: Any = None
        self._said = 0.0
        self._rows: list[dict[str, Any]] = []
        self._legacy: dict[str, None] = {}
        self._fatal: str | None = None

    # -- configuration ----------------------------------------------------------------------------------

    @property
    def session(self) -> Session:
        """Made on first use: collects what plugins register and chooses the run directory."""
        if self._session is None:
            from pytest_llmprof.datasets import builtin
            from pytest_llmprof.models import packaged_models
            from pytest_llmprof.session import Session, choose_run_dir
            from pytest_llmprof.stages import packaged_stages

            hook = self.config.hook
            models = [*packaged_models(), *_flat(hook.pytest_llmprof_models(config=self.config))]
            stages = [*packaged_stages(), *_flat(hook.pytest_llmprof_stages(config=self.config))]
            datasets = [*builtin(), *_flat(hook.pytest_llmprof_datasets(config=self.config))]
            if self.worker:
                run_dir = Path(self.config.workerinput["llmprof_run_dir"])  # type: ignore[attr-defined]
            else:
                run_dir = choose_run_dir(options.value(self.config, "llmprof_run_dir"), self.config.rootpath)
            self._session = Session(
                sources=options.sources(self.config),
                models=models,
                stages={stage.name: stage for stage in stages},
                datasets={dataset.name: dataset for dataset in datasets},
                run_dir=run_dir,
            )
        return self._session

    def check(self) -> tuple[str, ...]:
        """Compose and validate the session's configuration; return its stages. Raises `LlmprofError`."""
        return self.session.composer.session().stages

    # -- collection -------------------------------------------------------------------------------------

    @pytest.hookimpl(trylast=True)
    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "llmprof_stage" not in metafunc.fixturenames:
            return
        stages: Sequence[str] = ("invalid-configuration",)
        if self._fatal is None:
            try:
                stages = self.check()
            except LlmprofError as error:
                self._fatal = str(error)
        metafunc.parametrize("llmprof_stage", stages, indirect=True, ids=str)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        mine = [item for item in items if _asks(item)]
        if not mine:
            return
        self._asked = True
        if self._fatal is not None:
            self._refuse(mine, self._fatal)
            return
        self._settle(mine)

    def _refuse(self, items: Sequence[pytest.Item], text: str) -> None:
        """Stop with a usage error; in an xdist worker, where that would be an internal error, fail the tests."""
        if not self.worker:
            raise pytest.UsageError(text)
        for item in items:
            item.stash.setdefault(ITEM, ItemState()).error = text

    def _settle(self, items: Sequence[pytest.Item]) -> None:
        """Give each test its directory, settings and gates; find what would write into one place."""
        from pytest_llmprof.compare.gates import parse_gates
        from pytest_llmprof.session import TestKey, check_collisions, test_dirs
        from pytest_llmprof.stages.runner import output_dirs

        keys = {item: TestKey(*_split(item)) for item in items}
        dirs = test_dirs(list(keys.values()))
        owners = []
        for item in items:
            state = item.stash.setdefault(ITEM, ItemState())
            state.test = dirs[keys[item]]
            state.stage = item.callspec.params["llmprof_stage"]  # type: ignore[attr-defined]
            marked = True
            try:
                overrides, where = _overrides(item)
                state.gates = _gates(item, parse_gates)
                marked = bool(overrides)
                state.settings = self.session.settings(overrides, where, state.test, state.stage)
                output_dirs(state.settings, self.session.artifacts(state.test))
            except LlmprofError as error:
                # A marker's fault is its test's; anything else would meet every test.
                if marked:
                    state.error = str(error)
                else:
                    self._refuse([item], str(error))
                continue
            owners.append((item.nodeid, state.settings, self.session.run_dir / state.test))
            self._sink_fixture(item)
        clashes = check_collisions(owners)
        for item in items:
            if item.nodeid in clashes:
                self._refuse([item], clashes[item.nodeid])

    def _sink_fixture(self, item: pytest.Item) -> None:
        """Ask for pytest-benchmark's fixture on a copy: the list is shared between the stages' items."""
        names = item.fixturenames  # type: ignore[attr-defined]
        if self.config.pluginmanager.hasplugin("benchmark") and "llmprof" in names and "benchmark" not in names:
            info = item._fixtureinfo  # type: ignore[attr-defined]
            definitions = item.session._fixturemanager.getfixturedefs("benchmark", item)
            if definitions:
                info.name2fixturedefs.setdefault("benchmark", definitions)
                item.fixturenames = [*names, "benchmark"]  # type: ignore[attr-defined]

    def pytest_report_header(self) -> list[str] | None:
        if self._session is None or self._session.composer is None:
            return None
        return self._header()

    def pytest_report_collectionfinish(self) -> list[str] | None:
        if not self._asked or options.given_on_command_line(self.config):
            return None
        return self._header()

    def _header(self) -> list[str]:
        settings = self.session.composer.session()
        model = settings.choices.get("model", settings.model.name)
        return [
            f"llmprof: stages {', '.join(settings.stages)}; model {model} (mode {settings.model.mode}, device "
            f"{settings.model.device}); run directory {_relative(self.session.run_dir, self.config)}"
        ]

    # -- running ----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The first test that asks starts the run: its directory, run.json and SIGTERM."""
        if self.config.option.collectonly:
            return
        self.session.begin()
        if not self.worker:
            self._start_log()

    def _start_log(self) -> None:
        if self._log is None:
            from pytest_llmprof.session import RunLog

            self._log = RunLog(self.session.run_dir, [*map(str, self.config.invocation_params.args)])
            self._log.write("running")
            self._old_sigterm = signal.getsignal(signal.SIGTERM)
            if self._old_sigterm is signal.SIG_DFL:
                signal.signal(signal.SIGTERM, _interrupt)

    def progress(self, text: str) -> None:
        """One line of progress: live on a terminal, at most one in ten seconds elsewhere, none in a worker."""
        reporter = self.config.pluginmanager.getplugin("terminalreporter")
        if reporter is None or self.worker or self.config.option.verbose < 0:
            return
        capture = self.config.pluginmanager.getplugin("capturemanager")
        live = reporter.isatty and not self.config.option.verbose
        if not live:
            now = time.monotonic()
            if self._said == 0.0:
                self._said = now
            if now - self._said < _PROGRESS_EVERY_S:
                return
            self._said = now
        with capture.global_and_fixture_disabled():
            if live:
                reporter.rewrite(f"llmprof: {text}"[: reporter._tw.fullwidth - 1], erase=True)
            else:
                reporter.ensure_newline()
                reporter.write_line(f"llmprof: {text}")

    def done(self, item: pytest.Item, runner: Runner, kind: str, round_seconds: Sequence[float]) -> None:
        """Keep what a test came to for the report, and hand the rounds to pytest-benchmark."""
        from pytest_llmprof.artifacts import read_json

        state = item.stash[ITEM]
        out_dir = runner.artifacts.out_dir(state.stage)
        metrics = read_json(out_dir / "metrics.json")
        callspec = item.callspec  # type: ignore[attr-defined]
        extra = {name: value for name, value in metrics["figures"].items() if value is not None}
        quality = metrics.get("quality") or {}
        extra.update({name: value for name, value in quality.items() if value is not None})
        state.payload = {
            "id": item.nodeid,
            "test": state.test,
            "stage": state.stage,
            "kind": kind,
            "dir": os.path.relpath(out_dir, self.session.run_dir),
            "figures": metrics["figures"],
            "quality": metrics.get("quality"),
            "round_seconds": list(round_seconds),
            "params": {name: str(value) for name, value in callspec.params.items()},
            "param": callspec.id,
            "extra_info": extra,
        }

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        state = item.stash.get(ITEM, None)
        if state is None:
            return (yield)
        details = None
        if call.excinfo is not None and isinstance(call.excinfo.value, LlmprofError):
            details = getattr(call.excinfo.value, "details", None)
            call.excinfo = failure(str(call.excinfo.value))
        elif call.excinfo is None and call.when == "call":
            call.excinfo = self._judge(state)
        report = yield
        if details:
            report.sections.append(("llmprof: where it failed", details))
        if state.runner is not None and state.runner.verdicts and call.when == "call":
            report.sections.append(("llmprof gates", _gate_lines(state.runner.verdicts)))
        error = str(call.excinfo.value).splitlines()[0] if call.excinfo is not None and report.failed else None
        report.llmprof = {  # type: ignore[attr-defined]
            "id": item.nodeid,
            "test": state.test,
            "stage": state.stage,
            "error": error,
            "legacy": self._session.composer.legacy_message() if self._session is not None else None,
            "row": state.payload if call.when == "call" else None,
        }
        return report

    def _judge(self, state: ItemState) -> pytest.ExceptionInfo[BaseException] | None:
        if not state.gates:
            return None
        if state.runner is None or state.payload is None:
            return failure("llmprof_gate: the test called neither llmprof.run() nor llmprof.measure()")
        broken = [verdict for verdict in state.runner.verdicts if verdict.outcome == "failed"]
        if not broken:
            return None
        text = "; ".join(f"{verdict.name} is {verdict.figure:.6g}, limit {verdict.limit}" for verdict in broken)
        return failure(f"llmprof_gate: {text}")

    # -- reports (in the controller) --------------------------------------------------------------------

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        told: dict[str, Any] | None = getattr(report, "llmprof", None)
        if told is None or self.worker:
            return
        self._start_log()
        assert self._log is not None
        if told["legacy"]:
            self._legacy[told["legacy"]] = None
        row = told["row"]
        if row is not None:
            self._rows.append(row)
        if report.when == "call" or report.outcome != "passed":
            old = self._log.tests.get(told["id"], {})
            self._log.tests[told["id"]] = {
                "id": told["id"],
                "stage": told["stage"],
                "kind": row["kind"] if row else old.get("kind"),
                "outcome": report.outcome,
                "dir": f"{told['test']}/{told['stage']}" if told["test"] else None,
                "error": told["error"],
            }
            self._log.write("running")

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput["llmprof_run_dir"] = str(self.session.run_dir)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, exitstatus: int | pytest.ExitCode) -> Generator[None, None, None]:
        if self._session is not None and "model_cache" in vars(self._session):
            self._session.model_cache.close()
        if self._log is not None:
            interrupted = exitstatus in (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR)
            self._write_benchmark_json()
            self._log.write("interrupted" if interrupted else "complete")
            if self._old_sigterm is signal.SIG_DFL:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
        yield

    def _write_benchmark_json(self) -> None:
        from pytest_llmprof.artifacts import write_json
        from pytest_llmprof.measure.benchmark_sink import benchmark_json

        rows = [row for row in self._rows if row["round_seconds"]]
        if rows:
            write_json(self.session.run_dir / "benchmark.json", benchmark_json(rows, self.config))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self._log is None:
            return
        terminalreporter.section("llmprof")
        for line in _table(self._rows):
            terminalreporter.write_line(line)
        terminalreporter.write_line(f"run directory: {_relative(self.session.run_dir, self.config)}")
        for text in self._legacy:
            terminalreporter.write_line(f"INFO: {text}")


def _flat(lists: Sequence[Any]) -> list[Any]:
    return [plugin for plugins in lists for plugin in plugins or ()]


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt("SIGTERM")


def _asks(item: pytest.Item) -> bool:
    return "llmprof_stage" in getattr(item, "fixturenames", ()) and hasattr(item, "callspec")


def _relative(path: Path, config: pytest.Config) -> str:
    text = os.path.relpath(path, config.invocation_params.dir)
    return str(path) if text.startswith("..") else text


def _split(item: pytest.Item) -> tuple[str, str]:
    """(module path, the test's name without its stage)."""
    module, _, rest = item.nodeid.partition("::")
    stage = str(item.callspec.params["llmprof_stage"])  # type: ignore[attr-defined]
    base, _, parameters = rest.partition("[")
    parameters = parameters.removesuffix("]").removesuffix(stage).removesuffix("-")
    return module, f"{base}[{parameters}]" if parameters else base


def _overrides(item: pytest.Item) -> tuple[tuple[str, ...], str]:
    """The marker's overrides, module < class < function < parameter, and where they stand."""
    ranked: list[tuple[int, int, pytest.Mark]] = []
    own = list(item.own_markers)
    parameters = [mark for mark in getattr(item.callspec, "marks", ())]  # type: ignore[attr-defined]
    for number, (node, mark) in enumerate(item.iter_markers_with_node("llmprof")):
        if node is item:
            rank = len(_MARKER_ORDER) + (1 if mark in parameters and mark in own else 0)
        else:
            rank = next(i for i, kind in enumerate((*_MARKER_ORDER, pytest.Collector)) if isinstance(node, kind))
        ranked.append((rank, -number, mark))
    where = f"{item.nodeid}"
    result: list[str] = []
    for _, _, mark in sorted(ranked, key=lambda entry: entry[:2]):
        unknown = sorted(set(mark.kwargs) - {"overrides"})
        if mark.args or unknown:
            given = ", ".join([*map(repr, mark.args), *unknown])
            raise ConfigError(
                f"@pytest.mark.llmprof of {where}: unknown argument {given}; allowed: overrides=['key=value', ...]"
            )
        values = mark.kwargs.get("overrides", ())
        if isinstance(values, str) or not all(isinstance(value, str) for value in values):
            raise ConfigError(
                f"@pytest.mark.llmprof of {where}: overrides={values!r} is not a list of texts: "
                "overrides=['key=value', ...]"
            )
        result += values
    return tuple(result), where


def _gates(item: pytest.Item, parse: Any) -> tuple[Gate, ...]:
    limits: dict[str, object] = {}
    for mark in reversed(list(item.iter_markers("llmprof_gate"))):
        if mark.args:
            raise ConfigError(f'llmprof_gate of {item.nodeid} takes limits by name: llmprof_gate(cer="<=0.05")')
        limits.update(mark.kwargs)
    gates: tuple[Gate, ...] = parse(limits, item.nodeid)
    return gates


def _gate_lines(verdicts: Sequence[Any]) -> str:
    lines = [f"{'figure':<18} {'limit':>12} {'measured':>14}  outcome"]
    for verdict in verdicts:
        figure = "n/a" if verdict.figure is None else f"{verdict.figure:.6g}"
        lines.append(f"{verdict.name:<18} {verdict.limit:>12} {figure:>14}  {verdict.outcome}")
    return "\n".join(lines)


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """test, stage, TTFT, tokens/s, CER and where the files are."""
    if not rows:
        return []

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    cells = [("test", "stage", "TTFT ms", "tokens/s", "page ms", "CER", "files")]
    for row in rows:
        figures, quality = row["figures"], row["quality"] or {}
        cells.append(
            (
                row["test"],
                row["stage"],
                number(figures.get("ttft_ms"), ".1f"),
                number(figures.get("tokens_per_s"), ".1f"),
                number(figures.get("total_ms"), ".1f"),
                number(quality.get("cer"), ".4f"),
                row["dir"],
            )
        )
    widths = [max(len(row[column]) for row in cells) for column in range(7)]
    return [
        "  ".join(
            text.rjust(width) if 2 <= column <= 5 else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
