"""The same test again, in a process of its own: what the stages that run under a tool share.

The child is pytest on the same node id, with the parent's configuration as a file. It leaves `outcome.json` in
its run directory; this module starts it, waits, ends it where it must, and says what came of it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmprof.errors import LlmprofError, StageError
from pytest_llmprof.records.files import read_json, write_text
from pytest_llmprof.stages.tools import tail

if TYPE_CHECKING:
    import psutil

__all__ = ["OUTCOME", "Child", "ChildSkipped", "Ended", "ToolFailed"]

OUTCOME = "outcome.json"
"""In the child's run directory: what came of its test."""
_GRACE_S = 5.0
_MARK = "LLMPROF_CHILD"
"""In the environment of all that a child starts, by which those are found that have left its family (nsys's agent)."""


class ToolFailed(StageError):
    """The tool, or the child under it, failed; with the last lines that they wrote."""

    def __init__(self, text: str, details: str | None = None) -> None:
        super().__init__(text)
        self.details = details


class ChildSkipped(LlmprofError):
    """The test skipped itself in the child; the text is its reason."""


@dataclass(frozen=True)
class Ended:
    """A child that has ended."""

    code: int
    """Exit code of the command; negative for a signal."""
    output: str
    """What the tool and the child wrote."""
    outcome: Mapping[str, Any] | None
    """outcome.json; None where the child ended no test."""

    @property
    def last_lines(self) -> str:
        """The end of the output."""
        return tail(self.output)

    def check(self, tool: str) -> None:
        """Raise what came of the child where it did not pass: `ChildSkipped` or `ToolFailed`.

        The child's own verdict comes first: a tool hands its exit code on, and may end badly because of it.
        """
        if self.outcome is None:
            raise ToolFailed(
                f"the test did not run under {tool}: it ended with {_code(self.code)} before a test had ended; "
                f"last line: {_last(self.output)}",
                self.last_lines,
            )
        if self.outcome["outcome"] == "skipped":
            raise ChildSkipped(str(self.outcome["error"]))
        if self.outcome["outcome"] != "passed":
            raise ToolFailed(
                f"the test failed in its child under {tool}: {self.outcome['error']}",
                self.last_lines,
            )
        if self.code:
            raise ToolFailed(
                f"{tool} ended with {_code(self.code)} although the test passed under it; "
                f"last line: {_last(self.output)}",
                self.last_lines,
            )
        if not self.outcome["measured"]:
            raise ToolFailed(
                f"the test called neither llmprof.run() nor llmprof.measure() under {tool}: there is nothing to capture"
            )


@dataclass
class Child:
    """How to run this test again."""

    command: Sequence[str]
    """Python, pytest, its arguments and the node id."""
    cwd: Path
    run_dir: Path
    """The child's run directory."""
    out_dir: Path
    """The stage directory: command.txt and output.log go there."""
    timeout_s: float
    key: str
    """The configuration key of the time limit."""
    progress: Callable[[str], None]

    @property
    def log(self) -> Path:
        """What the tool and the child write."""
        return self.out_dir / "output.log"

    def run(self, prefix: Sequence[str], env: Mapping[str, str], what: str) -> Ended:
        """Run it once behind *prefix*, the tool's own command (empty: without a tool), and wait for its end.

        *env* goes over this process's environment; *what* names the tool. Raises `ToolFailed` where it cannot
        be started or takes too long. However this ends, no process of the child's group is left.
        """
        command = [*prefix, *self.command]
        assignments = [f"{name}={value}" for name, value in env.items()]
        shown = shlex.join(["env", "-u", "PYTEST_ADDOPTS", *assignments, *command])
        write_text(self.out_dir / "command.txt", f"cd {shlex.quote(str(self.cwd))}\n{shown}\n")
        surroundings = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        mark = uuid.uuid4().hex
        begin = time.monotonic()
        with self.log.open("wb") as log:
            try:
                process = subprocess.Popen(
                    command,
                    cwd=self.cwd,
                    env={**surroundings, **_kept(), **env, _MARK: mark},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise ToolFailed(f"{command[0]} cannot be run: {error.strerror}") from error
            try:
                code = self._wait(process, mark, begin, what)
            finally:
                _end_group(process, mark)
        path = self.run_dir / OUTCOME
        return Ended(code, self._output(), read_json(path) if path.exists() else None)

    def _output(self) -> str:
        # Bytes: reading as text would make lines of the carriage returns of progress bars.
        return self.log.read_bytes().decode("utf-8", "replace")

    def _wait(self, process: subprocess.Popen[bytes], mark: str, begin: float, what: str) -> int:
        while True:
            seconds = time.monotonic() - begin
            left = self.timeout_s - seconds
            if left <= 0:
                _end_group(process, mark)
                text = self._output()
                raise ToolFailed(
                    f"the test under {what} did not end in {self.timeout_s:g} s ({self.key}); last line: {_last(text)}",
                    tail(text),
                )
            try:
                return process.wait(min(left, 1.0))
            except subprocess.TimeoutExpired:
                self.progress(f"the test under {what}, {seconds:.0f} s")


def _kept() -> dict[str, str]:
    """Variables of pytest that a child needs as its parent did."""
    names = ("PYTEST_PLUGINS", "PYTEST_DISABLE_PLUGIN_AUTOLOAD", "PYTEST_DEBUG_TEMPROOT")
    return {name: os.environ[name] for name in names if name in os.environ}


def _code(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _last(text: str) -> str:
    """The line that says most: the tool's last error, else the last one."""
    lines = [line.strip() for line in tail(text).split("\n") if line.strip(" =-\t")]
    errors = [line for line in lines if line.startswith(("==ERROR==", "ERROR:"))]
    return (errors or lines or ["none, nothing was written"])[-1][:300]


def _end_group(process: subprocess.Popen[bytes], mark: str) -> None:
    """End the process, its group and whatever it started in a group of its own: first gently, then at once."""
    import psutil

    if process.poll() is None:
        _signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):  # the next signal can't be refused
            process.wait(_GRACE_S)
    psutil.wait_procs(_marked(mark), timeout=1.0)
    _signal_group(process.pid, signal.SIGKILL)
    family = _marked(mark)
    for one in family:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=1.0)
    with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold a killed process for as long as it likes
        process.wait(_GRACE_S)


def _marked(mark: str) -> list[psutil.Process]:
    """The processes that a child started, and those that these started."""
    import psutil

    found = []
    for one in psutil.process_iter():
        try:
            if one.environ().get(_MARK) == mark:
                found.append(one)
        except (psutil.Error, OSError):
            continue  # another user's, or it has ended
    return found


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return  # all of it has ended
