"""A test whose stage is a tool: pytest's part in the process that starts the child."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmprof.plugin import options
from pytest_llmprof.plugin.options import CHILD_OPTIONS, FROZEN
from pytest_llmprof.text.escape import visible

if TYPE_CHECKING:
    from pytest_llmprof.plugin.items import ItemState
    from pytest_llmprof.plugin.shared import SharedState

_PASSED_ON = frozenset(
    (
        *("plugins", "disable_plugin_autoload", "noconftest", "confcutdir", "importmode", "collect_in_virtualenv"),
        *("override_ini", "strict", "strict_config", "strict_markers", "pythonwarnings", "disable_warnings"),
        *("assertmode", "capture", "log_level", "log_format", "log_date_format", "log_auto_indent", "logger_disable"),
        *("verbose", "tbstyle", "showlocals", "fulltrace", "showcapture", "traceconfig"),
    )
)
"""pytest's options (by `dest`) that a child gets: what is loaded, how a test runs, how its failure is shown.

Not among them: which tests run, how often and where, and files that a run writes.
"""


def child_options(config: pytest.Config) -> list[str]:
    """The part of this run's options (addopts, PYTEST_ADDOPTS, command line) that a child of it gets, as words.

    These are pytest's options in the list above, all options that conftest files define, and those that the ini key
    `llmprof_child_options` names.
    """
    words = [*map(str, config.getini("addopts")), *shlex.split(os.environ.get("PYTEST_ADDOPTS", ""))]
    words += map(str, config.invocation_params.args)
    before_conftests = vars(config.known_args_namespace)
    named = frozenset(map(str, config.getini(CHILD_OPTIONS)))
    # pytest has no public list of its options.
    actions = dict.fromkeys(config._parser.optparser._option_string_actions.values())
    passed_on = {
        action.dest
        for action in actions
        if action.dest in _PASSED_ON or action.dest not in before_conftests or named.intersection(action.option_strings)
    }
    return _words_of(passed_on, words, actions)


def _words_of(wanted: Collection[str], words: Sequence[str], actions: Iterable[argparse.Action]) -> list[str]:
    """Those of *words* that give the options *wanted* (by `dest`); *actions* are all options that there are."""
    found: list[str] = []

    class Collect(argparse.Action):
        def __call__(self, parser: object, namespace: object, values: Any, option_string: str | None = None) -> None:
            if self.dest not in wanted or option_string is None:
                return
            given = [] if values is None else values if isinstance(values, list) else [values]
            if len(given) == 1 and given[0].startswith("-"):
                found.append(f"{option_string}{'=' if option_string.startswith('--') else ''}{given[0]}")
            else:
                found.extend([option_string, *given])

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, fromfile_prefix_chars="@")
    for action in actions:
        parser.add_argument(*action.option_strings, dest=action.dest, nargs=action.nargs, action=Collect)
    parser.parse_known_args(words)
    return found


def _command(
    item: pytest.Function, state: ItemState, shared: SharedState, workload: str, paths: tuple[str, str, str]
) -> list[str]:
    """pytest on the same test as this run was started, in the stage *workload*.

    *paths* are the frozen configuration, the child's run directory and a directory for temporary files.
    """
    config = item.config
    frozen, run_dir, temp = paths
    here = str(config.invocation_params.dir)
    safe = [] if "" in sys.path or here in sys.path else ["-P"]  # python -m adds the directory it is started in
    benchmark = ["--benchmark-disable"] if hasattr(config.option, "benchmark_disable") else []
    strict = ["--llmprof-strict"] if options.strict(config) else []
    cache = ["-o", f"cache_dir={temp}/cache"] if config.pluginmanager.hasplugin("cacheprovider") else []
    return [
        *(sys.executable, *safe, "-m", "pytest"),
        *(shared.from_controller["child_options"] if shared.worker else child_options(config)),
        *("-o", "addopts=", "-o", "log_file=", *cache),
        *(["-c", str(config.inipath)] if config.inipath is not None else []),
        *(f"--rootdir={config.rootpath}", f"--basetemp={temp}/basetemp", "--color=no", "--runxfail", *benchmark),
        *(f"{FROZEN}={frozen}", f"--llmprof-run-dir={run_dir}", *strict),
        _node_id(item, state.stage, workload),
    ]


def _node_id(item: pytest.Function, stage: str, workload: str) -> str:
    """The same test in the stage *workload*, built from its own parts: plugins may append to a node id."""
    classes = [node.name for node in item.listchain() if isinstance(node, pytest.Class)]
    parameters = item.callspec.id.removesuffix(stage) + workload
    return "::".join([str(item.path), *classes, f"{item.originalname}[{parameters}]"])


def _directory(config: pytest.Config, shared: SharedState) -> Path:
    """Where the child is started: where pytest was, or on another machine the worker."""
    if not shared.worker or (shared.away is not None and shared.away.apart):
        return config.invocation_params.dir
    return Path(shared.from_controller["cwd"])


def run_tool_item(item: pytest.Function, state: ItemState, shared: SharedState) -> None:
    """Run *item* in a child under its stage's tool. Raises the child's failure; skips where the child skipped."""
    from pytest_llmprof.run.gates import TestGates
    from pytest_llmprof.run.tool_runner import ToolRunner
    from pytest_llmprof.stages.base import ToolStagePlugin
    from pytest_llmprof.stages.child import ChildSkipped

    session = shared.session
    session.close()  # the child needs the GPU's memory
    stage = session.stage(state.stage)
    assert isinstance(stage, ToolStagePlugin)
    assert state.settings is not None
    runner = ToolRunner(
        settings=state.settings,
        stage=stage,
        artifacts=session.artifacts(state.test),
        catalogue=session.catalogue,
        test_id=item.nodeid,
        gates=state.gates or TestGates(),
        command=lambda *paths: _command(item, state, shared, stage.workload, paths),
        cwd=_directory(item.config, shared),
        progress=lambda text: shared.progress.show(f"{state.stage}: {text}", state.name),
    )
    try:
        runner.run()
    except ChildSkipped as skip:
        state.unavailable = str(skip)
        pytest.skip(visible(str(skip)))
    finally:
        if runner.records is not None:
            state.keep(item, runner.records, timed=False)
