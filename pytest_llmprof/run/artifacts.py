"""The directories of one test: its stage directories, and where its outputs go."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from pytest_llmprof.config.schema import Settings
from pytest_llmprof.errors import ArtifactError

__all__ = ["STAGE_FILES", "Artifacts", "OutputDirs", "output_dirs"]

_TABLES = ("kernels.csv", "kernels.md", "operators.csv", "operators.md")
STAGE_FILES = frozenset(
    ("config.yaml", "environment.json", "inputs.jsonl", "metrics.json", "report.md", "trace.json.gz", *_TABLES)
)
"""What a stage writes beside its outputs."""


class Artifacts:
    """The directories of one test: `<run>/<module>/<test>/`, one directory a stage inside.

    `out_dir('torch_profiler')` is the stage directory that a relative `save_dir` resolves against.
    """

    def __init__(self, test_dir: Path) -> None:
        self.test_dir = test_dir

    def out_dir(self, stage: str) -> Path:
        """The directory of *stage* for this test (it exists once the stage has begun)."""
        return self.test_dir / stage

    def save_dir(self, settings: Settings, kind: str) -> Path:
        """Where the outputs of *kind*, "prediction" or "visualization", of the stage of *settings* go.

        Raises `ArtifactError` where a relative path leaves the stage directory, by ``..`` or through a link, or where a
        file of the stage has its name.
        """
        save_dir, key = settings.save_dir(kind), settings.save_dir_named(kind)
        stage_dir = self.out_dir(settings.stage).resolve()
        try:
            wanted = Path(save_dir).expanduser()
        except RuntimeError as error:
            raise ArtifactError(f"{key}: {save_dir!r}: {error}") from error
        if wanted.is_absolute():
            return Path(os.path.normpath(wanted))
        lexical = Path(os.path.normpath(stage_dir / wanted))
        if not lexical.is_relative_to(stage_dir) or not lexical.resolve().is_relative_to(stage_dir):
            raise ArtifactError(
                f"{key}: {save_dir!r} leaves the stage directory {stage_dir}: "
                "give a path below it, or an absolute path"
            )
        if (taken := lexical.relative_to(stage_dir).parts[:1]) and taken[0] in STAGE_FILES:
            raise ArtifactError(f"{key}: {save_dir!r}: {taken[0]} is a file of the stage, set another directory")
        return lexical

    def begin(self, stage: str) -> Path:
        """Make an empty stage directory, replacing what an earlier run of this test left there."""
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


@dataclass(frozen=True)
class OutputDirs:
    """Where one stage's outputs go; None where they are off."""

    prediction: Path | None
    visualization: Path | None


def output_dirs(settings: Settings, artifacts: Artifacts) -> OutputDirs:
    """Resolve the enabled outputs' `save_dir`s. Raises `ArtifactError` where one leaves the stage directory."""
    output = settings.current.output
    if output is None:
        return OutputDirs(None, None)
    prediction = artifacts.save_dir(settings, "prediction") if output.prediction.enable else None
    visualization = artifacts.save_dir(settings, "visualization") if output.visualization.enable else None
    return OutputDirs(prediction, visualization)
