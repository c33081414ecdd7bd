"""The run directory: its name, run.json, and the directory of each test inside."""

from __future__ import annotations

import datetime
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path

from pytest_llmprof import __version__
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.records.catalogue import Declaration
from pytest_llmprof.records.files import write_json, write_text
from pytest_llmprof.records.run import RunRecord, TestRecord
from pytest_llmprof.text.names import unique_names

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
    """The directory of each test under the run directory, `<module>/<test>`; no two are alike.

    A module is named by its file's stem, and by its whole path where two have one stem.
    """
    by_module: dict[str, list[TestKey]] = {}
    for key in dict.fromkeys(keys):
        by_module.setdefault(key.module, []).append(key)
    stems = Counter(Path(module).stem.casefold() for module in by_module)
    wanted = {}
    for module in by_module:
        stem = Path(module).stem
        wanted[module] = stem if stems[stem.casefold()] == 1 else module.removesuffix(".py").replace("/", ".")
    modules = unique_names(list(wanted.values()))
    result = {}
    for module, members in by_module.items():
        readable = [key.name.replace("[", "-").replace("]", "").replace("::", ".") for key in members]
        # Two tests may have one readable name: then the full names keep them apart.
        names = [key.name if readable.count(name) > 1 else name for key, name in zip(members, readable, strict=True)]
        safe = unique_names(names)
        for key, name in zip(members, names, strict=True):
            result[key] = f"{modules[wanted[module]]}/{safe[name]}"
    return result


test_dirs.__test__ = False  # type: ignore[attr-defined]


def choose_run_dir(explicit: Path | None, rootdir: Path) -> Path:
    """The run's directory, not made yet. Raises `ArtifactError` where *explicit* cannot be one."""
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
    """*path*, then the names to try where it is taken: "path-2", "path-3", ..."""
    yield path
    yield from (path.with_name(f"{path.name}-{number}") for number in count(2))


def begin_run_dir(wanted: Path, config_yaml: str, session: str, *, explicit: bool) -> Path:
    """Make the run directory with its config.yaml; beside a default one also .gitignore and the link `latest`.

    Sessions that start at once may want the same directory. It belongs to the session whose id, *session*, stands in
    the first line of its config.yaml; all processes of a session share it. Where it is taken the next name is tried,
    but *explicit*, named by the user, raises `ArtifactError`, as does one that cannot be made. Returns the directory.
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
    """The directory that a process of *session* has made for *wanted*; None where there is none yet."""
    for path in [wanted] if explicit else _numbered(wanted):
        if not path.exists():
            break
        if _owner(path / "config.yaml") == session:
            return path
    return None


_OWNER = "# The session "
_CLAIMED_S = 5.0
"""How long to wait for the text of an empty config.yaml, which its owner writes at once."""


def _claim(path: Path, text: str, session: str) -> bool:
    """Write *path* unless it exists. Returns whether it belongs to the session."""
    try:
        path.open("x").close()
    except FileExistsError:
        return _owner(path) == session
    write_text(path, f"{_OWNER}{session}\n{text}")
    return True


def _owner(path: Path) -> str | None:
    """The id of the session that wrote *path*, a config.yaml; None where none did."""
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
    """`run.json`, rewritten whole at each change, so that a killed run keeps what it had."""

    def __init__(self, path: Path, argv: Sequence[str], metrics: Sequence[Declaration]) -> None:
        self.path = path
        self.trouble: str | None = None
        """The last error in writing it: tests go on without it."""
        self._tests: dict[str, TestRecord] = {}
        self._record = RunRecord(
            status="running",
            argv=list(argv),
            started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            versions=_versions(),
            metrics=list(metrics),
            tests=[],
        )

    def test(
        self,
        node: str,
        stage: str,
        outcome: str,
        *,
        directory: str | None = None,
        kind: str | None = None,
        error: str | None = None,
    ) -> None:
        """Record a test. *outcome*: running | passed | failed | skipped; *directory* and *kind* keep their last value
        where they are None."""
        known = self._tests.get(node)
        if known is not None:
            directory, kind = directory or known.dir, kind or known.kind
        entry = TestRecord(id=node, stage=stage, kind=kind, outcome=outcome, dir=directory, error=error)
        if entry != known:
            self._tests[node] = entry
            self.write("running")

    def forget(self, node: str) -> None:
        """Remove a test that was recorded as it began and is not ours: ours report their directory."""
        entry = self._tests.get(node)
        if entry is not None and entry.outcome == "running" and entry.dir is None:
            del self._tests[node]
            self.write("running")

    def finish(self, status: str) -> None:
        """Write the last *status* of the run; a test that still runs is marked interrupted."""
        for entry in self._tests.values():
            if entry.outcome == "running":
                entry.outcome = "interrupted"
        self.write(status)

    def write(self, status: str) -> None:
        """Write it with *status* running | complete | stopped | interrupted. An error is kept in `trouble`."""
        self._record.status = status
        self._record.tests = list(self._tests.values())
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / "run.json", self._record)
        except OSError as error:
            self.trouble = f"cannot write {self.path / 'run.json'}: {error.strerror}"


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"pytest-llmprof": __version__, "python": sys.version.split()[0]}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # vendored or run from a source tree
            found[name] = None
    return found
