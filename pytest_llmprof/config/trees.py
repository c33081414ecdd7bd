"""The configuration trees of a session: the user's over the plugins' over the packaged one, and our root."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_llmprof.config.files import check_defaults, read_keys
from pytest_llmprof.config.paths import absolute, conf_dir, why_unusable
from pytest_llmprof.config.presets import ROOT_NAME, USER_NAME, Presets, listed_choices
from pytest_llmprof.config.provenance import Source, config_file
from pytest_llmprof.config.registry import Registry
from pytest_llmprof.config.unread import check_tree, found_files
from pytest_llmprof.config.validate import show_value
from pytest_llmprof.errors import ConfigError

_OUTPUT = "output/torch"


@dataclass(frozen=True)
class ConfigTrees:
    """What a session's configuration is composed from."""

    presets: Presets
    stages: tuple[str, ...]
    """The packaged default of the key `stages`."""
    user_body: Mapping[str, Any] = field(default_factory=dict)
    """The keys of the user's config.yaml, without its defaults list."""
    user_source: Source | None = None
    """The user's config.yaml; None where there is none."""


def open_trees(config_dir: Path | None, invocation_dir: Path, registry: Registry, named: str) -> ConfigTrees:
    """Read the roots; *named* is what gave *config_dir*. Raises `ConfigError` for a configuration directory that is
    missing, empty or can't be read."""
    packaged = conf_dir()
    root = read_keys(packaged / "config.yaml")
    roots: dict[str, Mapping[str, Any]] = {ROOT_NAME: root | {"defaults": _with_mounts(root["defaults"], registry)}}
    stages = tuple(root["stages"])
    search = [*(path.resolve() for path in registry.config_dirs), packaged]
    for path in search:
        if not path.is_dir():
            raise ConfigError(f"a plugin's config_dir {path} is not a directory")
    ours = Presets(search, roots, ROOT_NAME)
    if config_dir is None:
        return ConfigTrees(ours, stages)
    user = _user_dir(config_dir, invocation_dir, named)
    groups = ours.groups()
    check_tree(user, f"{named}={config_dir}: ", groups, {*root, "pipeline"} - {"defaults"})
    if next(found_files(user, f"{named}={config_dir}: "), None) is None:
        hint = "it may have a config.yaml, and presets such as infer/mine.yaml"
        raise ConfigError(f"{named}={config_dir}: {user} holds no .yaml file; {hint}")
    _check_names(user, f"{named}={config_dir}", groups)
    file = user / "config.yaml"
    body = read_keys(file) if file.is_file() else {}
    source = config_file(file) if file.is_file() else None
    name = ROOT_NAME
    defaults = body.pop("defaults", None)
    if defaults is not None:
        # Without the body: that is put over the presets with the other explicit keys, wherever `_self_` is.
        roots[USER_NAME] = {"defaults": defaults}
        name = USER_NAME
        _check_user_defaults(file, defaults, f"pipeline.{stages[0]}.output")
    presets = Presets([user, *search], roots, name, file)
    if defaults is not None and "model" not in presets.known:
        raise ConfigError(
            f"{file}: its defaults list leaves the packaged configuration out and names no model: "
            f"begin it with {ROOT_NAME}, as in defaults: [{ROOT_NAME}, _self_]"
        )
    return ConfigTrees(presets, stages, body, source)


def _user_dir(config_dir: Path, invocation_dir: Path, named: str) -> Path:
    path = absolute(str(config_dir), invocation_dir)
    if why := why_unusable(path):
        raise ConfigError(f"{named}={show_value(config_dir)}: {why}")
    path = path.resolve()
    where = f"{named}={config_dir}: {path}"
    if not path.exists():
        raise ConfigError(f"{where} does not exist")
    if not path.is_dir():
        raise ConfigError(f"{where} is not a directory")
    return path


def _check_names(path: Path, where: str, groups: Collection[str]) -> None:
    """Raise for files that look like configuration and would never be read. *groups* are those of the other trees."""
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


def _check_user_defaults(file: Path, defaults: Any, mount: str) -> None:
    """Raise for mistakes in the user's defaults list that Hydra would take for something else."""
    check_defaults(file, defaults)
    if not {"config", "/config"}.isdisjoint(entry for entry in defaults if isinstance(entry, str)):
        raise ConfigError(
            f"{file}: its defaults list names config, which is this file itself; "
            f"to build on the packaged root write defaults: [{ROOT_NAME}, _self_]"
        )
    for key, option in listed_choices(defaults).items():
        if key.endswith(_OUTPUT):
            raise ConfigError(
                f"{file}: its defaults list names {key} without a mount; write override {key}@{mount}: {option}"
            )


def _with_mounts(defaults: Any, registry: Registry) -> list[Any]:
    """The packaged *defaults* with the mounts of the registered stages and models, and of no others."""
    packaged = listed_choices(defaults)
    keys = []
    for stage in registry.stages.values():
        keys.append(f"optional pipeline/{stage.name}")
        if stage.output:
            mount = f"{_OUTPUT}@pipeline.{stage.name}.output"
            keys += [mount, *(f"optional model/{name}/{mount}.extra.{name}" for name in registry.models)]
    order = [*packaged, *(key.removeprefix("optional ") for key in keys)]
    keys.sort(key=lambda key: order.index(key.removeprefix("optional ")))
    mounts = [{key: packaged.get(key.removeprefix("optional "), "default")} for key in keys]
    others = [entry for entry in defaults if not any("pipeline" in key for key in listed_choices([entry]))]
    position = others.index("_self_") if "_self_" in others else len(others)
    return [*others[:position], *mounts, *others[position:]]
