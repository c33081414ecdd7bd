"""The saved runs that a session is compared with (`--llmprof-compare`)."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from pytest_llmprof.compare.compare import refuse_copies
from pytest_llmprof.compare.saved import read_place
from pytest_llmprof.compare.store import Store, of_machines
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.records.baseline import SavedRun


@dataclass(frozen=True)
class Baseline:
    """The runs at some places, read when they are asked for."""

    name: str
    """What the user calls it; of a link the directory that it led to."""
    places: tuple[Path, ...]
    """The runs' files and directories: no links, as `latest` will be another run soon."""
    content: str = ""
    """The runs as JSON, for a process that may not see those places."""

    @classmethod
    def find(cls, store: Store, name: str, start: Path) -> Baseline:
        """The baseline *name*: a name in *store*, or a path, relative to *start*.

        Raises `ArtifactError` with one line where there is none, one cannot be read, is half a run or there twice.
        """
        places = tuple(Path(os.path.realpath(place)) for place in store.places(name, start))
        link = name not in store.names() and (start / name).is_symlink()
        found = cls(os.path.relpath(places[0], start) if link else name, places)
        for place, run in zip(places, found.runs, strict=True):
            if not run.tests:
                raise ArtifactError(f"{place} has no test of pytest-llmprof in it")
            if run.status != "complete":
                raise ArtifactError(
                    f"{place} is half a run (its status is {run.status}): run it to its end, or name another one"
                )
        refuse_copies(found.runs)
        return found

    @cached_property
    def runs(self) -> Sequence[SavedRun]:
        """All its runs. Raises `ArtifactError` where one cannot be read."""
        if self.content:
            return msgspec.json.decode(self.content, type=list[SavedRun])
        return [msgspec.structs.replace(run, name=run.name or self.name) for run in map(read_place, self.places)]

    def of(self, machines: Collection[str]) -> list[SavedRun]:
        """The runs to compare those of *machines* with: their own, where there are any, else all."""
        return of_machines(self.runs, machines)
