"""Runs pytest in forked processes, each with one fault: started once, so that a run costs no import of torch. Workers
of pytest-xdist are forks, too: children of their controller.

A request is a line of JSON on standard input: cwd, args, fault, log, timeout. The answer is the exit status, negative
for a signal. The file <log>.count has the number of moments at which the fault could have come.

A moment is an operation on files below cwd (an audit event), or with "lines" a line of the plugin's own code at the
begin and the end of a session. Faults: {"signal": N, "at": moment}, {"errno": N, "at": moment, "for": moments},
{"signal": N, "after": seconds}, with "worker": K for that worker of pytest-xdist alone, {"tmpdir": directory for
temporary files}, {}.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import cpuinfo
import psutil
import pytest
from execnet import gateway_io
from execnet.gateway_base import Popen2IO

_EVENTS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod"}
_LINES = ("run/directory.py", "plugin/results.py", "plugin/manager.py", "records/files.py", "plugin/benchmark_sink.py")
"""Files of the plugin whose lines are moments, where the fault says "lines"."""
_LEFT_OUT = ("test_it.py", "conftest.py", ".pyc", ".png", "pytest.ini")


class Spare:
    """A process that waits to be a worker of pytest-xdist, with what of `subprocess.Popen` execnet needs."""

    def __init__(self) -> None:
        read, sent = os.pipe()
        answers, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(read, 0)
            os.dup2(write, 1)
            os.closerange(3, 256)
            wanted = select.poll()
            wanted.register(0, select.POLLIN)
            if wanted.poll()[0][1] & select.POLLIN:  # else the controller has ended without it
                sys.argv = ["-c"]
                with suppress(SystemExit):
                    exec(gateway_io.popen_bootstrapline, {"__name__": "__main__"})
            os._exit(0)
        os.close(read)
        os.close(write)
        self.stdin, self.stdout = os.fdopen(sent, "wb"), os.fdopen(answers, "rb")

    def wait(self) -> int:
        return os.waitpid(self.pid, 0)[1]

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def spare_workers(count: int) -> None:
    """Fork now, while there is one thread, the first *count* workers that pytest-xdist will start here."""
    spares = [Spare() for _ in range(count)]

    class Io(gateway_io.Popen2IOMaster):
        def __init__(self, args: list[str], execmodel: Any) -> None:
            if not spares:
                super().__init__(args, execmodel)
                return
            self.popen = spares.pop(0)
            Popen2IO.__init__(self, self.popen.stdin, self.popen.stdout, execmodel=execmodel)

    gateway_io.Popen2IOMaster = Io


class Moments:
    """Counts moments and brings the fault."""

    def __init__(self, root: str, fault: dict[str, Any]) -> None:
        self.count = 0
        self._root = root
        self._fault = fault
        self._busy = False

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        if self._busy or (event != "open" and event not in _EVENTS):
            return
        if event == "open" and (not isinstance(args[2], int) or not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            return
        path = args[1] if event in ("os.rename", "os.symlink", "os.link") else args[0]
        if isinstance(path, (str, bytes, os.PathLike)):
            name = os.path.abspath(os.fsdecode(path))
            if name.startswith(self._root) and not name.endswith(_LEFT_OUT):
                self._moment(name, removes=event in ("os.remove", "os.rmdir"))

    def trace(self, frame: Any, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.endswith(_LINES):
            return None
        if event == "line":
            self._moment("", removes=False)
        return self.trace

    def _moment(self, path: str, *, removes: bool) -> None:
        self.count += 1
        begin = self._fault.get("at", 0)
        if not begin <= self.count < begin + self._fault.get("for", 1):
            return
        if "signal" in self._fault:
            os.kill(os.getpid(), self._fault["signal"])
        elif "errno" in self._fault and not removes:
            raise OSError(self._fault["errno"], os.strerror(self._fault["errno"]), path)


@contextmanager
def redirect(target: int) -> Iterator[None]:
    """Standard output and error into the open file *target*."""
    kept = os.dup(1), os.dup(2)
    try:
        os.dup2(target, 1)
        os.dup2(target, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)


def child(request: dict[str, Any]) -> int:
    """Run pytest here and give its exit code."""
    os.chdir(request["cwd"])
    for name in ("conftest", "test_it"):
        sys.modules.pop(name, None)
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        signal.signal(number, handler)
    tempfile.tempdir = request["fault"].get("tmpdir")
    moments = Moments(request["cwd"] + os.sep, request["fault"])
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    with redirect(log):
        spare_workers(sum(int(word[2:]) for word in request["args"] if word.startswith("-n")))
        if request["fault"].get("lines"):
            sys.settrace(moments.trace)
        else:
            sys.addaudithook(moments.audit)
        try:
            return int(pytest.main(request["args"]))
        finally:
            sys.settrace(None)
            Path(request["log"] + ".count").write_text(str(moments.count))


def _worker(controller: int, number: int) -> int | None:
    """The process of a worker of pytest-xdist; None where there are not so many."""
    with suppress(psutil.Error):
        workers = sorted(child.pid for child in psutil.Process(controller).children())
        return workers[number] if number < len(workers) else None
    return None


def serve() -> None:
    warm_up = json.loads(sys.stdin.readline())
    os.environ["OMP_NUM_THREADS"] = "1"  # a process with threads cannot be forked
    with tempfile.TemporaryFile() as stream, redirect(stream.fileno()):
        # Imports all that a run needs.
        assert pytest.main([*warm_up["args"], "--rootdir", warm_up["cwd"], warm_up["cwd"]]) == 0
    # Not before pytest, which rewrites the package's asserts.
    from pytest_llmprof.measure.collector import frozen_garbage_collector

    cpuinfo.get_cpu_info = cache(cpuinfo.get_cpu_info)
    cpuinfo.get_cpu_info()  # it starts a process
    print(json.dumps("ready"), flush=True)
    with frozen_garbage_collector():
        answer()


def answer() -> None:
    """Run what is asked for until standard input ends."""
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                os.setsid()
                code = child(request)
            except KeyboardInterrupt:
                code = 130
            finally:
                os._exit(code)
        begin, after = time.monotonic(), request["fault"].get("after")
        while not (done := os.waitpid(pid, os.WNOHANG))[0]:
            seconds = time.monotonic() - begin
            if after is not None and seconds > after:
                hit = _worker(pid, request["fault"]["worker"]) if "worker" in request["fault"] else pid
                if hit is not None:
                    os.kill(hit, request["fault"]["signal"])
                after = None
            if seconds > request["timeout"]:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)
        with suppress(ProcessLookupError):  # workers of pytest-xdist
            os.killpg(pid, signal.SIGKILL)
        print(json.dumps(os.waitstatus_to_exitcode(done[1])), flush=True)


if __name__ == "__main__":
    serve()
