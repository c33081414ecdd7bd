"""Classify calls into the CUDA (or HIP) runtime, and copies, by their names."""

from __future__ import annotations

import re

LAUNCH = re.compile(r"(cuda|hip|cu)\w*Launch(?!HostFunc)")
"""Launches a kernel or a whole graph: cudaLaunchKernel(ExC), cuLaunchKernel(Ex), cudaGraphLaunch."""
GRAPH_LAUNCH = re.compile(r"(cuda|hip|cu)GraphLaunch")
SYNCHRONISE = re.compile(r"(cuda|hip|cu|cuCtx|cuStream|cuEvent)\w*Synchronize")
"""Waits for the GPU: cudaStreamSynchronize, cudaDeviceSynchronize, cudaEventSynchronize ..."""
PLAIN_COPY = re.compile(r"(cuda|hip|cu)Memcpy(?!.*Async)")
"""A copy that is not asynchronous: it returns when it is done."""

_DIRECTION = re.compile(r"\b([HDAP])to([HDAP])\b|(Host|Device)To(Host|Device)", re.IGNORECASE)


def copy_direction(name: str) -> str:
    """The direction of a copy called *name* ("Memcpy DtoH (Device -> Pageable)"): HtoD, DtoH, DtoD ... or other."""
    found = _DIRECTION.search(name)
    if found is None:
        return "other"
    source, target = (found[1], found[2]) if found[1] else (found[3][0], found[4][0])
    return f"{source.upper()}to{target.upper()}"
