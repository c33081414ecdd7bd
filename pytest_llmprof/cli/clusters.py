"""Where `llmprof submit` runs its jobs, through the library submitit: Slurm, or processes of this machine."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from pytest_llmprof.errors import ConfigError, LlmprofError, error_line
from pytest_llmprof.text.escape import one_line

_WAITING = frozenset(
    ("CONFIGURING", "PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")
)
_GOING_ON = _WAITING | {"COMPLETING", "RESIZING", "RUNNING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"}
"""Slurm's states of jobs that have not ended."""
_MONTH_MIN = 31 * 24 * 60
_NOTICE_S = 30
"""So long before the end of a job's time Slurm sends SIGUSR2 (up to a minute earlier, says its manual)."""


class Cluster(Protocol):
    """Runs functions as jobs."""

    def submit(self, function: Callable[..., Any], *arguments: Any) -> str:
        """Start a job. Gives its id. Raises `LlmprofError` where it is refused."""

    def states(self, jobs: Iterable[str]) -> Mapping[str, str]:
        """The state of each of *jobs*, in the cluster's words; those that it has forgotten are left out.

        Raises `LlmprofError` where the cluster does not answer, which may pass.
        """

    def goes_on(self, state: str) -> bool:
        """Whether a job in this *state* has not ended."""

    def cancel(self, jobs: Iterable[str]) -> None:
        """End *jobs* in good order."""

    def log(self, job: str) -> Path:
        """What a job prints."""


def check(cluster: str) -> None:
    """Raise `ConfigError` where jobs cannot be started on *cluster* from here."""
    if importlib.util.find_spec("submitit") is None:
        raise ConfigError("llmprof submit needs the package submitit: pip install 'pytest-llmprof[slurm]'")
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise ConfigError("--cluster slurm: there is no program sbatch here: run it on a machine of the cluster")


def connect(cluster: str, folder: Path, options: Mapping[str, str | bool]) -> Cluster:
    """The cluster; its jobs write into *folder*. *options* are those of sbatch."""
    return _Slurm(folder, options) if cluster == "slurm" else _Local(folder)


class _Slurm:
    def __init__(self, folder: Path, options: Mapping[str, str | bool]) -> None:
        from submitit import SlurmExecutor

        self._executor = SlurmExecutor(folder)
        self._folder = folder
        # submitit's own default is a limit of 5 minutes; without one it is the partition's.
        self._executor.update_parameters(
            job_name="llmprof",
            time=None,
            signal_delay_s=_NOTICE_S,
            stderr_to_stdout=True,
            additional_parameters=dict(options),
        )

    def submit(self, function: Callable[..., Any], *arguments: Any) -> str:
        return _submitted(self._executor, function, *arguments)

    def states(self, jobs: Iterable[str]) -> Mapping[str, str]:
        command = ["squeue", "--noheader", "--states=all", "--format=%i %T", f"--jobs={','.join(jobs)}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LlmprofError(f"squeue does not answer: {error_line(error)}") from error
        if done.returncode and "Invalid job id" not in done.stderr:
            raise LlmprofError(f"squeue does not answer: {one_line(done.stderr)}")
        return dict(line.split(maxsplit=1) for line in done.stdout.splitlines())

    def goes_on(self, state: str) -> bool:
        return state in _GOING_ON

    def cancel(self, jobs: Iterable[str]) -> None:
        subprocess.run(["scancel", *jobs], capture_output=True, check=False)

    def log(self, job: str) -> Path:
        return self._folder / f"{job}_0_log.out"


class _Local:
    """Each job is a process of submitit's, whose id is the job's."""

    def __init__(self, folder: Path) -> None:
        from submitit import LocalExecutor

        self._executor = LocalExecutor(folder)
        self._folder = folder
        self._jobs: dict[str, Any] = {}
        self._executor.update_parameters(timeout_min=_MONTH_MIN, stderr_to_stdout=True)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> str:
        return _submitted(self._executor, function, *arguments, keep=self._jobs)

    def states(self, jobs: Iterable[str]) -> Mapping[str, str]:
        """An earlier command's jobs are not known any more."""
        return {job: self._jobs[job].state for job in jobs if job in self._jobs}

    def goes_on(self, state: str) -> bool:
        return state == "RUNNING"

    def cancel(self, jobs: Iterable[str]) -> None:
        for job in jobs:
            if not self._jobs[job].done():
                with suppress(ProcessLookupError):
                    os.kill(int(job), signal.SIGTERM)

    def log(self, job: str) -> Path:
        return self._folder / f"{job}_0_log.out"


def _submitted(executor: Any, function: Callable[..., Any], *arguments: Any, keep: dict[str, Any] | None = None) -> str:
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            job = executor.submit(function, *arguments)
    except (FailedJobError, FailedSubmissionError, OSError, subprocess.SubprocessError) as error:
        lines = [line for line in str(error).splitlines() if line.strip(" -")]
        sbatch = [line for line in lines if line.startswith("sbatch: ")]
        fatal = [line for line in sbatch if line.startswith("sbatch: fatal: ")]  # what the errors before it led to
        said = next(iter(fatal or sbatch or lines[-1:]), "")
        said = re.sub(r"^sbatch: (error: |fatal: )?", "", said)
        raise LlmprofError(f"the job was refused: {one_line(said)}") from error
    if keep is not None:
        keep[job.job_id] = job
    found: str = job.job_id
    return found
