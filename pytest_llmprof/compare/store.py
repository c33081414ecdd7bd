"""The store of saved runs: `.llmprof/<name>/<machine>/<time>-<key>.json`, one file a run, never overwritten."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pytest_llmprof.compare.saved import places, read_place
from pytest_llmprof.config.paths import why_unusable
from pytest_llmprof.errors import ArtifactError, ConfigError, nearest
from pytest_llmprof.records import baseline
from pytest_llmprof.records.baseline import SavedRun
from pytest_llmprof.records.files import atomic_path, decode_record, read_bytes, write_text
from pytest_llmprof.text.escape import shorten
from pytest_llmprof.text.names import unique_names

STORE = ".llmprof"
"""Its directory beside the tests."""
UNSAVED = "LLMPROF_UNSAVED"
"""Set for the processes of `llmprof ab`: their runs are not saved, as both sides would be runs of one name."""
_NAME = re.compile(r"[\w][\w.+-]{0,99}")


@dataclass(frozen=True)
class StoredRun:
    """One file of the store."""

    path: Path
    run: SavedRun


def check_name(name: str) -> None:
    """Raise `ConfigError` for a name that is no file name."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot be the name of a baseline: letters, digits, . _ + and - only")


class Store:
    """A directory of saved runs. Any number of processes may write to it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def save(self, run: SavedRun, name: str) -> Path:
        """Keep *run* under *name*. Gives its file; the same run twice is one file.

        Raises `ConfigError` for a name that is no file name, `ArtifactError` where the store cannot be written.
        """
        check_name(name)
        now = datetime.datetime.now(datetime.UTC)
        run = msgspec.structs.replace(run, name=name, saved=now.isoformat(timespec="seconds"))
        machine = unique_names([run.machine])[run.machine]
        folder = self.root / name / machine
        try:
            folder.mkdir(parents=True, exist_ok=True)
            ignore = self.root / ".gitignore"
            if not ignore.exists():
                write_text(ignore, "# Made by pytest-llmprof. Remove it to keep saved runs in git.\n*\n")
            for known in folder.glob(f"*-{run.key}.json"):
                return known
            path = folder / f"{now:%Y-%m-%dT%H-%M-%S}-{run.key}.json"
            with atomic_path(path) as temporary:
                temporary.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=1) + b"\n")
        except OSError as error:
            raise ArtifactError(f"cannot write the store {self.root}: {error.strerror}") from error
        return path

    def names(self) -> list[str]:
        """The names that runs are saved under. Raises `ArtifactError` where the store cannot be read."""
        try:
            entries = list(os.scandir(self.root))
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            why = why_unusable(self.root) or str(getattr(error, "strerror", error)).lower()
            raise ArtifactError(f"cannot read the store {shorten(str(self.root), 300)}: {why}") from error
        return sorted(entry.name for entry in entries if entry.is_dir() and _NAME.fullmatch(entry.name))

    def check_writable(self) -> None:
        """Raise `ArtifactError` where it can be seen, without writing, that no run can be saved."""
        self.names()
        there = next(folder for folder in (self.root, *self.root.absolute().parents) if folder.exists())
        if not os.access(there, os.W_OK | os.X_OK):
            raise ArtifactError(f"cannot write the store {shorten(str(self.root), 300)}: permission denied")

    def files(self, name: str) -> list[Path]:
        """The file of each run saved under *name*. Raises `ArtifactError` where a directory cannot be read."""
        try:
            return [
                path
                for folder in (self.root / name).iterdir()
                if folder.is_dir()
                for path in folder.iterdir()
                if path.suffix == ".json" and not path.name.startswith(".")
            ]
        except OSError as error:
            raise ArtifactError(f"cannot read {error.filename}: {error.strerror}") from error

    def runs(self, name: str | None = None) -> list[StoredRun]:
        """The saved runs, all or those of *name*, the oldest first.

        Raises `ArtifactError` for a name that is not there, or a file that cannot be read.
        """
        if name is not None and name not in self.names():
            known = self.names()
            there = f"saved: {', '.join(known)}" if known else "nothing is saved yet (--llmprof-save NAME)"
            raise ArtifactError(f"no run is saved under {name!r} in {self.root}{nearest(name, known)}; {there}")
        found = []
        for one in self.names() if name is None else [name]:
            for path in self.files(one):
                run = decode_record(read_bytes(path), SavedRun, baseline.SCHEMA, path)
                found.append(StoredRun(path, run))
        if name is not None and not found:
            raise ArtifactError(f"no run is saved under {name!r} any more: {self.root / name} holds none")
        return sorted(found, key=lambda stored: (stored.run.started, stored.path.name))

    def resolve(self, wanted: str, machines: Collection[str] = ()) -> list[SavedRun]:
        """The runs that *wanted* means: a name in the store, or a path (see `places`).

        Of a name that was saved on several machines, those of *machines* where there are any, else all.
        """
        if wanted in self.names():
            return of_machines([stored.run for stored in self.runs(wanted)], machines)
        return [read_place(place) for place in self.places(wanted)]

    def places(self, wanted: str, start: Path | None = None) -> list[Path]:
        """The files and directories of the runs that *wanted* means; a relative path lies under *start*.

        Raises `ArtifactError` where there is none.
        """
        if wanted in self.names():
            return [stored.path for stored in self.runs(wanted)]
        path = (start or Path()) / os.path.expanduser(wanted)
        if why := why_unusable(path):
            raise ArtifactError(f"there is no run at {shorten(str(path), 300)}: {why}")
        if not path.exists() and not set(wanted) & {"/", "\\"}:
            self.runs(wanted)  # raises, with the names that are there
        return places(path)


def of_machines(runs: Sequence[SavedRun], machines: Collection[str]) -> list[SavedRun]:
    """Those of *machines*, where there are any, else all."""
    return [run for run in runs if run.machine in machines] or list(runs)
