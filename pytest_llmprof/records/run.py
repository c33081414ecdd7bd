"""run.json: the run as a whole and its tests."""

from __future__ import annotations

from msgspec import Struct

from pytest_llmprof.records.catalogue import Declaration

SCHEMA = 1
"""Version of run.json."""


class TestRecord(Struct):
    """One test in one stage."""

    __test__ = False

    id: str
    """pytest's node id."""
    stage: str
    kind: str | None
    """pages | callable; null until it has measured."""
    outcome: str
    """running | passed | failed | skipped | interrupted"""
    dir: str | None
    """The stage directory under the run directory."""
    error: str | None
    """Its failure, one line."""


class RunRecord(Struct, kw_only=True):
    """All of run.json."""

    schema: int = SCHEMA
    status: str
    """running | complete | stopped | interrupted"""
    argv: list[str]
    started: str
    """ISO 8601, UTC."""
    versions: dict[str, str | None]
    metrics: list[Declaration] = []
    """The catalogue of metrics of this run."""
    tests: list[TestRecord]
