"""What a call into the CUDA (or HIP) runtime does, and which way a copy goes, by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

__all__ = ["GRAPH_LAUNCH", "LAUNCH", "PLAIN_COPY", "SYNCHRONISE", "copy_direction", "matching"]

LAUNCH = re.compile(r"(cuda|hip|cu)\w*Launch(?!HostFunc)")
"""Hands a kernel or a whole graph to the card: cudaLaunchKernel(ExC), cuLaunchKernel(Ex), cudaGraphLaunch."""
GRAPH_LAUNCH = re.compile(r"(cuda|hip|cu)GraphLaunch")
SYNCHRONISE = re.compile(r"(cuda|hip|cu|cuCtx|cuStream|cuEvent)\w*Synchronize")
"""Waits for the card: cudaStreamSynchronize, cudaDeviceSynchronize, cudaEventSynchronize and their kin."""
PLAIN_COPY = re.compile(r"(cuda|hip|cu)Memcpy(?!.*Async)")
"""A copy that returns when it is done."""

_DIRECTION = re.compile(r"\b([HDAP])to([HDAP])\b|(Host|Device)To(Host|Device)", re.IGNORECASE)


def matching(names: Iterable[str], pattern: re.Pattern[str]) -> npt.NDArray[np.bool_]:
    """Which of *names* begin with *pattern*."""
    return np.array([pattern.match(name) is not None for name in names], dtype=bool)


def copy_direction(name: str) -> str:
    """The way of a copy called *name* ("Memcpy DtoH (Device -> Pageable)"): HtoD, DtoH, DtoD ... or other."""
    found = _DIRECTION.search(name)
    if found is None:
        return "other"
    source, target = (found[1], found[2]) if found[1] else (found[3][0], found[4][0])
    return f"{source.upper()}to{target.upper()}"
