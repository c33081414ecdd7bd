"""CUPTI, the library through which torch.profiler sees the card: its one start in a process, what it complains
of, and its end.

Kineto (torch.profiler's tracer) tells the cause of a failed start on the standard error stream alone, and once a
process. Once started CUPTI stays, and makes every later launch slower, unless Kineto is told by the environment
variable TEARDOWN_CUPTI=1 to end it when a profile stops; it is then ended inside a later call into CUDA. Before CUDA
12.6 that breaks CUDA graphs, so there it is left alone, and so it is where the user has set the variable.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Cupti", "heard", "release", "synchronise", "why_no_kernels"]

_SWITCH = "TEARDOWN_CUPTI"
_NOISE = re.compile(r"^USDT:.*\n?", re.MULTILINE)
_ERROR = re.compile(r"CUPTI_ERROR_\w+(?: \(\d+\))?")
_ADVICE = {
    "CUPTI_ERROR_INSUFFICIENT_PRIVILEGES": "this user may not profile: run as root, or load the driver with "
    "NVreg_RestrictProfilingToAdminUsers=0",
    "CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED": "another profiler holds this process: run without nsys, ncu or "
    "any other user of CUPTI around it",
}
_ENDS_AFTER_S, _ENDS_WITHIN_S = 0.1, 1.0

_complaints: list[str] = []
"""What Kineto has said of CUPTI in this process. It speaks at the first start only, so later tests need it too."""


@contextmanager
def heard() -> Iterator[None]:
    """Listen to the process's standard error while the profiler starts or stops, and pass on what is no noise."""
    import sys

    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as stream:
        os.dup2(stream.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            stream.seek(0)
            text = _NOISE.sub("", stream.read().decode("utf-8", "replace"))
            _complaints.extend(line for line in text.splitlines() if "CUPTI" in line)
            if text:
                os.write(original, text.encode())
            os.close(original)


def why_no_kernels() -> str:
    """The reason, as far as it is known, why a trace of work on the card has no kernel in it."""
    said = " ".join(_complaints)
    errors = list(dict.fromkeys(_ERROR.findall(_without_links(said))))
    if errors:
        advice = [text for name, text in _ADVICE.items() if any(error.startswith(name) for error in errors)]
        return f"CUPTI could not start: {', '.join(errors)}" + "".join(f"; {text}" for text in advice)
    if said:
        return f"CUPTI said: {said[:300]}"
    return (
        "the profiler (CUPTI) recorded nothing on the card and gave no reason. Another profiler may hold it, or this "
        "user may not use it"
    )


def _without_links(said: str) -> str:
    # "If you see CUPTI_ERROR_INSUFFICIENT_PRIVILEGES, refer to ..." follows every error.
    return re.sub(r"If you see CUPTI_ERROR_\w+", "", said)


def synchronise(device: str) -> None:
    """Wait for the card; nothing on a CPU."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(torch.device(device))


def release(profiler: Any) -> None:
    """Free a torch profiler and its events, which are hundreds of megabytes.

    It refers to itself in a circle: left alone it stays until Python's next full collection, which then frees it for
    half a second inside whatever is measured at that time.
    """
    vars(profiler).clear()


class Cupti:
    """CUPTI for one stage on one device: `load` before the profiled window, `unload` after it.

    On a CPU both run the profiler once on next to nothing, and there is nothing to end.
    """

    def __init__(self, device: str, profiler: Callable[[], Any]) -> None:
        self._device = device
        self._profiler = profiler
        self.ends = device.startswith("cuda") and _SWITCH not in os.environ and _can_end()
        """Whether `unload` ends it."""

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Kineto reads the variable when a profile starts (to begin anew after an end) and when it stops."""
        if self.ends:
            os.environ[_SWITCH] = "1"
        try:
            yield
        finally:
            if self.ends:
                del os.environ[_SWITCH]

    def load(self) -> None:
        """Pay the profiler's first start (seconds on CUDA) on one discarded operation."""
        import torch

        with heard():
            profiler = self._profiler()
            with self._ending():
                profiler.start()
            torch.ones(8, device=self._device).sum()
            synchronise(self._device)
            profiler.stop()
        release(profiler)

    def unload(self) -> None:
        """End CUPTI, so that what runs later in this process is as fast as before."""
        if not self.ends:
            return
        with heard():
            profiler = self._profiler()
            profiler.start()
            threads = _threads()
            with self._ending():
                profiler.stop()
                # Its end comes inside a call into CUDA, once a thread of Kineto's own has asked for it. That thread
                # looks at the variable again when all is done: were it gone by then, CUPTI would begin anew.
                begin = time.perf_counter()
                while (waited := time.perf_counter() - begin) < _ENDS_WITHIN_S:
                    synchronise(self._device)
                    time.sleep(0.002)
                    if waited > _ENDS_AFTER_S and _threads() <= threads:
                        break
        release(profiler)


def _threads() -> int:
    """How many threads the process has, those of libraries too; 0 where the system does not tell."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 0


def _can_end() -> bool:
    import torch

    version = torch.version.cuda
    return version is not None and tuple(int(part) for part in version.split(".")[:2]) >= (12, 6)
