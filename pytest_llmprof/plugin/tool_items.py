"""Running an item whose stage is a tool: pytest's part, in the process that starts the child."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmprof.plugin.options import FROZEN
from pytest_llmprof.plugin.results import row

if TYPE_CHECKING:
    import argparse

    from pytest_llmprof.plugin.items import ItemState
    from pytest_llmprof.plugin.shared import SharedState

__all__ = ["CHILD_STAGE", "handed_on", "run_tool_item"]

CHILD_STAGE = "torch_profiler"
"""The stage that the child runs, with its own tool off."""

_OWN = {
    *("numprocesses", "maxprocesses", "tx", "px", "dist", "distload", "looponfail", "rsyncdir", "testrunuid"),
    *("maxfail", "lf", "failedfirst", "newfirst", "last_failed_no_failures", "cacheclear", "cacheshow"),
    *("stepwise", "stepwise_skip", "stepwise_reset", "reruns", "reruns_delay", "only_rerun", "count", "repeat"),
    *("keyword", "markexpr", "deselect", "pyargs", "runxfail", "usepdb", "usepdb_cls", "trace", "debug", "pastebin"),
    *("xmlpath", "junitprefix", "htmlpath", "report_log", "json_report", "json_report_file", "log_file"),
    *("allure_report_dir", "basetemp", "inifilename", "rootdir", "color", "setupshow"),
}
"""What a run has for itself: how it spreads, which tests it takes, what it repeats, files that it writes."""
_OWN_PREFIXES = ("benchmark_", "llmprof_", "cov_", "no_cov")


def handed_on(config: pytest.Config) -> list[str]:
    """This run's options (command line, PYTEST_ADDOPTS, addopts) that a child of it gets too, as words."""
    words = [*shlex.split(os.environ.get("PYTEST_ADDOPTS", "")), *map(str, config.getini("addopts"))]
    words += map(str, config.invocation_params.args)
    # How many words an option takes is known to the parser alone; nothing public tells it.
    actions: Mapping[str, argparse.Action] = config._parser.optparser._option_string_actions
    return [word for dest, given in _options(words, actions) if not _is_own(dest) for word in given]


def _is_own(dest: str) -> bool:
    return dest in _OWN or dest.startswith(_OWN_PREFIXES)


def _options(words: Sequence[str], actions: Mapping[str, argparse.Action]) -> Iterator[tuple[str, list[str]]]:
    """Each option with its words; words that belong to none (files, node ids) are left out."""
    place = 0
    while place < len(words):
        word = words[place]
        place += 1
        if word == "--":
            return
        name, equals, _ = word.partition("=")
        if not word.startswith("-") or word == "-":
            continue
        if name in actions:
            count = 0 if equals else _arguments(actions[name], words[place:])
            yield actions[name].dest, [word, *words[place : place + count]]
            place += count
            continue
        # Short ones in one word: -xvs, -n4, -kname.
        for index, letter in enumerate(word[1:], 1):
            action = actions.get(f"-{letter}")
            if action is None:
                break
            if action.nargs == 0:
                yield action.dest, [f"-{letter}"]
                continue
            rest = word[index + 1 :]
            count = 0 if rest else _arguments(action, words[place:])
            yield action.dest, [f"-{letter}{rest}", *words[place : place + count]]
            place += count
            break


def _arguments(action: argparse.Action, rest: Sequence[str]) -> int:
    """How many of the words that follow are the option's."""
    if action.nargs is None:
        return 1
    if isinstance(action.nargs, int):
        return action.nargs
    free = next((index for index, word in enumerate(rest) if word.startswith("-")), len(rest))
    return min(free, 1) if action.nargs == "?" else free


def _command(
    item: pytest.Function, state: ItemState, shared: SharedState, frozen: str, run_dir: str, temp: str
) -> list[str]:
    """Pytest on the same test, as this run was started, in the stage that only measures."""
    config = item.config
    given = getattr(config, "workerinput", {})
    args: list[str] = given["llmprof_args"] if shared.worker else handed_on(config)
    here = str(config.invocation_params.dir)
    safe = [] if "" in sys.path or here in sys.path else ["-P"]  # python -m adds the directory it is started in
    benchmark = ["--benchmark-disable"] if config.pluginmanager.hasplugin("benchmark") else []
    cache = ["-o", f"cache_dir={temp}/cache"] if config.pluginmanager.hasplugin("cacheprovider") else []
    return [
        *(sys.executable, *safe, "-m", "pytest"),
        *args,
        *("-o", "addopts=", "-o", "log_file=", *cache),
        *(["-c", str(config.inipath)] if config.inipath is not None else []),
        *(f"--rootdir={config.rootpath}", f"--basetemp={temp}/basetemp", "--color=no", "--runxfail", *benchmark),
        *(f"{FROZEN}={frozen}", f"--llmprof-run-dir={run_dir}"),
        _node_id(item, state),
    ]


def _node_id(item: pytest.Function, state: ItemState) -> str:
    """The same test in the child's stage, by its own parts: plugins may append to a node id."""
    classes = [node.name for node in item.listchain() if isinstance(node, pytest.Class)]
    parameters = item.callspec.id.removesuffix(state.stage) + CHILD_STAGE
    return "::".join([str(item.path), *classes, f"{item.originalname}[{parameters}]"])


def run_tool_item(item: pytest.Function, state: ItemState, shared: SharedState) -> None:
    """Run *item* in a child under its stage's tool. Raises what came of it; a skip there is a skip here."""
    from pytest_llmprof.compare.gates import Verdict
    from pytest_llmprof.run.tool_runner import ToolRunner
    from pytest_llmprof.stages.base import ToolStagePlugin
    from pytest_llmprof.stages.child import ChildSkipped

    session = shared.session
    session.close()  # the child needs the card's memory
    stage = session.stage(state.stage)
    assert isinstance(stage, ToolStagePlugin)
    assert state.settings is not None
    config = item.config
    cwd: Any = config.workerinput["llmprof_cwd"] if shared.worker else config.invocation_params.dir  # type: ignore[attr-defined]
    runner = ToolRunner(
        settings=state.settings,
        stage=stage,
        artifacts=session.artifacts(state.test),
        test_id=item.nodeid,
        command=lambda frozen, run_dir, temp: _command(item, state, shared, frozen, run_dir, temp),
        cwd=cwd,
        progress=lambda text: shared.progress.show(f"{state.stage}: {text}", state.name),
    )
    try:
        runner.run()
    except ChildSkipped as skip:
        pytest.skip(str(skip))
    finally:
        if runner.metrics is not None:
            state.verdicts = [Verdict(**gate) for gate in runner.metrics["gates"]]
            out_dir = runner.artifacts.out_dir(state.stage)
            state.row = row(item, state, runner.metrics["kind"], out_dir, ())
