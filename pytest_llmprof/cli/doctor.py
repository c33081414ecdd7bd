"""`llmprof doctor`: whether this machine can run the chosen stages, and how to mend what cannot."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from pytest_llmprof.cli.options import Subparsers, pytest_arguments
from pytest_llmprof.errors import ConfigError
from pytest_llmprof.records.checks import SCHEMA, Check, MachineReport, not_checked, ok, problem
from pytest_llmprof.records.files import decode_record, encode_json, read_bytes
from pytest_llmprof.text.escape import one_line, visible

_LISTS = ("--llmprof-stage", "--llmprof-override")
_DIRECTORIES = ("--llmprof-config-dir", "--llmprof-run-dir")
_USAGE_ERROR = 4
_OPTION = "--llmprof-doctor"
"""The plugin's internal option: where the report goes."""


def add(commands: Subparsers) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "doctor",
        help="check whether this machine can run the benchmarks",
        usage="llmprof doctor [OPTIONS] [--] [PYTEST ARGS]",
        description="Check whether this machine can run the benchmarks, and say what to mend. No model is loaded.",
        epilog="PYTEST ARGS are paths of tests, whose conftest files may add stages and models, and other options of "
        "pytest, which come last. Exit code 0: all chosen stages can run; 1: one cannot; 4: bad input.",
    )
    for option in _LISTS:
        parser.add_argument(option, action="append", default=[], metavar="TEXT", help="as pytest's option; repeatable")
    for option in _DIRECTORIES:
        parser.add_argument(option, metavar="DIR", help="as pytest's option")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="(default: %(default)s)")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="PYTEST ARGS", help="what pytest is given")
    parser.set_defaults(command=_run, hint='; other options of pytest come after a path or "--"')


def _run(options: argparse.Namespace) -> int:
    packages = list(_packages())
    if sys.stderr.isatty():
        print("looking at this machine, which takes some seconds", file=sys.stderr)
    report = _from_pytest(_pytest_arguments(options))
    report.checks[:0] = packages
    if options.format == "json":
        sys.stdout.write(encode_json(report).decode() + "\n")
    else:
        print(visible("\n".join(_lines(report))))
    return 0 if report.able else 1


def _pytest_arguments(options: argparse.Namespace) -> list[str]:
    given = [f"{option}={value}" for option in _LISTS for value in getattr(options, _name(option))]
    for option in _DIRECTORIES:
        value = getattr(options, _name(option))
        given += [] if value is None else [f"{option}={value}"]
    return [*given, *pytest_arguments(options.arguments)]


def _name(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def _from_pytest(arguments: Sequence[str]) -> MachineReport:
    """What the plugin finds in a pytest of its own, which knows the project's options, conftest files and plugins.

    Raises `ConfigError` with pytest's own error where it refuses its options.
    """
    with tempfile.TemporaryDirectory(prefix="llmprof-doctor-") as scratch:
        path = Path(scratch) / "report.json"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", f"{_OPTION}={path}", *arguments],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if path.exists():
            return decode_record(read_bytes(path), MachineReport, SCHEMA, path)
    cause = _cause(done.stdout + done.stderr)
    if _OPTION in cause:
        raise ConfigError(
            f"the pytest of {sys.executable} does not load the plugin llmprof: take -p no:llmprof and "
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD away, or install pytest-llmprof there"
        )
    if done.returncode == _USAGE_ERROR:
        late = [word for word in arguments if word.partition("=")[0] == "--format"]
        raise ConfigError(f"{cause}; --format comes before paths of tests" if late else cause)
    found = f"it ended with exit code {done.returncode}: {cause}"
    mend = f"see what `{sys.executable} -m pytest --collect-only` prints"
    return MachineReport(checks=[problem("Pytest", found, mend)])


def _cause(output: str) -> str:
    """Of what pytest printed, the line that says why it ended."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if ": error: " in line:  # of its command line
            return one_line(line.partition(": error: ")[2])
        if line.startswith("ERROR: ") and not line.startswith("ERROR: usage: "):
            return line.removeprefix("ERROR: ")
        if line.startswith("ImportError while loading conftest"):
            errors = [other[1:].strip() for other in lines[number:] if other.startswith("E ")]
            return one_line(f"{line} {errors[0] if errors else lines[-1]}")
    return one_line((lines or ["it printed nothing"])[-1])


def _packages() -> Iterator[Check]:
    """The versions that are installed, against those that are needed."""
    name = "Packages"
    try:
        from packaging.requirements import Requirement

        own = metadata.requires("pytest-llmprof") or []
    except (ImportError, metadata.PackageNotFoundError) as error:
        yield not_checked(name, f"what is needed is not known: {error}", "install pytest-llmprof with pip")
        return
    if not own:  # a stand-in for an installation, such as one with the plugin's entry point alone
        yield not_checked(name, "this installation does not say what it needs", "install pytest-llmprof with pip")
        return
    wrong = []
    needed = [one for one in map(Requirement, own) if one.marker is None or one.marker.evaluate({"extra": ""})]
    for one in needed:
        there = _version(one.name)
        if there is None or not one.specifier.contains(there, prereleases=True):
            wrong.append((f"{one.name} {there or 'is missing'}", str(one)))
    if wrong:
        found = "; ".join(f"{what}, needed is {requirement}" for what, requirement in wrong)
        yield problem(name, found, "pip install " + " ".join(f"'{requirement}'" for _, requirement in wrong))
    else:
        versions = ", ".join(f"{package} {_version(package)}" for package in ("pytest", "pytest-benchmark"))
        yield ok(name, f"{len(needed)} requirements are met ({versions})")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _lines(report: MachineReport) -> Iterator[str]:
    names = [f"{check.stage}: {check.name}" if check.stage else check.name for check in report.checks]
    width = max(map(len, names), default=0)
    for check, name in zip(report.checks, names, strict=True):
        yield f"{check.status:<11}  {name:<{width}}  {one_line(check.found, 400)}"
        if check.mend:
            yield f"{'':<11}  {'':<{width}}  -> {one_line(check.mend, 400)}"
    yield ""
    for title, stages in (("chosen", report.stages), ("not chosen", report.other_stages)):
        for stage in stages:
            problems = report.problems(stage)
            names = [check.name for check in problems]
            yield f"{stage} ({title}): {'cannot run: ' + ', '.join(names) if problems else 'can run'}"
    if not report.stages:
        yield "what was chosen is not known"
