"""One session's state: the configuration, the run directory, the model at hand and what each test came to.

Nothing here is made before a test (or an option) asks for it.
"""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmprof import __version__
from pytest_llmprof.artifacts import Artifacts, safe_name, unique_names, write_json, write_text
from pytest_llmprof.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from pytest_llmprof.config.compose import Composer, ConfigSources
    from pytest_llmprof.config.schema import DatasetSettings, Settings
    from pytest_llmprof.datasets.base import DatasetPlugin, Page
    from pytest_llmprof.models.base import ModelPlugin
    from pytest_llmprof.stages.base import StagePlugin
    from pytest_llmprof.stages.runner import ModelCache

__all__ = ["RUN_SCHEMA", "RunLog", "Session", "TestKey", "check_collisions", "choose_run_dir", "test_dirs"]

RUN_SCHEMA = 1


@dataclass(frozen=True)
class TestKey:
    """A test without its stage."""

    __test__ = False

    module: str
    """The module's path relative to the rootdir, POSIX."""
    name: str
    """The test's name in its module, classes and parameters included, the stage not."""


def test_dirs(keys: Sequence[TestKey]) -> dict[TestKey, str]:
    """The directory of each test under the run directory, `<module>/<test>`; no two alike."""
    stems: dict[str, set[str]] = {}
    for key in keys:
        stems.setdefault(safe_name(Path(key.module).stem), set()).add(key.module)
    modules = {}
    for stem, paths in stems.items():
        for path in paths:
            modules[path] = stem if len(paths) == 1 else safe_name(str(Path(path).with_suffix("")).replace("/", "."))
    by_module: dict[str, list[TestKey]] = {}
    for key in dict.fromkeys(keys):
        by_module.setdefault(key.module, []).append(key)
    result = {}
    for module, members in by_module.items():
        readable = {key: key.name.replace("[", "-").replace("]", "").replace("::", ".") for key in members}
        twice = {name for name in readable.values() if list(readable.values()).count(name) > 1}
        whole = {key: key.name if name in twice else name for key, name in readable.items()}
        safe = unique_names(list(whole.values()))
        for key in members:
            result[key] = f"{modules[module]}/{safe[whole[key]]}"
    return result


def choose_run_dir(explicit: Path | None, rootdir: Path) -> Path:
    """The run's directory; it is not made yet. Raises `ArtifactError` where *explicit* holds a run already."""
    if explicit is not None:
        path = Path(os.path.abspath(explicit))
        if (path / "run.json").exists():
            raise ArtifactError(
                f"--llmprof-run-dir {path} already holds a run (run.json): name a new directory or remove that one"
            )
        if path.exists() and not path.is_dir():
            raise ArtifactError(f"--llmprof-run-dir {path} is not a directory")
        return path
    base = rootdir / "llmprof-runs"
    stamp = datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    path = base / stamp
    number = 2
    while path.exists():
        path = base / f"{stamp}-{number}"
        number += 1
    return path


class RunLog:
    """`run.json` of a run: rewritten whole after each test, so that a killed run keeps what it had."""

    def __init__(self, path: Path, argv: Sequence[str]) -> None:
        self.path = path
        self.tests: dict[str, dict[str, Any]] = {}
        self._argv = list(argv)
        self._started = datetime.datetime.now(datetime.UTC).isoformat()

    def write(self, status: str) -> None:
        """Write it with *status* running | complete | interrupted."""
        from importlib.metadata import version

        names = ("pytest", "pytest-benchmark", "torch", "transformers", "hydra-core", "nvtx")
        write_json(
            self.path / "run.json",
            {
                "schema": RUN_SCHEMA,
                "status": status,
                "argv": self._argv,
                "started": self._started,
                "versions": {
                    "pytest-llmprof": __version__,
                    "python": sys.version.split()[0],
                    **{name: version(name) for name in names},
                },
                "tests": list(self.tests.values()),
            },
        )


@dataclass
class Session:
    """What tests share. *models*, *stages* and *datasets* are all that are registered."""

    sources: ConfigSources
    models: Sequence[ModelPlugin]
    stages: Mapping[str, StagePlugin]
    datasets: Mapping[str, DatasetPlugin]
    run_dir: Path
    profiler_ran: bool = False
    _pages: dict[DatasetSettings, tuple[tuple[Page, ...], str]] = field(default_factory=dict)

    @cached_property
    def composer(self) -> Composer:
        """Composes on first use; raises `ConfigError`."""
        from pytest_llmprof.config.compose import Composer
        from pytest_llmprof.config.registry import Registry

        return Composer(self.sources, Registry.of(self.models, self.stages.values(), self.datasets.values()))

    @cached_property
    def model_cache(self) -> ModelCache:
        """Holds the loaded model."""
        from pytest_llmprof.stages.runner import ModelCache

        return ModelCache({plugin.name: plugin for plugin in self.models})

    def settings(self, overrides: tuple[str, ...], where: str, test: str, stage: str) -> Settings:
        """One test's settings in one stage. Raises `ConfigError`."""
        settings = self.composer.for_test(overrides, where, test, stage)
        wanted = self.composer.session().stages
        if settings.stages != wanted:
            raise ConfigError(
                f"stages={list(settings.stages)} in the llmprof marker at {where}: stages are chosen for the whole "
                f"session (--llmprof-stage), here {', '.join(wanted)}"
            )
        return settings

    def pages(self, settings: DatasetSettings) -> tuple[tuple[Page, ...], str]:
        """A dataset's pages and digest, read once. Raises `DatasetError`."""
        if settings not in self._pages:
            from pytest_llmprof.datasets import dataset_digest, load_pages

            pages = load_pages(self.datasets[settings.name], settings)
            self._pages[settings] = (pages, dataset_digest(pages))
        return self._pages[settings]

    def artifacts(self, test: str) -> Artifacts:
        """The directories of the test *test* (`llmprof.test`)."""
        return Artifacts(self.run_dir / test)

    def begin(self) -> None:
        """Make the run directory with its config.yaml, `latest` link and marks; harmless when it is there."""
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError(f"cannot make the run directory {self.run_dir}: {error.strerror}") from error
        if not os.access(self.run_dir, os.W_OK):
            raise ArtifactError(f"cannot write into the run directory {self.run_dir}: permission denied")
        if (self.run_dir / "config.yaml").exists():
            return
        if self.run_dir.parent.name == "llmprof-runs":
            ignore = self.run_dir.parent / ".gitignore"
            if not ignore.exists():
                write_text(ignore, "# Made by pytest-llmprof: runs are not for version control.\n*\n")
            self._link_latest()
        write_text(self.run_dir / "config.yaml", self.composer.show())

    def _link_latest(self) -> None:
        link = self.run_dir.parent / "latest"
        temporary = self.run_dir.parent / f".latest-{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(self.run_dir.name, target_is_directory=True)
        temporary.replace(link)


def check_collisions(owners: Sequence[tuple[str, Settings, Path]]) -> dict[str, str]:
    """Find tests or stages whose enabled outputs share a directory.

    *owners* holds (node id, settings, test directory). Returns {node id: one-line error} for both sides.
    """
    from pytest_llmprof.stages.runner import output_dirs

    seen: dict[Path, tuple[str, Settings]] = {}
    errors: dict[str, str] = {}
    for node, settings, test_dir in owners:
        dirs = output_dirs(settings, Artifacts(test_dir))
        for kind in ("prediction", "visualization"):
            directory = getattr(dirs, kind)
            if directory is None:
                continue
            other = seen.setdefault(directory, (node, settings))
            if other[0] == node:
                continue
            fix = directory / "${llmprof.test}"
            if other[1].stage != settings.stage:
                fix = fix / "${llmprof.stage}"
            text = (
                f"{other[0]} and {node} would both write into {directory}: give each its own, "
                f"--llmprof-override 'pipeline.{settings.stage}.output.{kind}.save_dir={fix}'"
            )
            errors.setdefault(node, text)
            errors.setdefault(other[0], text)
    return errors
