"""The directories of one test: its stage directories, and where its outputs go."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pytest_llmprof.config.paths import why_unusable
from pytest_llmprof.config.schema import Settings
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.text.escape import shorten

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
        stage_dir = Path(os.path.realpath(self.test_dir)) / settings.stage
        try:
            wanted = Path(given).expanduser()
        except RuntimeError as error:
            raise ArtifactError(f"{key}: {given!r}: {error}") from error
        path = Path(os.path.normpath(stage_dir / wanted))
        if why := why_unusable(path):
            raise ArtifactError(f"{key}: {shorten(given, 300)!r}: {why}")
        if wanted.is_absolute():
            return path
        if not path.is_relative_to(stage_dir) or not path.resolve().is_relative_to(stage_dir.resolve()):
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

    @contextmanager
    def outputs(self, settings: Settings) -> Iterator[dict[str, Path]]:
        """Make the `save_dirs`, and keep other sessions out of them until the block has ended.

        Raises `ArtifactError` where one cannot be written, holds a `pages` that is no gallery's, or is in use.
        """
        from pytest_llmprof.outputs import check_gallery, check_writable

        dirs = self.save_dirs(settings)
        held: set[Path] = set()
        with ExitStack() as stack:
            for kind, directory in dirs.items():
                key, place = settings.save_dir_named(kind), directory.resolve()
                check_writable(directory, key)
                if place not in held and not stack.enter_context(locked(place)):
                    raise ArtifactError(f"{key}: another session writes into {directory} now: set another directory")
                held.add(place)
                if kind == "visualization":
                    check_gallery(directory, key)
            yield dirs

    def inside(self, *names: str) -> Path:
        """The path of *names* below the test's directory. Raises `ArtifactError` where a part of it is a link."""
        path = self.test_dir.joinpath(*names)
        for place in (path, *path.parents[: len(names) + 1]):
            if place.is_symlink():
                raise ArtifactError(f"{place} is a link, and a run writes nothing behind one: remove it")
        return path

    def begin(self, stage: str) -> Path:
        """Make an empty stage directory; what an earlier run of this test left there is removed."""
        self.inside()
        return fresh_dir(self.out_dir(stage))


def fresh_dir(path: Path) -> Path:
    """Make *path* an empty directory. What is there is removed; of a link, not what it leads to."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        path.mkdir(parents=True)
    except OSError as error:
        raise ArtifactError(f"cannot make the directory {path}: {error.strerror}") from error
    return path


@contextmanager
def locked(directory: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold *directory* until the block, or this process, has ended. Gives whether it is held: False where another holds
    it and *wait* is off. Raises `ArtifactError` where it cannot be opened; without locks (some network file systems)
    nothing is held, and the answer is True."""
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise ArtifactError(f"cannot open {directory}: {error.strerror}") from error
    try:
        free = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            free = not isinstance(error, BlockingIOError)
        yield free
    finally:
        os.close(handle)
