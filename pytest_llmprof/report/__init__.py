"""Reports made of the files of a run. Nothing here imports torch."""

from pytest_llmprof.report.stage_report import write_report

__all__ = ["write_report"]
