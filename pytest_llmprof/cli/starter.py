"""What `llmprof init` writes into a project: new files, and lines for files that are there."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from pytest_llmprof.cli.pytest_options import OptionsFile, joined, options_file, read_text
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.records.files import write_text

_CONF = ("conf", "llmprof-conf")
"""The directory of presets; the second one where the first is another program's."""
_DIR_KEY, _OVERRIDE_KEY = "llmprof_config_dir", "llmprof_override"
_OWN_PAGES = Path("dataset") / "my_pages.yaml"
OWN_MODEL = "my_model"
"""The preset that is made for a checkpoint."""
_IGNORED = ("llmprof-runs/", ".llmprof/", ".benchmarks/")


@dataclass(frozen=True)
class Change:
    """One file that is written."""

    path: Path
    """Relative to the project."""
    text: str
    """All of it."""
    added: str = ""
    """The lines that are new in a file that is there; empty for a new file."""


@dataclass
class Plan:
    """What is written into a project, and what is not."""

    directory: Path
    changes: list[Change] = field(default_factory=list)
    kept: list[tuple[Path, str]] = field(default_factory=list)
    """Files that stay as they are, and why."""
    advice: list[str] = field(default_factory=list)
    """What is left to the user; each may have several lines."""

    def add_new(self, path: Path, text: str) -> None:
        """Write the file *path*, or keep what is there."""
        if os.path.lexists(self.directory / path):
            self.kept.append((path, "is there already"))
        else:
            self.changes.append(Change(path, text))

    def write(self) -> None:
        """Write all files, or none. Raises `ArtifactError`."""
        undo: list[tuple[Path, bytes | None]] = []
        made: list[Path] = []
        try:
            for change in self.changes:
                path = self.directory / change.path
                made += _make_parents(path)
                if not change.added and os.path.lexists(path):
                    raise ArtifactError(f"cannot write {path}: it has appeared meanwhile")
                path = Path(os.path.realpath(path))  # a link stays one
                undo.append((path, path.read_bytes() if change.added else None))
                mode = path.stat().st_mode if change.added else None
                write_text(path, change.text)
                if mode is not None:
                    path.chmod(mode)
        except BaseException as error:
            _take_back(undo, made)
            if isinstance(error, OSError):
                raise ArtifactError(f"cannot write {error.filename}: {error.strerror}; nothing was written") from error
            raise


def _make_parents(path: Path) -> list[Path]:
    """Make the directories above *path*. Gives those that are new, the lowest first."""
    missing = [parent for parent in path.parents if not os.path.lexists(parent)]
    path.parent.mkdir(parents=True, exist_ok=True)
    return missing


def _take_back(undo: list[tuple[Path, bytes | None]], made: list[Path]) -> None:
    for path, old in reversed(undo):
        if old is None:
            path.unlink(missing_ok=True)
        elif path.read_bytes() != old:
            path.write_bytes(old)
    for directory in sorted(made, key=lambda one: len(one.parts), reverse=True):
        if directory.is_dir():
            directory.rmdir()


def plan(directory: Path, model: str | None) -> Plan:
    """The plan for the project in *directory*, which may not exist yet.

    *model* is the name of a packaged preset, or a checkpoint: a path or a hub id, with a "/" in it. Nothing is
    written. Raises `ArtifactError` where a file that is there cannot be read or is in the way.
    """
    found = Plan(directory)
    there = options_file(directory)
    conf = _conf_dir(directory, there.values.get(_DIR_KEY))
    found.add_new(Path("benchmarks") / "test_pages.py", _starter("test_pages.py.txt"))
    found.add_new(conf / _OWN_PAGES, _starter("my_pages.yaml"))
    options: dict[str, str | list[str]] = {_DIR_KEY: conf.as_posix()}
    if model is not None:
        preset = model
        if "/" in model:
            preset = OWN_MODEL
            text = _starter("my_model.yaml").replace("@path@", json.dumps(model, ensure_ascii=False))
            found.add_new(conf / "model" / f"{preset}.yaml", text)
        options[_OVERRIDE_KEY] = [f"model={preset}"]
    _add_options(found, there, options)
    _add_ignored(found)
    _add_workflow(found)
    for change in found.changes:
        _check_parents(directory, change.path)
    return found


def _starter(name: str) -> str:
    return (files("pytest_llmprof.cli") / "starter" / name).read_text(encoding="utf-8")


def _conf_dir(directory: Path, given: object) -> Path:
    """The directory of presets: *given* by pytest's options, else the first name that is free or ours."""
    if isinstance(given, str) and given.strip():
        return Path(given.strip())
    for name in _CONF:
        path = directory / name
        if not os.path.lexists(path) or (path / _OWN_PAGES).is_file():
            return Path(name)
    raise ArtifactError(
        f"{directory} has a {_CONF[0]} and a {_CONF[1]} that hold no {_OWN_PAGES.as_posix()}: name a directory for "
        f"presets in pytest's options ({_DIR_KEY})"
    )


def _add_options(found: Plan, there: OptionsFile, options: dict[str, str | list[str]]) -> None:
    missing = {key: value for key, value in options.items() if key not in there.values}
    changed = there.with_options(missing) if missing else None
    if changed is not None:
        found.changes.append(Change(Path(there.name), *changed))
    elif missing:
        found.advice.append(there.by_hand(missing))
    else:
        found.kept.append((Path(there.name), "has these options already"))
    lists = {key: value for key, value in options.items() if key in there.values and isinstance(value, list)}
    for key, value in lists.items():
        now = there.values[key]
        if not set(value) <= {str(one).strip() for one in (now if isinstance(now, list) else str(now).splitlines())}:
            found.advice.append(f"{there.name} has its own {key}, so add to it:\n{there.lines({key: value})}")


def _add_ignored(found: Plan) -> None:
    path = Path(".gitignore")
    text = read_text(found.directory / path)
    there = {line.strip().strip("/") for line in (text or "").splitlines()}
    lines = "".join(f"{line}\n" for line in _IGNORED if line.strip("/") not in there)
    if not lines:
        found.kept.append((path, "has these lines already"))
    else:
        found.changes.append(Change(path, joined(text or "", lines), lines if text is not None else ""))


def _add_workflow(found: Plan) -> None:
    path = Path(".github") / "workflows" / "llmprof.yml"
    top = next((one for one in (found.directory, *found.directory.parents) if os.path.lexists(one / ".git")), None)
    if top is None or top == found.directory:
        found.add_new(path, _starter("llmprof.yml"))
    else:
        found.kept.append((path, f"is for the top of a repository, which is {top}"))


def _check_parents(directory: Path, path: Path) -> None:
    for parent in (directory / path).parents:
        if os.path.lexists(parent):
            if not parent.is_dir():
                raise ArtifactError(f"cannot write {path}: {parent} is not a directory")
            return
