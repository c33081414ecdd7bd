"""Two processes that begin each round together, here as two ends of a socket in one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from pytest_llmprof.errors import ConfigError, StageError
from pytest_llmprof.measure import duet as duet_module
from pytest_llmprof.measure.duet import VARIABLE, Duet, halves
from pytest_llmprof.measure.phases import PhaseRecorder
from pytest_llmprof.stages.base import StageResult
from pytest_llmprof.stages.runner import clean_rounds

TEST = "test_x.py::test_pages[direct_inference]"


@pytest.fixture
def kept(monkeypatch):
    """On four processors: those to which each end was last kept, by the thread that did so."""
    found = {}
    monkeypatch.setattr(duet_module, "_core", lambda processor: processor)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(
        os, "sched_setaffinity", lambda _, processors: found.update({threading.get_ident(): sorted(processors)})
    )
    return found


@pytest.fixture
def ends(kept):
    first, second = socket.socketpair()
    return Duet(first, 0), Duet(second, 1)


def at_once(*calls):
    """Run *calls* in threads; gives what each returned or raised."""
    found = [None] * len(calls)

    def run(place, call):
        try:
            found[place] = call()
        except (ConfigError, StageError) as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=one) for one in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()
    return found


@pytest.fixture
def greeted(ends):
    first, second = ends
    assert at_once(first.greet, second.greet) == [None, None]
    return ends


@pytest.mark.parametrize(
    ("processors", "cores", "expected"),
    [
        ({0, 1}, {}, ({0}, {1})),
        ({0, 1, 2, 3}, {}, ({0, 1}, {2, 3})),
        ({3, 5, 8}, {}, ({3}, {5})),  # one is left free, so that both have as many
        ({0, 1, 2, 3}, {0: 0, 2: 0, 1: 1, 3: 1}, ({0, 2}, {1, 3})),  # threads of one core
        ({7}, {}, (set(), set())),
    ],
)
def test_halves(processors, cores, expected, monkeypatch):
    monkeypatch.setattr(duet_module, "_core", lambda one: cores.get(one, one))
    assert halves(processors) == expected


def test_the_core_of_a_processor_is_read_from_the_system():
    assert duet_module._core(10**6) == 10**6  # there is none
    assert duet_module._core(0) == 0


def test_rounds_begin_together_and_the_halves_change(ends, kept):
    first, second = ends
    assert at_once(first.greet, second.greet) == [None, None]
    for number, expected in ((1, [[0, 1], [2, 3]]), (2, [[2, 3], [0, 1]]), (3, [[0, 1], [2, 3]])):

        def begin(end, number=number):
            end.begin_round(TEST, number, 3, "cpu")
            return kept[threading.get_ident()]

        assert at_once(lambda: begin(first), lambda: begin(second)) == expected


def test_a_round_waits_for_the_other(greeted):
    first, second = greeted
    done = threading.Event()
    waiting = threading.Thread(target=lambda: (first.begin_round(TEST, 1, 2, "cpu"), done.set()))
    waiting.start()
    assert not done.wait(0.2)
    second.begin_round(TEST, 1, 2, "cpu")
    assert done.wait(10)
    waiting.join()


def test_on_a_gpu_rounds_are_in_turns_and_the_first_changes(ends, kept):
    first, second = ends
    log = []

    def measure(end, name):
        end.greet()
        for number in (1, 2, 3, 4):
            end.begin_round(TEST, number, 4, "cuda:0")
            log.append((name, number, "begins"))
            time.sleep(0.02)
            log.append((name, number, "ends"))
            end.end_round()
        log.append((name, "goes on"))

    assert at_once(lambda: measure(first, "a"), lambda: measure(second, "b")) == [None, None]
    order = [("a", 1), ("b", 1), ("b", 2), ("a", 2), ("a", 3), ("b", 3), ("b", 4), ("a", 4)]
    assert log[:-2] == [(*one, event) for one in order for event in ("begins", "ends")]
    assert sorted(log[-2:]) == [("a", "goes on"), ("b", "goes on")]  # none before the other's last round has ended
    assert kept == {}  # each may use all processors


def test_a_failed_turn_is_an_error_of_the_one_that_waits_for_it(greeted):
    first, second = greeted

    def fail():
        first.begin_round(TEST, 1, 4, "cuda:0")
        first.leave()

    mine, other = at_once(fail, lambda: second.begin_round(TEST, 1, 4, "cuda:0"))
    assert mine is None
    assert str(other) == f"the process beside this one ended or failed in round 1 of 4 of {TEST} on a GPU"


def test_after_the_last_turn_none_goes_on_alone(greeted):
    first, second = greeted

    def fail():
        second.begin_round(TEST, 1, 1, "cuda:0")
        second.leave()

    def measure():
        first.begin_round(TEST, 1, 1, "cuda:0")
        first.end_round()

    mine, other = at_once(measure, fail)
    assert "ended or failed before the end of round 1 of 1" in str(mine)
    assert other is None


def test_a_gpu_beside_a_cpu_is_named(greeted):
    first, second = greeted
    mine, _ = at_once(lambda: first.begin_round(TEST, 1, 2, "cuda:0"), lambda: second.begin_round(TEST, 1, 2, "cpu"))
    assert f"came to round 1 of 2 of {TEST}, this one to round 1 of 2 of {TEST} on a GPU" in str(mine)


@pytest.mark.parametrize(
    ("theirs", "text"),
    [
        (("test_y.py::test_b", 1, 4), f"came to round 1 of 4 of test_y.py::test_b, this one to round 1 of 4 of {TEST}"),
        ((TEST, 1, 6), f"came to round 1 of 6 of {TEST}, this one to round 1 of 4 of {TEST}"),
        ((TEST, 2, 4), f"came to round 2 of 4 of {TEST}, this one to round 1 of 4 of {TEST}"),
    ],
)
def test_other_rounds_are_an_error_of_both_that_names_both(greeted, theirs, text):
    first, second = greeted
    mine, other = at_once(lambda: first.begin_round(TEST, 1, 4, "cpu"), lambda: second.begin_round(*theirs, "cpu"))
    assert text in str(mine)
    assert f"came to round 1 of 4 of {TEST}, this one to round {theirs[1]} of {theirs[2]} of {theirs[0]}" in str(other)
    with pytest.raises(StageError, match="both must run the same rounds"):  # and of all rounds after that
        first.begin_round(TEST, 2, 4, "cpu")


def test_the_end_of_the_other_is_an_error_at_once(greeted):
    first, second = greeted
    second.leave()
    with pytest.raises(StageError, match=r"^the process beside this one ended or failed before round 1 of 4"):
        first.begin_round(TEST, 1, 4, "cpu")
    with pytest.raises(StageError, match="left its duet, as a test before this one failed"):
        second.begin_round(TEST, 1, 4, "cpu")


def test_what_the_other_said_before_it_ended_counts(greeted):
    first, second = greeted
    second._say(f"round 1 of 4 of {TEST}")
    second.leave()
    first.begin_round(TEST, 1, 4, "cpu")


def test_an_older_version_says_no_hello(kept):
    mine, other = socket.socketpair()
    with pytest.raises(ConfigError, match=r"did not say hello in 0.1 s: its pytest-llmprof is older than --duet"):
        Duet(mine, 0).greet(0.1)
    mine, other = socket.socketpair()
    duet = Duet(mine, 0)
    other.close()
    with pytest.raises(ConfigError, match="ended without a hello: it failed, or its pytest-llmprof is older"):
        duet.greet()
    mine, other = socket.socketpair()
    other.sendall(b'"hello 2"\n')
    with pytest.raises(ConfigError, match="said hello 2: both must have the same version"):
        Duet(mine, 0).greet()


def test_it_comes_from_the_environment_once_and_no_child_has_it(kept):
    mine, other = socket.socketpair()
    number = os.dup(mine.fileno())
    os.set_inheritable(number, True)
    environ = {VARIABLE: f"{number},1"}
    duet = Duet.from_environment(environ)
    assert environ == {}
    assert Duet.from_environment(environ) is None
    assert not os.get_inheritable(number)
    assert (duet.processors, other.recv(100)) == (4, b'"hello, this is a duet"\n')


@pytest.mark.parametrize("text", ["", "x", "7", "987654,0", "9" * 20 + ",0"])
def test_a_variable_without_a_socket_is_refused(text, kept):
    with pytest.raises(ConfigError, match=f"^{VARIABLE}={text} names no open socket"):
        Duet.from_environment({VARIABLE: text})


@pytest.mark.parametrize(("rounds", "measured"), [(1, 2), (4, 4), (5, 6)])
def test_the_measured_loop_has_an_even_number_of_rounds_and_gates_get_no_more(rounds, measured):
    log = []
    context = SimpleNamespace(
        settings=SimpleNamespace(measure=SimpleNamespace(rounds=rounds, warmup=1)),
        workload=SimpleNamespace(
            device="cpu",
            warmup=lambda passes, recorder: log.append("warm-up"),
            round=lambda index, recorder: (log.append(index) or [f"sample {index}"], 1.0),
        ),
        result=StageResult(),
        recorder=lambda domain: PhaseRecorder("cpu", domain=domain),
        progress=lambda *_: None,
        more_rounds=lambda: 3,
        test_id=TEST,
        duet=SimpleNamespace(
            processors=4, begin_round=lambda *begun: log.append(begun), end_round=lambda: log.append("end")
        ),
    )
    clean_rounds(context)
    expected = [step for number in range(measured) for step in ((TEST, number + 1, measured, "cpu"), number, "end")]
    assert log == ["warm-up", *expected]
    assert len(context.result.round_seconds) == measured


def test_all_threads_of_a_process_change_their_processors():
    """In a process of its own, as it keeps to half of the processors."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two processors")
    code = """
import os, socket, threading
from pytest_llmprof.measure.duet import Duet, halves
mine, other = socket.socketpair()
duet = Duet(mine, 1)
stop = threading.Event()
thread = threading.Thread(target=stop.wait, daemon=True)
thread.start()
both = halves(os.sched_getaffinity(0))
for number in (1, 2):
    other.sendall(f'"round {number} of 2 of test"\\n'.encode())
    duet.begin_round("test", number, 2, "cpu")
    for one in (0, thread.native_id):
        assert os.sched_getaffinity(one) == both[number % 2], (number, one)
stop.set()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
