"""`llmprof report RUN`: the run's page, index.html."""

from __future__ import annotations

import argparse
from pathlib import Path

from pytest_llmprof.cli.options import Subparsers, add_store
from pytest_llmprof.compare.compare import Terms, compare
from pytest_llmprof.compare.result import Comparison
from pytest_llmprof.compare.saved import machines_of, saved_run
from pytest_llmprof.compare.store import Store
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.report.page import PAGE, write_page
from pytest_llmprof.text.escape import visible

_EPILOG = """\
RUN is a run directory, such as llmprof-runs/latest. The page is made of the run's files alone and opens from the disk.
It shows the comparison that the run was made with (--llmprof-compare), or one with --baseline.
"""


def add(commands: Subparsers) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "report",
        help="make a run's page, index.html, again",
        description="Make the page of a run, index.html, again. Each run writes one at its end.",
        epilog=_EPILOG,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "--baseline", metavar="RUN|NAME", help="compare with this one: a name in the store, a run directory or a file"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help=f"where the page goes (default: {PAGE} in RUN)"
    )
    add_store(parser)
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    run, target = options.run, options.output
    if not (run / "run.json").is_file():
        raise ArtifactError(f"there is no run at {run}: name a run directory, which has a run.json")
    if target is not None and (target.is_dir() or not target.absolute().parent.is_dir()):
        what = "is a directory: name a file in it" if target.is_dir() else "cannot be written: its directory is missing"
        raise ArtifactError(f"--output {target} {what}")
    comparison, before = None, None
    if options.baseline is not None:
        store = Store(options.store)
        comparison = _comparison(run, options.baseline, store)
        places = [] if options.baseline in store.names() else store.places(options.baseline)
        before = next((place for place in places if place.is_dir()), None)
    print(visible(str(write_page(run, target, comparison, before))))
    return 0


def _comparison(run: Path, baseline: str, store: Store) -> Comparison:
    after = saved_run(run)
    before = store.resolve(baseline, machines_of(after))
    return compare(before, [after], Terms())
