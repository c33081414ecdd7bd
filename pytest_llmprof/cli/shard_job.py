"""What runs in a job of `llmprof submit`: pytest on one shard. Called on the cluster's machine."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from types import FrameType

from pytest_llmprof.records.files import write_json
from pytest_llmprof.records.run import Process
from pytest_llmprof.records.submission import ShardJob

JOB = "job.json"
RUN = "run"
_PATIENCE_S = 3.0
"""A cluster that ends a job signals all its processes, pytest too: it gets a signal from here only where it goes on."""
_PR_SET_PDEATHSIG = 1
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
"""Those with which clusters announce a job's end (submitit asks Slurm for SIGUSR2)."""


def run_shard(arguments: Sequence[str], place: str, directory: str, environment: Mapping[str, str | None]) -> int:
    """Run pytest with *arguments* in *directory*. Gives its exit code.

    Its run directory is `run` in a new directory of *place*, as a cluster may start a job again. *environment* holds
    variables to set, and those to remove (None).
    """
    attempt = _new_attempt(Path(place))
    job = ShardJob(process=Process.this())
    write_json(attempt / JOB, job)
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    asked: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        print(f"llmprof: {signal.Signals(number).name}: this job is to end", file=sys.stderr, flush=True)
        asked.append(number)
        job.signal = job.signal or signal.Signals(number).name

    known = {one: signal.signal(one, end) for one in _SIGNALS}
    command = [sys.executable, "-m", "pytest", *arguments, f"--llmprof-run-dir={attempt / RUN}"]
    process = subprocess.Popen(command, cwd=directory, stdin=subprocess.DEVNULL, preexec_fn=_prepare)
    while job.code is None:
        try:
            job.code = process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            if asked:
                asked.clear()
                process.terminate()
    write_json(attempt / JOB, job)
    for one, handler in known.items():
        signal.signal(one, handler)
    return job.code


def _new_attempt(place: Path) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        path = place / f"attempt-{number}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise AssertionError("there is always a next number")


def _prepare() -> None:
    """In the new process: it ends with its parent, and leaves SIGUSR2, which would kill it, to that."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
