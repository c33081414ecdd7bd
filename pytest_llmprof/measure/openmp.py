"""How OpenMP's idle threads wait. Imports little, as it is for sessions that have not begun."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, MutableMapping
from pathlib import Path

SHORT_WAITS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
"""OpenMP's threads wait for one another a hundred times a token. By default they spin, for milliseconds, and where
other processes need the processors that keeps off the very thread that they wait for: a page took ten times as long.
PASSIVE lets them sleep, in GNU's runtime (in torch's wheels) after a spin of some 20 us. Waking them costs a quiet
machine about a tenth of a page, so these are for busy ones alone."""
LOADAVG = Path("/proc/loadavg")
_OF_THE_USER = (*SHORT_WAITS, "KMP_BLOCKTIME")
_LOOKS, _BETWEEN_S = 6, 0.004
"""A process that just ends is no load, so each look must find one."""


def shorten_waits(environ: MutableMapping[str, str], modules: Collection[str], busy: Callable[[], bool]) -> None:
    """Set `SHORT_WAITS` in *environ* where the host is *busy*.

    Nothing is set where *environ* has a wait already, or where torch, which reads it, is among *modules*.
    """
    if "torch" not in modules and not any(name in environ for name in _OF_THE_USER) and busy():
        environ.update(SHORT_WAITS)


def host_is_busy() -> bool:
    """Whether other threads run on half of the processors or more (Linux; elsewhere False), now and 20 ms later."""
    least = max(1, (os.cpu_count() or 1) // 2)
    for look in range(_LOOKS):
        if look:
            time.sleep(_BETWEEN_S)
        if _running_threads() - 1 < least:
            return False
    return True


def _running_threads() -> int:
    """Threads of all processes that run or could run, this one included."""
    try:
        return int(LOADAVG.read_text(encoding="ascii").split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        return 0
