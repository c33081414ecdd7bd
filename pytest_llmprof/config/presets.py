"""The presets on the search path: which there are, in which file, and what a choice of them composes to."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from posixpath import normpath
from typing import TYPE_CHECKING, Any

from pytest_llmprof.config.files import read_keys
from pytest_llmprof.config.provenance import Choice, Source, listed_file, preset
from pytest_llmprof.config.unread import check_reachable, found_files, preset_files
from pytest_llmprof.errors import ConfigError, nearest

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from pytest_llmprof.config.hydra_compose import Layer

ROOT_NAME = "llmprof_root"
"""The name of our root, which a user's own config.yaml lists in its defaults."""
USER_NAME = "llmprof_user"
"""The name under which the defaults list of the user's config.yaml is composed."""

_MANY_LOADS = 400
"""Loads of files after which it is looked whether the presets include each other. The packaged root takes about 40."""
_UNMATCHED = re.compile(
    r"Could not override '(?P<key>[^']+)'\.\s+(?:No match|Did you mean to override (?:one of )?(?P<others>.+?)\?)"
)
"""What Hydra says of an override whose key is in no defaults list."""


@dataclass(frozen=True)
class Composed:
    """What a choice of presets composes to."""

    config: DictConfig
    """Interpolations stay as they are written."""
    choices: Mapping[str, str]
    """The preset of each key of the defaults lists that has one."""
    keys: frozenset[str]
    """All keys of the defaults lists."""
    layers: Sequence[tuple[str, Mapping[str, Any], Source]]
    """(key of `choices` or "", keys from the root down, who sets them) of each file but the roots, the strongest
    first."""
    nested: Mapping[str, tuple[str, str]]
    """Where a preset's defaults list puts another preset's keys below its own, as `/group/option` does: the block that
    they lie in -> (that it does, what to write instead)."""

    def origin(self, path: str, choice: str | None = None) -> Source | None:
        """Which preset sets *path* (or a key above or below it); *choice*: only the preset of this key."""
        for key, body, source in self.layers:
            if choice in (None, key) and _mentions(body, path):
                return source
        return None


class Presets:
    """Configuration trees laid over each other; the first that has a file wins.

    *roots* are configurations with defaults lists, by name; *name* is the one to compose. *user_file* is where that
    of the name `USER_NAME` was read.
    """

    def __init__(
        self,
        directories: Sequence[Path],
        roots: Mapping[str, Mapping[str, Any]],
        name: str,
        user_file: Path | None = None,
    ) -> None:
        self.directories = tuple(directories)
        self.roots = roots
        self.name = name
        self._user_file = user_file
        self._composed: dict[tuple[tuple[str, str], ...], Composed] = {}

    def options(self, group: str) -> list[str]:
        """The names that `group=` may take; empty where it is no group."""
        found: set[str] = set()
        for directory in self.directories if group else ():
            check_reachable(directory, group)
            folder = directory / group
            if os.path.isdir(folder):
                found.update(path.stem for path in folder.glob("*.yaml") if path.is_file())
        return sorted(found) or self._nested_options(group)

    def _nested_options(self, group: str) -> list[str]:
        """The presets below a group of the user's own that has none but in its subfolders, as `folder/name`."""
        user, *others = (directory / group for directory in self.directories)
        if not group or self._user_file is None or any(map(os.path.isdir, others)):
            return []
        return sorted(str(path.relative_to(user).with_suffix("")) for path in found_files(user))

    def groups(self) -> list[str]:
        """All groups."""
        found: set[str] = set()
        for directory in self.directories:
            for path in preset_files(directory):
                found.add(path.parent.relative_to(directory).as_posix())
        return sorted(found - {"."})

    def file(self, group: str, option: str) -> Path | None:
        """The file of a preset, None where there is none."""
        if not option or ".." in option.split("/") or option.startswith("/"):
            return None
        for directory in self.directories:
            path = directory / group / f"{option}.yaml"
            if os.path.isfile(path):
                return path
            check_reachable(directory, f"{group}/{option}.yaml".lstrip("/"))
        return None

    @cached_property
    def known(self) -> frozenset[str]:
        """The keys of the defaults lists, `group` or `group@package`, also of those that name no preset yet."""
        with suppress(ConfigError):  # a preset is still to be chosen, or it is raised again
            return self.compose(()).keys
        return frozenset(self._hydra({}, skip_missing=True)[1][1])

    def compose(self, chosen: Iterable[Choice]) -> Composed:
        """Compose with the presets that somebody chose; each set of them once. Raises `ConfigError`."""
        choices = {one.key: one for one in chosen}
        key = tuple(sorted((one.key, one.option) for one in choices.values()))
        if key not in self._composed:
            self._composed[key] = self._compose(choices)
        return self._composed[key]

    def _compose(self, chosen: Mapping[str, Choice]) -> Composed:
        chosen, (config, every, found) = self._hydra(chosen)
        choices = {key: option for key, option in every.items() if option is not None}
        layers = [
            (one.choice, one.keys, source)
            for one in reversed(found)
            if (source := self._source(one, choices.get(one.choice), chosen)) is not None
        ]
        return Composed(config, choices, frozenset(every), layers, self._nested(found))

    def _source(self, layer: Layer, option: str | None, chosen: Collection[str]) -> Source | None:
        """Who sets what is in *layer*, None for a root; *option* is the preset that brought it in."""
        key = layer.choice
        file = None if layer.path in self.roots else self.file(*_split(layer.path))
        if option is None:
            return listed_file(file) if file is not None else None
        group = key.partition("@")[0]
        packaged = listed_choices(self.roots[ROOT_NAME]["defaults"]).get(key) == option and key not in chosen
        files = (file, self.file(group, option))
        ours = all(one is not None and one.is_relative_to(self.directories[-1]) for one in files)
        listed = file is not None and layer.path != f"{group}/{option}"
        return preset(key, option, file, as_packaged=packaged and ours, listed=listed)

    def _hydra(
        self, chosen: Mapping[str, Choice], added: frozenset[str] = frozenset(), *, skip_missing: bool = False
    ) -> tuple[Mapping[str, Choice], tuple[DictConfig, dict[str, str | None], list[Layer]]]:
        """What Hydra composes, and *chosen* with the keys that the defaults lists have.

        *added*: those keys of *chosen* whose groups no defaults list names.
        """
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        from pytest_llmprof.config.hydra_compose import compose

        given = [f"{'+' if key in added else ''}{key}={quoted(one.option)}" for key, one in sorted(chosen.items())]

        def composed(most_loads: int | None) -> tuple[DictConfig, dict[str, str | None], list[Layer]]:
            return compose(self.directories, self.roots, self.name, given, most_loads, skip_missing=skip_missing)

        try:
            try:
                return chosen, composed(_MANY_LOADS)
            except RecursionError:
                self._raise_endless(chosen)
                return chosen, composed(None)
        except RecursionError:
            where = f"defaults lists in {self.directories[0]} include each other, or too many lie below each other"
            raise ConfigError(f"the presets don't compose: {where}") from None
        # Hydra raises plain ones for a defaults list of a wrong shape.
        except (HydraException, OmegaConfBaseException, ValueError, TypeError, OSError) as error:
            unmatched = _UNMATCHED.match(str(error))
            if unmatched and unmatched["key"] in chosen.keys() - added:
                return self._hydra(*_matched(chosen, added, **unmatched.groupdict()), skip_missing=skip_missing)
            self._raise_missing(str(error))
            self._raise_twice(str(error), chosen)
            text = " ".join(str(error).split()) or type(error).__name__
            owner = re.match(r"In '?([^' ]+?)'?: (.+)", text)
            if owner and (file := self._user_file if owner[1] == USER_NAME else self.file(*_split(owner[1]))):
                raise ConfigError(f"{file}: {owner[2]}") from None
            raise ConfigError(f"the presets don't compose: {text}") from None

    def _nested(self, layers: Sequence[Layer]) -> dict[str, tuple[str, str]]:
        found = {}
        for one in layers:
            group, option = _split(one.path)
            inside, name = _split(one.above)
            file = self.file(inside, name)
            if group and file is not None and one.package.endswith(f".{group.replace('/', '.')}"):
                beside = f"choose it beside this preset, {group}={option}"
                instead = _named_alone(option) if group == inside else beside
                found[one.package] = f"{file}: its defaults list names /{one.path}", instead
        return found

    def _raise_endless(self, chosen: Mapping[str, Choice]) -> None:
        """Raise where a file's defaults list leads back to it."""
        given = listed_choices(self.roots.get(USER_NAME, {}).get("defaults", ()))
        given |= {key: one.option for key, one in chosen.items()}
        instead = {key.partition("@")[0]: option for key, option in given.items()}
        seen: set[str] = set()
        starts = [*(f"{group}/{option}" for group, option in instead.items()), self.name]
        circle = next(filter(None, (self._circle(start, instead, (), seen) for start in starts)), [])
        if not circle:
            return
        start = next((at for at, path in enumerate(circle) if path not in self.roots), 0)
        circle = [*circle[start:], *circle[:start]]
        first, *others = (str(self.file(*_split(path)) or path) for path in circle)
        by = f", by way of {' and '.join(others)}" if others else ""
        hint = "take the entry out"
        if not others and sum((tree / f"{circle[0]}.yaml").is_file() for tree in self.directories) > 1:
            hint = "to build on the packaged preset of this name, give this file another one"
        raise ConfigError(f"{first}: its defaults list includes this file itself{by}; {hint}")

    def _circle(self, path: str, instead: Mapping[str, Any], above: tuple[str, ...], seen: set[str]) -> list[str]:
        """The presets, as `group/option`, whose defaults lists name each other; looked for from *path* on.

        *instead*: group -> the preset that takes the place of those that defaults lists name. *seen* are presets that
        lead to no such circle; what was looked at is added.
        """
        if path in above:
            return list(above[above.index(path) :])
        if path in seen:
            return []
        group, option = _split(path)
        file = self.file(group, option)
        keys = self.roots.get(path) or (read_keys(file) if file is not None else {})
        for name in _named(keys.get("defaults"), group, instead):
            if found := self._circle(name, instead, (*above, path), seen):
                return found
        seen.add(path)
        return []

    def _raise_twice(self, text: str, chosen: Mapping[str, Choice]) -> None:
        """Raise for a defaults list that chooses for a group again, from Hydra's message *text* about it."""
        match = re.match(r"Multiple values for (.+?)\. To", text)
        group = match[1].partition("@")[0] if match else ""
        paths = [self.name, *(f"{key.partition('@')[0]}/{one.option}" for key, one in chosen.items())]
        for path in paths if match else ():  # grows
            inside, name = _split(path)
            file = self._user_file if path == USER_NAME else self.file(inside, name)
            keys = self.roots.get(path) or (read_keys(file) if file is not None else {})
            for entry in keys.get("defaults") or ():
                for key, option in entry.items() if isinstance(entry, Mapping) and file is not None else ():
                    named = str(key).partition("@")[0].strip()
                    if named.lstrip("/") == group or f"{inside}/{named}" == group:
                        what = f"{key}: {option}, and another entry chooses for {group}, too"
                        raise ConfigError(f"{file}: its defaults list names {what}; write override {key}: {option}")
            paths += [one for one in _named(keys.get("defaults"), inside, {}) if one not in paths]

    def _raise_missing(self, text: str) -> None:
        """Raise for a defaults list that names what is not there, from Hydra's message *text* about it."""
        match = re.match(r"In '(.+?)': Could not (?:find|load|override) '(.+?)'", text)
        if not match:
            return
        owner, path = match.groups()
        inside, name = _split(owner)
        user = listed_choices(self.roots.get(USER_NAME, {}).get("defaults", ()))
        if owner == ROOT_NAME and path in [f"{key.partition('@')[0]}/{option}" for key, option in user.items()]:
            owner = USER_NAME  # an override of the user's in place of our root's own entry
        file = self._user_file if owner == USER_NAME else self.file(inside, name)
        if file is None:
            return
        group, option = _split(path)
        if "Could not override" in text:
            group, option = path.partition("@")[0], ""
        there = self.options(group)
        what = f"{file}: its defaults list names"
        if not group:
            raise ConfigError(f"{what} {path}, which is no file{nearest(path, [ROOT_NAME, '_self_'])}")
        if not there:
            alone = f": {_named_alone(option)}" if group == f"{inside}/{inside}" else ""
            found = alone or nearest(group, self.groups())
            raise ConfigError(f"{what} the group {group}, which is none{found}")
        if option:
            raise ConfigError(
                f"{what} {option if group == inside else path}, which is no preset{nearest(option, there)}; "
                f"{group} has {', '.join(there)}"
            )


def _matched(
    chosen: Mapping[str, Choice], added: frozenset[str], key: str, others: str | None
) -> tuple[Mapping[str, Choice], frozenset[str]]:
    """*chosen* and *added* where *key* is in no defaults list, but *others* of its group may be, with packages."""
    one = chosen[key]
    group, _, package = key.partition("@")
    if package:
        instead = f"{group} is mounted as {others}" if others else f"write {group}=…"
        raise ConfigError(f"{key}={one.option}: nothing is mounted at {package}, set {one.source.where}; {instead}")
    if others is None:
        return chosen, added | {key}
    mounts = {name: replace(one, key=name, short=True) for name in others.split(", ")}
    return {**mounts, **{name: choice for name, choice in chosen.items() if choice is not one}}, added


def _split(path: str) -> tuple[str, str]:
    """(group, option) of `group/option`."""
    group, _, option = path.rpartition("/")
    return group, option


def _named_alone(option: str) -> str:
    return f"a preset of its own group is named alone, - {option}"


def _group(key: Any) -> str:
    """The group, and a package with it, of a key in a defaults list."""
    return str(key).removeprefix("optional ").removeprefix("override ").strip()


def _named(defaults: Any, inside: str, instead: Mapping[str, Any]) -> Iterator[str]:
    """What a defaults list in the group *inside* names, as `group/option`, and what takes its place (`_circle`)."""
    for entry in defaults if isinstance(defaults, list) else ():
        for key, options in entry.items() if isinstance(entry, Mapping) else [("", entry)]:
            for option in options if isinstance(options, list) else [options]:
                path = "/".join(filter(None, (str(one).partition("@")[0] for one in (_group(key), option))))
                path = path.lstrip("/") if path.startswith("/") or not inside else f"{inside}/{path}"
                path = normpath(path.removesuffix(".yaml"))
                yield path
                group, _ = _split(path)
                if key and group in instead:
                    yield f"{group}/{instead[group]}"


def quoted(text: str) -> str:
    """*text* as a quoted value of an override, which Hydra reads back unchanged."""
    inner = re.sub(r"(\\*)'", lambda match: match[1] * 2 + "\\'", text)
    trailing = len(inner) - len(inner.rstrip("\\"))
    return "'" + inner + "\\" * trailing + "'"


def listed_choices(defaults: Any) -> dict[str, Any]:
    """Key -> preset of a defaults list; a key is `group` or `group@package`."""
    found = {}
    for entry in defaults:
        for key, option in entry.items() if isinstance(entry, Mapping) else ():
            found[_group(key).lstrip("/")] = option
    return found


def _mentions(body: Any, path: str) -> bool:
    parts = path.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(body, Mapping):
            return True
        if part not in body:  # maybe a number, or on, which YAML reads as true
            body = {str(key): value for key, value in body.items()}
        if part not in body:
            return ".".join(parts[depth:]) in body  # written with dots, which is refused: by its file's name
        body = body[part]
    return True
