"""`llmprof compare BEFORE AFTER`."""

from __future__ import annotations

import argparse
import sys

from pytest_llmprof.cli.options import Subparsers, add_margin, add_store, margin_of, share_of
from pytest_llmprof.compare.compare import Terms, compare
from pytest_llmprof.compare.rules import parse_rules
from pytest_llmprof.compare.saved import machines_of
from pytest_llmprof.compare.store import Store
from pytest_llmprof.compare.table import FORMATS, render
from pytest_llmprof.records.catalogue import Declaration

_EPILOG = """\
BEFORE and AFTER are each a run directory, a directory of run directories (several processes of one side), a saved
run's file, a JSON file of pytest-benchmark, or a name in the store. Exit code 0; with --fail-on 1 where a limit is
broken and 3 where one is unclear or not measured; 4 for bad input.
"""


def add(commands: Subparsers) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "compare",
        help="compare two runs, or two sets of them",
        description="Say of each test whether AFTER is faster, slower, the same or unclear, and whether its "
        "quality changed.",
        epilog=_EPILOG,
    )
    parser.add_argument("before", metavar="BEFORE", help="the baseline")
    parser.add_argument("after", metavar="AFTER", help="what is compared with it")
    parser.add_argument("--format", choices=FORMATS, default="text", help="(default: %(default)s)")
    parser.add_argument(
        "--fail-on",
        action="append",
        default=[],
        metavar="WHAT:LIMIT",
        help="how much worse is an error (exit code 1): slower:2%% (all main times), METRIC:2%%, or for quality "
        "METRIC:0.005; repeatable",
    )
    add_margin(parser)
    parser.add_argument(
        "--process-sd",
        metavar="SHARE",
        help="the standard deviation between processes, used where a side has fewer than 3 (default: see "
        "docs/comparing.md)",
    )
    parser.add_argument("--all", action="store_true", help="show every metric")
    parser.add_argument(
        "--force", action="store_true", help="compare even if the work or the machine differs, or a run is not complete"
    )
    add_store(parser)
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    margin, process_sd = margin_of(options), share_of(options.process_sd, "--process-sd")
    store = Store(options.store)
    after = store.resolve(options.after)
    before = store.resolve(options.before, {name for run in after for name in machines_of(run)})
    metrics: dict[str, Declaration] = {metric.name: metric for run in (*before, *after) for metric in run.metrics}
    rules = parse_rules(options.fail_on, list(metrics.values()))
    terms = Terms(margin=margin, process_sd=process_sd, rules=rules, force=options.force, force_option="--force")
    result = compare(before, after, terms)
    sys.stdout.write(render(result, options.format, everything=options.all))
    return result.exit_code
