"""Command line tools under which a stage runs a test: finding the program, its version, its options and its log."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from pytest_llmprof.config.schema import Seconds
from pytest_llmprof.errors import StageError
from pytest_llmprof.measure.phases import ROUND
from pytest_llmprof.measure.signals import signal_group
from pytest_llmprof.stages.tool_block import ToolInfo

if TYPE_CHECKING:
    from pytest_llmprof.stages.base import ToolContext

Capture = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z_][\w.-]*\Z",
        description="all, or the name of one NVTX range (prefill, decode, step, vision, ...)",
    ),
]
_Environment = Annotated[
    Mapping[Annotated[str, Meta(pattern=r"^[^=]+\Z")], str], Meta(description="a mapping, {NAME: VALUE}")
]
_ProgramPath = Annotated[
    Annotated[str, Meta(pattern=r"^(/|~/|[^/]*\Z)")] | None,
    Meta(description="an absolute path, a program's name, or null"),
]


@dataclass(frozen=True)
class ToolOptions:
    """Options that all such stages have."""

    path: _ProgramPath = None
    """The tool's program, absolute or a name on PATH. Null: PATH, then `/opt/nvidia` and `/usr/local/cuda*`."""
    capture: Capture = "all"
    """What to capture: `all`, the measured pass, or an NVTX range: `preprocess`, `vision`, `sam`, `clip`, `projector`,
    `prefill`, `decode`, `step`, or one of your model's."""
    env: _Environment = field(default_factory=lambda: MappingProxyType({}))
    """Environment variables for the tool and the child: `{LD_LIBRARY_PATH: /opt/lib}`. A value that may be a secret
    [is not saved](outputs.md#what-the-files-tell-of-the-machine)."""
    args: tuple[str, ...] = ()
    """More arguments of the tool (of `nsys profile`, of `ncu`)."""
    timeout_s: Seconds = 600.0
    """Seconds before the child is ended, the tool's own work included."""


_VERSION = re.compile(r"\bVersion\s+(\d{4}(?:\.\d+)+)", re.IGNORECASE)


@dataclass(frozen=True)
class Program:
    """What a stage knows of its program before it is found."""

    name: str
    """On PATH; also the name of the stage."""
    title: str
    """In the output of `--version`: "Nsight Systems"."""
    oldest: tuple[int, int]
    """The oldest version that has all options that are used."""
    places: tuple[str, ...]
    """Absolute patterns of the usual places beside PATH."""

    def installed(self) -> Iterator[Path]:
        """What is in the usual places, the newest version of each first."""
        for pattern in self.places:
            yield from sorted(Path("/").glob(pattern.removeprefix("/")), key=_numbers, reverse=True)


@dataclass(frozen=True)
class Tool:
    """A program that was found."""

    name: str
    path: Path
    version: str
    """As it prints it, "2025.3.1"."""
    env: Mapping[str, str]
    """Environment of the tool and of what runs under it."""


def run_program(
    command: Sequence[str], env: Mapping[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run a short command of a tool and return what it printed. It leaves no process behind.

    Raises what `subprocess.run` raises.
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, **env},
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        finally:
            signal_group(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _numbers(path: Path) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", str(path))]


def _find(program: Program, given: str | None) -> Path:
    name, key = program.name, f"pipeline.{program.name}.path"
    wanted = name if given is None else os.path.expanduser(given)
    if found := shutil.which(wanted):
        return Path(found)
    if given is not None:
        reason = "is not a program that can be run" if os.path.exists(wanted) else "does not exist"
        reason = reason if "/" in wanted else "is not on PATH"
        raise StageError(f"{key}={given} {reason}: name the program {name} of {program.title}")
    for path in program.installed():
        if path.is_file() and os.access(path, os.X_OK):
            return path
    raise StageError(
        f"the program {name} ({program.title}) was not found on PATH or in {', '.join(program.places)}: "
        f"install it, or name it with --llmprof-override {key}=/path/to/{name}"
    )


def find_tool(program: Program, given: str | None, env: Mapping[str, str]) -> Tool:
    """Find a program: *given* (a path or name), else on PATH, else in the usual places; ask its version.

    Raises `StageError` where it is not there, cannot be run, is another program, or is too old.
    """
    path = _find(program, given)
    try:
        done = run_program([str(path), "--version"], env, 60)
    except OSError as error:
        raise StageError(f"{path} cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        raise StageError(f"{path} --version gave no answer in 60 s") from None
    text = done.stdout + done.stderr
    printed = " ".join(text.split())[:300] or "nothing"
    if done.returncode:
        raise StageError(
            f"{path} --version ended with exit code {done.returncode} and printed: {printed} "
            f"(a missing library can be named with pipeline.{program.name}.env={{LD_LIBRARY_PATH: /path}})"
        )
    match = _VERSION.search(text)
    if match is None or (program.title not in text and program.name not in text.lower()):
        raise StageError(f"{path} is not {program.title}: --version printed: {printed}")
    if tuple(int(part) for part in match[1].split(".")[:2]) < program.oldest:
        raise StageError(
            f"{path} is {program.title} {match[1]}; at least {'.'.join(map(str, program.oldest))} is needed: install "
            f"a newer one, or name it with pipeline.{program.name}.path"
        )
    return Tool(program.name, path, match[1], dict(env))


def start(program: Program, context: ToolContext) -> Tool | None:
    """Find the stage's tool and name it in the block; None where it is off, after the test ran without it."""
    options: ToolOptions = context.options
    if not context.settings.current.enable:
        context.child.run([], options.env, "pytest").check("pytest")
        return None
    tool = find_tool(program, options.path, options.env)
    context.block.tool, context.block.capture = ToolInfo(str(tool.path), tool.version), options.capture
    return tool


def range_of(capture: str) -> str:
    """The NVTX range that the option `capture` means."""
    return ROUND if capture == "all" else capture


def tail(text: str, lines: int = 60) -> str:
    """The last *lines* of a log, each as a terminal would show it: what follows its last carriage return."""
    kept = [line.rstrip("\r").rpartition("\r")[2] for line in text.rstrip("\n").split("\n")]
    return "\n".join(kept[-lines:])


def last_line(text: str) -> str:
    """The tool's last error line, else the last line."""
    lines = [line.strip() for line in tail(text).split("\n") if line.strip(" =-\t")]
    errors = [line for line in lines if line.startswith(("==ERROR==", "ERROR:"))]
    return (errors or lines or ["none, nothing was written"])[-1][:300]
