"""Keys of earlier releases, which stages declare: they are mapped to today's for one release."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NoReturn

from pytest_llmprof.config.provenance import Assignment
from pytest_llmprof.config.tree import find
from pytest_llmprof.errors import ConfigError, nearest

LegacyKeys = Mapping[str, str]
"""Legacy key -> the key to use instead."""


def roots(keys: LegacyKeys) -> set[str]:
    """The top-level blocks that hold legacy keys alone."""
    return {key.split(".")[0] for key in keys}


def split(
    root: Any, keys: LegacyKeys, assignments: Iterable[Assignment]
) -> tuple[list[Assignment], list[Assignment]]:
    """(legacy ones mapped to today's keys, the others). A legacy null is unset. Raises `ConfigError`."""
    mapped: list[Assignment] = []
    others: list[Assignment] = []
    for one in assignments:
        if one.path.split(".")[0] not in roots(keys):
            others.append(one)
        elif one.path not in keys:
            if one.value in (None, {}) and any(key.startswith(f"{one.path}.") for key in keys):
                continue  # a section without a key in it
            _refuse(root, keys, one)
        elif one.value is not None:
            mapped.append(replace(one, path=keys[one.path], written=one.path))
    return mapped, others


def _refuse(root: Any, keys: LegacyKeys, one: Assignment) -> NoReturn:
    block, _, rest = one.path.partition(".")
    successor = next(new for old, new in keys.items() if old.startswith(f"{block}."))
    output = successor.partition(".output.")[0] + ".output"
    close = nearest(one.path, keys)
    if rest and find(root, f"{output}.{rest}"):
        hint = f"use {output}.{rest}"
    elif close:
        name = close.split("'")[1]
        hint = f"did you mean {name!r}, today {keys[name]!r}?"
    else:
        hint = f"outputs are set by {output}.*"
    raise ConfigError(f"{one.path} is an unknown key, set {one.source.where}; {hint}")


def message(used: Iterable[str]) -> str | None:
    """One text for the legacy keys *used*, each with its successor; None where there is none."""
    texts = "; ".join(dict.fromkeys(used))
    return f"legacy configuration keys were used, which the next release won't read: {texts}" if texts else None
