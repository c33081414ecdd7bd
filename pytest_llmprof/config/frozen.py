"""A configuration that was composed once and is handed to another process as a file.

The process that a tool watches runs with what its parent had resolved: markers, ini and command line are in it
already, so nothing is composed again and no key can be lost on the way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_llmprof.config.compose import Composer, ConfigSources
from pytest_llmprof.config.convert import Mismatch
from pytest_llmprof.config.registry import Registry
from pytest_llmprof.config.render import as_tree, escaped, plain, to_yaml
from pytest_llmprof.config.schema import Settings
from pytest_llmprof.config.tree import build, find, root_block
from pytest_llmprof.errors import ConfigError
from pytest_llmprof.records.files import write_text

__all__ = ["FrozenComposer", "freeze"]

_CHOICES = "choices"


def freeze(settings: Settings, changes: Mapping[str, Any], path: Path) -> None:
    """Write *settings* with *changes* (key -> value) to *path*, for `FrozenComposer`."""
    content = as_tree(settings)
    for key, value in changes.items():
        *blocks, name = key.split(".")
        block = content
        for part in blocks:
            block = block[part]
        assert name in block, key
        block[name] = value
    write_text(path, to_yaml({**content, _CHOICES: dict(settings.choices)}))


class FrozenComposer(Composer):
    """Gives every test the one configuration of a file. Raises `ConfigError` where it cannot be read."""

    def __init__(self, sources: ConfigSources, registry: Registry, path: Path) -> None:
        super().__init__(sources, registry)
        self._path = path

    def session(self) -> Settings:
        """The file's configuration."""
        if self._session is None:
            self._session = self._read()
        return self._session

    def for_test(self, marker_overrides: tuple[str, ...], marker_where: str, test: str, stage: str) -> Settings:
        """The file's configuration, whatever the test's own markers say: they are in it."""
        return self.session()

    def show(self) -> str:
        """The file's configuration as YAML."""
        return self.session().yaml

    def _read(self) -> Settings:
        import yaml  # type: ignore[import-untyped]

        root = root_block(self.registry)
        try:
            content = yaml.safe_load(self._path.read_text(encoding="utf-8"))
            choices = content.pop(_CHOICES)
            values = build(root, content)
        except (OSError, yaml.YAMLError, AttributeError, KeyError) as error:
            raise ConfigError(f"the frozen configuration {self._path} cannot be read: {error}") from None
        except Mismatch as error:
            raise ConfigError(
                f"the frozen configuration {self._path} has {error.key}={error.value}; it must be {error.allowed}"
            ) from None
        for block, names in (("", content), ("pipeline", content["pipeline"])):
            for name in names:
                if find(root, f"{block}.{name}" if block else name) is None:
                    raise ConfigError(
                        f"the frozen configuration {self._path} has {block or 'the key'} {name}, which is not "
                        "registered in this process: load the same plugins here"
                    )
        node = values.pop("llmprof")
        body = to_yaml(escaped(plain(values)))
        return Settings(
            **values,
            test=node["test"],
            stage=node["stage"],
            choices=choices,
            yaml=body + to_yaml({"llmprof": node}),
            digest=hashlib.sha256(body.encode()).hexdigest(),
        )
