"""One session's state: what is registered, the configuration, the run directory and the model at hand.

Nothing here is made before a test (or an option) asks for it, and nothing here knows pytest.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llmprof.artifacts import Artifacts
from pytest_llmprof.rundir import begin_run_dir, begun_run_dir

if TYPE_CHECKING:
    from pytest_llmprof.config.compose import Composer, ConfigSources
    from pytest_llmprof.config.schema import DatasetSettings, Settings
    from pytest_llmprof.datasets.base import DatasetPlugin, Page
    from pytest_llmprof.models.base import ModelPlugin
    from pytest_llmprof.stages.base import StagePlugin, ToolStagePlugin
    from pytest_llmprof.stages.runner import ModelCache

__all__ = ["Session", "check_collisions"]


@dataclass
class Session:
    """What tests share. *models*, *stages* and *datasets* are all that are registered."""

    sources: ConfigSources
    models: Sequence[ModelPlugin]
    stages: Sequence[StagePlugin | ToolStagePlugin]
    datasets: Sequence[DatasetPlugin]
    choose_run_dir: Callable[[], Path]
    """Names the run directory, once; raises `ArtifactError`."""
    id: str
    """Of the whole session: its processes have one, no other session has it."""
    explicit: bool
    """Whether the user named the run directory: then it is that one or none."""
    profiler_ran: bool = False
    """Whether a profiler ran in this process already."""
    _pages: dict[DatasetSettings, tuple[Page, ...]] = field(default_factory=dict)
    _digests: dict[int, tuple[Sequence[Page], str]] = field(default_factory=dict)
    _begun: bool = False

    @cached_property
    def composer(self) -> Composer:
        """Composes when first asked; its methods raise `ConfigError`."""
        from pytest_llmprof.config.compose import Composer
        from pytest_llmprof.config.registry import Registry

        registry = Registry.of(self.models, self.stages, self.datasets)
        if self.sources.frozen is not None:
            from pytest_llmprof.config.frozen import FrozenComposer

            return FrozenComposer(self.sources, registry, self.sources.frozen)
        return Composer(self.sources, registry)

    @cached_property
    def run_dir(self) -> Path:
        """This run's directory; it is there once the run has begun, which may give it another name."""
        return self.choose_run_dir()

    @cached_property
    def model_cache(self) -> ModelCache:
        """Holds the loaded model."""
        from pytest_llmprof.stages.runner import ModelCache

        return ModelCache({plugin.name: plugin for plugin in self.models})

    def check(self) -> Settings:
        """Check all that can be checked before tests are collected. Raises `LlmprofError`."""
        from pytest_llmprof.stages.runner import output_dirs

        settings = self.composer.session()
        for stage in settings.stages:
            output_dirs(replace(settings, stage=stage), self.artifacts("test"))
        return settings

    @property
    def legacy_keys(self) -> tuple[str, ...]:
        """Legacy keys met so far, by what was composed."""
        return self.composer.legacy_keys if "composer" in vars(self) else ()

    @property
    def timed(self) -> bool:
        """Whether times taken in this process mean anything: not in a child that a tool watches."""
        return self.sources.frozen is None

    def stage(self, name: str) -> StagePlugin | ToolStagePlugin:
        """A registered stage."""
        return next(stage for stage in self.stages if stage.name == name)

    def runs_in_child(self, stage: str) -> bool:
        """Whether tests of the stage *stage* run in a child process, under a tool."""
        from pytest_llmprof.stages.base import ToolStagePlugin

        return isinstance(self.stage(stage), ToolStagePlugin)

    def pages(self, settings: DatasetSettings) -> tuple[Page, ...]:
        """A dataset's pages, found once. Raises `DatasetError`."""
        if settings not in self._pages:
            from pytest_llmprof.datasets import load_pages

            plugin = next(plugin for plugin in self.datasets if plugin.name == settings.name)
            self._pages[settings] = load_pages(plugin, settings)
        return self._pages[settings]

    def digest(self, pages: Sequence[Page]) -> str:
        """The digest of *pages*, computed once for each list of them."""
        from pytest_llmprof.datasets import dataset_digest

        known = self._digests.get(id(pages))
        if known is None:
            known = self._digests[id(pages)] = (pages, dataset_digest(pages))
        return known[1]

    def artifacts(self, test: str) -> Artifacts:
        """The directories of the test *test* (`llmprof.test`)."""
        return Artifacts(self.run_dir / test)

    def begin(self) -> None:
        """Make the run directory, once. Raises `ArtifactError`."""
        if not self._begun:
            self.run_dir = begin_run_dir(self.run_dir, self.composer.show(), self.id, explicit=self.explicit)
            self._begun = True

    def begun(self) -> bool:
        """Whether this or another process of the session has made the run directory; takes over its name."""
        if not self._begun and (found := begun_run_dir(self.run_dir, self.id, explicit=self.explicit)):
            self.run_dir = found
            self._begun = True
        return self._begun

    def close(self) -> None:
        """Free the model; another is loaded when one is asked for."""
        if "model_cache" in vars(self):
            self.model_cache.close()

    @property
    def close_errors(self) -> Sequence[str]:
        """What models could not be closed so far, a line each."""
        return self.model_cache.close_errors if "model_cache" in vars(self) else ()


def check_collisions(owners: Sequence[tuple[str, Settings, Path]]) -> dict[str, str]:
    """Find tests or stages whose enabled outputs share a directory, or lie where another's are replaced.

    *owners* holds (node id, settings, test directory). Returns {node id: one-line error} for both sides; the
    error ends in the overrides that give each its own directory.
    """
    from pytest_llmprof.config.paths import with_part
    from pytest_llmprof.stages.runner import output_dirs

    users: dict[Path, dict[str, tuple[Settings, list[str]]]] = {}
    replaced: dict[Path, tuple[str, str]] = {}
    for node, settings, test_dir in owners:
        artifacts = Artifacts(test_dir)
        replaced[artifacts.out_dir(settings.stage).resolve()] = node, "the stage directory"
        dirs = output_dirs(settings, artifacts)
        for kind in ("prediction", "visualization"):
            directory = getattr(dirs, kind)
            if directory is not None:
                users.setdefault(directory.resolve(), {}).setdefault(node, (settings, []))[1].append(kind)
        if dirs.visualization is not None:
            for name in ("pages", "predictions.md"):
                replaced[dirs.visualization.resolve() / name] = node, "the gallery"
    errors = _in_replaced(users, replaced)
    for directory, nodes in users.items():
        if len(nodes) < 2:
            continue
        first, second = list(nodes)[:2]
        more = f" (and {len(nodes) - 2} more)" if len(nodes) > 2 else ""
        keys = {settings.save_dir_key(kind) for settings, kinds in nodes.values() for kind in kinds}
        stages = {settings.stage for settings, _ in nodes.values()}
        own, tests = str(directory), {settings.test for settings, _ in nodes.values()}
        if len(tests) == 1:  # stages of one test meet, maybe in a directory that names it: any test's is to be pasted
            own = with_part(own, tests.pop(), "${llmprof.test}")
        if own == str(directory):
            own += "/${llmprof.test}"
        if len(stages) > 1:
            own += "/${llmprof.stage}"
        fix = " ".join(f"--llmprof-override {_pasteable(key, own)}" for key in sorted(keys))
        for node in nodes:
            one, other = (first, second) if node in (first, second) else (first, node)
            errors.setdefault(
                node, f"{one} and {other}{more} would both write into {directory}: give each its own, {fix}"
            )
    return errors


def _in_replaced(
    users: Mapping[Path, Mapping[str, tuple[Settings, list[str]]]], replaced: Mapping[Path, tuple[str, str]]
) -> dict[str, str]:
    """Outputs inside what another test or stage makes anew, or inside any gallery's pages, by node id."""
    errors: dict[str, str] = {}
    for directory, nodes in users.items():
        for place in (directory, *directory.parents):
            owner, what = replaced.get(place, ("", ""))
            for node, (settings, kinds) in nodes.items():
                if what and not (owner == node and what == "the stage directory"):
                    errors.setdefault(
                        node,
                        f"{settings.save_dir_named(kinds[0])} is {directory}, which lies in {place}: {what} of "
                        f"{'this test itself' if owner == node else owner} is made anew there; set another directory",
                    )
    return errors


def _pasteable(key: str, value: str) -> str:
    """An override as one word of a shell."""
    from pytest_llmprof.config.overrides import quoted

    plain = re.fullmatch(r"[\w./$ {}-]*", value)
    return shlex.quote(f"{key}={value if plain else quoted(value)}")
