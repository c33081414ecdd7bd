"""Where a value came from: the order of the sources, and the words for them in errors and comments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_llmprof.config.tree import find, is_block


@dataclass(frozen=True)
class Source:
    """Somebody who sets values. Among explicit keys, and among presets, the higher rank wins."""

    rank: int
    comment: str
    """For the configuration that is shown: "command line"; "" for none."""
    where: str
    """For errors: "on the command line"."""

    @property
    def from_command_line(self) -> bool:
        """Whether relative paths are relative to the directory that pytest was started in."""
        return self.rank >= COMMAND_LINE.rank


COMMAND_LINE = Source(3, "command line", "on the command line")
STAGE_OPTION = Source(4, "command line", "by --llmprof-stage on the command line")
INI = Source(1, "ini", "in the ini value llmprof_override")
STAGE_INI = Source(1, "ini", "in the ini value llmprof_stage")


def marker(where: str) -> Source:
    """A marker's overrides; *where* is "file:line" or the like."""
    where = where if where.startswith("marker") else f"marker at {where}"
    return Source(2, where, f"in the {where}")


def config_file(path: Path) -> Source:
    """The body of the user's config.yaml."""
    return Source(0, str(path), f"in {path}")


def preset(key: str, option: str, path: Path | None, *, as_packaged: bool, listed: bool = False) -> Source:
    """A preset's file: below all explicit keys. *as_packaged*: nobody chose or changed it. *listed*: another file, one
    that the preset's defaults list names."""
    named = f"preset {key}={option}"
    where = f"{path}, by way of {named}" if listed else f"{named} ({path})" if path is not None else named
    return Source(-1, "" if as_packaged else named, f"in {where}")


def listed_file(path: Path) -> Source:
    """A file that the defaults list of the user's config.yaml names, as the preset of no key."""
    return Source(-1, str(path), f"in {path}")


@dataclass(frozen=True)
class Assignment:
    """One key set by somebody."""

    path: str
    """The key it sets, a legacy one already mapped."""
    value: Any
    source: Source
    raw: Any = None
    """The value with its numbers, true and false as they were typed, where it has any: a text key takes it so."""
    written: str | None = None
    """The key as it was typed, where that is another (a legacy key)."""


@dataclass(frozen=True)
class Choice:
    """One preset chosen by somebody."""

    key: str
    """`group` or `group@package`, as in the defaults list."""
    option: str
    source: Source
    short: bool = False
    """It came from the short form, which stands for every mount of the group."""


def flatten(root: Any, path: str, value: Any, source: Source, raw: Any = None) -> list[Assignment]:
    """One assignment for each key of a mapping, down to the tree's values."""
    if isinstance(value, Mapping) and (not path or _may_be_block(root, path)):
        found: list[Assignment] = []
        for name, item in value.items():
            typed = raw.get(name) if isinstance(raw, Mapping) else None
            found += flatten(root, f"{path}.{name}" if path else str(name), item, source, typed)
        return found or ([] if find(root, path) else [Assignment(path, value, source)])
    return [Assignment(path, value, source, raw)]


def _may_be_block(root: Any, path: str) -> bool:
    node = find(root, path)
    return node is None or is_block(node)
