"""Workers of pytest-xdist on other machines: their files come home to the controller's run directory.

A worker that `--tx ssh=...` starts (or a socket, a proxy, another interpreter) has a channel of its own to the
controller. Over it the worker asks the controller to begin the run, and then looks for the run directory. A worker on
the same machine or a shared file system finds it, and writes there as other workers do. One that does not find it
writes into a temporary directory, and sends the files of each test before the report of its call: a test that has
passed has its files at home, and a worker that crashes loses the test that it was running.

Messages of a worker: ("begin", version), then for each directory of a test ("open", directory, fresh), for each file
("file", name) and its bytes in pieces, then ("close",); ("drop",) takes the place of ("close",) where a file cannot
be read. The controller answers "begin" and "close" with ("kept", run directory) or ("refused", one line). Names are
bytes, as a file's name may be no text.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO

from pytest_llmprof import __version__
from pytest_llmprof.errors import ArtifactError, ConfigError, LlmprofError
from pytest_llmprof.text.escape import visible

if TYPE_CHECKING:
    import pytest

    from pytest_llmprof.run.session import Session

CHANNEL = "llmprof_channel"
"""Where xdist's `workerinput` holds the worker's end of the channel."""
_PIECE = 1 << 20
"""Bytes of a file in one message."""
_TEMPORARY = ".tmp-"
_LOST = "the connection to pytest-xdist's controller is lost"
_END = object()


def may_be_apart(spec: Any) -> bool:
    """Whether a worker with this execnet *spec* may see another file system than the controller."""
    return not spec.popen or any((spec.via, spec.python, spec.chdir))


def check_paths(config: pytest.Config, specs: Sequence[Any]) -> None:
    """Raise `ConfigError` for a path that pytest-xdist does not hand to workers elsewhere: it ends in a traceback."""
    if all(spec.popen and not spec.chdir for spec in specs):
        return
    roots = [Path(root).resolve() for root in (*config.option.rsyncdir, *config.getini("rsyncdirs"))]
    for word in map(str, config.invocation_params.args):
        path = Path(word.partition("::")[0])
        with suppress(OSError):  # a word that is too long for a path
            if path.exists() and not any(path.is_relative_to(root) for root in roots):
                raise ConfigError(
                    f"{word}: to workers on other machines pytest-xdist hands no path but a full one below --rsyncdir: "
                    f"name tests with -o testpaths={word}, and write an option and its value as one word with ="
                )


class Home:
    """The controller's end: begins the run, and writes what workers send. Its methods run in execnet's threads."""

    def __init__(self, session: Callable[[], Session]) -> None:
        self._session = session
        self._lock = Lock()

    def connect(self, channel: Any) -> Any:
        """Listen on *channel*, and return it for the worker."""
        channel.setcallback(_Listener(channel, self._begin), endmarker=_END)
        return channel

    def _begin(self) -> Path:
        with self._lock:  # several workers may ask at once
            session = self._session()
            session.begin()
            return session.run_dir


class _Listener:
    """Takes the messages of one worker."""

    def __init__(self, channel: Any, begin: Callable[[], Path]) -> None:
        self._channel = channel
        self._begin = begin
        self._run_dir = Path()
        self._arrival: _Arrival | None = None
        self._error: str | None = None

    def __call__(self, message: Any) -> None:
        if message is _END:  # also of a worker that was killed
            self._drop()
            return
        try:
            self._take(message)
        except (LlmprofError, OSError) as error:
            self._drop()
            self._error = self._error or f"{getattr(error, 'strerror', None) or error}"
        if isinstance(message, tuple) and message[0] in ("begin", "close"):
            answer = ("kept", os.fsencode(self._run_dir)) if self._error is None else ("refused", visible(self._error))
            self._error = None
            with suppress(OSError):  # the worker has gone
                self._channel.send(answer)

    def _take(self, message: Any) -> None:
        if isinstance(message, bytes):
            if self._arrival is not None:
                self._arrival.write(message)
            return
        what, *given = message
        if what == "begin":
            if given != [__version__]:
                raise ArtifactError(
                    f"pytest-llmprof is {__version__} here and {given[0]} on the machine of a worker: install the "
                    "same version on all machines"
                )
            self._run_dir = self._begin()
        elif what == "open":
            self._arrival = _Arrival(self._run_dir, os.fsdecode(given[0]), fresh=given[1])
        elif self._arrival is None:  # an error came before, and is told at the end
            return
        elif what == "file":
            self._arrival.file(os.fsdecode(given[0]))
        elif what == "close":
            self._arrival.close()
            self._arrival = None
        else:
            self._drop()

    def _drop(self) -> None:
        if self._arrival is not None:
            self._arrival.drop()
            self._arrival = None


class _Arrival:
    """Files of one test on their way into the run directory: all of them get their names at the end."""

    def __init__(self, run_dir: Path, directory: str, *, fresh: bool) -> None:
        """*directory* is `<module>/<test>/<stage>`; *fresh*: its files replace all that is there."""
        self._target = below(run_dir, directory)
        if len(self._target.relative_to(run_dir).parts) != 3:
            raise ArtifactError(f"a worker sent files for {directory!r}, which is no directory of a test")
        for place in (self._target, *self._target.parents[:2]):
            if place.is_symlink():
                raise ArtifactError(f"{place} is a link, and a run writes nothing behind one: remove it")
        self._fresh = fresh
        self._temporary = run_dir / f"{_TEMPORARY}{secrets.token_hex(8)}"
        self._names: list[str] = []
        self._file: BinaryIO | None = None
        self._temporary.mkdir()

    def file(self, name: str) -> None:
        """Begin the file *name*, relative to the directory."""
        self._end_file()
        path = below(self._temporary, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("xb")
        self._names.append(name)

    def write(self, data: bytes) -> None:
        """Add to the file."""
        assert self._file is not None
        self._file.write(data)

    def close(self) -> None:
        """Give all files their names."""
        self._end_file()
        self._target.parent.mkdir(parents=True, exist_ok=True)
        if self._fresh:
            old = self._temporary.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}")
            if self._target.exists():
                self._target.rename(old)
            self._temporary.rename(self._target)
            shutil.rmtree(old, ignore_errors=True)
            return
        for name in self._names:
            place = self._target / name
            if any(one.is_symlink() for one in place.parents if one.is_relative_to(self._target)):
                raise ArtifactError(f"{place} lies behind a link, and a run writes nothing there: remove the link")
            place.parent.mkdir(parents=True, exist_ok=True)
            (self._temporary / name).replace(place)
        self.drop()

    def drop(self) -> None:
        """Forget what has come."""
        with suppress(OSError):  # of a full disk
            self._end_file()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _end_file(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


def below(base: Path, name: str) -> Path:
    """*base* / *name*. Raises `ArtifactError` where that may lie elsewhere: an absolute path, or one with ``..``."""
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\0" in name:
        raise ArtifactError(f"a worker sent the file name {name!r}, which leaves the directory of its test")
    return base / path


class Away:
    """A worker's end: asks for the run, and sends files where this machine does not see the run directory."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._root: Path | None = None
        self._sent: dict[str, dict[bytes, tuple[int, int]]] = {}
        """Size and time of change of each file that was sent, by directory and name."""

    @property
    def apart(self) -> bool:
        """Whether this process writes into a directory of its own; known once the run has begun."""
        return self._root is not None

    def begin(self, session: Session) -> None:
        """Have the controller begin the run, and find out where to write. Raises `ArtifactError`."""
        session.run_dir = Path(os.fsdecode(self._ask("begin", __version__)))
        if session.begun():
            return
        try:
            root = Path(tempfile.mkdtemp(prefix="llmprof-worker-"))
            self._root = root / session.run_dir.name
            self._root.mkdir()
        except OSError as error:
            raise ArtifactError(
                f"a worker does not see the run directory {session.run_dir}, and cannot make a directory in "
                f"{tempfile.gettempdir()} for its files: {error.strerror}"
            ) from error
        session.begin_in(self._root)

    def send(self, directories: Sequence[str]) -> None:
        """Send the files of *directories* that are new or have changed. Raises `ArtifactError` where that fails.

        A directory is relative to the run directory; one that does not exist is left out.
        """
        assert self._root is not None
        for directory in directories:
            found = dict(_files(self._root / directory))
            known = self._sent.get(directory)
            new = [name for name, state in found.items() if known is None or known.get(name) != state]
            if not new:
                continue
            self._put(("open", os.fsencode(directory), known is None))
            try:
                for name in new:
                    self._send_file(self._root / directory, name)
            except ArtifactError:
                self._put(("drop",))
                raise
            self._ask("close")
            self._sent[directory] = found

    def _send_file(self, directory: Path, name: bytes) -> None:
        self._put(("file", name))
        path = directory / os.fsdecode(name)
        try:
            with path.open("rb") as stream:
                while piece := stream.read(_PIECE):
                    self._put(piece)
        except OSError as error:
            raise ArtifactError(f"cannot read {path}: {error.strerror}") from error

    def remove(self, directories: Sequence[str]) -> None:
        """Remove the copies of *directories* here."""
        assert self._root is not None
        for directory in directories:
            self._sent.pop(directory, None)
            shutil.rmtree(self._root / directory, ignore_errors=True)

    def close(self) -> None:
        """Remove all that is left here."""
        if self._root is not None:
            shutil.rmtree(self._root.parent, ignore_errors=True)

    def _put(self, message: object) -> None:
        """Send a message."""
        try:
            self._channel.send(message)
        except OSError as error:
            raise ArtifactError(_LOST) from error

    def _ask(self, *message: object) -> bytes:
        """Send a message and wait for its answer."""
        self._put(message)
        try:
            kind, answer = self._channel.receive()
        except EOFError as error:
            raise ArtifactError(_LOST) from error
        if kind == "refused":
            raise ArtifactError(answer)
        found: bytes = answer
        return found


def _files(directory: Path) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """Each file below *directory*, by its name relative to it, with its size and time of change.

    A link to a file counts as the file; links to directories are not followed.
    """
    for place, _, names in os.walk(directory):
        for name in names:
            path = Path(place, name)
            if path.is_file() and not name.startswith(_TEMPORARY):
                state = path.stat()
                yield os.fsencode(path.relative_to(directory)), (state.st_size, state.st_mtime_ns)
