"""How the processes of `llmprof ab` end, and what interrupts it."""

import os
import signal
import sys

import pytest

from pytest_llmprof.cli.processes import ProcessFailed, Side, ended, interruptible, uninterrupted


@pytest.mark.parametrize(
    ("code", "text"), [(2, "exit code 2"), (-9, "signal SIGKILL"), (-40, "signal 40"), (-64, "signal SIGRTMAX")]
)
def test_how_a_process_ended(code, text):
    assert ended(code) == f"ended with {text}"


def test_what_was_ignored_before_stays_so(handlers):
    """As SIGHUP under nohup, and SIGINT of a background job of a shell script."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interruptible():
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_what_was_not_ignored_interrupts(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with pytest.raises(KeyboardInterrupt, match="SIGHUP"), interruptible(), uninterrupted():
        os.kill(os.getpid(), signal.SIGHUP)


@pytest.mark.parametrize(
    ("text", "line", "code"),
    [
        ("    raise KeyboardInterrupt\n", "A, process 1: its run is interrupted", 3),
        ("    llmprof.measure(\n", "A, process 1: its tests could not be collected: ", 4),
    ],
)
def test_an_interrupted_process_is_none_with_bad_tests(tmp_path, text, line, code):
    """pytest has one exit code for both."""
    (tmp_path / "test_it.py").write_text(f"def test_it(llmprof):\n{text}")
    arguments = ("test_it.py", "-p", "no:cacheprovider", "--llmprof-stage=direct_inference")
    with pytest.raises(ProcessFailed) as found:
        Side("A", "A", sys.executable, tmp_path, os.environ, arguments).measure(tmp_path / "runs", 1, 60)
    assert (str(found.value)[: len(line)], found.value.code) == (line, code)


def test_a_long_line_of_a_log_is_shown_in_part(ab):
    _, _, err = ab("--a", f"tpot=1 end=9 say={'x' * 5000}", "--b", "tpot=1")
    assert [len(line) for line in err.splitlines() if line.startswith("    x")] == [1004]
