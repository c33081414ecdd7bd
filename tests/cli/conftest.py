"""What several tests of the commands need. The helpers of tests/compare make run directories."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_llmprof.cli import main

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests" / "compare"))


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Paths of an interpreter that measures nothing but is fast; the current directory is a new one."""
    path = tmp_path / "stub"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("stub_python.py")} "$@"\n')
    path.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    return str(path)


@pytest.fixture
def ab(stub, capfd):
    """Run the command with the stub on both sides; gives code, stdout and stderr."""

    def run(*arguments):
        code = main(["ab", f"--a-python={stub}", f"--b-python={stub}", *arguments])
        shown = capfd.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture
def handlers():
    """Those of signals are put back: tests may be run under nohup, which ignores SIGHUP."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def command():
    """Gives the words that run the command in a process of its own."""
    code = "import sys; from pytest_llmprof.cli import main; sys.exit(main())"
    return lambda *arguments: [sys.executable, "-c", code, "ab", *arguments]


@pytest.fixture
def interrupted(command):
    """Run the command in a process of its own until it shows a line, send a signal; gives code, stdout and stderr."""

    def run(*arguments, after, number):
        process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for line in process.stderr:
            if line.startswith(after):
                break
        process.send_signal(number)
        out, err = process.communicate(timeout=180)
        return process.returncode, out, err

    return run
