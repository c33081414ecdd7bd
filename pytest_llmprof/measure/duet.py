"""Two processes that measure at the same time: each round of one begins with the same round of the other.

What slows a shared machine for a while then slows both, and their ratio stays. The idea and the name are those of Bulej
et al. 2020, "Duet Benchmarking: Improving Measurement Accuracy in the Cloud", ICPE '20.
"""

from __future__ import annotations

import json
import os
import socket

from pytest_llmprof.errors import StageError

VARIABLE = "LLMPROF_DUET"
"""`SOCKET,PLACE`: the number of an inherited socket, whose other end the other process has; 0 for one, 1 for the other."""
PATIENCE_S = 120.0
"""How long one waits for the other: loading and the warm-up of the same test do not differ by more."""


class Duet:
    """The connection to the process that measures beside this one."""

    def __init__(self, connection: socket.socket, place: int) -> None:
        self._connection, self._place = connection, place
        usable = sorted(os.sched_getaffinity(0))
        self._halves = set(usable[: len(usable) // 2]), set(usable[len(usable) // 2 :])
        self._connection.settimeout(PATIENCE_S)
        self._kept = b""

    @classmethod
    def from_environment(cls) -> Duet | None:
        """The connection that this process was started with; None where it measures alone.

        Raises `StageError` where the variable names no open socket.
        """
        text = os.environ.get(VARIABLE)
        if not text:
            return None
        try:
            number, place = map(int, text.split(","))
            return cls(socket.socket(fileno=os.dup(number)), place)
        except (ValueError, OSError) as error:
            raise StageError(f"{VARIABLE}={text} names no open socket: `llmprof ab --duet` sets it") from error

    def round(self, index: int) -> None:
        """Begin round *index* when the other process does, on the half of the processors that is this one's turn.

        The halves change with each round, as one may be faster than the other for minutes.
        """
        half = self._halves[(self._place + index) % 2]
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), half)
        self.meet(f"round {index}")

    def meet(self, point: str) -> None:
        """Return when the other process has come to *point*, too. Raises `StageError` where it does not."""
        try:
            self._connection.sendall(json.dumps(point).encode() + b"\n")
            while b"\n" not in self._kept:
                if not (data := self._connection.recv(1 << 12)):
                    raise StageError(f"the process beside this one ended before {point}")
                self._kept += data
        except TimeoutError:
            raise StageError(f"the process beside this one did not come to {point} in {PATIENCE_S:.0f} s") from None
        except ConnectionError as error:
            raise StageError(f"the process beside this one ended before {point}") from error
        line, self._kept = self._kept.split(b"\n", 1)
        if (found := json.loads(line)) != point:
            raise StageError(f"this process came to {point}, the one beside it to {found}: both must run the same rounds")
