"""run.json: the run as a whole and its tests."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from pytest_llmprof.records.catalogue import Declaration
from pytest_llmprof.records.files import decode_record, read_bytes

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
    seconds: float | None = None
    """Wall time of its set-up, call and teardown, those of reruns too; null until it has ended."""


class Process(Struct, frozen=True):
    """The process that writes run.json (pytest-xdist's controller), so that a killed run is told from a live one."""

    pid: int
    pid_namespace: str
    """Of the container in which `pid` counts."""
    boot_id: str
    """One for each start of the machine."""
    started: int
    """When it began, in clock ticks since the machine's start: a later process may get the same `pid`."""

    @classmethod
    def this(cls) -> Process | None:
        """This process; None where there is no /proc."""
        try:
            boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            return cls(os.getpid(), os.readlink("/proc/self/ns/pid"), boot_id, _started(os.getpid()))
        except OSError:
            return None

    def alive(self) -> bool | None:
        """Whether it is there still; None where that cannot be known: another machine, container or boot."""
        here = Process.this()
        if here is None or (here.pid_namespace, here.boot_id) != (self.pid_namespace, self.boot_id):
            return None
        with suppress(OSError):
            return _started(self.pid) == self.started
        try:  # /proc may hide another user's
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:
            return None
        return None


class Shard(Struct, frozen=True):
    """The part of a suite that a run is (`--llmprof-shard`)."""

    index: int
    """From 1."""
    count: int
    """Shards that the suite was split into."""
    split: str | None = None
    """Digest of which test is in which shard: the shards of one suite agree. Null where it is not known."""


class MergedRun(Struct, frozen=True):
    """One of the runs that `llmprof merge` joined."""

    shard: Shard | None
    argv: list[str]
    started: str
    session: str
    status: str
    versions: dict[str, str | None]


class RunRecord(Struct, kw_only=True):
    """All of run.json."""

    schema: int = SCHEMA
    status: str
    """running | complete | stopped | interrupted"""
    argv: list[str]
    started: str
    """ISO 8601, UTC."""
    session: str = ""
    """One for all processes of a session; no other session has it."""
    process: Process | None = None
    """Null where the system has no /proc."""
    shard: Shard | None = None
    """Null for a run of all tests."""
    versions: dict[str, str | None]
    metrics: list[Declaration] = []
    """The catalogue of metrics of this run."""
    tests: list[TestRecord]
    merged: list[MergedRun] = []
    """The runs that this one was joined of; else empty."""

    @classmethod
    def read(cls, run_dir: Path) -> RunRecord:
        """Read run.json of a run. Raises `ArtifactError` with one line where it is missing, broken or newer."""
        path = run_dir / "run.json"
        return decode_record(read_bytes(path), cls, SCHEMA, path)

    def alive(self) -> bool | None:
        """Whether the run goes on: False where it has ended or was killed, None where this cannot be known here."""
        if self.status != "running":
            return False
        return None if self.process is None else self.process.alive()


def _started(pid: int) -> int:
    """When the process *pid* began; -1 for one that has ended and still has an entry. Raises `OSError`."""
    state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return -1 if state in (b"Z", b"X") else int(fields[18])
