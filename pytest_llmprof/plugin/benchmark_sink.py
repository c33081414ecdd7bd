"""pytest-benchmark as a sink: it shows, stores and compares the rounds that our own loop timed.

Only this file uses its private names (`_make_stats`, `_mode`; 5.1 to 5.x).
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_llmprof.plugin.rows import Row

__all__ = ["benchmark_json", "claim", "sink"]


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


def benchmark_json(rows: Sequence[Row], config: Any) -> dict[str, Any]:
    """The content of a file in pytest-benchmark's format, which `pytest-benchmark compare` reads."""
    from pytest_benchmark import __version__, plugin
    from pytest_benchmark.stats import Stats

    benchmarks = []
    for row in rows:
        stats = Stats()
        for seconds in row.round_seconds:
            stats.update(seconds)
        benchmarks.append(
            {
                "group": None,
                "name": row.id.rpartition("::")[2],
                "fullname": row.id,
                "params": row.params,
                "param": row.param,
                "extra_info": row.extra_info,
                "options": {
                    "disable_gc": False,
                    "timer": "perf_counter",
                    "min_rounds": len(row.round_seconds),
                    "max_time": 0.0,
                    "min_time": 0.0,
                    "warmup": False,
                },
                "stats": {**stats.as_dict(), "data": list(stats.data), "iterations": 1},
            }
        )
    return {
        "machine_info": plugin.pytest_benchmark_generate_machine_info(),
        "commit_info": plugin.pytest_benchmark_generate_commit_info(config),
        "benchmarks": benchmarks,
        "datetime": datetime.datetime.now(datetime.UTC).isoformat(),
        "version": __version__,
    }
