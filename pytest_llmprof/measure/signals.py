"""Signals: sent to a whole group of processes, and held back while something must not be interrupted."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def signal_group(group: int, number: signal.Signals) -> None:
    """Send a signal to all processes of a group."""
    with suppress(ProcessLookupError):  # all of it has ended
        os.killpg(group, number)


@contextmanager
def held_back(*numbers: signal.Signals) -> Iterator[None]:
    """Hold these signals back until the block has ended; the first that came is then handled. One that is ignored stays
    so, as SIGHUP under nohup."""
    came: list[int] = []
    handlers = {}
    try:
        if threading.current_thread() is threading.main_thread():  # no other gets them
            for number in numbers:
                if signal.getsignal(number) not in (None, signal.SIG_IGN):  # None: not Python's
                    handlers[number] = signal.signal(number, lambda number, frame: came.append(number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
