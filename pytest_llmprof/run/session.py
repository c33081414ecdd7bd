"""One session: registered plugins, configuration, run directory and loaded model, each made on first use."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llmprof import __version__
from pytest_llmprof.measure.environment import versions
from pytest_llmprof.records.catalogue import BUILTIN, Catalogue, Metric
from pytest_llmprof.records.run import Process, RunRecord, Shard
from pytest_llmprof.run.artifacts import Artifacts
from pytest_llmprof.run.directory import begin_run_dir, begun_run_dir

if TYPE_CHECKING:
    from pytest_llmprof.compare.baseline import Baseline
    from pytest_llmprof.compare.compare import Terms
    from pytest_llmprof.compare.gates import Given
    from pytest_llmprof.config.compose import Composer, ConfigSources
    from pytest_llmprof.config.schema import DatasetSettings, Settings
    from pytest_llmprof.datasets.base import DatasetPlugin, Page
    from pytest_llmprof.models.base import ModelPlugin
    from pytest_llmprof.run.gates import TestGates
    from pytest_llmprof.run.model_cache import ModelCache
    from pytest_llmprof.stages.base import StagePlugin, ToolStagePlugin


@dataclass
class Session:
    """What the tests of a session share. *models*, *stages* and *datasets* are all that are registered."""

    sources: ConfigSources
    models: Sequence[ModelPlugin]
    stages: Sequence[StagePlugin | ToolStagePlugin]
    datasets: Sequence[DatasetPlugin]
    choose_run_dir: Callable[[], Path]
    """Returns the run directory; called once. Raises `ArtifactError`."""
    id: str
    """One for all processes of the session; no other session has it."""
    argv: Sequence[str]
    """pytest's arguments."""
    process: Process | None
    """The process that writes run.json."""
    explicit: bool
    """Whether the user named the run directory: then no other is tried."""
    metrics: Sequence[Metric] = ()
    """Metrics that plugins declare through the hook."""
    find_baseline: Callable[[], Baseline | None] = lambda: None
    """Gives what the session is compared with. Raises `LlmprofError`."""
    shard: Shard | None = None
    """The part of the suite that the session runs; None for all of it."""
    profiler_ran: bool = False
    """Whether a profiler ran in this process already."""
    _pages: dict[DatasetSettings, tuple[Page, ...]] = field(default_factory=dict)
    _digests: dict[int, tuple[Sequence[Page], str]] = field(default_factory=dict)
    _begun: bool = False

    @cached_property
    def composer(self) -> Composer:
        """The configuration; its methods raise `ConfigError`."""
        from pytest_llmprof.config.compose import Composer
        from pytest_llmprof.config.registry import Registry

        registry = Registry.of(self.models, self.stages, self.datasets)
        if self.sources.frozen is not None:
            from pytest_llmprof.config.frozen import FrozenComposer

            return FrozenComposer(self.sources, registry, self.sources.frozen)
        return Composer(self.sources, registry)

    @cached_property
    def catalogue(self) -> Catalogue:
        """All metrics: the common ones, then those of stages, models and plugins. Raises `ConfigError`."""
        own = [metric for plugin in (*self.stages, *self.models) for metric in plugin.metrics]
        return Catalogue((*BUILTIN, *own, *self.metrics))

    @cached_property
    def run_dir(self) -> Path:
        """This run's directory. `begin` makes it, and may have to change its name."""
        return self.choose_run_dir()

    @cached_property
    def model_cache(self) -> ModelCache:
        """The loaded model."""
        from pytest_llmprof.run.model_cache import ModelCache

        return ModelCache({plugin.name: plugin for plugin in self.models})

    def check(self) -> Settings:
        """Check all that can be checked before tests are collected. Raises `LlmprofError`."""
        settings = self.composer.session()
        self.gates(settings, ())
        for stage in settings.stages:
            self.artifacts("test").save_dirs(replace(settings, stage=stage))
        return settings

    @property
    def legacy_keys(self) -> tuple[str, ...]:
        """Legacy keys in all that was composed so far."""
        return self.composer.legacy_keys if "composer" in vars(self) else ()

    @property
    def timed(self) -> bool:
        """Whether times taken in this process are valid; under a tool, in a child, they are not."""
        return self.sources.frozen is None

    def stage(self, name: str) -> StagePlugin | ToolStagePlugin:
        """A registered stage."""
        return next(stage for stage in self.stages if stage.name == name)

    def stages_measuring(self, metric: str) -> tuple[str, ...]:
        """The stages of this run that measure *metric*: those that declare it; if none does, those that time."""
        owners = {stage.name for stage in self.stages if any(own.name == metric for own in stage.metrics)}
        chosen = self.composer.session().stages
        return tuple(name for name in chosen if (name in owners if owners else not self.stage(name).in_child))

    def gates(self, settings: Settings, marked: Sequence[Given]) -> TestGates:
        """The gates of a test: those of its *settings*, and above them those of its marks. Raises `ConfigError`."""
        from pytest_llmprof.run.gates import gates_of

        return gates_of(settings, marked, self.catalogue, self.stages_measuring, self.baseline)

    def terms(self) -> Terms:
        """How the session's run is compared with its baseline."""
        from pytest_llmprof.run.gates import terms_of

        return terms_of(self.composer.session())

    @cached_property
    def baseline(self) -> Baseline | None:
        """What the session is compared with."""
        return self.find_baseline()

    def pages(self, settings: DatasetSettings) -> tuple[Page, ...]:
        """A dataset's pages, read once. Raises `DatasetError`."""
        if settings not in self._pages:
            from pytest_llmprof.datasets import load_pages

            plugin = next(plugin for plugin in self.datasets if plugin.name == settings.name)
            self._pages[settings] = load_pages(plugin, settings)
        return self._pages[settings]

    def digest(self, pages: Sequence[Page]) -> str:
        """The digest of *pages*, computed once for each list of them."""
        from pytest_llmprof.datasets import dataset_digest

        if id(pages) not in self._digests:
            self._digests[id(pages)] = pages, dataset_digest(pages)
        return self._digests[id(pages)][1]

    def artifacts(self, test: str) -> Artifacts:
        """The directories of a test; *test* is its directory under the run directory (`llmprof.test`)."""
        return Artifacts(self.run_dir / test, {stage.name: stage.files for stage in self.stages})

    @cached_property
    def record(self) -> RunRecord:
        """run.json as the run begins."""
        return RunRecord(
            status="running",
            argv=list(self.argv),
            started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            session=self.id,
            process=self.process,
            shard=self.shard,
            versions={**versions(), "pytest-llmprof": __version__, "python": platform.python_version()},
            metrics=[metric.declaration for metric in self.catalogue],
            tests=[],
        )

    def take_shard(self, shard: Shard) -> None:
        """Take over the shard as it is known once tests are collected."""
        self.shard = shard
        if "record" in vars(self):
            self.record.shard = shard

    def begin(self) -> None:
        """Make the run directory, once. Raises `ArtifactError`."""
        if not self._begun:
            self.run_dir = begin_run_dir(self.run_dir, self.composer.saved(), self.record, explicit=self.explicit)
            self._begun = True

    def begin_in(self, path: Path) -> None:
        """Write into *path*, which is there, as this process does not see the session's run directory."""
        self.run_dir = path
        self._begun = True

    def begun(self) -> bool:
        """Whether any process of the session has made the run directory; takes over its name."""
        known = "run_dir" in vars(self)
        if known and not self._begun and (found := begun_run_dir(self.run_dir, self.id, explicit=self.explicit)):
            self.run_dir = found
            self._begun = True
        return self._begun

    def close(self) -> None:
        """Free the model. The next test that needs one loads it."""
        if "model_cache" in vars(self):
            self.model_cache.close()

    @property
    def close_errors(self) -> Sequence[str]:
        """Errors in closing models so far, a line each."""
        return self.model_cache.close_errors if "model_cache" in vars(self) else ()
