"""Runs of pytest that are killed, interrupted, or have a full disk.

A short set runs by default. The long one: LLMPROF_FAULTS=long python -m pytest tests/faults
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("fault_bench")

from fault_bench import FaultBench  # noqa: E402

_BENCHES: list[FaultBench] = []


@pytest.fixture(scope="session")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultBench]:
    """The bench, with its server."""
    bench = FaultBench(tmp_path_factory.mktemp("bench"), tmp_path_factory.mktemp("logs"))
    _BENCHES.append(bench)
    yield bench
    bench.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many runs had a fault."""
    for bench in _BENCHES:
        terminalreporter.write_line(f"faults: {bench.kills} kills and interrupts, {bench.lost} with a loss")
