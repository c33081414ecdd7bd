"""`llmprof ab`: two sides measured in turns on this machine, until their difference is decided."""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_llmprof.cli.duet import check_machine, for_duet, measure_both
from pytest_llmprof.cli.options import Subparsers, add_margin, margin_of
from pytest_llmprof.cli.processes import NOT_MEASURED, ProcessFailed, Side, ignore_signals
from pytest_llmprof.cli.sides import Request, Wish, prepared, say
from pytest_llmprof.compare.alternate import Alternation, Measure
from pytest_llmprof.compare.compare import Terms
from pytest_llmprof.compare.rules import Rule, parse_rules
from pytest_llmprof.compare.sequential import DUET_PLAN, Plan
from pytest_llmprof.compare.table import FORMATS, render
from pytest_llmprof.errors import ArtifactError, ConfigError
from pytest_llmprof.records.catalogue import BUILTIN, Declaration
from pytest_llmprof.records.files import write_text
from pytest_llmprof.text.escape import one_line, shorten
from pytest_llmprof.text.names import numbered

_RUNS = "llmprof-runs"
_OWN = frozenset(
    (
        *("--a", "--b", "--a-ref", "--b-ref", "--a-python", "--b-python", "--install"),
        *("--duet", "--minutes", "--margin", "--metric"),
    )
)
"""Options that pytest surely does not have."""
_EPILOG = """\
Options of pytest come after a path of tests, or after "--". Exit code 0: every gated metric is the same
or faster; 1: one is slower; 3: one is unclear or not measured; 4: bad input.
"""


def add(commands: Subparsers) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "ab",
        help="measure two configurations or revisions in turns on this machine",
        usage="llmprof ab [OPTIONS] [--] [PYTEST ARGS]",
        description="Say whether side B is slower than side A. Both are measured in turns, until that is decided or "
        "the time is up. A side without options is this checkout as it is.",
        epilog=_EPILOG,
    )
    for side, what in (("a", "the baseline"), ("b", "what is compared with it")):
        parser.add_argument(
            f"--{side}", metavar="OVERRIDES", help=f'{what}: Hydra overrides, such as "infer=fast measure.rounds=5"'
        )
        parser.add_argument(
            f"--{side}-ref", metavar="REVISION", help=f"{what}: a git revision, checked out into its own work tree"
        )
        parser.add_argument(
            f"--{side}-python", metavar="PATH", help="its Python interpreter (default: the one that runs llmprof)"
        )
    parser.add_argument(
        "--install",
        action="store_true",
        help="install each revision into its own environment, even if this one has all that it needs",
    )
    parser.add_argument(
        "--duet",
        action="store_true",
        help="run both sides beside each other, so that a machine whose speed changes slows both alike: on a CPU at "
        "the same time, each on half of the processors, on a GPU in turns, round by round",
    )
    parser.add_argument(
        "--minutes",
        default="20",
        metavar="NUMBER",
        help="the longest time for all processes together (default: %(default)s)",
    )
    add_margin(parser)
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="METRIC[:LIMIT]",
        help="decide by this metric, within --margin or its own LIMIT; repeatable (default: all main times)",
    )
    parser.add_argument("--format", choices=FORMATS, default="text", help="(default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="show every metric")
    parser.add_argument(
        "--force", action="store_true", help="compare even if the work differs or times cannot be trusted"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help=f"where all runs go (default: {_RUNS}/ab-TIME)"
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="PYTEST ARGS", help="what pytest is given")
    parser.set_defaults(command=_run, hint='; options of pytest come after a path or "--"')


def _run(options: argparse.Namespace) -> int:
    plan = DUET_PLAN if options.duet else Plan()
    terms = Terms(margin=margin_of(options), force=options.force, force_option="--force", plan=plan)
    seconds = 60 * _minutes(options.minutes)
    wishes = (_wish(options, "A"), _wish(options, "B"))
    arguments = _pytest_arguments(options.arguments)
    _rules(options.metric, options.margin, None)
    _check_install(options.install, wishes)
    if options.duet:
        check_machine(os.environ)
    request = Request(wishes, arguments, options.install, _out(options.out))
    try:
        with prepared(request) as sides:
            loop = Alternation(
                measure=_measure_with(sides, request.out, duet=options.duet),
                rules=lambda metrics: _rules(options.metric, options.margin, metrics),
                seconds=seconds,
                terms=terms,
                duet=options.duet,
                progress=say,
            )
            return _measure(loop, request, options)
    except KeyboardInterrupt as error:
        say(f"ERROR: interrupted by {error}: no pair was measured")
        return NOT_MEASURED


def _measure_with(sides: Mapping[str, Side], out: Path, *, duet: bool) -> Measure:
    """How the job runs its processes."""
    if duet:
        halved = {letter: for_duet(side) for letter, side in sides.items()}
        return lambda letters, number, patience: measure_both([halved[one] for one in letters], out, number, patience)
    return lambda letter, number, patience: [sides[letter].measure(out, number, patience)]


def _measure(loop: Alternation, request: Request, options: argparse.Namespace) -> int:
    """Run *loop* and report what it measured, however it ended. Gives the exit code."""
    failed: ProcessFailed | None = None
    try:
        stopped = loop.run()
    except ProcessFailed as error:
        failed, stopped = error, one_line(str(error))
    except KeyboardInterrupt as error:
        stopped = f"interrupted by {error}"
    ignore_signals()
    result = loop.result(stopped)
    if result is not None:
        result.notices[:0] = request.notices
        sys.stdout.write(render(result, options.format, everything=options.all))
        sys.stdout.flush()
        try:
            write_text(request.out / "comparison.json", render(result, "json"))
        except OSError as error:
            raise ArtifactError(f"cannot write {request.out}/comparison.json: {error.strerror}") from error
        say(f"all runs are in {request.out}")
    if failed:
        say(f"ERROR: {stopped}\n" + "".join(f"    {shorten(line, 1000)}\n" for line in failed.tail))
        return failed.code
    if result is None:
        say(f"ERROR: {stopped}: no pair was measured")
        return NOT_MEASURED
    return result.exit_code


def _minutes(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < 1e6:
        raise ConfigError(f'--minutes: {text!r} is not allowed; give a number above 0, such as "20"')
    return found


def _wish(options: argparse.Namespace, letter: str) -> Wish:
    name = letter.lower()
    try:
        overrides = tuple(shlex.split(getattr(options, name) or ""))
    except ValueError as error:
        raise ConfigError(f"--{name}: {getattr(options, name)!r} cannot be split as a shell does: {error}") from error
    wrong = next((one for one in overrides if one.startswith("-")), None)
    if wrong is not None:
        raise ConfigError(f"--{name}: {wrong!r} is no Hydra override; options of pytest come after those of llmprof ab")
    python = getattr(options, f"{name}_python")
    found = shutil.which(python) if python else None
    if python and not found:
        raise ConfigError(f"--{name}-python: there is no program {python}")
    # Not resolved: the interpreter of an environment is a link.
    return Wish(letter, overrides, getattr(options, f"{name}_ref"), found and os.path.abspath(found))


def _check_install(install: bool, wishes: Sequence[Wish]) -> None:
    if install and all(wish.revision is None for wish in wishes):
        raise ConfigError("--install is for revisions: give --a-ref or --b-ref, too")
    for wish in wishes:
        if install and wish.revision is not None and wish.python is not None:
            raise ConfigError(f"--install makes an interpreter for {wish.revision}: leave {wish.option('-python')} out")


def _pytest_arguments(given: Sequence[str]) -> tuple[str, ...]:
    arguments = tuple(given)
    if arguments[:1] == ("--",):
        return _allowed(arguments[1:])
    misplaced = next((one for one in arguments if one.partition("=")[0] in _OWN), None)
    if misplaced is not None:
        raise ConfigError(f"{misplaced} stands after the first argument of pytest: give it before {arguments[0]}")
    return _allowed(arguments)


def _allowed(arguments: tuple[str, ...]) -> tuple[str, ...]:
    names = {one.partition("=")[0] for one in arguments}
    if "--llmprof-run-dir" in names:
        raise ConfigError("--llmprof-run-dir: each process has a run directory of its own; --out names where they go")
    if "--llmprof-save" in names:
        raise ConfigError("--llmprof-save: both sides would be runs of one name; save a run of pytest's own")
    return arguments


def _out(given: Path | None) -> Path:
    """The directory of all runs, made and empty. Jobs that start in the same second get one each ("…-2")."""
    stamp = datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    path = Path(os.path.abspath(given or Path(_RUNS) / f"ab-{stamp}"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not given:
            path = next(filter(_made, numbered(path)))
        path.mkdir(exist_ok=True)
        if any(path.iterdir()):
            raise ArtifactError(f"--out {path} is not empty: name a new directory")
        ignore = path.parent / ".gitignore"
        if not given and not ignore.exists():
            write_text(ignore, "# Made by pytest-llmprof: runs are not for version control.\n*\n")
    except OSError as error:
        raise ArtifactError(f"cannot make {path}: {error.strerror}; name another directory with --out") from error
    return path


def _made(path: Path) -> bool:
    """Make a directory; False where there is something already."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def _rules(given: Sequence[str], margin: str, metrics: Sequence[Declaration] | None) -> tuple[Rule, ...]:
    """The limits. Before anything ran (*metrics* is None), those of metrics that others declare are left out."""
    known = {metric.name: metric for metric in (BUILTIN if metrics is None else metrics)}
    texts = []
    for text in given or ("slower",):
        name, colon, _ = text.partition(":")
        if metrics is None and name not in known and name != "slower":
            continue
        quality = name in known and known[name].section == "quality"
        texts.append(text if colon else f"{text}:{'0' if quality else margin}")
    return parse_rules(texts, list(known.values()), "--metric")
