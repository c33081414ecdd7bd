"""Whether a run goes on: read from the process in run.json."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from pytest_llmprof.records.run import Process, RunRecord


def run(process: Process | None, status: str = "running") -> RunRecord:
    return RunRecord(status=status, argv=[], started="", versions={}, tests=[], process=process)


@pytest.fixture
def here() -> Process:
    found = Process.this()
    assert found is not None
    return found


def test_a_live_run(here):
    assert run(here).alive() is True
    again = msgspec.json.decode(msgspec.json.encode(run(here)), type=RunRecord)
    assert again.alive() is True


@pytest.mark.parametrize("status", ["complete", "stopped", "interrupted"])
def test_a_run_that_has_ended(here, status):
    assert run(here, status).alive() is False


def test_a_killed_run(here):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        started = int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19])
        killed = run(replace(here, pid=child.pid, started=started))
        assert killed.alive() is True
        child.kill()
        while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT) is None:
            pass
        assert killed.alive() is False  # it has ended, and nobody has waited for it
    finally:
        child.kill()
        child.communicate()
    assert killed.alive() is False


def test_another_process_with_the_same_number(here):
    assert run(replace(here, started=here.started + 1)).alive() is False


@pytest.mark.parametrize("change", [{"boot_id": "another"}, {"pid_namespace": "pid:[1]"}])
def test_on_another_machine_or_in_another_container_nobody_knows(here, change):
    assert run(replace(here, **change)).alive() is None


def test_a_run_without_a_process():
    assert run(None).alive() is None


@pytest.mark.parametrize("pid", [0, -1, 2**31, 2**63])
def test_no_process_has_such_a_number(here, pid):
    assert run(replace(here, pid=pid)).alive() in (False, None)
