"""The directories of one test: its stage directories, and where its outputs go."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from pytest_llmprof.config.schema import Settings
from pytest_llmprof.errors import ArtifactError

_FILES = ("config.yaml", "environment.json", "inputs.jsonl", "metrics.json", "report.md")
"""Files of every stage directory."""


class Artifacts:
    """The directories of one test: `<run>/<module>/<test>/`, one directory a stage inside.

    A relative `save_dir` lies below the stage directory, `out_dir("torch_profiler")`.
    """

    def __init__(self, test_dir: Path, stage_files: Mapping[str, Collection[str]]) -> None:
        """*stage_files* holds the names of the files that each stage writes itself."""
        self.test_dir = test_dir
        self._stage_files = stage_files

    def out_dir(self, stage: str) -> Path:
        """The directory of *stage*; it exists once the stage has begun."""
        return self.test_dir / stage

    def save_dir(self, settings: Settings, kind: str) -> Path:
        """The absolute path of a `save_dir`; *kind* is "prediction" or "visualization".

        `~` is the home directory; a relative path lies below the stage directory. Raises `ArtifactError` where a
        relative path leaves that directory, by ``..`` or through a link, or has the name of a file of the stage.
        """
        given, key = settings.save_dir(kind), settings.save_dir_named(kind)
        stage_dir = self.out_dir(settings.stage).resolve()
        try:
            wanted = Path(given).expanduser()
        except RuntimeError as error:
            raise ArtifactError(f"{key}: {given!r}: {error}") from error
        if wanted.is_absolute():
            return Path(os.path.normpath(wanted))
        path = Path(os.path.normpath(stage_dir / wanted))
        if not path.is_relative_to(stage_dir) or not path.resolve().is_relative_to(stage_dir):
            raise ArtifactError(
                f"{key}: {given!r} leaves the stage directory {stage_dir}: give a path below it, or an absolute path"
            )
        first = path.relative_to(stage_dir).parts[:1]
        if first and first[0] in (*_FILES, *self._stage_files[settings.stage]):
            raise ArtifactError(f"{key}: {given!r}: {first[0]} is a file of the stage, set another directory")
        return path

    def save_dirs(self, settings: Settings) -> dict[str, Path]:
        """The `save_dir` of each kind of output that is enabled. Raises `ArtifactError` as `save_dir` does."""
        output = settings.current.output
        kinds = () if output is None else ("prediction", "visualization")
        return {kind: self.save_dir(settings, kind) for kind in kinds if getattr(output, kind).enable}

    def begin(self, stage: str) -> Path:
        """Make an empty stage directory; what an earlier run of this test left there is removed."""
        path = self.out_dir(stage)
        try:
            if path.is_symlink() or path.is_file():
                path.unlink()
            elif path.exists():
                shutil.rmtree(path)
            path.mkdir(parents=True)
        except OSError as error:
            raise ArtifactError(f"cannot make the stage directory {path}: {error.strerror}") from error
        return path
