"""What a user's configuration tree holds, and what in it would be passed over in silence."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from pytest_llmprof.config.files import read_keys
from pytest_llmprof.errors import ConfigError

_GONE = "is a link to what is not there"


def preset_files(tree: Path) -> Iterator[Path]:
    """The .yaml files of *tree*, those of the upper directories first. Links are followed, each directory once."""
    folders, seen = [tree], {os.path.realpath(tree)}
    for folder in folders:  # grows
        for path in _entries(folder):
            if os.path.isdir(path):
                real = os.path.realpath(path)
                if real not in seen:
                    seen.add(real)
                    folders.append(path)
            elif path.suffix == ".yaml" and os.path.isfile(path):
                yield path


def _entries(folder: Path) -> list[Path]:
    """What lies in a directory, apart from hidden files, such as those of an editor."""
    try:
        return sorted(folder / name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []


def check_readable(folder: Path, where: str = "") -> None:
    """Raise for a directory whose presets would be passed over."""
    if os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK):
        raise ConfigError(f"{where}{folder} cannot be read: permission denied")


def found_files(folder: Path, where: str = "") -> Iterator[Path]:
    """`preset_files`. Raise where there are none, except maybe in a directory that can't be read."""
    none = True
    for path in preset_files(folder):
        none = False
        yield path
    for path in folder.rglob("*") if none else ():
        check_readable(path, where)


def check_reachable(tree: Path, path: str) -> None:
    """Raise where *path*, a group or the file of a preset that somebody names, is there but can't be read."""
    at = tree
    for part in path.split("/"):
        at /= part
        if not os.path.lexists(at):
            break
        if not os.path.exists(at):
            raise ConfigError(f"{at} {_GONE}")
        check_readable(at)
    else:
        return
    for other in (at.with_suffix(".yml"), at.with_suffix(".YAML")) if at.suffix == ".yaml" else ():
        if os.path.isfile(other):
            raise ConfigError(f"{other} is not read: presets end in .yaml")


def check_tree(user: Path, where: str, groups: Collection[str], keys: Collection[str]) -> None:
    """Raise for what lies in the place of a preset of *groups*, the other trees', or of config.yaml, and is not read.

    *keys* are the top-level ones, *where* begins each message.
    """
    places = {"."} | {folder for group in groups for folder in (group, *map(str, Path(group).parents))}
    for place in sorted(places):
        folder = user / place
        if os.path.lexists(folder) and not os.path.isdir(folder):
            raise ConfigError(f"{where}{folder} {_why_none(folder, 'directory')}")
        check_readable(folder, where)
        for path in _entries(folder):
            if place in groups:
                _check_file(path, where, path.suffix == ".yaml", "presets end in .yaml")
            elif place == "." and path.stem.lower() == "config":
                _check_file(path, where, path.name == "config.yaml", "name it config.yaml")
            if os.path.isdir(path):
                _check_case(path, path.relative_to(user).as_posix(), where, places)
    for path in [] if os.path.lexists(user / "config.yaml") else user.glob("*/config.yaml"):
        if not os.path.isfile(path) or not os.access(path, os.R_OK):
            why = "cannot be read: permission denied" if os.path.isfile(path) else _why_none(path, "file")
            raise ConfigError(f"{where}{path} {why}")
    for name in sorted({*keys, *groups}):
        path = user / f"{name}.yaml"
        if "/" not in name and os.path.isfile(path) and not _listed(user, name):
            hint = f"presets of {name} lie in {name}/" if name in groups else f"write its keys in config.yaml, {name}:"
            raise ConfigError(f"{where}{path} is not read: {hint}")


def _check_file(path: Path, where: str, read: bool, hint: str) -> None:
    """Raise for what is *read* and no file, and for a YAML file that is not."""
    if read and not os.path.isfile(path):
        raise ConfigError(f"{where}{path} {_why_none(path, 'file')}")
    if not read and path.suffix.lower() in (".yaml", ".yml") and not os.path.isdir(path):
        raise ConfigError(f"{where}{path} is not read: {hint}")


def _check_case(folder: Path, path: str, where: str, places: Collection[str]) -> None:
    """Raise for a directory of presets that is called as a group is but for upper and lower case."""
    group = next((place for place in places if place.lower() == path.lower()), path)
    if path not in places and group != path and next(preset_files(folder), None) is not None:
        raise ConfigError(f"{where}{folder} is not read: name it {group}")


def _why_none(path: Path, what: str) -> str:
    return f"is no {what}" if os.path.exists(path) else _GONE


def _listed(user: Path, name: str) -> bool:
    """Whether the file *name* at the top of the tree is read: a defaults list names it, or it has one, as the root of
    an application does, which Hydra reads there."""
    for file in preset_files(user):
        try:
            defaults = read_keys(file).get("defaults")
        except ConfigError:
            return True  # for all that is known
        if file == user / f"{name}.yaml":
            if defaults is not None:
                return True
            continue
        names = [str(one).partition("@")[0].lstrip("/") for one in defaults] if isinstance(defaults, list) else []
        if name in [one.removesuffix(".yaml") for one in names]:
            return True
    return False
