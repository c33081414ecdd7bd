"""`llmprof ab --duet`: with processes that write a run at once, and with the real pytest."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from pytest_llmprof.cli import duet as duet_module
from pytest_llmprof.cli.duet import for_duet, measure_both
from pytest_llmprof.cli.processes import ProcessFailed, Side

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two processors"
)


@pytest.fixture(autouse=True)
def no_threads_chosen(monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("after", "verdict", "code"), [("0.53", "slower", 1), ("0.5", "same", 0)])
def test_a_duet(ab, after, verdict, code):
    """Each stand-in waits for the other one, so this ends only where both run at the same time."""
    arguments = ("--duet", "--a", "tpot=0.5", "--b", f"tpot={after}", "--metric", "tpot_ms:5%", "--out", "runs")
    got, out, err = ab(*arguments, "--format", "json")
    found = json.loads(out)
    row = next(row for row in found["rows"] if row["metric"] == "tpot_ms")
    assert (got, row["verdict"]) == (code, verdict), err
    assert row["low"] < float(after) / 0.5 < row["high"]
    assert 0 < row["control"] < 0.01
    assert found["job"]["duet"] is True
    assert found["job"]["order"] == "ABBABAAB" * 2 + "ABBA"
    assert (found["job"]["pairs"], found["job"]["contended"]) == (10, 0)
    assert sorted(path.name for path in Path("runs/a").glob("*.log")) == [
        f"{number:02d}.log" for number, side in enumerate(found["job"]["order"], 1) if side == "A"
    ]


def test_the_report_says_so(ab):
    _, out, _ = ab("--duet", "--a", "tpot=0.5", "--b", "tpot=0.6", "--metric", "tpot_ms", "--format", "markdown")
    assert re.search(r"^10 pairs side by side \(duet\) \(ABBA BAAB ...\) in ", out, re.MULTILINE), out
    assert "contended" not in out


@pytest.mark.parametrize(("a", "b", "letter"), [("end=-9", "tpot=1", "A"), ("tpot=1", "end=-9", "B")])
def test_a_killed_side_ends_the_other(ab, a, b, letter):
    begin = time.monotonic()
    code, out, err = ab("--duet", "--a", a, "--b", b, "--out", "runs")
    assert (code, out) == (3, "")
    number = 1 if letter == "A" else 2
    assert f"ERROR: {letter}, process {number}: ended with signal SIGKILL (log: " in err
    other = Path(f"runs/{'b/02' if letter == 'A' else 'a/01'}.log").read_text()
    assert "the process beside this one ended" in other  # its own words: it saw the end of the socket
    assert time.monotonic() - begin < 20


def test_a_side_that_does_not_end_by_itself_is_ended_with_the_other(ab, monkeypatch):
    monkeypatch.setattr(duet_module, "LAST_WORDS_S", 0.2)
    code, _, err = ab("--duet", "--a", "tpot=1 sleep=600", "--b", "tpot=1 end=1 deaf=1 'say=assert 1 == 2'")
    assert code == 3
    lines = err.splitlines()
    assert next(line for line in lines if line.startswith("ERROR: ")).startswith("ERROR: B, process 2: ended with exit")
    assert lines[-1] == "    assert 1 == 2"
    assert not _running("sleep=600")


def test_out_of_time(ab):
    code, out, err = ab("--duet", "--a", "tpot=1 sleep=601", "--b", "tpot=1", "--minutes", "0.01")
    assert (code, out) == (3, "")
    assert "out of time, after 1 s; its last process was ended: no pair was measured" in err
    assert not _running("sleep=601")


def _running(word):
    """Processes other than this one that have *word* in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes() and path.parent.name != str(os.getpid()):
                found.append(path.parent.name)
        except OSError:
            continue  # it has ended
    return found


def test_two_sides_of_an_older_version_are_refused(ab):
    code, _, err = ab("--duet", "--a", "tpot=1 deaf=1", "--b", "tpot=1 deaf=1")
    assert code == 4
    assert err.splitlines()[-1] == "ERROR: A, process 1 measured alone: its pytest-llmprof is older than --duet"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda patch: patch.setattr(duet_module, "usable_processors", lambda: 1), "--duet needs 2 processors"),
        (lambda patch: patch.delattr(os, "sched_setaffinity"), "--duet: this system cannot keep a process"),
        *(
            (lambda patch, text=text: patch.setenv("OMP_NUM_THREADS", text), f"--duet: OMP_NUM_THREADS={text}, but ")
            for text in ("999", "999,1", "0", "all")
        ),
    ],
)
def test_a_machine_that_has_no_halves_is_refused(ab, monkeypatch, change, why):
    change(monkeypatch)
    code, out, err = ab("--duet", "--a", "tpot=1", "--b", "tpot=1")
    assert (code, out, len(err.splitlines())) == (4, "", 1)
    assert err.startswith(f"ERROR: {why}")


def test_duet_after_the_first_argument_of_pytest(ab):
    code, _, err = ab("tests", "--duet")
    assert (code, "--duet stands after the first argument of pytest" in err) == (4, True)


def test_threads_are_those_of_half_the_processors(monkeypatch):
    monkeypatch.setattr(duet_module, "usable_processors", lambda: 13)

    def threads(**environment):
        return dict(for_duet(Side("A", "", sys.executable, Path(), environment, ())).environment)

    assert threads() == {"OMP_NUM_THREADS": "6", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
    chosen = {"MKL_NUM_THREADS": "2", "OMP_WAIT_POLICY": "ACTIVE"}
    assert threads(**chosen) == chosen
    assert threads(OMP_NUM_THREADS="")["OMP_NUM_THREADS"] == "6"  # empty is as not chosen


_REAL = """
import os

def test_first(llmprof):
    def work():
        with open(f"halves-{os.environ['SIDE']}", "a") as file:
            print(sorted(os.sched_getaffinity(0)), os.environ.get("LLMPROF_DUET"), file=file)
        sum(range(100_000))
    llmprof.measure(work)

def test_second(llmprof):
    llmprof.measure(lambda: sum(range(100_000)))
"""
_TEST_IDS = [f"test_it.py::{name}[direct_inference]" for name in ("test_first", "test_second")]
_FIRST = ("test_it.py::test_first", "--llmprof-stage=direct_inference", "--llmprof-override=measure.iterations=1")


@pytest.fixture
def real(stub):
    """Two sides of the real pytest in the current directory; each is given its arguments."""
    Path("test_it.py").write_text(_REAL)

    def sides(a, b, python_b=sys.executable):
        return [
            for_duet(Side(letter, letter, python, Path.cwd(), {**os.environ, "SIDE": letter}, arguments))
            for letter, python, arguments in (("A", sys.executable, a), ("B", python_b, b))
        ]

    return sides


def test_the_real_pytest_changes_halves_with_each_round(real):
    a, b = ((*_FIRST, f"--llmprof-override=measure.rounds={rounds}") for rounds in (3, 4))
    for run in measure_both(real(a, b), Path("runs"), 1, 300):
        (test,) = run.tests
        assert (test.duet, test.problem, test.rounds) == (True, None, 4)  # 3 are made even
        assert not any("other worker" in doubt for doubt in test.doubts)
    first, second = (Path(f"halves-{side}").read_text().splitlines()[-4:] for side in "AB")
    assert first[0] == first[2] != first[1] == first[3]
    assert second == [first[1], first[0]] * 2
    assert all(line.endswith(" None") for line in first)  # what a test starts has no part in the duet


@pytest.mark.parametrize(
    ("a", "b", "code", "why"),
    [
        (
            _FIRST,
            ("test_it.py::test_second", *_FIRST[1:]),
            3,
            f" round 1 of 2 of {_TEST_IDS[1]}",
        ),
        ((*_FIRST, "-n2"), (*_FIRST, "-n2"), 4, "workers of pytest-xdist are more: leave -n and --tx out"),
        ((*_FIRST, "--llmprof-override=measure.round=3"), _FIRST, 4, "did you mean 'measure.rounds'"),
    ],
)
def test_the_real_pytest_refuses_in_one_line(real, a, b, code, why):
    with pytest.raises(ProcessFailed) as found:
        measure_both(real(a, b), Path("runs"), 1, 300)
    assert found.value.code == code
    assert re.match("[AB], process [12]: ", str(found.value))
    assert why in str(found.value)
    assert code == 4 or f" round 1 of 2 of {_TEST_IDS[0]}" in str(found.value)  # each of the two tests is named


def test_a_side_that_is_older_than_this_is_told_at_once(real, stub):
    old = ("--llmprof-override=tpot=1", "--llmprof-override=deaf=1")
    with pytest.raises(ProcessFailed) as found:
        measure_both(real(_FIRST, old, stub), Path("runs"), 1, 300)
    assert found.value.code == 4
    assert ": side B ended without a hello: it failed, or its pytest-llmprof is older than --duet" in str(found.value)


@pytest.mark.slow
def test_the_command_with_the_real_pytest_is_interrupted(stub, interrupted):
    """Two pairs are shown, and nothing of either side is left."""
    Path("test_it.py").write_text(_REAL.replace("os.environ['SIDE']", "0"))
    arguments = ("--duet", "--format=json", "--out=runs", *_FIRST)
    code, out, err = interrupted(*arguments, after="pair 2 of", number=signal.SIGINT)
    assert code == 3, err
    job = json.loads(out)["job"]
    assert (job["pairs"], job["duet"], job["order"], job["stopped"]) == (2, True, "ABBA", "interrupted by SIGINT")
    assert not _running(f"{os.getcwd()}/runs")
