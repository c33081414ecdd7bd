"""`llmprof trend NAME`: metrics over the saved runs, with the points where they changed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import msgspec

from pytest_llmprof.cli.options import Subparsers, add_margin, add_store, margin_of
from pytest_llmprof.compare.store import Store
from pytest_llmprof.compare.trend import ChangePoint, Series, series, svg
from pytest_llmprof.errors import ArtifactError, ConfigError, nearest
from pytest_llmprof.records.baseline import SavedRun
from pytest_llmprof.records.files import write_text
from pytest_llmprof.text.escape import one_line
from pytest_llmprof.text.markdown import table
from pytest_llmprof.text.names import unique_names
from pytest_llmprof.text.numbers import count, number


def add(commands: Subparsers) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "trend",
        help="show metrics over the saved runs, and where they changed",
        description="Show each metric of each test over the runs saved as NAME (--llmprof-save), and where it changed.",
    )
    parser.add_argument("name", metavar="NAME", help="the name that the runs were saved under")
    parser.add_argument(
        "--metric",
        action="append",
        metavar="METRIC",
        help="only this one; repeatable (default: those of report.md and CER)",
    )
    parser.add_argument("--machine", help="only this machine's runs (default: the one with the latest run)")
    parser.add_argument("--svg", type=Path, metavar="DIR", help="write a chart (SVG) of each test and metric into DIR")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="(default: %(default)s)")
    add_margin(parser)
    add_store(parser)
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    margin = margin_of(options)
    stored = Store(options.store).runs(options.name)
    machines = list(dict.fromkeys(one.run.machine for one in stored))
    machine = options.machine or machines[-1]
    if machine not in machines:
        raise ArtifactError(f"no run of {options.name} is of {machine!r}; saved: {', '.join(machines)}")
    runs = [one.run for one in stored if one.run.machine == machine]
    known = dict.fromkeys(metric.name for run in runs for metric in run.metrics)
    for name in options.metric or ():
        if name not in known:
            raise ConfigError(f"--metric: unknown metric {name}{nearest(name, known)}; allowed: {', '.join(known)}")
    found = series(runs, options.metric, margin)
    if options.svg:
        _write_svgs(options.svg, found)
    if options.format == "json":
        print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
        return 0
    print(f"{options.name} on {one_line(machine)}: {count(len(runs), 'run')}\n")
    if not found:
        print("nothing to show: no test has a value that a trend takes" + _doubt(runs))
        return 0
    rows = [
        [
            one_line(one.test, 80),
            one_line(one.metric, 80),
            str(len(one.values)),
            number(one.values[0]),
            number(one.values[-1]),
            one_line("; ".join(map(_change, one.changes))) or "-",
        ]
        for one in found
    ]
    print(table(("Test", "Metric", "Runs", "First", "Last", "Changed"), rows, (0, 1, 5)), end="")
    return 0


def _doubt(runs: Sequence[SavedRun]) -> str:
    """Why the newest test that a trend leaves out is left out."""
    for test in (test for run in reversed(runs) for test in run.tests):
        why = test.problem or next(iter(test.doubts), None)
        if why:
            return f" ({one_line(test.id, 80)}: {one_line(why)})"
    return ""


def _change(change: ChangePoint) -> str:
    ratio = f" ({100 * (change.after / change.before - 1):+.1f} %)" if change.before else ""
    commit = f", commit {change.commit[:12]}" if change.commit else ""
    return f"{number(change.before)} → {number(change.after)}{ratio} at {change.started}{commit}"


def _write_svgs(folder: Path, found: Sequence[Series]) -> None:
    names = unique_names([f"{one.test}-{one.metric}" for one in found])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for one in found:
            write_text(folder / f"{names[f'{one.test}-{one.metric}']}.svg", svg(one))
    except OSError as error:
        raise ArtifactError(f"--svg {folder}: {error.strerror}") from error
