"""The presets on the search path: which there are, in which file, and which keys each sets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from pytest_llmprof.config.provenance import Source, preset

__all__ = ["Presets"]

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
    for part in path.split("."):
        if not isinstance(body, dict):
            return True
        if part not in body:
            return False
        body = body[part]
    return True
