"""For all tests: pytest's own test tool, and no tests of a card or a tool where it is not there."""

from __future__ import annotations

from typing import Any

import pytest

pytest_plugins = ["pytester"]


_LEFT_OUT = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say what was left out, and why."""
    for line in config.stash.get(_LEFT_OUT, []):
        terminalreporter.write_line(line)


def _leave_out_nsys(config: pytest.Config, items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("nsys")]
    if not marked:
        return
    from pytest_llmprof.errors import StageError
    from pytest_llmprof.stages.tools import find_tool

    try:
        find_tool("nsys", None, {})
    except StageError as error:
        config.stash[_LEFT_OUT] = [f"{len(marked)} tests marked nsys are left out: {error}"]
        config.hook.pytest_deselected(items=marked)
        items[:] = [item for item in items if item not in marked]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _leave_out_nsys(config, items)
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu:
        return
    import torch

    if not torch.cuda.is_available():
        config.hook.pytest_deselected(items=gpu)
        items[:] = [item for item in items if item not in gpu]
