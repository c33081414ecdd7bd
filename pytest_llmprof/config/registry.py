"""What the configuration knows of models, stages and datasets: their names, keys and checks, and no torch.

A third party's model, stage or dataset brings its typed options here; its keys then exist, with their
defaults, without any YAML of ours naming them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from pytest_llmprof.datasets.base import DatasetPlugin
from pytest_llmprof.errors import ConfigError
from pytest_llmprof.models.base import ModelPlugin

__all__ = ["Registry", "StageSpec"]

_NAME = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class StageSpec:
    """A stage as the configuration sees it: `pipeline.<name>.*`."""

    name: str
    options: type | None = None
    """Frozen dataclass (nested ones allowed) of the keys beside `enable` and `output`; all with defaults."""
    output: bool = False
    """Whether it has an output block, `pipeline.<name>.output.{prediction,visualization,extra.<model>}`."""
    check: Callable[[Any], Iterator[tuple[str, object, str]]] | None = None
    """Yields (key below the stage's block, value, what is allowed) for each option out of range."""
    config_dir: Path | None = None
    """A directory with its own presets (`pipeline/<name>/default.yaml`, ...), laid over the packaged ones."""


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_Plugin = TypeVar("_Plugin", bound=_Named)


def _by_name(kind: str, plugins: Iterable[_Plugin]) -> Mapping[str, _Plugin]:
    found: dict[str, _Plugin] = {}
    for plugin in plugins:
        if not _NAME.fullmatch(plugin.name):
            raise ConfigError(
                f"the {kind} name {plugin.name!r} cannot be a configuration key: letters, digits and _ only"
            )
        if plugin.name in found:
            raise ConfigError(f"two plugins register the {kind} {plugin.name!r}: names must differ")
        found[plugin.name] = plugin
    return MappingProxyType(found)


def _check_options(owner: str, options: type | None, taken: tuple[str, ...] = ()) -> None:
    if options is None:
        return
    if not is_dataclass(options) or not options.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ConfigError(f"{owner}: {options!r} is not a frozen dataclass")
    for field in fields(options):
        if field.name in taken:
            raise ConfigError(
                f"{owner}: {options.__name__}.{field.name} is a key that every stage has already"
            )
    try:
        options()
    except TypeError as error:
        raise ConfigError(f"{owner}: every field of {options.__name__} needs a default ({error})") from error


@dataclass(frozen=True)
class Registry:
    """The models, stages and datasets of a session, by name."""

    models: Mapping[str, ModelPlugin]
    stages: Mapping[str, StageSpec]
    datasets: Mapping[str, DatasetPlugin]

    @classmethod
    def of(
        cls, models: Iterable[ModelPlugin], stages: Iterable[StageSpec], datasets: Iterable[DatasetPlugin]
    ) -> Registry:
        """Build one from what the plugins registered.

        Raises `ConfigError` where two have one name, or options that aren't frozen dataclasses with defaults.
        """
        registry = cls(_by_name("model", models), _by_name("stage", stages), _by_name("dataset", datasets))
        for model in registry.models.values():
            _check_options(f"model {model.name!r}", model.extra)
        for stage in registry.stages.values():
            _check_options(f"stage {stage.name!r}", stage.options, ("enable", "output"))
        return registry

    @property
    def config_dirs(self) -> tuple[Path, ...]:
        """The plugins' own configuration trees, each once."""
        found = [model.config_dir for model in self.models.values()]
        found += [stage.config_dir for stage in self.stages.values()]
        found += [dataset.config_dir for dataset in self.datasets.values()]
        return tuple(dict.fromkeys(path for path in found if path is not None))
