"""How the processes of `llmprof ab` end, and what interrupts it."""

import os
import signal

import pytest

from pytest_llmprof.cli.processes import ended, interruptible, uninterrupted


@pytest.mark.parametrize(
    ("code", "text"), [(2, "exit code 2"), (-9, "signal SIGKILL"), (-40, "signal 40"), (-64, "signal SIGRTMAX")]
)
def test_how_a_process_ended(code, text):
    assert ended(code) == f"ended with {text}"


def test_what_was_ignored_before_stays_so():
    """As SIGHUP under nohup, and SIGINT of a background job of a shell script."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            with uninterrupted():
                os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_was_not_ignored_interrupts():
    with pytest.raises(KeyboardInterrupt, match="SIGHUP"), interruptible(), uninterrupted():
        os.kill(os.getpid(), signal.SIGHUP)
