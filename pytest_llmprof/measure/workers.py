"""What a worker of pytest-xdist is given on its host: a GPU and threads. It travels in environment variables, which
the children that a worker starts under a tool get too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_llmprof.measure.visible_gpus import VARIABLE
from pytest_llmprof.records.environment import Workers

_COUNT, _ON_GPU = "LLMPROF_WORKERS", "LLMPROF_WORKERS_ON_GPU"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables by which a user chooses torch's threads on the CPU."""


@dataclass(frozen=True)
class WorkerShare:
    """What one worker has of its host."""

    workers: Workers
    gpu: str | None
    """Its GPU, as CUDA_VISIBLE_DEVICES names it; None where there is none to give."""
    threads: int | None
    """Threads of torch on the CPU; None where the user has chosen."""

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that say so."""
        found = {_COUNT: str(self.workers.count), _ON_GPU: str(self.workers.on_gpu or "")}
        if self.gpu is not None:
            found[VARIABLE] = self.gpu
        if self.threads is not None:
            found[THREADS[0]] = str(self.threads)
        return found


def shares(count: int, gpus: Sequence[str], processors: int, environ: Mapping[str, str]) -> list[WorkerShare]:
    """The shares of *count* workers: the *gpus* in turn, and of the *processors* equal parts, of which each gets one
    at least. Threads that *environ* has chosen stay."""
    chosen = any(environ.get(name) for name in THREADS)
    found = []
    for index in range(count):
        place = index % len(gpus) if gpus else 0
        on_gpu = len(range(place, count, len(gpus))) if gpus else None
        threads = None if chosen else max(1, processors // count)
        found.append(WorkerShare(Workers(count, on_gpu), gpus[place] if gpus else None, threads))
    return found


def this_worker(environ: Mapping[str, str]) -> Workers | None:
    """What *environ* says of this process; None where it is no worker of this host."""
    count, on_gpu = environ.get(_COUNT, ""), environ.get(_ON_GPU, "")
    if not count.isdecimal():
        return None
    return Workers(int(count), int(on_gpu) if on_gpu.isdecimal() else None)
