"""The run directory: its name, run.json, and the directory of each test inside."""

from __future__ import annotations

import datetime
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

from pytest_llmprof import __version__
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.records.files import write_json, write_text
from pytest_llmprof.text.names import unique_names

__all__ = ["RUN_SCHEMA", "RunLog", "TestKey", "begin_run_dir", "begun_run_dir", "choose_run_dir", "test_dirs"]

RUN_SCHEMA = 1
_BASE = "llmprof-runs"
_PACKAGES = ("pytest", "pytest-benchmark", "torch", "transformers", "hydra-core", "nvtx")


@dataclass(frozen=True)
class TestKey:
    """A test without its stage."""

    __test__ = False

    module: str
    """The module's path relative to the rootdir, POSIX."""
    name: str
    """The test's name in its module, classes and parameters included, the stage not."""


def test_dirs(keys: Sequence[TestKey]) -> dict[TestKey, str]:
    """The directory of each test under the run directory, `<module>/<test>`; no two alike.

    A module is named by its file's stem, and by its whole path where two have one stem.
    """
    keys = list(dict.fromkeys(keys))
    stems: dict[str, set[str]] = {}
    for key in keys:
        stems.setdefault(Path(key.module).stem.casefold(), set()).add(key.module)
    wanted = {
        path: Path(path).stem if len(paths) == 1 else path.removesuffix(".py").replace("/", ".")
        for paths in stems.values()
        for path in paths
    }
    modules = unique_names(list(wanted.values()))
    by_module: dict[str, list[TestKey]] = {}
    for key in keys:
        by_module.setdefault(key.module, []).append(key)
    result = {}
    for module, members in by_module.items():
        readable = [key.name.replace("[", "-").replace("]", "").replace("::", ".") for key in members]
        # Where the readable forms of two tests are one, the names as they are keep them apart.
        names = [key.name if readable.count(name) > 1 else name for key, name in zip(members, readable, strict=True)]
        safe = unique_names(names)
        for key, name in zip(members, names, strict=True):
            result[key] = f"{modules[wanted[module]]}/{safe[name]}"
    return result


test_dirs.__test__ = False  # type: ignore[attr-defined]


def choose_run_dir(explicit: Path | None, rootdir: Path) -> Path:
    """The run's directory; it is not made yet. Raises `ArtifactError` where *explicit* holds a run already."""
    if explicit is not None:
        path = Path(os.path.abspath(explicit))
        if (path / "run.json").exists():
            raise ArtifactError(
                f"--llmprof-run-dir {path} already holds a run (run.json): name a new directory or remove that one"
            )
        if path.exists() and not path.is_dir():
            raise ArtifactError(f"--llmprof-run-dir {path} is not a directory: name another one")
        if os.path.lexists(path / "config.yaml"):
            raise ArtifactError(
                f"--llmprof-run-dir {path} holds a config.yaml that is no run's: name a new directory, as a run writes "
                "its own there"
            )
        return path
    base = rootdir / _BASE
    stamp = datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    return next(path for path in _numbered(base / stamp) if not path.exists())


def _numbered(path: Path) -> Iterator[Path]:
    """*path*, and the names to go on with where it is taken."""
    yield path
    yield from (path.with_name(f"{path.name}-{number}") for number in count(2))


def begin_run_dir(wanted: Path, config_yaml: str, session: str, *, explicit: bool) -> Path:
    """Make the run directory with its config.yaml, and what lies beside a default one (.gitignore, `latest`).

    Sessions that start together may want the same one: it belongs to that whose id, *session*, config.yaml has in its
    first line; all processes of a session share it. Another session's goes on to the next name, or, where the user
    named the directory, raises `ArtifactError`, as it does for one that cannot be made. Gives the directory.
    """
    path = wanted
    try:
        for path in _numbered(wanted):
            path.mkdir(parents=True, exist_ok=True)
            if _claim(path / "config.yaml", config_yaml, session):
                break
            if explicit:
                raise ArtifactError(
                    f"--llmprof-run-dir {path}: another session has begun a run there meanwhile: name a new directory"
                )
        if path.parent.name == _BASE:
            ignore = path.parent / ".gitignore"
            if not ignore.exists():
                write_text(ignore, "# Made by pytest-llmprof: runs are not for version control.\n*\n")
            _link_latest(path)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise ArtifactError(
            f"cannot make the run directory {path}: {error.strerror}{where}; name another with --llmprof-run-dir"
        ) from error
    return path


def begun_run_dir(wanted: Path, session: str, *, explicit: bool) -> Path | None:
    """The directory that a process of *session* has begun where *wanted* was asked for."""
    for path in [wanted] if explicit else _numbered(wanted):
        if not path.exists():
            break
        if _owner(path / "config.yaml") == session:
            return path
    return None


_OWNER = "# The session "
_CLAIMED_S = 5.0
"""How long a config.yaml may be empty: its owner writes it at once."""


def _claim(path: Path, text: str, session: str) -> bool:
    """Write *path*, unless it is there; whether it is the session's own then."""
    try:
        path.open("x").close()
    except FileExistsError:
        return _owner(path) == session
    write_text(path, f"{_OWNER}{session}\n{text}")
    return True


def _owner(path: Path) -> str | None:
    """The session whose config.yaml *path* is; None where it is no session's."""
    end = time.monotonic() + _CLAIMED_S
    while path.is_file():
        line = path.read_text("utf-8", "replace").partition("\n")[0]
        if line or time.monotonic() > end:
            return line.removeprefix(_OWNER) if line.startswith(_OWNER) else None
        time.sleep(0.01)
    return None


def _link_latest(path: Path) -> None:
    temporary = path.parent / f".latest-{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(path.name, target_is_directory=True)
    try:
        temporary.replace(path.parent / "latest")
    finally:
        temporary.unlink(missing_ok=True)


class RunLog:
    """`run.json` of a run: rewritten whole as tests come and go, so that a killed run keeps what it had."""

    def __init__(self, path: Path, argv: Sequence[str]) -> None:
        self.path = path
        self.trouble: str | None = None
        """Why it could not be written, once that happened."""
        self._tests: dict[str, dict[str, Any]] = {}
        self._argv = list(argv)
        self._started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

    @cached_property
    def _versions(self) -> dict[str, str | None]:
        found: dict[str, str | None] = {"pytest-llmprof": __version__, "python": sys.version.split()[0]}
        for name in _PACKAGES:
            try:
                found[name] = version(name)
            except PackageNotFoundError:  # vendored or run from a source tree
                found[name] = None
        return found

    def test(
        self, node: str, *, stage: str, outcome: str, directory: str | None, kind: str | None, error: str | None
    ) -> None:
        """Record one test in one stage: *outcome* running | passed | failed | skipped."""
        known = self._tests.get(node, {})
        entry = {
            "id": node,
            "stage": stage,
            "kind": kind or known.get("kind"),
            "outcome": outcome,
            "dir": directory or known.get("dir"),
            "error": error,
        }
        if entry != known:
            self._tests[node] = entry
            self.write("running")

    def forget(self, node: str) -> None:
        """A test that was recorded as it began turned out not to be ours: those tell their directory."""
        entry = self._tests.get(node)
        if entry is not None and entry["outcome"] == "running" and entry["dir"] is None:
            del self._tests[node]
            self.write("running")

    def finish(self, status: str) -> None:
        """Mark the run with its last *status*, and the test that it was in as interrupted."""
        for entry in self._tests.values():
            if entry["outcome"] == "running":
                entry["outcome"] = "interrupted"
        self.write(status)

    def write(self, status: str) -> None:
        """Write it with *status* running | complete | stopped | interrupted.

        Trouble is kept, not raised: tests go on.
        """
        content = {
            "schema": RUN_SCHEMA,
            "status": status,
            "argv": self._argv,
            "started": self._started,
            "versions": self._versions,
            "tests": list(self._tests.values()),
        }
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / "run.json", content)
        except OSError as error:
            self.trouble = f"cannot write {self.path / 'run.json'}: {error.strerror}"
