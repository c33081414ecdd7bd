"""The two sides of `llmprof ab`: from what the command line says of each to how its processes are started."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pytest_llmprof.cli.processes import Side, ignore_signals
from pytest_llmprof.cli.revisions import Found, Repository, make_environment, probe, with_path
from pytest_llmprof.compare.store import UNSAVED
from pytest_llmprof.errors import ConfigError
from pytest_llmprof.text.escape import visible
from pytest_llmprof.text.numbers import count


def say(line: str) -> None:
    """A line of progress."""
    print(visible(line).rstrip(), file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Wish:
    """What the options say of one side."""

    letter: str
    overrides: tuple[str, ...]
    revision: str | None
    python: str | None

    def option(self, name: str = "") -> str:
        """One of its options: "--a-ref" for "-ref"."""
        return f"--{self.letter.lower()}{name}"


@dataclass
class Request:
    """What the command line asks for."""

    wishes: tuple[Wish, Wish]
    arguments: tuple[str, ...]
    install: bool
    out: Path
    notices: list[str] = field(default_factory=list)

    def notice(self, line: str) -> None:
        """Say it at once, and again in the report."""
        self.notices.append(line)
        say(f"note: {line}")


@contextmanager
def prepared(request: Request) -> Iterator[dict[str, Side]]:
    """How processes of both sides are started. At the end of the block work trees and environments are removed."""
    first = next((wish for wish in request.wishes if wish.revision is not None), None)
    if first is None:
        _tell(request, [(wish.overrides, wish.python) for wish in request.wishes])
        yield {wish.letter: _as_it_is(wish, request) for wish in request.wishes}
        return
    repository = Repository.here(first.option("-ref"))
    commits = {
        wish.letter: repository.commit(wish.revision, wish.option("-ref"))
        for wish in request.wishes
        if wish.revision is not None
    }
    _check_paths(request.arguments, repository.top)
    changes = repository.changes()
    if changes:
        names = next((f"{letter} alone" for letter in "AB" if letter not in commits), "neither side")
        request.notice(f"{count(changes, 'file has', 'files have')} uncommitted changes, which are in {names}")
    head = None if changes else repository.commit("HEAD", "HEAD")
    _tell(request, [(wish.overrides, wish.python, commits.get(wish.letter, head)) for wish in request.wishes])
    place = Path(tempfile.mkdtemp(prefix="llmprof-ab-"))
    try:
        yield {
            wish.letter: _of_revision(wish, request, repository, commits[wish.letter], place)
            if wish.letter in commits
            else _as_it_is(wish, request, repository)
            for wish in request.wishes
        }
    finally:
        ignore_signals()
        for letter in commits:
            repository.remove_worktree(_tree(place, letter))
        shutil.rmtree(place, ignore_errors=True)


def _tell(request: Request, sides: Sequence[object]) -> None:
    if sides[0] == sides[1]:
        request.notice("A and B are the same: an A/A check, where slower or faster would be a false alarm")
    for wish in request.wishes:
        say(f"{wish.letter}: {_title(wish)}")


def _title(wish: Wish) -> str:
    parts = [f"revision {wish.revision}"] if wish.revision is not None else []
    parts += [" ".join(wish.overrides)] if wish.overrides else []
    parts += [wish.python] if wish.python else []
    return ", ".join(parts) or "as it is here"


def _tree(place: Path, letter: str) -> Path:
    return place / letter.lower()


def _side(wish: Wish, request: Request, python: str, cwd: Path, environment: Mapping[str, str]) -> Side:
    overrides = [f"--llmprof-override={one}" for one in wish.overrides]
    environment = {**environment, UNSAVED: "1"}
    return Side(wish.letter, _title(wish), python, cwd, environment, (*request.arguments, *overrides))


def _as_it_is(wish: Wish, request: Request, repository: Repository | None = None) -> Side:
    """A side without a revision. Beside one that has, it imports from its work tree as that does."""
    python = wish.python or sys.executable
    environment = with_path(repository.top) if repository else dict(os.environ)
    if wish.python or repository:
        top = repository.top if repository else None
        _check(probe(python, Path.cwd(), environment, top, wish.option("-python")), wish.option("-python"), python)
    return _side(wish, request, python, Path.cwd(), environment)


def _of_revision(wish: Wish, request: Request, repository: Repository, commit: str, place: Path) -> Side:
    option, tree = wish.option("-ref"), _tree(place, wish.letter)
    cwd = repository.add_worktree(tree, commit, option)
    python, environment = wish.python or sys.executable, with_path(tree)
    why = "as --install asks"
    if not request.install:
        found = probe(python, cwd, environment, tree, option)
        if not found.lacking or wish.python:
            _check(found, option, python)
            return _side(wish, request, python, cwd, environment)
        why = f"as {found.lacking} here"
    say(f"{wish.letter}: making an environment of its own, {why}")
    letter = wish.letter.lower()
    python = make_environment(place / f"env-{letter}", tree, request.out / f"install-{letter}.log", option)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    _check(probe(python, cwd, environment, tree, option), option, "the environment made for it")
    return _side(wish, request, python, cwd, environment)


def _check(found: Found, option: str, python: str) -> None:
    if found.lacking:
        raise ConfigError(f"{option}: {python}: {found.lacking}")


def _check_paths(arguments: Sequence[str], top: Path) -> None:
    """A full path into the repository would run the same tests on both sides."""
    for one in arguments:
        path = Path(one.partition("::")[0])
        if path.is_absolute() and path.is_relative_to(top):
            raise ConfigError(f"{one}: give tests relative to {Path.cwd()}, so that each revision runs its own")
