"""A configuration that was composed once and is handed to another process as a file.

The process that a tool watches runs with the parent's configuration: markers, ini and command line are in it
already, so nothing is composed again and no key can be lost on the way.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pytest_llmprof.config.compose import Composer, Composition, ConfigSources
from pytest_llmprof.config.registry import Registry
from pytest_llmprof.config.render import escaped, to_yaml
from pytest_llmprof.config.schema import Settings
from pytest_llmprof.config.tree import find
from pytest_llmprof.errors import ConfigError
from pytest_llmprof.records.files import write_text
from pytest_llmprof.text.secrets import MASK

_CHOICES = "choices"
_ROOT_AS_GIVEN = "dataset_root_as_given"


def freeze(settings: Settings, changes: Mapping[str, Any], path: Path) -> None:
    """Write *settings* with *changes* (key -> value) to *path*, for `FrozenComposer`."""
    import yaml  # type: ignore[import-untyped]

    content = _with_variables(yaml.safe_load(settings.yaml), getattr(settings.current.options, "env", {}))
    for key, value in changes.items():
        *blocks, name = key.split(".")
        block = content
        for part in blocks:
            block = block[part]
        assert name in block, key
        block[name] = escaped(value)
    extra = {_CHOICES: dict(settings.choices), _ROOT_AS_GIVEN: settings.dataset.root_as_given}
    write_text(path, to_yaml({**content, **extra}))


def _with_variables(value: Any, env: Mapping[str, str], key: str = "") -> Any:
    """*value* with the environment variables that a child does not have as its parent does: those of pytest, and *env*.

    A child starts no tool, so it needs no secret of a mapping `env`.
    """
    if isinstance(value, dict):
        return {name: _with_variables(item, env, "env" if key == "env" else name) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_variables(item, env, key) for item in value]
    if not isinstance(value, str):
        return value

    def own(found: re.Match[str]) -> str:
        name = found[1]
        differs = name in env or name.startswith("PYTEST_")
        there = escaped(os.environ[name]) if differs and name in os.environ else found[0]
        return MASK if key == "env" else there

    return re.sub(r"(?<!\\)\$\{oc\.env:(\w+)[^}]*\}", own, value)


class FrozenComposer(Composer):
    """Gives every test the one configuration of a file. Raises `ConfigError` where it can't be read."""

    def __init__(self, sources: ConfigSources, registry: Registry, path: Path) -> None:
        super().__init__(sources, registry)
        self._path = path

    @cached_property
    def _settings(self) -> Settings:
        import yaml

        try:
            content = yaml.safe_load(self._path.read_text(encoding="utf-8"))
            choices, root_as_given = content.pop(_CHOICES), content.pop(_ROOT_AS_GIVEN)
            test, stage = content["llmprof"]["test"], content["llmprof"]["stage"]
        except (OSError, yaml.YAMLError, AttributeError, KeyError) as error:
            raise ConfigError(f"the frozen configuration {self._path} can't be read: {error}") from None
        for block, names in (("", content), ("pipeline", content["pipeline"])):
            for name in names:
                if find(self.root, f"{block}.{name}" if block else name) is None:
                    raise ConfigError(
                        f"the frozen configuration {self._path} has {block or 'the key'} {name}, which is not "
                        "registered in this process: load the same plugins here"
                    )
        composition = Composition(content, choices, by_default=f"in {self._path}")
        settings = self.settings(composition, test, stage)
        return replace(settings, dataset=replace(settings.dataset, root_as_given=root_as_given))

    def session(self) -> Settings:
        """The file's configuration."""
        return self._settings

    def for_test(self, marker_overrides: tuple[str, ...], marker_where: str, test: str, stage: str) -> Settings:
        """The file's configuration, whatever the test's own markers say: they are in it."""
        return self._settings

    def show(self) -> str:
        """The file's configuration as YAML."""
        return self._settings.yaml

    saved = show
