"""`llmprof runs`: what the store holds."""

from __future__ import annotations

import argparse

from pytest_llmprof.cli.options import Subparsers, add_store
from pytest_llmprof.compare.store import Store
from pytest_llmprof.text.escape import one_line
from pytest_llmprof.text.numbers import count


def add(commands: Subparsers) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "runs", help="list the saved runs", description="List the runs saved with --llmprof-save, the oldest first."
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="only those saved under this name")
    add_store(parser)
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    stored = Store(options.store).runs(options.name)
    if not stored:
        print(f"no run is saved in {options.store} (--llmprof-save NAME saves one)")
    for one in stored:
        run = one.run
        commit = run.git.brief if run.git else "no commit"
        failed = sum(test.problem is not None for test in run.tests)
        tests = count(len(run.tests), "test") + (f", {failed} not measured" if failed else "")
        cells = (run.name, run.started, run.machine, commit, tests, str(one.path))
        print("  ".join(one_line(cell, 4096) for cell in cells))
    return 0
