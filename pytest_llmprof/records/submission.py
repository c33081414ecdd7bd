"""What `llmprof submit` writes beside the run that it makes: submit.json, and job.json of each attempt at a shard."""

from __future__ import annotations

from msgspec import Struct

from pytest_llmprof.records.run import Process

SCHEMA = 1
"""Version of both files."""


class Submission(Struct, kw_only=True):
    """submit.json: what was asked for, and the job of each shard."""

    schema: int = SCHEMA
    cluster: str
    """slurm | local"""
    shards: int
    arguments: list[str]
    """Those of pytest, but for those that each shard has of its own."""
    options: dict[str, str | bool]
    """Options of sbatch, without their dashes; true for one without a value."""
    directory: str
    """Where pytest is started."""
    jobs: dict[int, str] = {}
    """The last job of each shard, by the shard's number."""


class ShardJob(Struct, kw_only=True):
    """job.json: one attempt at a shard, written in its job."""

    schema: int = SCHEMA
    process: Process | None
    """The process that started pytest."""
    code: int | None = None
    """pytest's exit code, negative for a signal that ended it; null until it has ended."""
    signal: str | None = None
    """With which signal the cluster asked the job to end; null where it did not."""
