"""How OpenMP's idle threads wait. Imports nothing, as it is for sessions that have not begun."""

from __future__ import annotations

from collections.abc import Collection, MutableMapping

SHORT_WAITS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
"""OpenMP's threads wait for one another a hundred times a token. By default they spin, for milliseconds, and where
other processes need the processors that keeps off the very thread that they wait for: a page took ten times as long.
PASSIVE lets them sleep. GNU's runtime (in torch's wheels) then spins for some 20 us first, which spares a quiet machine
most of the waking."""
_OF_THE_USER = (*SHORT_WAITS, "KMP_BLOCKTIME")


def shorten_waits(environ: MutableMapping[str, str], modules: Collection[str]) -> None:
    """Set `SHORT_WAITS` in *environ*, unless it has a wait already or torch, which reads them, is among *modules*."""
    if "torch" not in modules and not any(name in environ for name in _OF_THE_USER):
        environ.update(SHORT_WAITS)
