"""The presets on the search path: which there are, in which file, and which keys each sets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from pytest_llmprof.config.provenance import Source, preset
from pytest_llmprof.errors import ConfigError, nearest

__all__ = ["Presets", "check_entries", "read_keys"]

_PACKAGE = re.compile(r"^\s*#\s*@package\s+(\S+)", re.MULTILINE)


class Presets:
    """Configuration trees laid over each other; the first that has a file wins."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self.directories = tuple(directories)
        self._bodies: dict[tuple[Path, str, str], tuple[dict[str, Any], list[str]]] = {}

    def options(self, group: str) -> list[str]:
        """The names that `group=` may take; empty where it is no group."""
        found: set[str] = set()
        for directory in self.directories:
            folder = directory / group
            if group and folder.is_dir():
                found.update(path.stem for path in folder.glob("*.yaml"))
        return sorted(found)

    def groups(self) -> list[str]:
        """All groups."""
        found: set[str] = set()
        for directory in self.directories:
            for path in directory.rglob("*.yaml"):
                found.add(path.parent.relative_to(directory).as_posix())
        return sorted(found - {"."})

    def file(self, group: str, option: str) -> Path | None:
        """The file of a preset, None where there is none."""
        if not option or ".." in option.split("/") or option.startswith("/"):
            return None
        for directory in self.directories:
            path = directory / group / f"{option}.yaml"
            if path.is_file():
                return path
        return None

    def origin(self, path: str, choices: Mapping[str, str]) -> Source | None:
        """Which of the chosen presets sets *path* (or a key above or below it); the last one in the list."""
        found: Source | None = None
        for key, option in choices.items():
            group, _, package = key.partition("@")
            file = self.file(group, option)
            if file is not None and any(_mentions(body, path) for body in self._read(file, group, package)):
                found = preset(key, option, file)
        return found

    def check(self, entries: Any, choices: Mapping[str, str], group: str = "") -> None:
        """Raise for the first file behind the defaults list *entries* (of *group*) that Hydra can't read.

        Hydra names no file for most of these faults, so they are looked for once it failed. *choices* are the
        presets that were chosen in place of the lists' own.
        """
        pending = [(group, entries)]
        pending += [(key.partition("@")[0], [f"/{key.partition('@')[0]}/{option}"]) for key, option in choices.items()]
        seen: set[Path] = set()
        while pending:
            group, entries = pending.pop(0)
            for owner, name in _named(group, entries, choices):
                file = self.file(owner, name)
                if file is not None and file not in seen:
                    seen.add(file)
                    # What stands in `a/b.yaml` is relative to the group `a`.
                    inside = "/".join(part for part in (owner, *name.split("/")[:-1]) if part)
                    pending.append((inside, self._entries(file, inside)))

    def _entries(self, file: Path, group: str) -> list[Any]:
        """A preset file's defaults list. Raises where it can't be read, or names a neighbour that is not there."""
        content = read_keys(file)
        if "defaults" not in content:
            return []
        entries = content["defaults"]
        check_entries(file, entries)
        for entry in entries:
            if isinstance(entry, str) and entry != "_self_" and "${" not in entry:
                name = entry.partition("@")[0]
                owner = "" if name.startswith("/") else group
                if self.file(owner, name.lstrip("/")) is None:
                    there = self.options(owner)
                    raise ConfigError(
                        f"{file}: its defaults list names {name}, which is no preset{nearest(name, there)}"
                        + (f"; {owner} has {', '.join(there)}" if owner else "")
                    )
        return list(entries)

    def _read(self, file: Path, group: str, package: str) -> Iterator[dict[str, Any]]:
        """The keys of a preset from the root down, and those of the neighbours that it extends."""
        if (file, group, package) not in self._bodies:
            self._bodies[file, group, package] = _body(file, group, package)
        body, neighbours = self._bodies[file, group, package]
        yield body
        for neighbour in neighbours:
            file_of_neighbour = self.file(group, neighbour)
            if file_of_neighbour is not None and file_of_neighbour != file:
                yield from self._read(file_of_neighbour, group, package)


def read_keys(path: Path) -> dict[str, Any]:
    """A YAML file's keys, as OmegaConf reads them. Raises `ConfigError` where it can't."""
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import GrammarParseError, OmegaConfBaseException

    try:
        config = OmegaConf.load(path)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line} is not YAML: {error.problem or error.context}") from None
    except GrammarParseError as error:
        text = str(error.msg or error).split("\n")[0]
        raise ConfigError(rf"{path}: {error.full_key} can't be read: {text} (a literal ${{ is written \${{)") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path} can't be read: {' '.join(str(error).split())}") from None
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{path} must hold keys and values, not a list")
    content = OmegaConf.to_container(config, resolve=False)
    return {str(name): value for name, value in content.items()} if isinstance(content, dict) else {}


def check_entries(file: Path, entries: Any) -> None:
    """Raise where *entries*, the defaults list of *file*, holds what is neither a file's name nor a preset's.

    YAML reads `no`, `on` and 2024 as other than text; what was written is lost, so it can't be taken for a name.
    """
    if not isinstance(entries, list):
        what = "is empty: write defaults: [] or leave it out" if entries is None else "must be a list, [NAME, _self_]"
        raise ConfigError(f"{file}: defaults {what}")
    for entry in entries:
        for key, options in entry.items() if isinstance(entry, Mapping) else [("", entry)]:
            for option in options if isinstance(options, list) and key else [options]:
                if isinstance(option, str) or (option is None and key):
                    continue
                shown = str(option).lower() if isinstance(option, bool) else option
                what = f"{key}: {shown}" if key else f"{'null' if shown is None else shown}"
                raise ConfigError(
                    f"{file}: its defaults list has {what}, which YAML does not read as text: "
                    "put the preset's name in quotes, as in 'no'"
                )


def _named(group: str, entries: Any, choices: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(group, preset) of each file that a defaults list of *group* names."""
    for entry in entries:
        for key, options in entry.items() if isinstance(entry, Mapping) else [("", entry)]:
            name = str(key).removeprefix("optional ").removeprefix("override ").strip()
            owner = name.lstrip("/") if name.startswith("/") or not group else f"{group}/{name}".rstrip("/")
            options = choices.get(owner, options) if key else options
            owner = owner.partition("@")[0]
            for option in options if isinstance(options, list) else [options]:
                if isinstance(option, str) and option != "_self_":
                    option = option.partition("@")[0]
                    yield ("", option.lstrip("/")) if option.startswith("/") else (owner, option)


def _body(file: Path, group: str, package: str) -> tuple[dict[str, Any], list[str]]:
    """(the keys of the preset *file* from the root down, the presets of its group that it extends)."""
    text = file.read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    if not isinstance(content, dict):
        return {}, []
    header = _PACKAGE.search(text)
    mount = package or (header[1] if header else "_group_")
    mount = mount.replace("_global_", "").replace("_group_", group.replace("/", ".")).strip(".")
    body = {name: value for name, value in content.items() if name != "defaults"}
    for part in reversed(mount.split(".") if mount else []):
        body = {part: body}
    names = [entry for entry in content.get("defaults") or [] if isinstance(entry, str) and entry != "_self_"]
    return body, names


def _mentions(body: Any, path: str) -> bool:
    parts = path.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(body, dict):
            return True
        if part not in body:
            return ".".join(parts[depth:]) in body  # written with dots, which is refused: by its file's name
        body = body[part]
    return True
