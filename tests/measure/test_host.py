"""What a round got of the host's processors, and how OpenMP's threads wait."""

from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from pytest_llmprof.measure import host as host_module
from pytest_llmprof.measure import openmp as openmp_module
from pytest_llmprof.measure.host import HostMeter, usable_processors
from pytest_llmprof.measure.openmp import SHORT_WAITS, host_is_busy, shorten_waits


@pytest.mark.parametrize(
    ("environ", "modules", "added"),
    [
        ({}, ["pytest"], SHORT_WAITS),
        ({"OMP_NUM_THREADS": "1"}, [], SHORT_WAITS),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, [], {}),
        ({"GOMP_SPINCOUNT": "5"}, [], {}),
        ({"KMP_BLOCKTIME": "200"}, [], {}),
        ({}, ["torch"], {}),  # it has read them
    ],
)
def test_threads_sleep_on_a_busy_host_unless_the_user_chose_or_torch_is_there(environ, modules, added):
    before = dict(environ)
    shorten_waits(environ, modules, lambda: False)
    assert environ == before
    shorten_waits(environ, modules, lambda: True)
    assert environ == before | added


@pytest.mark.parametrize(
    ("processors", "running", "busy"),
    [
        (2, [2, 2, 2, 2, 2, 2], True),  # this one and another
        (2, [3, 3, 1, 3, 3, 3], False),  # they came and went
        (16, [9, 9, 9, 9, 9, 9], True),
        (16, [8, 9, 9, 9, 9, 9], False),
        (1, [2, 2, 2, 2, 2, 2], True),
    ],
)
def test_a_host_is_busy_while_others_run_on_half_of_its_processors(processors, running, busy, monkeypatch, tmp_path):
    looks = iter(running)
    path = tmp_path / "loadavg"

    def look(seconds=0.0):
        path.write_text(f"0.52 0.40 0.30 {next(looks)}/345 6789\n")

    look()
    monkeypatch.setattr(openmp_module, "LOADAVG", path)
    monkeypatch.setattr(openmp_module.os, "cpu_count", lambda: processors)
    monkeypatch.setattr(openmp_module, "time", SimpleNamespace(sleep=look))
    assert host_is_busy() is busy


def test_without_proc_no_host_is_busy(monkeypatch, tmp_path):
    monkeypatch.setattr(openmp_module, "LOADAVG", tmp_path / "none")
    assert not host_is_busy()


class Clocks:
    """The host's clocks and its load, standing still."""

    def __init__(self, monkeypatch, tmp_path):
        self.wall = self.cpu = 0.0
        self.load = (1.0, 0.0, 0.0)
        self.path = tmp_path
        monkeypatch.setattr(host_module, "SCHEDSTATS", str(tmp_path / "*" / "schedstat"))
        clock = SimpleNamespace(perf_counter=lambda: self.wall, process_time=lambda: self.cpu)
        monkeypatch.setattr(host_module, "time", clock)
        monkeypatch.setattr(host_module.os, "getloadavg", lambda: self.load)
        monkeypatch.setattr(host_module.os, "sched_getaffinity", lambda pid: {0, 1})

    def thread(self, number, waited_s):
        (self.path / number).mkdir(exist_ok=True)
        (self.path / number / "schedstat").write_text(f"123 {waited_s * 1e9:.0f} 7\n")


@pytest.fixture
def clocks(monkeypatch, tmp_path):
    return Clocks(monkeypatch, tmp_path)


def test_the_thread_that_waited_longest_decides(clocks):
    meter = HostMeter()
    for number, waited in (("1", 50.0), ("2", 7.0), ("3", 99.0)):
        clocks.thread(number, waited)
    meter.begin()
    clocks.wall, clocks.cpu = 10.0, 15.0
    clocks.thread("1", 50.5)
    clocks.thread("2", 7.9)
    (clocks.path / "3" / "schedstat").write_text("")  # it has ended
    clocks.thread("4", 0.2)  # it is new
    found = meter.end()
    assert (found.load, found.cpu_share, found.waited_share) == (1.0, 1.5, pytest.approx(0.09))
    assert not found.contended
    meter.begin()
    clocks.wall = 20.0
    clocks.thread("2", 9.0)
    found = meter.end()
    assert (found.cpu_share, found.waited_share) == (0.0, pytest.approx(0.11))
    assert found.contended


def test_a_turn_of_the_scheduler_makes_no_short_round_contended(clocks):
    meter = HostMeter()
    for waited, contended in ((0.003, False), (0.005, True)):
        clocks.thread("1", 0.0)
        meter.begin()
        clocks.wall += 0.002
        clocks.thread("1", waited)
        found = meter.end()
        assert (found.waited_share, found.contended) == (1.0, contended)


@pytest.mark.parametrize(("processors", "most"), [(None, 3.0), (8, 12.0)])  # all of both processes of a duet
def test_where_the_kernel_counts_no_waiting_the_load_decides(clocks, processors, most):
    meter = HostMeter(processors)
    for load, contended in ((most, False), (most + 0.01, True)):
        clocks.load = (load, 9.0, 9.0)
        meter.begin()
        clocks.wall += 1.0
        found = meter.end()
        assert (found.waited_share, found.load, found.contended) == (None, load, contended)


def test_without_a_load_nothing_is_said(clocks, monkeypatch):
    monkeypatch.delattr(host_module.os, "getloadavg")
    meter = HostMeter()
    meter.begin()
    found = meter.end()
    assert (found.load, found.contended) == (None, False)


def test_busy_processes_are_noticed():
    meter = HostMeter()
    command = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(command) for _ in range(3 * usable_processors())]
    try:
        time.sleep(0.2)
        meter.begin()
        end = time.perf_counter() + 1.0
        while time.perf_counter() < end:
            pass
        found = meter.end()
    finally:
        for process in busy:
            process.kill()
            process.wait()
    if found.waited_share is None:
        pytest.skip("this kernel does not count how long a thread waits")
    assert found.contended
    assert found.cpu_share < 0.95
    assert 0.1 < found.waited_share <= 1.0
