"""`llmprof init`: a starter project, in a directory of its own or in one that is there."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import msgspec

from pytest_llmprof.cli.options import Subparsers
from pytest_llmprof.cli.starter import Plan, plan
from pytest_llmprof.config.paths import conf_dir, why_unusable
from pytest_llmprof.errors import ArtifactError, ConfigError, nearest
from pytest_llmprof.records.files import read_bytes
from pytest_llmprof.text.escape import visible

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def add(commands: Subparsers) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "init",
        help="write a starter: benchmarks, presets, pytest's options, a workflow",
        description="Write what a project needs to start: a test, presets, pytest's options, a workflow of GitHub "
        "Actions.",
        epilog="Files that exist are kept, and named. On an error nothing is written.",
    )
    parser.add_argument(
        "directory", nargs="?", type=_directory, default=Path(), metavar="DIR", help="the project (default: here)"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be written, and write nothing")
    parser.add_argument(
        "--model",
        metavar="PRESET|PATH|HUB-ID",
        help="the model of the benchmarks: a preset of this package, or a checkpoint (with a / in it), for which a "
        "preset is written (default: the embedded model)",
    )
    parser.set_defaults(command=_run)


def _directory(text: str) -> Path:
    if not text:  # of a variable that is not set; it would be the current directory
        raise argparse.ArgumentTypeError("an empty name; give . for the current directory")
    return Path(text)


def _run(options: argparse.Namespace) -> int:
    if why := why_unusable(options.directory):
        raise ArtifactError(f"cannot use {options.directory}: {why}")
    directory = Path(os.path.abspath(options.directory))
    if os.path.lexists(directory) and not directory.is_dir():
        raise ArtifactError(f"{options.directory} is not a directory")
    found = plan(directory, None if options.model is None else _model(options.model, directory))
    if not options.dry_run:
        found.write()
    print(visible("\n".join(_lines(found, dry_run=options.dry_run))))
    return 0


def _model(given: str, directory: Path) -> str:
    """A packaged preset's name, or a checkpoint: a hub id, or a path that holds from *directory*."""
    presets = {path.stem: path for path in sorted((conf_dir() / "model").glob("*.yaml"))}
    if given in presets:
        keys = msgspec.yaml.decode(read_bytes(presets[given]))
        if keys.get("weights") == "checkpoint" and keys.get("path") is None:
            raise ConfigError(f"--model: the preset {given} is for a checkpoint: give its directory, or a hub id")
        return given
    path = Path(os.path.abspath(os.path.expanduser(given)))
    if given and path.is_dir():
        if not os.access(path, os.R_OK | os.X_OK):
            raise ConfigError(f"--model: the directory {given} cannot be read: permission denied")
        inside = path.is_relative_to(directory) and path != directory
        return f"./{path.relative_to(directory).as_posix()}" if inside else str(path)
    if given.startswith(("/", "./", "../", "~")):
        raise ConfigError(f"--model: there is no directory {given}")
    if not _HUB_ID.fullmatch(given):
        raise ConfigError(
            f"--model: {given!r} is no preset{nearest(given, presets)}; give {', '.join(presets)}, a checkpoint's "
            "directory, or a hub id (owner/name)"
        )
    return given


def _lines(found: Plan, *, dry_run: bool) -> list[str]:
    lines = []
    for change in found.changes:
        if change.added:
            lines.append(f"{'would add' if dry_run else 'added'} to {change.path}:")
            lines += [f"    {line}" for line in change.added.splitlines()]
        else:
            lines.append(f"{'would write' if dry_run else 'wrote'} {change.path}")
    lines += [f"kept {path}: it {why}" for path, why in found.kept]
    for text in found.advice:
        first, *rest = text.splitlines()
        lines += [f"for you to do: {first}", *(f"    {line}" for line in rest)]
    return [*lines, "", "Check this machine, then run the benchmarks:", *(f"    {one}" for one in _commands(found))]


def _commands(found: Plan) -> list[str]:
    """Two lines for a shell, with the programs of this environment where a shell would find others."""
    move = "" if found.directory == Path.cwd() else f"cd {shlex.quote(str(found.directory))} && "
    python = _program("python", sys.executable)
    if os.path.basename(sys.argv[0]) == "llmprof":
        llmprof = _program("llmprof", sys.argv[0])
    else:
        llmprof = f"{python} -m pytest_llmprof.cli"
    return [f"{move}{llmprof} doctor", f"{move}{python} -m pytest benchmarks"]


def _program(name: str, path: str) -> str:
    path, on_path = os.path.abspath(path), shutil.which(name)
    return name if on_path is not None and os.path.abspath(on_path) == path else shlex.quote(path)
