"""Start and end CUPTI, the library through which torch.profiler records the GPU, and read its error messages.

kineto (torch.profiler's tracer) prints why a start failed to standard error only, and once a process. Once started,
CUPTI stays and slows down every later launch, unless the environment variable TEARDOWN_CUPTI=1 makes kineto end it
when a profile stops; it then ends inside a later call into CUDA. Before CUDA 12.6 that breaks CUDA graphs, so there it
is not ended, nor where the user has set the variable.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_TEARDOWN = "TEARDOWN_CUPTI"
_IGNORED = re.compile(r"^USDT:.*\n?", re.MULTILINE)
_ERROR = re.compile(r"CUPTI_ERROR_\w+(?: \(\d+\))?")
_ADVICE = {
    "CUPTI_ERROR_INSUFFICIENT_PRIVILEGES": "this user may not profile: run as root, or load the driver with "
    "NVreg_RestrictProfilingToAdminUsers=0",
    "CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED": "another profiler holds this process: run it without "
    "Nsight tools or any other user of CUPTI around it",
}
_ENDS_AFTER_S, _ENDS_WITHIN_S = 0.1, 1.0

_messages: list[str] = []
"""kineto's lines on CUPTI in this process. It prints them at the first start only, but later tests need them too."""


@contextmanager
def capture_messages() -> Iterator[None]:
    """Read the process's standard error while the profiler starts or stops, and print it again but for USDT lines."""
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
            text = _IGNORED.sub("", stream.read().decode("utf-8", "replace"))
            _messages.extend(line for line in text.splitlines() if "CUPTI" in line)
            if text:
                os.write(original, text.encode())
            os.close(original)


def missing_kernels_reason() -> str:
    """Why a trace of work on the GPU has no kernel in it, as far as it is known."""
    printed = " ".join(_messages)
    # "If you see CUPTI_ERROR_INSUFFICIENT_PRIVILEGES, refer to ..." follows every error.
    errors = list(dict.fromkeys(_ERROR.findall(re.sub(r"If you see CUPTI_ERROR_\w+", "", printed))))
    if errors:
        advice = [text for name, text in _ADVICE.items() if any(error.startswith(name) for error in errors)]
        return f"CUPTI could not start: {', '.join(errors)}" + "".join(f"; {text}" for text in advice)
    if printed:
        return f"CUPTI printed: {printed[:300]}"
    return (
        "the profiler (CUPTI) recorded nothing on the GPU and gave no reason. Another profiler may hold it, or this "
        "user may not use it"
    )


def synchronise(device: str) -> None:
    """Wait for the GPU; nothing on a CPU."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(torch.device(device))


def free_profiler(profiler: Any) -> None:
    """Free a torch profiler and its events, which are hundreds of megabytes.

    It refers to itself in a circle, so only Python's next full collection would free it, which takes half a second
    of whatever is measured at that time.
    """
    vars(profiler).clear()


class Cupti:
    """CUPTI for one stage on one device: `load` before the profiled window, `unload` after it.

    On a CPU `load` starts the profiler once and `unload` does nothing.
    """

    def __init__(self, device: str, profiler: Callable[[], Any]) -> None:
        self._device = device
        self._profiler = profiler
        self.ends = device.startswith("cuda") and _TEARDOWN not in os.environ and _can_end()
        """Whether `unload` ends it."""

    @contextmanager
    def _teardown(self) -> Iterator[None]:
        """kineto reads the variable when a profile starts (to start CUPTI again after an end) and when it stops."""
        if self.ends:
            os.environ[_TEARDOWN] = "1"
        try:
            yield
        finally:
            if self.ends:
                del os.environ[_TEARDOWN]

    def load(self) -> None:
        """Pay the profiler's first start (seconds on CUDA) on one discarded operation."""
        import torch

        with capture_messages():
            profiler = self._profiler()
            with self._teardown():
                profiler.start()
            torch.ones(8, device=self._device).sum()
            synchronise(self._device)
            profiler.stop()
        free_profiler(profiler)

    def unload(self) -> None:
        """End CUPTI, so that what runs later in this process is as fast as before."""
        if not self.ends:
            return
        with capture_messages():
            profiler = self._profiler()
            profiler.start()
            threads = _threads()
            with self._teardown():
                profiler.stop()
                # CUPTI ends inside a call into CUDA, once a thread of kineto's has asked for it. That thread reads the
                # variable again afterwards: without it, CUPTI would start again.
                begin = time.perf_counter()
                while (waited := time.perf_counter() - begin) < _ENDS_WITHIN_S:
                    synchronise(self._device)
                    time.sleep(0.002)
                    if waited > _ENDS_AFTER_S and _threads() <= threads:
                        break
        free_profiler(profiler)


def _threads() -> int:
    """The number of threads of the process, those of libraries included; 0 where it is unknown."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 0


def _can_end() -> bool:
    import torch

    version = torch.version.cuda
    return version is not None and tuple(int(part) for part in version.split(".")[:2]) >= (12, 6)
