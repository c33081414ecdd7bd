"""Python processes that cost no imports: forks of one that has run a session of the plugin, with torch and the model.

`ForkServer` starts that process, which is this file as a program, and `Forked` is a `subprocess.Popen` whose process
comes from it. There the workers of pytest-xdist are forks, too. A fork has the arguments, files, environment and
directory that it was asked for, and imports nothing from here; what it does not have is a fresh interpreter.

A request is a line of JSON on a Unix socket, with the files for standard input, output and error. The answers are
lines: the process's number, and later its wait status.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

WARM_UP = """
def test_it(llmprof):
    from plugin_bench import warm_up
    warm_up()
    llmprof.run()
"""
_INI = """
[pytest]
addopts = -p no:cacheprovider
llmprof_stage = torch_profiler
llmprof_override =
    dataset.limit=1
    infer.max_new_tokens=2
    measure.rounds=1
    measure.warmup=0
"""


class Forked(subprocess.Popen[Any]):
    """A process of Python forked by the server at *address*. The first argument is the interpreter."""

    def __init__(self, *given: Any, address: str, **more: Any) -> None:
        self._address = address
        super().__init__(*given, **more)

    def _execute_child(self, args: Sequence[str], *given: Any) -> None:
        cwd, env, new_session = given[4], given[5], given[-2]
        pipes = given[9:15]
        read, _, _, write, _, error = pipes
        request = {
            "args": [os.fspath(word) for word in args[1:]],
            "cwd": os.fspath(cwd or os.getcwd()),
            "env": dict(os.environ if env is None else env),
            "session": bool(new_session),
        }
        self._server = socket.socket(socket.AF_UNIX)
        self._server.connect(self._address)
        self._answered = select.poll()
        self._answered.register(self._server, select.POLLIN)
        files = [0 if read == -1 else read, 1 if write == -1 else write, 2 if error == -1 else error]
        data = json.dumps(request).encode() + b"\n"
        sent = socket.send_fds(self._server, [data], files)
        self._server.sendall(data[sent:])
        self._answers = self._server.makefile("r")
        self.pid = int(self._answers.readline())
        self._child_created = True
        self._close_pipe_fds(*pipes)

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if wait_flags & os.WNOHANG and not self._answered.poll(0):
            return 0, 0
        line = self._answers.readline()
        self._answers.close()
        self._server.close()
        return self.pid, int(line or signal.SIGKILL)  # the server has died

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(blocking=False):
            try:
                pid, status = self._try_wait(os.WNOHANG)
                if pid:
                    self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


class ForkServer:
    """Starts the server, in *directory*; `close` ends it."""

    def __init__(self, directory: Path) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="forks-")  # the path of a socket is short
        self._address = f"{self._place.name}/socket"
        self._log = directory / "log"
        (directory / "test_warm_up.py").write_text(WARM_UP)
        (directory / "pytest.ini").write_text(_INI)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, __file__, self._address],
                cwd=directory,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**environment, "OMP_NUM_THREADS": "1"},  # a process with threads cannot be forked
            )
        self._ready = False

    def popen(self, *given: Any, **more: Any) -> Forked:
        """As `subprocess.Popen`."""
        if not self._ready:
            assert self._process.stdout is not None
            self._ready = self._process.stdout.read() == b"ready"
            assert self._ready, self._log.read_text()
        return Forked(*given, address=self._address, **more)

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=180)
        self._place.cleanup()


def run(args: list[str]) -> int:
    """What `python ARGS` does here; gives the exit code."""
    try:
        if args[0] == "-mpytest":
            args = ["-m", "pytest", *args[1:]]
        if args[0] == "-m":
            sys.argv = [args[1], *args[2:]]
            runpy.run_module(args[1], run_name="__main__", alter_sys=True)
        else:
            at = args.index("-c")
            sys.argv = args[at + 1 :]
            sys.argv[0] = "-c"
            exec(args[at + 1], {"__name__": "__main__"})
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return int(end.code or 0)
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return 130
    return 0


def child(request: dict[str, Any], files: Sequence[int], path: Sequence[str]) -> None:
    """Be the process that was asked for. Does not return."""
    from xdist import workermanage

    code = 1
    try:
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.closerange(3, 256)
        if request["session"]:
            os.setsid()
        signal.set_wakeup_fd(-1)
        for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGCHLD, signal.SIG_DFL)):
            signal.signal(number, handler)
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        tempfile.tempdir = None
        more = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        sys.path[:] = workermanage._sys_path = [request["cwd"], *more, *path]
        importlib.invalidate_caches()
        code = run(request["args"])
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except Exception:  # noqa: BLE001 - as an interpreter ends: this one must not go on as the server
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def fork_workers(address: str) -> None:
    """From now on workers of pytest-xdist on this machine are forks."""
    from execnet import gateway_io
    from execnet.gateway_base import Popen2IO

    class Io(gateway_io.Popen2IOMaster):
        def __init__(self, args: list[str], execmodel: Any) -> None:
            if args[0] != sys.executable:
                super().__init__(args, execmodel)
                return
            self.popen = Forked(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, address=address)
            Popen2IO.__init__(self, self.popen.stdin, self.popen.stdout, execmodel=execmodel)

    gateway_io.Popen2IOMaster = Io


def serve(address: str) -> None:
    import pytest

    base = sys.path[1:]  # without this directory
    given = len([word for word in os.environ.get("PYTHONPATH", "").split(os.pathsep) if word])
    with open(os.devnull, "w") as null:
        answers, shown = os.dup(1), os.dup(2)
        os.dup2(shown, 1)
        code = pytest.main(["-q", "test_warm_up.py"])
        os.dup2(null.fileno(), 1)
    if code:
        sys.exit(int(code))
    for name in ("conftest", "test_warm_up", "plugin_bench", "pynvml"):  # some runs have their own
        sys.modules.pop(name, None)
    # Not before pytest, which rewrites the package's asserts.
    from pytest_llmprof.measure.collector import frozen_garbage_collector

    fork_workers(address)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    awake, wake = socket.socketpair()
    for one in (awake, wake):
        one.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    running: dict[int, socket.socket] = {}
    gc.unfreeze()  # what the run has frozen
    with frozen_garbage_collector():
        os.write(answers, b"ready")
        os.close(answers)
        answer(listener, awake, running, base[given:])


def answer(listener: socket.socket, awake: socket.socket, running: dict[int, socket.socket], path: list[str]) -> None:
    """Fork until standard input ends."""
    while True:
        ready, _, _ = select.select([0, listener, awake], [], [])
        if awake in ready:
            awake.recv(4096)
            while running and (done := os.waitpid(-1, os.WNOHANG))[0]:
                with running.pop(done[0]) as asker, suppress(OSError):  # it has ended, too
                    asker.sendall(f"{done[1]}\n".encode())
        if listener in ready:
            asker, _ = listener.accept()
            data, files, _, _ = socket.recv_fds(asker, 1 << 20, 3)
            while not data.endswith(b"\n"):
                data += asker.recv(1 << 20)
            pid = os.fork()
            if pid == 0:
                child(json.loads(data), files, path)
            for file in files:
                os.close(file)
            running[pid] = asker
            asker.sendall(f"{pid}\n".encode())
        if 0 in ready:
            return


if __name__ == "__main__":
    serve(sys.argv[1])
