"""What the configuration knows of models, stages and datasets: their names, keys and checks, and no torch.

A third party's model, stage or dataset brings its typed options here; its keys then exist, with their
defaults, without any YAML of ours naming them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from pytest_llmprof.config.schema import InferSettings, MeasureSettings, ModelSettings
from pytest_llmprof.errors import ConfigError

_NAME = re.compile(r"[A-Za-z_]\w*")

Check = Callable[[Any], Iterator[tuple[str, object, str]]]
"""Yields (key below the block, value, what is allowed) for each option that is not allowed."""


@dataclass(frozen=True)
class StageSpec:
    """A stage as the configuration sees it: `pipeline.<name>.*`."""

    name: str
    options: type | None = None
    """Frozen dataclass (nested ones allowed) of the keys beside `enable` and `output`; all with defaults."""
    output: bool = False
    """Whether it has an output block, `pipeline.<name>.output.{prediction,visualization,extra.<model>}`."""
    check: Check | None = None
    """Checks the options where their types can't say it (`msgspec.Meta` gives ranges and patterns)."""
    config_dir: Path | None = None
    """A directory with its own presets (`pipeline/<name>/default.yaml`, ...), laid over the packaged ones."""
    why_no_output: str = ""
    """Where outputs go instead, for the error about a stage without an output block."""
    legacy: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Keys of earlier releases -> the key below `pipeline.<name>` to use instead; both are read for one release."""


class DatasetSpec(Protocol):
    """A dataset as the configuration sees it: `dataset.name`."""

    @property
    def name(self) -> str: ...
    @property
    def config_dir(self) -> Path | None: ...


class ModelSpec(DatasetSpec, Protocol):
    """A model as the configuration sees it: `model.name` and `pipeline.<stage>.output.extra.<name>`."""

    @property
    def modes(self) -> tuple[str, ...]: ...
    @property
    def engines(self) -> tuple[str, ...]: ...
    @property
    def choose_engine(self) -> Callable[[ModelSettings, InferSettings, MeasureSettings], tuple[str, str]] | None: ...
    @property
    def generations(self) -> tuple[str, ...]: ...
    @property
    def check_model(self) -> Callable[[ModelSettings], Iterator[tuple[str, object, str]]] | None: ...
    @property
    def extra(self) -> type | None: ...
    @property
    def check_extra(self) -> Check | None: ...


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_Registered = TypeVar("_Registered", bound=_Named)


def by_name(kind: str, plugins: Iterable[_Registered]) -> Mapping[str, _Registered]:
    """What plugins register, by its name. Raises `ConfigError` where two have one name, or one has no text as its
    name; *kind* is the word for them."""
    found: dict[str, _Registered] = {}
    for plugin in plugins:
        if not isinstance(plugin.name, str) or not plugin.name:
            raise ConfigError(f"a plugin registers a {kind} whose name is {plugin.name!r}: it must be a text")
        if plugin.name in found:
            raise ConfigError(f"two plugins register the {kind} {plugin.name!r}: names must differ")
        found[plugin.name] = plugin
    return MappingProxyType(found)


def _by_key(kind: str, plugins: Iterable[_Registered]) -> Mapping[str, _Registered]:
    """As `by_name`, for names that are keys of the configuration, too."""
    found = by_name(kind, plugins)
    for name in found:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"the {kind} name {name!r} cannot be a configuration key: letters, digits and _ only")
    return found


def _check_options(owner: str, options: type | None, taken: tuple[str, ...] = ()) -> None:
    if options is None:
        return
    if not is_dataclass(options) or not options.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ConfigError(f"{owner}: {options!r} is not a frozen dataclass")
    for one in fields(options):
        if one.name in taken:
            raise ConfigError(f"{owner}: {options.__name__}.{one.name} is a key that every stage has already")
    try:
        options()
    except TypeError as error:
        raise ConfigError(f"{owner}: every field of {options.__name__} needs a default ({error})") from error


@dataclass(frozen=True)
class Registry:
    """The models, stages and datasets of a session, by name."""

    models: Mapping[str, ModelSpec]
    stages: Mapping[str, StageSpec]
    datasets: Mapping[str, DatasetSpec]

    @classmethod
    def of(
        cls, models: Iterable[ModelSpec], stages: Iterable[StageSpec], datasets: Iterable[DatasetSpec]
    ) -> Registry:
        """Build one from what the plugins registered.

        Raises `ConfigError` where two have one name, or options that aren't frozen dataclasses with defaults.
        """
        registry = cls(_by_key("model", models), _by_key("stage", stages), _by_key("dataset", datasets))
        for model in registry.models.values():
            _check_options(f"model {model.name!r}", model.extra)
        for stage in registry.stages.values():
            _check_options(f"stage {stage.name!r}", stage.options, ("enable", "output"))
        return registry

    @property
    def config_dirs(self) -> tuple[Path, ...]:
        """The plugins' own configuration trees, each once."""
        found = [one.config_dir for one in self.models.values()]
        found += [one.config_dir for one in self.stages.values()]
        found += [one.config_dir for one in self.datasets.values()]
        return tuple(dict.fromkeys(path for path in found if path is not None))

    @property
    def legacy_keys(self) -> Mapping[str, str]:
        """Key of an earlier release -> the key to use instead."""
        stages = self.stages.values()
        return {old: f"pipeline.{stage.name}.{new}" for stage in stages for old, new in stage.legacy.items()}
