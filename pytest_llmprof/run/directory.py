"""The run directory: its name, run.json, and the directory of each test inside."""

from __future__ import annotations

import datetime
import errno
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pytest_llmprof.config.paths import why_unusable
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.records.files import write_json, write_text
from pytest_llmprof.records.run import RunRecord, TestRecord
from pytest_llmprof.text.names import numbered, unique_names

_BASE = "llmprof-runs"
_OWN_FILES = ("config.yaml", "benchmark.json", "summary.md", "index.html")
"""What a run writes beside run.json and its tests' directories."""


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
    readable = {}
    for module in by_module:
        stem = Path(module).stem
        readable[module] = stem if stems[stem.casefold()] == 1 else module.removesuffix(".py").replace("/", ".")
    modules = unique_names(readable, taken=("run.json", *_OWN_FILES))
    result: dict[TestKey, str] = {}
    for module, members in by_module.items():
        tests = unique_names(
            {key.name: key.name.replace("[", "-").replace("]", "").replace("::", ".") for key in members}
        )
        result |= {key: f"{modules[module]}/{tests[key.name]}" for key in members}
    return result


test_dirs.__test__ = False  # type: ignore[attr-defined]


def choose_run_dir(explicit: Path | None, rootdir: Path) -> Path:
    """The run's directory, not made yet. Raises `ArtifactError` where *explicit* cannot be one."""
    if explicit is not None:
        path = Path(os.path.abspath(explicit))
        if why := why_unusable(path / "run.json"):
            raise ArtifactError(f"--llmprof-run-dir {path}: {why}")
        if os.path.lexists(path / "run.json"):
            raise ArtifactError(f"--llmprof-run-dir {path} already holds a run {_how_it_goes(path)}")
        if path.exists() and not path.is_dir():
            raise ArtifactError(f"--llmprof-run-dir {path} is not a directory: name another one")
        for name in _OWN_FILES:
            if os.path.lexists(path / name):
                raise ArtifactError(
                    f"--llmprof-run-dir {path} holds a {name} that is no run's: name a new directory, as a run writes "
                    "its own there"
                )
        return path
    base = rootdir / _BASE
    if why := why_unusable(base):
        raise ArtifactError(f"cannot make the run directory {base}: {why}; name another with --llmprof-run-dir")
    stamp = datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    return next(path for path in numbered(base / stamp) if not os.path.lexists(path))


def _how_it_goes(path: Path) -> str:
    """Of the run in *path*: whether it goes on, and what to do."""
    record = _record(path)
    if record is not None and record.process is not None and record.alive():
        return f"that goes on (run.json, process {record.process.pid}): name a new directory"
    killed = record is not None and record.status == "running" and record.alive() is False
    return f"{'that was killed ' if killed else ''}(run.json): name a new directory or remove that one"


def begin_run_dir(wanted: Path, config_yaml: str, record: RunRecord, *, explicit: bool) -> Path:
    """Make the run directory with its run.json, which is *record*, and its config.yaml. Returns the directory.

    Sessions that start at once may want the same directory. It belongs to the session that its run.json names; all
    processes of a session share it. Where it is taken the next name is tried, but *explicit*, named by the user, raises
    `ArtifactError`, as does one that cannot be made.
    """
    for path in numbered(wanted):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if _claim(path, config_yaml, record):
                break
        except (OSError, ArtifactError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            why = getattr(cause, "strerror", error)
            if isinstance(cause, FileExistsError):  # of a directory above
                why = os.strerror(errno.ENOTDIR)
            raise ArtifactError(
                f"cannot make the run directory {path}: {why}; name another with --llmprof-run-dir"
            ) from error
        if explicit:
            raise ArtifactError(
                f"--llmprof-run-dir {path}: another session has begun a run there meanwhile: name a new directory"
            )
    return path


def begun_run_dir(wanted: Path, session: str, *, explicit: bool) -> Path | None:
    """The directory that a process of *session* has made for *wanted*; None where there is none yet."""
    for path in [wanted] if explicit else numbered(wanted):
        if not path.exists():
            break
        if _belongs_to(session, path):
            return path
    return None


def _claim(path: Path, config_yaml: str, record: RunRecord) -> bool:
    """Make *path*, or take a directory that is there, unless it holds a run. Returns whether it is the session's.

    A new directory gets its name with both files inside, and one that is there gets run.json first, so that a killed
    session leaves no directory without.
    """
    there = path.is_dir()
    with TemporaryDirectory(dir=path if there else path.parent, prefix=".tmp-", ignore_cleanup_errors=True) as name:
        new = Path(name, "run")
        new.mkdir()
        write_json(new / "run.json", record)
        write_text(new / "config.yaml", config_yaml)
        try:
            if there:
                _link(new / "run.json", path / "run.json")
                os.replace(new / "config.yaml", path / "config.yaml")
            else:
                new.rename(path)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            return _belongs_to(record.session, path)
    return True


def _link(source: Path, target: Path) -> None:
    """Give *source* its second name, which must be free; without hard links, it is moved there."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        target.open("x").close()
        source.replace(target)


def _record(path: Path) -> RunRecord | None:
    """run.json of *path*; None where it holds no run that can be read."""
    try:
        return RunRecord.read(path)
    except ArtifactError:
        return None


def _belongs_to(session: str, path: Path) -> bool:
    record = _record(path)
    return record is not None and record.session == session


def link_latest(path: Path) -> str | None:
    """Beside a default run directory: the link `latest` to it, and a .gitignore. Returns why they cannot be made."""
    latest = path.with_name("latest")
    if path.parent.name != _BASE or path == latest:
        return None
    if os.path.lexists(latest) and not latest.is_symlink():
        return f"{latest} is no link: it stays as it is, and this run is {path.name}"
    temporary, ignore = path.with_name(f".latest-{os.getpid()}"), path.with_name(".gitignore")
    try:
        if not ignore.exists():
            write_text(ignore, "# Made by pytest-llmprof: runs are not for version control.\n*\n")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(path.name, target_is_directory=True)
        try:
            temporary.replace(latest)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ArtifactError) as error:
        return f"{latest} cannot be made a link to this run: {getattr(error, 'strerror', error)}"
    return None


class RunLog:
    """`run.json`, rewritten whole at each change, so that a killed run keeps what it had."""

    def __init__(self, path: Path, record: RunRecord) -> None:
        """*path* is the run directory, *record* its run.json as the run began."""
        self.path = path
        self.trouble: str | None = None
        """Why run.json could not be written as it is now: tests go on without it."""
        self._tests: dict[str, TestRecord] = {}
        self._record = record

    @property
    def ended(self) -> bool:
        """Whether the last status is there."""
        return self._record.status != "running"

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
        seconds = None
        if known is not None:
            directory, kind, seconds = directory or known.dir, kind or known.kind, known.seconds
        entry = TestRecord(node, stage, kind, outcome, directory, error, seconds)
        if entry != known:
            self._tests[node] = entry
            self.write("running")

    def took(self, node: str, seconds: float) -> None:
        """Record the wall time of a test that has ended. It is written with the next change: another test's, or the
        run's end."""
        self._tests[node].seconds = seconds

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
        self.trouble = None
        with suppress(OSError):  # what is wrong shows below
            self.path.mkdir(parents=True, exist_ok=True)
        try:
            write_json(self.path / "run.json", self._record)
        except ArtifactError as error:
            self.trouble = str(error)
