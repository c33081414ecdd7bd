"""Reading one YAML file of a configuration tree; an error names the file."""

from __future__ import annotations

import copy
import io
import itertools
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from pytest_llmprof.errors import ConfigError

_DEEPEST = 50
_MOST = 100_000
_PACKAGE = re.compile(r"#+\s*@\s*package\b[\s:=]*(\S+)\s*")


def read_keys(path: Path) -> dict[str, Any]:
    """A YAML file's keys, as OmegaConf reads them. Raises `ConfigError` where it can't."""
    from omegaconf.errors import GrammarParseError, OmegaConfBaseException

    try:
        content = copy.deepcopy(_read(path.read_text(encoding="utf-8")))
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line} is not YAML: {error.problem or error.context}") from None
    except GrammarParseError as error:
        text = str(error.msg or error).split("\n")[0]
        raise ConfigError(rf"{path}: {error.full_key} can't be read: {text} (a literal ${{ is written \${{)") from None
    # Hydra's words for a key or a number that it cannot take are those of Python.
    except (OSError, ValueError, TypeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path} can't be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold keys and values, not a list")
    return {str(name): value for name, value in content.items()}


@lru_cache(maxsize=256)  # each composition of a session reads the same files
def _read(text: str) -> Any:
    from omegaconf import OmegaConf

    _check_size(text)
    return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)


def _check_size(text: str) -> None:
    """Raise `ValueError` for YAML that stands for too much to be read: nested too deep, or an alias of itself or of
    aliases that each stand for several others."""
    sizes: dict[str, int] = {}  # values that an anchor stands for
    opened: list[list[Any]] = [[None, 0]]  # [anchor, values so far] of each block that is read
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        size = 1
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append([event.anchor, 1])
            if len(opened) > _DEEPEST:
                raise ValueError(f"line {event.start_mark.line + 1} is nested more than {_DEEPEST} deep")
            continue
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in [anchor for anchor, _ in opened]:
                raise ValueError(f"the alias *{event.anchor} in line {event.start_mark.line + 1} is a part of itself")
            size = sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = opened.pop()
            sizes |= {anchor: size} if anchor else {}
        elif not isinstance(event, yaml.ScalarEvent):
            continue
        opened[-1][1] += size
        if opened[-1][1] > _MOST:
            raise ValueError(f"it stands for more than {_MOST:,} values")


def check_defaults(file: Path, entries: Any) -> None:
    """Raise where *entries*, the defaults list of *file*, is no list of the names of files and presets.

    YAML reads `no`, `on` and 2024 as other than text. What was written is lost then, so it can't be taken for a name.
    """
    if not isinstance(entries, list):
        what = "is empty: write defaults: [] or leave it out" if entries is None else "must be a list, [NAME, _self_]"
        raise ConfigError(f"{file}: defaults {what}")
    overridden = set()
    for entry in entries:
        for key, options in entry.items() if isinstance(entry, Mapping) else [("", entry)]:
            if str(key).startswith("override "):
                group = str(key).removeprefix("override ").strip().lstrip("/")
                if group in overridden:
                    raise ConfigError(f"{file}: its defaults list overrides {group} twice: keep one of the entries")
                overridden.add(group)
            for option in options if isinstance(options, list) and key else [options]:
                if isinstance(option, str) or (option is None and key):
                    continue
                shown = str(option).lower() if isinstance(option, bool) else option
                what = f"{key}: {shown}" if key else f"{'null' if shown is None else shown}"
                raise ConfigError(
                    f"{file}: its defaults list has {what}, which YAML does not read as text: "
                    "put the preset's name in quotes, as in 'no'"
                )


def check_package(file: Path, text: str, package: str | None) -> None:
    """Raise where the line `# @package` of *file* is not read, or gives a *package* that nobody means."""
    above_keys = itertools.takewhile(lambda line: not line or line[0] in "#-%", map(str.strip, text.split("\n")))
    for line in above_keys:
        match = _PACKAGE.fullmatch(line)
        if match is None:
            continue
        word = match[1].strip("_").lower()
        meant = f"_{word}_" if word in ("global", "group") else match[1]
        if package is None:
            raise ConfigError(
                f"{file}: its line {line} is not read: # @package {meant} must be the first line of the file"
            )
        if package == match[1] != meant:
            raise ConfigError(f"{file}: its line {line} names a block of keys: write # @package {meant}")
