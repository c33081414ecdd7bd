"""The pytest processes of `llmprof ab`: how one is started, read, and ended with all that it started."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from pytest_llmprof.compare.alternate import OutOfTime
from pytest_llmprof.compare.saved import saved_run
from pytest_llmprof.errors import ArtifactError, LlmprofError
from pytest_llmprof.measure.signals import held_back, signal_group
from pytest_llmprof.records.baseline import SavedRun
from pytest_llmprof.text.escape import one_line
from pytest_llmprof.text.numbers import exit_code

GRACE_S = 20.0
"""Between SIGTERM, on which a run is written as interrupted, and SIGKILL."""
NOT_MEASURED, BAD_INPUT = 3, 4
_TAIL_LINES = 25
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_REFUSED = {2: "its tests could not be collected", 4: "pytest refused its command line", 5: "no tests were collected"}
"""pytest's exit codes that come from what it was given."""


class ProcessFailed(LlmprofError):
    """A pytest process that did not measure."""

    def __init__(self, line: str, code: int, tail: Sequence[str] = ()) -> None:
        super().__init__(line)
        self.code = code
        """The exit code of `llmprof`."""
        self.tail = tail
        """The last lines of its log, where the line does not say enough."""


@dataclass(frozen=True)
class Side:
    """How the processes of one side are started."""

    letter: str
    title: str
    """What it is, for a reader: revision, overrides, interpreter."""
    python: str
    cwd: Path
    environment: Mapping[str, str]
    arguments: tuple[str, ...]
    """Those of pytest, overrides included."""

    def measure(self, out: Path, number: int, seconds: float) -> SavedRun:
        """Run process *number* of the job into *out*, for *seconds* at most. Gives what it measured.

        Raises `ProcessFailed` where it did not end well, `OutOfTime` where it took too long.
        """
        command, log = self.command(out, number)
        code = run_logged(command, log, cwd=self.cwd, environment=self.environment, seconds=seconds)
        return self.read(out, number, code)

    def command(self, out: Path, number: int) -> tuple[list[str], Path]:
        """The command of process *number*, and the file of what it prints, which is made."""
        directory = self._directory(out, number)
        log = directory.with_suffix(".log")
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.touch()
        except OSError as error:
            raise ProcessFailed(f"cannot write {log}: {error.strerror}", NOT_MEASURED) from error
        return [self.python, "-m", "pytest", *self.arguments, f"--llmprof-run-dir={directory}"], log

    def _directory(self, out: Path, number: int) -> Path:
        return out / self.letter.lower() / f"{number:02d}"

    def read(self, out: Path, number: int, code: int) -> SavedRun:
        """What process *number* measured, which ended with *code*. Raises `ProcessFailed` where it did not end well."""
        directory = self._directory(out, number)
        log = directory.with_suffix(".log")
        where, seen, lines = f"{self.letter}, process {number}", f"(log: {log})", lines_of(log)
        interrupted = code == 2 and (directory / "run.json").exists()  # pytest has one code for that and for collection
        if code in _REFUSED and not interrupted:
            raise ProcessFailed(f"{where}: {_REFUSED[code]}{cause(lines) if code != 5 else ''} {seen}", BAD_INPUT)
        try:
            run = saved_run(directory)
        except ArtifactError as error:  # a process that was killed may leave half a run
            what = f"left no run, {error}" if code == 0 else ended(code)
            raise ProcessFailed(f"{where}: {what} {seen}", NOT_MEASURED, lines[-_TAIL_LINES:]) from error
        failed = [test for test in run.tests if test.problem]
        if code != 0 or run.status != "complete":
            what = f"its run is {run.status}" if code == 0 or interrupted else ended(code)
            if code == 1 and failed:
                what = f"{one_line(failed[0].id, 120)} failed: {one_line(failed[0].problem or '', 200)}"
            raise ProcessFailed(f"{where}: {what} {seen}", NOT_MEASURED, lines[-_TAIL_LINES:])
        if len(failed) == len(run.tests):
            why = one_line(failed[0].problem or "", 200) if failed else "no test uses the fixture llmprof"
            raise ProcessFailed(f"{where}: nothing was measured: {why} {seen}", NOT_MEASURED)
        run.name = f"{self.letter}, {self.title}"
        return run


def ended(code: int) -> str:
    """How a process ended, by its exit code; negative for a signal."""
    return f"ended with {exit_code(code)}"


def cause(lines: Sequence[str]) -> str:
    """The last line of an error, after a colon; empty where there is none."""
    line = next((line for line in reversed(lines) if "rror: " in line or line.startswith("ERROR")), None)
    return f": {one_line(line.removeprefix('ERROR: '))}" if line else ""


def lines_of(log: Path) -> list[str]:
    """The lines of *log* that are not empty."""
    return [line.rstrip() for line in log.read_bytes().decode("utf-8", "replace").split("\n") if line.strip()]


def run_logged(
    command: Sequence[str], log: Path, *, cwd: Path, environment: Mapping[str, str], seconds: float | None = None
) -> int:
    """Run *command* with its output in *log*; gives its exit code. However this ends, nothing of its group is left.

    Raises `OutOfTime` after *seconds*, `ProcessFailed` where it cannot be started.
    """
    process: subprocess.Popen[bytes] | None = None
    try:
        with uninterrupted():
            process = start(command, log, cwd=cwd, environment=environment)
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        raise OutOfTime from None
    finally:
        if process is not None:
            end_groups(process)


def start(
    command: Sequence[str], log: Path, *, cwd: Path, environment: Mapping[str, str], sockets: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start *command* in a group of its own, with its output in *log*; it inherits *sockets* and no other open file.

    Raises `ProcessFailed` where it cannot be started.
    """
    with log.open("wb") as output:
        try:
            return subprocess.Popen(
                command,
                cwd=cwd,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this process alone, which ends the other
                pass_fds=sockets,
            )
        except OSError as error:
            raise ProcessFailed(f"{command[0]} cannot be run: {error.strerror}", BAD_INPUT) from error


def end_groups(*processes: subprocess.Popen[bytes]) -> None:
    """End each process and all of its group: SIGTERM, then SIGKILL."""
    alive = [process for process in processes if process.poll() is None]
    for process in alive:
        signal_group(process.pid, signal.SIGTERM)
    _wait(alive)
    for process in processes:
        signal_group(process.pid, signal.SIGKILL)  # also workers that outlived it
    _wait(processes)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + GRACE_S
    for process in processes:
        # SIGKILL follows; and a driver may hold a killed process.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(deadline - time.monotonic(), 0.0))


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """In the block the first SIGINT, SIGTERM or SIGHUP raises `KeyboardInterrupt`; those after it are ignored, so that
    processes end and files are written. One that was ignored before, as SIGHUP is under nohup, stays so.

    In another thread than the first, which alone may handle signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    known = {one: signal.getsignal(one) for one in _SIGNALS if signal.getsignal(one) != signal.SIG_IGN}

    def interrupt(number: int, frame: FrameType | None) -> None:
        ignore_signals()
        raise KeyboardInterrupt(signal.Signals(number).name)

    for one in known:
        signal.signal(one, interrupt)
    try:
        yield
    finally:
        for one, handler in known.items():
            signal.signal(one, handler)


def uninterrupted() -> contextlib.AbstractContextManager[None]:
    """Hold an interrupt back to the end of the block: a process that starts in it must be known to what ends it."""
    return held_back(*_SIGNALS)


def ignore_signals() -> None:
    """From here on, to the end of `interruptible`, let nothing interrupt."""
    for one in _SIGNALS:
        signal.signal(one, signal.SIG_IGN)
