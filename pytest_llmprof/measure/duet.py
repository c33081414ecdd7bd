"""Two processes that measure beside each other: on a CPU each round of both at the same time, on a GPU in turns.

What slows a shared machine for a while then slows both, and their ratio stays. The idea and the name are those of Bulej
et al. 2020, "Duet Benchmarking: Improving Measurement Accuracy in the Cloud", ICPE '20 (arXiv 2001.05811). A GPU cannot
be halved like the processors of a CPU. There one process waits while the other measures a round.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, MutableMapping
from contextlib import suppress
from pathlib import Path

from pytest_llmprof.errors import ConfigError, StageError

VARIABLE = "LLMPROF_DUET"
"""`SOCKET,PLACE`: the number of an inherited socket, whose other end the other process has, and 0 or 1: which of the
two processes this is."""
OTHER = "the process beside this one"
"""Errors that the other process has caused begin with this."""
HELLO_S = 30.0
"""How long one waits for the other's hello, which it sends before it imports much; an older version never does."""
_HELLO = "hello, this is a duet"


class Duet:
    """The connection to the process that measures beside this one."""

    def __init__(self, connection: socket.socket, place: int) -> None:
        usable = os.sched_getaffinity(0)
        self.processors = len(usable)
        """Those of both processes."""
        self._halves = halves(usable)
        self._connection, self._place = connection, place
        self._awaited: str | None = None
        """What the other process waits for: the end of this one's round."""
        self._last: str | None = None
        """The end of the last round, where both meet: until then one would disturb the other by what it does next."""
        self._broken: str | None = None
        self._kept = b""
        self._say(_HELLO)

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> Duet | None:
        """The connection that this process was started with, once; None where it measures alone.

        Takes the variable out of *environ*, as children of this process have no part in it. Raises `ConfigError` where
        it names no open socket.
        """
        text = environ.pop(VARIABLE, None)
        if text is None:
            return None
        try:
            number, place = map(int, text.split(","))
            os.set_inheritable(number, False)
            return cls(socket.socket(fileno=number), place)
        except (ValueError, OverflowError, OSError) as error:
            raise ConfigError(f"{VARIABLE}={text} names no open socket: `llmprof ab --duet` sets it") from error

    def greet(self, patience: float = HELLO_S) -> None:
        """Wait for the other's hello. Raises `ConfigError` where none comes in *patience* seconds."""
        try:
            heard = self._hear(patience)
        except TimeoutError:
            self._leave(f"{OTHER} did not say hello in {patience:g} s: its pytest-llmprof is older than --duet")
        else:
            if heard is None:
                self._leave(f"{OTHER} ended without a hello: it failed, or its pytest-llmprof is older than --duet")
            elif heard != _line(_HELLO):
                self._leave(f"{OTHER} said {_shown(heard)}: both must have the same version of pytest-llmprof's --duet")
        if self._broken is not None:
            raise ConfigError(self._broken)

    def begin_round(self, test: str, number: int, rounds: int, device: str) -> None:
        """Begin round *number* (from 1) of *rounds* on *device*, "cpu" or a GPU, when the other process has come to it.

        On a CPU both begin at once, each on one half of the processors. The halves change with each round, as one may
        be faster than the other for minutes. On a GPU one measures its round while the other waits; the one that is
        first changes with each round. Raises `StageError` where the other process has ended, failed or has come to
        something else, and from then on.
        """
        at_once = device == "cpu"
        point = f"round {number} of {rounds} of {test}{'' if at_once else ' on a GPU'}"
        turn = (self._place + number - 1) % 2
        self._meet(point, f"{OTHER} ended or failed before {point}")
        if at_once:
            self._keep_to(self._halves[turn])
            return
        end = f"the end of {point}"
        if turn == 0:
            self._awaited = end
        else:
            self._expect(end, f"{OTHER} ended or failed in {point}")
        self._last = f"{end} by both" if number == rounds else None

    def end_round(self) -> None:
        """End the round that `begin_round` began: on a GPU the other process may begin, and after the last round both
        go on together. Raises `StageError` as `begin_round` does."""
        if self._awaited is not None:
            self._say(self._awaited)
            self._awaited = None
        if self._last is not None:
            last, self._last = self._last, None
            self._meet(last, f"{OTHER} ended or failed before {last}")

    def _meet(self, point: str, ended: str) -> None:
        """Say that this process has come to *point*, and wait until the other one has."""
        if self._broken is None:
            self._say(point)
        self._expect(point, ended)

    def _expect(self, point: str, ended: str) -> None:
        """Wait until the other process says *point*. Raises `StageError` where it ends (*ended*) or says another."""
        if self._broken is None:
            heard = self._hear(None)
            if heard is None:
                self._leave(ended)
            elif heard != _line(point):
                self._leave(f"{OTHER} came to {_shown(heard)}, this one to {point}: both must run the same rounds")
        if self._broken is not None:
            raise StageError(self._broken)

    def leave(self) -> None:
        """Let the other process know that this one goes no further."""
        self._leave("this process has left its duet, as a test before this one failed")

    def _leave(self, why: str) -> None:
        if self._broken is None:
            self._broken = why
            self._connection.close()

    def _say(self, text: str) -> None:
        with suppress(ConnectionError):  # what the other process said before it ended is read next
            self._connection.sendall(_line(text) + b"\n")

    def _hear(self, patience: float | None) -> bytes | None:
        """The other's next line; None where it has ended. Raises `TimeoutError` after *patience* seconds."""
        self._connection.settimeout(patience)
        while b"\n" not in self._kept:
            try:
                data = self._connection.recv(1 << 12)
            except ConnectionError:
                data = b""
            if not data:
                return None
            self._kept += data
        line, self._kept = self._kept.split(b"\n", 1)
        return line

    def _keep_to(self, processors: frozenset[int]) -> None:
        try:
            for thread in os.listdir("/proc/self/task"):
                with suppress(ProcessLookupError):  # it has ended
                    os.sched_setaffinity(int(thread), processors)
        except OSError as error:
            raise StageError(f"cannot keep to the processors {sorted(processors)}: {error.strerror}") from error


def _line(text: str) -> bytes:
    return json.dumps(text).encode()


def _shown(line: bytes) -> str:
    return line.decode(errors="backslashreplace").strip('"')


def halves(processors: Iterable[int]) -> tuple[frozenset[int], frozenset[int]]:
    """*processors* in two halves of the same size. An odd one is left out; threads of one core stay together."""
    ordered = sorted(processors, key=lambda one: (_core(one), one))
    size = len(ordered) // 2
    return frozenset(ordered[:size]), frozenset(ordered[size : 2 * size])


def _core(processor: int) -> int:
    """The first thread of the processor's core; itself where that is not known."""
    path = Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list")
    try:
        return int(path.read_text(encoding="ascii").replace("-", ",").split(",")[0])
    except (OSError, ValueError):
        return processor
