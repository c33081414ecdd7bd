"""The metrics and files of the stage `torch_profiler`."""

from __future__ import annotations

from pytest_llmprof.analysis.metrics import TRACE_METRICS
from pytest_llmprof.records.catalogue import Metric

__all__ = ["FILES", "METRICS"]

METRICS = (
    *TRACE_METRICS,
    Metric(
        "gpu_busy_share", "share", "GPU busy in a decode step", "higher", shown=("gate",), digits=3,
        description="Kernel time of a profiled decode step / TPOT of the measured rounds. Null without a GPU.",
    ),
)

FILES = {
    "trace.json.gz": "the profiled window, for ui.perfetto.dev",
    "operators.md": "operators, the longest",
    "operators.csv": "operators, all",
    "kernels.md": "kernels, the longest",
    "kernels.csv": "kernels, all",
}
"""What it writes into the stage directory, for the report."""
