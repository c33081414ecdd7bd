"""What profilers leave behind, read back: the torch.profiler trace, its tables and figures."""

from pytest_llmprof.analysis.events import merged
from pytest_llmprof.analysis.rows import KernelRow, OperatorRow, PhaseRow, StepFigures
from pytest_llmprof.analysis.tables import write_tables
from pytest_llmprof.analysis.trace import Trace, read_trace

__all__ = [
    "KernelRow",
    "OperatorRow",
    "PhaseRow",
    "StepFigures",
    "Trace",
    "merged",
    "read_trace",
    "write_tables",
]
