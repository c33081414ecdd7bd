"""`llmprof ab --duet`: the processes of a pair beside each other. `measure/duet.py` keeps their rounds together."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pytest_llmprof.cli.processes import BAD_INPUT, ProcessFailed, Side, end_groups, start, uninterrupted
from pytest_llmprof.compare.alternate import OutOfTime
from pytest_llmprof.errors import ConfigError
from pytest_llmprof.measure.duet import OTHER, VARIABLE
from pytest_llmprof.measure.host import usable_processors
from pytest_llmprof.measure.openmp import shorten_waits
from pytest_llmprof.measure.workers import THREADS, shares
from pytest_llmprof.records.baseline import SavedRun

LAST_WORDS_S = 5.0
"""For what the other process of a pair has to say after one has failed: it may know why."""
_LOOK_S = 0.05


def check_machine(environ: Mapping[str, str]) -> None:
    """Raise `ConfigError` where two processes cannot have half of the processors each, or would use more of them."""
    if not hasattr(os, "sched_setaffinity"):
        raise ConfigError("--duet: this system cannot keep a process to some of its processors (Linux can)")
    if usable_processors() < 2:
        raise ConfigError("--duet needs 2 processors, one for each side, and this process may use 1")
    half = usable_processors() // 2
    for name in THREADS:
        chosen = environ.get(name, "")
        first = chosen.partition(",")[0].strip()  # OpenMP takes a list, for nested threads
        if chosen and not (first.isascii() and first.isdecimal() and 0 < int(first[:9]) <= half):
            raise ConfigError(f"--duet: {name}={chosen}, but each side has {half} of the processors: leave it out")


def for_duet(side: Side) -> Side:
    """The side with threads for its half of the processors; those that the user has chosen stay."""
    environment = dict(side.environment)
    threads = shares(2, (), usable_processors(), environment)[0].threads
    if threads is not None:
        environment[THREADS[0]] = str(threads)
    shorten_waits(environment, (), lambda: True)  # both alike; each by itself may find the host busy or not
    return replace(side, environment=environment)


def measure_both(sides: Sequence[Side], out: Path, number: int, seconds: float) -> list[SavedRun]:
    """Run the processes *number* and *number* + 1 of the job at the same time, one of each of the two *sides*.

    Raises `ProcessFailed` where one did not end well, `OutOfTime` where they took too long. However this ends, nothing
    of their groups is left.
    """
    processes: list[subprocess.Popen[bytes]] = []
    ends = socket.socketpair()
    try:
        for place, (side, end) in enumerate(zip(sides, ends, strict=True)):
            command, log = side.command(out, number + place)
            environment = {**side.environment, VARIABLE: f"{end.fileno()},{place}"}
            with uninterrupted():
                processes.append(start(command, log, cwd=side.cwd, environment=environment, sockets=[end.fileno()]))
        for end in ends:  # each process sees its socket end with the other process
            end.close()
        ended = _wait_for(processes, seconds)
    finally:
        for end in ends:
            end.close()
        end_groups(*processes)
    found: dict[int, SavedRun] = {}
    caused_by_other: list[ProcessFailed] = []
    for place in ended:
        try:
            found[place] = sides[place].read(out, number + place, processes[place].returncode)
        except ProcessFailed as error:
            if OTHER not in str(error):
                raise
            text = str(error).replace(OTHER, f"side {sides[1 - place].letter}")
            caused_by_other.append(ProcessFailed(text, error.code, error.tail))
    if caused_by_other:
        raise caused_by_other[0]
    runs = [found[place] for place in range(len(sides))]
    for place, run in enumerate(runs):
        if not any(test.duet for test in run.tests):
            where = f"{sides[place].letter}, process {number + place}"
            raise ProcessFailed(f"{where} measured alone: its pytest-llmprof is older than --duet", BAD_INPUT)
    return runs


def _wait_for(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> list[int]:
    """Wait for all of *processes*, or for one that fails and then for a moment. Gives those that ended, in that order.

    Raises `OutOfTime` after *seconds*.
    """
    ended: list[int] = []
    deadline, failed = time.monotonic() + seconds, False
    while True:
        for place, process in enumerate(processes):
            if place not in ended and process.poll() is not None:
                ended.append(place)
                if process.returncode and not failed:
                    deadline, failed = min(deadline, time.monotonic() + LAST_WORDS_S), True
        if len(ended) == len(processes):
            return ended
        if time.monotonic() > deadline:
            if failed:
                return ended
            raise OutOfTime
        time.sleep(_LOOK_S)
