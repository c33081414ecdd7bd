"""pytest-benchmark as a sink: it shows, stores and compares the rounds that our own loop timed.

Its fixture is not used: other plugins and tests may have one of that name. Only this file uses what is private to it
(`_benchmarksession`, `Metadata`; 5.3.1 to 5.x).
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

    from pytest_llmprof.plugin.rows import Row


def serve(rows: Sequence[Row], config: pytest.Config) -> None:
    """Hand over the rounds of all tests, in all workers, before pytest-benchmark saves, compares and shows them.

    It switches itself off under xdist, where it cannot time; here it need not.
    """
    session = getattr(config, "_benchmarksession", None)
    if session is None or session.skip or (config.option.benchmark_disable and not config.option.benchmark_enable):
        return
    session.disabled = False  # so that it says where there is nothing to save
    own = {entry.fullname for entry in session.benchmarks}  # of a test that asks for its fixture, too
    session.benchmarks += [_entry(row) for row in rows if row.id not in own]


def benchmark_json(rows: Sequence[Row], config: pytest.Config) -> dict[str, Any]:
    """The content of a file in pytest-benchmark's format, which `pytest-benchmark compare` reads."""
    from pytest_benchmark import __version__, plugin

    return {
        "machine_info": plugin.pytest_benchmark_generate_machine_info(),
        "commit_info": plugin.pytest_benchmark_generate_commit_info(config),
        "benchmarks": [_entry(row).as_dict() for row in rows],
        "datetime": datetime.datetime.now(datetime.UTC).isoformat(),
        "version": __version__,
    }


def _entry(row: Row) -> Any:
    """A row as pytest-benchmark's own record, which it makes of a fixture."""
    from pytest_benchmark.stats import Metadata

    parameters = f"[{row.param}]"
    fixture = SimpleNamespace(
        name=row.id.removesuffix(parameters).rpartition("::")[2] + parameters,
        fullname=row.id,
        group=row.group,
        params=row.params,
        param=row.param,
        extra_info=row.extra_info,
        cprofile_stats=None,
        has_error=False,
    )
    rounds = len(row.round_seconds)
    options = {"disable_gc": False, "timer": "perf_counter", "min_rounds": rounds, "warmup": False}
    entry = Metadata(fixture, iterations=row.iterations, options={**options, "max_time": 0.0, "min_time": 0.0})
    for seconds in row.round_seconds:
        entry.update(seconds)
    return entry
