"""For all tests: pytest's own test tool, and no tests of a card or a tool where it is not there."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pytest_llmprof.measure.collector import frozen_garbage_collector

pytest_plugins = ["pytester"]

_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if _WORKER:
    # Before torch is imported. Two workers with a thread for each core get in each other's way.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # The controller shows failures at their lines on GitHub. The runs that tests start have failures of their own.
    os.environ.pop("GITHUB_ACTIONS", None)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So is it in a shell's background, and in all that these tests start, some of which they interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
_FROZEN = ExitStack()
_LEFT_OUT = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say what was left out, and why."""
    for line in config.stash.get(_LEFT_OUT, []):
        terminalreporter.write_line(line)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a worker of pytest-xdist: hand that over."""
    _FROZEN.close()  # libraries complain of what is left at the end
    if _WORKER:
        session.config.workeroutput["left_out"] = session.config.stash.get(_LEFT_OUT, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """All workers collect the same, so the last one's word is as good as any."""
    node.config.stash[_LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", [])


def _leave_out(config: pytest.Config, items: list[pytest.Item], marker: str, why: str) -> None:
    marked = [item for item in items if item.get_closest_marker(marker)]
    config.stash.setdefault(_LEFT_OUT, []).append(f"{len(marked)} tests marked {marker} are left out: {why}")
    config.hook.pytest_deselected(items=marked)
    items[:] = [item for item in items if item not in marked]


def _no_nsys() -> str | None:
    from pytest_llmprof.errors import StageError
    from pytest_llmprof.stages.nsys.stage import NSYS, importer_advice
    from pytest_llmprof.stages.tools import find_tool

    try:
        advice = importer_advice(find_tool(NSYS, None, {}))
    except StageError as error:
        return str(error)
    return advice if advice.startswith("Debian's") else None


def _no_gpu() -> str | None:
    import torch

    if not torch.cuda.is_available():
        return "no CUDA card is visible"
    return "they measure, so they run without -n" if _WORKER else None


def _no_browser() -> str | None:
    if not Path("/usr/bin/chromium").exists():
        return "there is no /usr/bin/chromium"
    return None if find_spec("playwright") else "playwright is not installed"


def pytest_collection_finish() -> None:
    """Each model that is closed collects garbage, which would walk all of torch and of these tests again and again.

    A block of the package's own: to see whether somebody else has frozen objects it would count them for each run.
    """
    _FROZEN.enter_context(frozen_garbage_collector())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for marker, reason in (("nsys", _no_nsys), ("gpu", _no_gpu), ("browser", _no_browser)):
        if any(item.get_closest_marker(marker) for item in items) and (why := reason()):
            _leave_out(config, items, marker, why)
