"""The configuration trees of a session: the user's over the plugins' over the packaged one, and our root."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_llmprof.config.hydra_compose import ROOT_NAME, USER_NAME
from pytest_llmprof.config.paths import absolute, conf_dir
from pytest_llmprof.config.presets import Presets, check_entries, read_keys
from pytest_llmprof.config.provenance import Source, config_file
from pytest_llmprof.config.registry import Registry
from pytest_llmprof.errors import ConfigError, nearest

__all__ = ["ConfigTrees"]

_OUTPUT = "output/torch"


@dataclass(frozen=True)
class ConfigTrees:
    """What Hydra composes from."""

    search: tuple[Path, ...]
    """The trees, the first that has a file wins."""
    presets: Presets
    name: str
    """The stored configuration to compose: our root, or the user's where that has a defaults list."""
    stored: Mapping[str, Mapping[str, Any]]
    """The configurations to store for Hydra, by name."""
    known: frozenset[str]
    """The keys of the defaults lists, `group` or `group@package`."""
    user_body: Mapping[str, Any]
    """The keys of the user's config.yaml, without its defaults list."""
    user_source: Source | None
    """The user's config.yaml; None where there is none."""

    def is_ours(self, key: str, option: str) -> bool:
        """Whether a chosen preset is the packaged root's own choice, from the packaged tree."""
        file = self.presets.file(key.partition("@")[0], option)
        packaged = self.search[-1]
        defaults = self.stored[ROOT_NAME]["defaults"]
        chosen = {_entry_key(entry): next(iter(entry.values())) for entry in defaults if _entry_key(entry)}
        return chosen.get(key) == option and file is not None and file.is_relative_to(packaged)

    def check(self, choices: Mapping[str, str]) -> None:
        """Raise for the file that Hydra can't compose from, where one is found; *choices* were made by somebody."""
        for one in dict.fromkeys((self.name, ROOT_NAME)):
            self.presets.check(self.stored[one]["defaults"], choices)

    @classmethod
    def open(cls, config_dir: Path | None, invocation_dir: Path, registry: Registry) -> ConfigTrees:
        """Read the roots. Raises `ConfigError` for a config dir that is missing, empty or can't be read."""
        packaged = conf_dir()
        root = _mounted(read_keys(packaged / "config.yaml"), registry)
        stored: dict[str, Mapping[str, Any]] = {ROOT_NAME: root}
        plugins = [path.resolve() for path in registry.config_dirs]
        for path in plugins:
            if not path.is_dir():
                raise ConfigError(f"a plugin's config_dir {path} is not a directory")
        search = [*plugins, packaged]
        known = _keys(root["defaults"])
        if config_dir is None:
            return cls(tuple(search), Presets(search), ROOT_NAME, stored, known, {}, None)

        user = _user_dir(config_dir, invocation_dir)
        _check_names(user, config_dir, Presets(search).groups())
        file = user / "config.yaml"
        search.insert(0, user)
        presets = Presets(search)
        if not file.is_file():
            return cls(tuple(search), presets, ROOT_NAME, stored, known, {}, None)
        body = read_keys(file)
        defaults = body.pop("defaults", None)
        if defaults is None:
            return cls(tuple(search), presets, ROOT_NAME, stored, known, body, config_file(file))
        names = _check_defaults(file, defaults, presets)
        # Without the body: that is put over the presets with the other explicit keys, wherever `_self_` is.
        stored[USER_NAME] = {"defaults": defaults}
        known = _keys(defaults) | (known if ROOT_NAME in names else frozenset())
        return cls(tuple(search), presets, USER_NAME, stored, known, body, config_file(file))


def _user_dir(config_dir: Path, invocation_dir: Path) -> Path:
    path = absolute(str(config_dir), invocation_dir).resolve()
    if not path.exists():
        raise ConfigError(f"--llmprof-config-dir={config_dir}: {path} does not exist")
    if not path.is_dir():
        raise ConfigError(f"--llmprof-config-dir={config_dir}: {path} is not a directory")
    if next(path.rglob("*.yaml"), None) is None:
        raise ConfigError(
            f"--llmprof-config-dir={config_dir}: {path} holds no .yaml file; "
            "it may have a config.yaml, and presets such as infer/mine.yaml"
        )
    return path


def _check_names(path: Path, config_dir: Path, groups: Collection[str]) -> None:
    """Raise for files that look like configuration and would never be read. *groups* are those of the other trees."""
    where = f"--llmprof-config-dir={config_dir}"
    if not (path / "config.yaml").exists():
        if (path / "config.yml").exists():
            raise ConfigError(f"{where}: {path / 'config.yml'} is not read: name it config.yaml")
        for file in path.glob("*/config.yaml"):
            # A preset may be called config, too: in a group that others know, or with a package of its own.
            if file.parent.name not in groups and "@package" not in file.read_text("utf-8", "replace"):
                raise ConfigError(f"{where}: {file} lies a level too deep: give {where}/{file.parent.name}")
    for file in (*path.glob("output/*.*.yaml"), *path.glob("model/*/output/*.*.yaml")):
        stem, _, name = file.stem.partition(".")
        group = f"{file.parent.relative_to(path).as_posix()}/{stem}"
        raise ConfigError(
            f"{where}: {file} is not read: the preset {name!r} of {group} is the file {group}/{name}.yaml"
        )


def _entry_key(entry: Any) -> str | None:
    """`group` or `group@package` of a defaults entry, None for a plain file."""
    if not isinstance(entry, Mapping) or len(entry) != 1:
        return None
    key = str(next(iter(entry)))
    for word in ("optional ", "override "):
        key = key.removeprefix(word)
    return key.strip().lstrip("/")


def _keys(defaults: Any) -> frozenset[str]:
    return frozenset(key for entry in defaults if (key := _entry_key(entry)) is not None)


def _check_defaults(file: Path, defaults: Any, presets: Presets) -> set[str]:
    """The plain files that the user's defaults list names. Raises where it names what is not there."""
    if not isinstance(defaults, list):
        raise ConfigError(f"{file}: defaults must be a list, [{ROOT_NAME}, _self_]")
    check_entries(file, defaults)
    names = {entry.lstrip("/") for entry in defaults if isinstance(entry, str)}
    if "config" in names:
        raise ConfigError(
            f"{file}: its defaults list names config, which is this file itself; "
            f"to build on the packaged root write defaults: [{ROOT_NAME}, _self_]"
        )
    for entry in defaults:
        key = _entry_key(entry)
        if key is not None and key.endswith(_OUTPUT) and isinstance(entry, Mapping):
            option = next(iter(entry.values()))
            raise ConfigError(
                f"{file}: its defaults list names {key} without a mount; "
                f"write override {key}@pipeline.torch_profiler.output: {option}"
            )
        if key is None and isinstance(entry, str):
            _check_file(file, entry.lstrip("/"), presets)
        elif key is not None and isinstance(entry, Mapping):
            _check_preset(file, key.partition("@")[0], str(next(iter(entry))), next(iter(entry.values())), presets)
    keys = _keys(defaults)
    if ROOT_NAME not in names and "model" not in keys:
        raise ConfigError(
            f"{file}: its defaults list leaves the packaged configuration out and names no model: "
            f"begin it with {ROOT_NAME}, as in defaults: [{ROOT_NAME}, _self_]"
        )
    return names


def _check_file(file: Path, name: str, presets: Presets) -> None:
    known = (ROOT_NAME, "_self_")
    if name not in known and presets.file("", name) is None:
        raise ConfigError(f"{file}: its defaults list names {name}, which is no file{nearest(name, known)}")


def _check_preset(file: Path, group: str, entry: str, options: Any, presets: Presets) -> None:
    if entry.startswith("optional ") or group.startswith("hydra/"):
        return
    there = presets.options(group)
    if not there:
        raise ConfigError(
            f"{file}: its defaults list names the group {group}, which is none{nearest(group, presets.groups())}"
        )
    for option in options if isinstance(options, list) else [options]:
        if isinstance(option, str) and "${" not in option and presets.file(group, option) is None:
            raise ConfigError(
                f"{file}: its defaults list names {group}/{option}, which is no preset{nearest(option, there)}; "
                f"allowed: {', '.join(there)}"
            )


def _mounted(root: dict[str, Any], registry: Registry) -> dict[str, Any]:
    """Our root with the mounts of the registered stages and models, and of no others, before `_self_`."""
    stages = [stage.name for stage in registry.stages.values()]
    outputs = [stage.name for stage in registry.stages.values() if stage.output]
    models = [model.name for model in registry.models.values() if model.extra is not None]
    defaults: list[Any] = []
    for entry in root["defaults"]:
        key = _entry_key(entry) or ""
        stage = re.search(r"(?:^|@)pipeline[./](\w+)", key)
        model = re.search(r"\.output\.extra\.(\w+)$", key)
        wanted = not stage or stage[1] in (outputs if "@" in key else stages)
        if wanted and (not model or model[1] in models):
            defaults.append(entry)
    here = _keys(defaults)
    names = [name for name in stages if f"pipeline/{name}" not in here]
    more: list[Any] = [{f"optional pipeline/{name}": "default"} for name in names]
    for name in outputs:
        mount = f"pipeline.{name}.output"
        if f"{_OUTPUT}@{mount}" not in here:
            more.append({f"{_OUTPUT}@{mount}": "default"})
        for model_name in models:
            key = f"model/{model_name}/{_OUTPUT}@{mount}.extra.{model_name}"
            if key not in here:
                more.append({f"optional {key}": "default"})
    position = defaults.index("_self_") if "_self_" in defaults else len(defaults)
    return root | {"defaults": [*defaults[:position], *more, *defaults[position:]]}
