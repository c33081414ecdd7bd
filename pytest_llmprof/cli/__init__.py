"""The command `llmprof`. It reads result files only: it imports neither torch nor pytest."""

from pytest_llmprof.cli.command import main

__all__ = ["main"]
