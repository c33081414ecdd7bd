"""What `llmprof doctor` finds of a machine and a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct, structs

SCHEMA = 1
"""Version of doctor's JSON."""
Status = Literal["ok", "warning", "problem", "not checked"]


class Check(Struct, frozen=True):
    """One thing that was looked at. Made by the functions below: what is not well says how to mend it."""

    name: str
    status: Status
    """warning: runs, but its numbers may suffer. problem: what it is needed for cannot run."""
    found: str
    """One line."""
    mend: str | None = None
    """What to do, one line; null where nothing is to be done."""
    stage: str | None = None
    """The stage that needs it; null: all do."""


def ok(name: str, found: str) -> Check:
    """All is well."""
    return Check(name, "ok", found)


def warning(name: str, found: str, mend: str) -> Check:
    """Tests run, but something is missing or disturbs them."""
    return Check(name, "warning", found, mend)


def problem(name: str, found: str, mend: str) -> Check:
    """Its stage cannot run; where no stage is named, none can."""
    return Check(name, "problem", found, mend)


def not_checked(name: str, why: str, mend: str | None = None) -> Check:
    """Nothing could be found out."""
    return Check(name, "not checked", why, mend)


def of_stage(checks: Sequence[Check], stage: str) -> list[Check]:
    """*checks* as those of one stage."""
    return [structs.replace(check, stage=stage) for check in checks]


class MachineReport(Struct, kw_only=True):
    """All of doctor's JSON."""

    schema: int = SCHEMA
    device: str | None = None
    """Where the model would run, "cpu" or "cuda:0"; null where that cannot be found out."""
    stages: list[str] = []
    """The stages that were chosen."""
    other_stages: list[str] = []
    """All others that are registered."""
    checks: list[Check] = []

    def problems(self, stage: str) -> list[Check]:
        """What keeps *stage* from running."""
        return [check for check in self.checks if check.status == "problem" and check.stage in (None, stage)]

    @property
    def able(self) -> bool:
        """Whether all chosen stages can run; False where they are not known."""
        return bool(self.stages) and not any(self.problems(stage) for stage in self.stages)
