"""pytest-benchmark as a sink: it shows, stores and compares the rounds that our own loop timed.

Only this file uses its private names (`_make_stats`, `_mode`, `_benchmarksession`; 5.1 to 5.x).
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

    from pytest_llmprof.plugin.rows import Row


def is_sink(item: pytest.Item) -> bool:
    """Whether the fixture `benchmark` of *item* would be pytest-benchmark's: other plugins and tests have their own."""
    found = item.session._fixturemanager.getfixturedefs("benchmark", item) or ()
    return bool(found) and found[-1].func.__module__ == "pytest_benchmark.plugin"


def claim(benchmark: Any) -> Any:
    """Mark a `benchmark` fixture as used, so that pytest-benchmark does not warn where a test fails early."""
    benchmark._mode = "llmprof"
    return benchmark


def sink(benchmark: Any, round_seconds: Sequence[float], extra_info: Mapping[str, Any]) -> None:
    """Hand the seconds of each round to a claimed `benchmark` fixture.

    Does nothing where pytest-benchmark is switched off (`--benchmark-disable`, xdist).
    """
    if benchmark.disabled or not round_seconds:
        return
    benchmark.extra_info.update(extra_info)
    stats = benchmark._make_stats(1)
    for seconds in round_seconds:
        stats.update(seconds)


def serve(rows: Sequence[Row], config: pytest.Config) -> None:
    """In xdist's controller: hand over the rounds of all workers, before pytest-benchmark saves and compares.

    It switches itself off there; its table, files and limits then work as without workers.
    """
    session = getattr(config, "_benchmarksession", None)
    if session is None or session.skip or (config.option.benchmark_disable and not config.option.benchmark_enable):
        return
    session.disabled = False  # so that it says where there is nothing to save
    session.benchmarks += [_entry(row) for row in rows]


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
        group=None,
        params=row.params,
        param=row.param,
        extra_info=row.extra_info,
        cprofile_stats=None,
        has_error=False,
    )
    rounds = len(row.round_seconds)
    options = {"disable_gc": False, "timer": "perf_counter", "min_rounds": rounds, "warmup": False}
    entry = Metadata(fixture, iterations=1, options={**options, "max_time": 0.0, "min_time": 0.0})
    entry.stats.data += row.round_seconds
    return entry
