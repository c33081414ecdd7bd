"""Run the same test again in a child process, under a tool.

The child is pytest on the same node id, with the parent's configuration as a file. It leaves `outcome.json` in
its run directory. This module starts it, waits for its end, or ends it, and reports the outcome.
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
from typing import TYPE_CHECKING

import msgspec

from pytest_llmprof.errors import ArtifactError, LlmprofError, StageError
from pytest_llmprof.measure.signals import signal_group
from pytest_llmprof.records.files import decode, read_bytes, write_json, write_text
from pytest_llmprof.records.stage import StageRecords
from pytest_llmprof.stages.tools import Tool, last_line, tail
from pytest_llmprof.text.numbers import exit_code
from pytest_llmprof.text.secrets import may_be_secret

if TYPE_CHECKING:
    import psutil

_OUTCOME = "outcome.json"
_GRACE_S = 5.0
_INHERITED = ("PYTEST_PLUGINS", "PYTEST_DISABLE_PLUGIN_AUTOLOAD", "PYTEST_DEBUG_TEMPROOT")
"""Variables of pytest that a child needs as its parent did."""
_MARK = "LLMPROF_CHILD"
"""Environment variable of every process that a child starts: finds those that left its group (nsys's agent)."""


class ToolFailed(StageError):
    """The tool, or the child under it, failed; with the last lines that they wrote."""

    def __init__(self, text: str, details: str | None = None) -> None:
        super().__init__(text)
        self.details = details


class ChildSkipped(LlmprofError):
    """The test skipped itself in the child; the text is its reason."""


class Nvtx(msgspec.Struct, frozen=True):
    """The package nvtx in the child."""

    version: str
    records: bool
    """Whether a tool records its ranges; if not, nvtx does nothing and reports no error."""


class Outcome(msgspec.Struct):
    """outcome.json in the child's run directory: the result of its test."""

    outcome: str = "passed"
    """passed, failed or skipped: the first of setup, call and teardown that did not pass."""
    error: str | None = None
    """Why it did not pass; null where it did."""
    measured: bool = False
    """Whether the test called `llmprof.run()` or `llmprof.measure()`."""
    dir: str | None = None
    """The child's stage directory; null where it measured nothing."""
    notes: list[str] = []
    """Lines at which the test ended because a time is null in the child."""
    nvtx: Nvtx | None = None
    """Set when the test has ended."""

    @classmethod
    def read(cls, run_dir: Path) -> Outcome | None:
        """Read it from the child's run directory; None where no test has ended there."""
        path = run_dir / _OUTCOME
        return decode(read_bytes(path), path, cls) if path.exists() else None

    def write(self, run_dir: Path) -> None:
        """Write it to the child's run directory."""
        write_json(run_dir / _OUTCOME, self)


@dataclass(frozen=True)
class Ended:
    """A child that has ended."""

    code: int
    """Exit code of the command; negative for a signal."""
    output: str
    """What the tool and the child wrote."""
    outcome: Outcome | None
    """None where the child ended no test."""

    @property
    def last_lines(self) -> str:
        """The end of the output."""
        return tail(self.output)

    def check(self, tool: str) -> None:
        """Raise `ChildSkipped` or `ToolFailed` where the child did not pass.

        Its own outcome comes before the exit code, which a tool passes on.
        """
        outcome, last = self.outcome, f"last line: {last_line(self.output)}"
        if outcome is not None and outcome.outcome == "skipped":
            raise ChildSkipped(str(outcome.error))
        if outcome is None:
            code = exit_code(self.code)
            problem = f"the test did not run under {tool}: it ended with {code} before a test had ended; {last}"
        elif outcome.outcome != "passed":
            problem = f"the test failed in its child under {tool}: {outcome.error}"
        elif self.code:
            problem = f"{tool} ended with {exit_code(self.code)} although the test passed under it; {last}"
        elif outcome.measured:
            return
        else:
            text = "the test called neither llmprof.run() nor llmprof.measure() under"
            raise ToolFailed(f"{text} {tool}: there is nothing to capture")
        raise ToolFailed(problem, self.last_lines)

    def check_under(self, tool: Tool) -> None:
        """As `check`. An nvtx that does not record, on which the next run would fail, is reported too."""
        try:
            self.check(tool.name)
        except ToolFailed as error:
            if problem := self._nvtx_problem(tool):
                raise ToolFailed(f"{error}. Besides, {problem}", error.details) from None
            raise

    def check_nvtx(self, tool: Tool) -> None:
        """Raise `ToolFailed` where the child's nvtx did not record, which it does not report itself."""
        if problem := self._nvtx_problem(tool):
            raise ToolFailed(problem)

    def _nvtx_problem(self, tool: Tool) -> str | None:
        nvtx = self.outcome.nvtx if self.outcome is not None else None
        if nvtx is None or nvtx.records:
            return None
        return (
            f"NVTX recorded nothing under {tool.name} {tool.version}: the package nvtx {nvtx.version} needs a newer "
            f"{tool.name}, and reports no error; pip install nvtx==0.2.11, or use a newer {tool.name}"
        )

    def opened_ranges(self) -> list[str]:
        """The values of `capture` that this test's measured pass could have had."""
        assert self.outcome is not None
        samples = StageRecords.read(Path(str(self.outcome.dir))).metrics.samples
        names = dict.fromkeys(name for sample in samples for name in sample.phases)
        return ["all", *names, *(["step"] if "decode" in names else [])]


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

    def run(self, prefix: Sequence[str], env: Mapping[str, str], tool: str) -> Ended:
        """Run it once behind *prefix*, the command of *tool* (empty: without a tool), and wait for its end.

        *env* is added to this process's environment. Raises `ToolFailed` where it cannot be started or takes too
        long. However this ends, no process of the child's group is left.
        """
        command = [*prefix, *self.command]
        shown = [
            f'{name}="${name}"' if may_be_secret(name, value) else shlex.quote(f"{name}={value}")
            for name, value in env.items()
        ]
        words = " ".join(["env -u PYTEST_ADDOPTS", *shown, shlex.join(command)])
        write_text(self.out_dir / "command.txt", f"cd {shlex.quote(str(self.cwd))}\n{words}\n")
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith("PYTEST_") or name in _INHERITED
        }
        mark = uuid.uuid4().hex
        begin = time.monotonic()
        try:
            log = self.log.open("wb")
        except OSError as error:
            raise ArtifactError(f"cannot write {self.log}: {error.strerror}") from error
        with log:
            try:
                process = subprocess.Popen(
                    command,
                    cwd=self.cwd,
                    env={**inherited, **env, _MARK: mark},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise ToolFailed(f"{command[0]} cannot be run: {error.strerror}") from error
            try:
                code = self._wait(process, mark, begin, tool)
            finally:
                _end_group(process, mark)
        return Ended(code, self._output(), Outcome.read(self.run_dir))

    def _output(self) -> str:
        # As bytes: the carriage returns of progress bars are no line ends.
        return self.log.read_bytes().decode("utf-8", "replace")

    def _wait(self, process: subprocess.Popen[bytes], mark: str, begin: float, tool: str) -> int:
        while (seconds := time.monotonic() - begin) < self.timeout_s:
            try:
                return process.wait(min(self.timeout_s - seconds, 1.0))
            except subprocess.TimeoutExpired:
                self.progress(f"the test under {tool}, {seconds:.0f} s")
        _end_group(process, mark)
        text = self._output()
        limit = f"{self.timeout_s:g} s ({self.key})"
        raise ToolFailed(f"the test under {tool} did not end in {limit}; last line: {last_line(text)}", tail(text))


def _end_group(process: subprocess.Popen[bytes], mark: str) -> None:
    """End the process, its group and whatever it started in a group of its own: SIGTERM first, then SIGKILL."""
    import psutil

    if process.poll() is None:
        signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):  # SIGKILL follows
            process.wait(_GRACE_S)
    psutil.wait_procs(_marked(mark), timeout=1.0)
    signal_group(process.pid, signal.SIGKILL)
    family = _marked(mark)
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(family, timeout=1.0)
    with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold a killed process
        process.wait(_GRACE_S)


def _marked(mark: str) -> list[psutil.Process]:
    """All processes that a child has started, directly or not."""
    import psutil

    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # another user's, or it has ended
            if one.environ().get(_MARK) == mark:
                found.append(one)
    return found
