"""NVIDIA's command line tools: where they lie, which version they are, and their log files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_llmprof.errors import StageError

__all__ = ["Tool", "check_tool_options", "find_tool", "tail"]

_RANGE = re.compile(r"[A-Za-z_][\w.-]*")

_PLACES = {
    "nsys": (
        "/opt/nvidia/nsight-systems/*/bin/nsys",
        "/opt/nvidia/nsight-systems/*/target-linux-x64/nsys",
        "/opt/nvidia/nsight-compute/*/host/target-linux-x64/nsys",
        "/usr/local/cuda*/bin/nsys",
    ),
    "ncu": ("/opt/nvidia/nsight-compute/*/ncu", "/usr/local/cuda*/bin/ncu"),
}
_NAMES = {"nsys": "Nsight Systems", "ncu": "Nsight Compute"}
_LEAST = {"nsys": (2022, 4), "ncu": (2022, 3)}
"""The oldest versions whose options are all there."""
_VERSION = re.compile(r"\bVersion\s+(\d{4}(?:\.\d+)+)", re.IGNORECASE)


@dataclass(frozen=True)
class Tool:
    """One program."""

    name: str
    path: Path
    version: str
    """As it says itself, "2025.3.1"."""
    env: Mapping[str, str]
    """Environment of the tool and of what runs under it."""


def _usual_places(name: str) -> Iterator[Path]:
    """What the usual places hold, the newest version of each first."""
    for pattern in _PLACES[name]:
        found = Path("/").glob(pattern.removeprefix("/"))
        yield from sorted(found, key=lambda path: [int(part) for part in re.findall(r"\d+", str(path))], reverse=True)


def _find(name: str, given: str | None) -> Path:
    key = f"pipeline.{name}.path"
    if given is not None:
        wanted = str(Path(given).expanduser())
        found = shutil.which(wanted)
        if found is None:
            there = "is not a program that can be run" if Path(wanted).exists() else "does not exist"
            if "/" not in wanted:
                there = "is not on PATH"
            raise StageError(f"{key}={given} {there}: name the program {name} of {_NAMES[name]}")
        return Path(found)
    on_path = shutil.which(name)
    if on_path is not None:
        return Path(on_path)
    for path in _usual_places(name):
        if path.is_file() and os.access(path, os.X_OK):
            return path
    raise StageError(
        f"the program {name} ({_NAMES[name]}) was not found on PATH or in {', '.join(_PLACES[name])}: "
        f"install it, or name it with --llmprof-override {key}=/path/to/{name}"
    )


def find_tool(name: str, given: str | None, env: Mapping[str, str]) -> Tool:
    """Find nsys or ncu: *given* (a path or name), else on PATH, else in the usual places; ask its version.

    Raises `StageError` where it is not there, cannot be run, is another program, or is too old.
    """
    path = _find(name, given)
    try:
        done = subprocess.run(
            [str(path), "--version"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            check=False,
            env={**os.environ, **env},
        )
    except OSError as error:
        raise StageError(f"{path} cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        raise StageError(f"{path} --version gave no answer in 60 s") from None
    text = done.stdout + done.stderr
    said = " ".join(text.split())[:300] or "nothing"
    if done.returncode:
        raise StageError(
            f"{path} --version ended with exit code {done.returncode} and said: {said} "
            f"(a missing library can be named with pipeline.{name}.env={{LD_LIBRARY_PATH: /path}})"
        )
    match = _VERSION.search(text)
    if match is None or (_NAMES[name] not in text and name not in text.lower()):
        raise StageError(f"{path} is not {_NAMES[name]}: --version said: {said}")
    least = _LEAST[name]
    if tuple(int(part) for part in match[1].split(".")[:2]) < least:
        raise StageError(
            f"{path} is {_NAMES[name]} {match[1]}; at least {'.'.join(map(str, least))} is needed: install a newer "
            f"one, or name it with pipeline.{name}.path"
        )
    return Tool(name, path, match[1], dict(env))


def tail(text: str, lines: int = 60) -> str:
    """The last *lines* of a log, each as a terminal would have left it: what follows its last carriage return."""
    kept = [line.rstrip("\r").rpartition("\r")[2] for line in text.rstrip("\n").split("\n")]
    return "\n".join(kept[-lines:])


def check_tool_options(options: Any) -> Iterator[tuple[str, object, str]]:
    """Yield (key below the stage's block, value, what is allowed) for each shared option out of range."""
    if not _RANGE.fullmatch(options.capture):
        yield "capture", options.capture, "all, or the name of one NVTX range (prefill, decode, step, vision, ...)"
    if options.path is not None and "/" in options.path and not options.path.startswith(("/", "~/")):
        yield "path", options.path, "an absolute path, a program's name, or null"
    if not options.timeout_s > 0:  # nan too
        yield "timeout_s", options.timeout_s, "a number > 0"
    for name in options.env:
        if not name or "=" in name:
            yield "env", name, "a block of NAME: VALUE"
