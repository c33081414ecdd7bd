"""Texts with `${...}`: what they become, and which of them are saved as they are written."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any

from pytest_llmprof.config.render import escaped

_OPEN = "${"
_KEY = re.compile(r"\$\{([A-Za-z_][\w.]*)\}")
"""Another key's value."""
_ENVIRONMENT = "${oc.env:"
_VARIABLE = re.compile(r"\$\{oc\.env:\w+\}")

_Path = tuple[Any, ...]


def _get(tree: Any, path: _Path) -> Any:
    """The value at *path* in nested mappings. Raises `KeyError`."""
    for name in path:
        if not isinstance(tree, Mapping):
            raise KeyError(name)
        tree = tree[name]
    return tree


def put(tree: Mapping[Any, Any], path: _Path, value: Any) -> dict[Any, Any]:
    """*tree* with *value* at *path*; a mapping is merged into one that is there. Nothing of *tree* is changed."""
    name, *below = path
    there = tree.get(name)
    if below:
        value = put(there if isinstance(there, Mapping) else {}, tuple(below), value)
    elif isinstance(value, Mapping):
        merged = dict(there) if isinstance(there, Mapping) else {}
        for inner, item in value.items():
            merged = put(merged, (inner,), item)
        value = merged
    return {**tree, name: value}


def interpolates(value: Any) -> bool:
    """Whether *value*, or a text in it, holds an interpolation."""
    return any(_OPEN in text for text in _texts(value))


def may_name(written: Mapping[str, Any], key: str) -> bool:
    """Whether an interpolation of the configuration may take the value of a key whose last part is *key*."""
    return any(_OPEN in text and key in text for text in _texts(written))


def varies(written: Mapping[str, Any]) -> bool:
    """Whether a value of the configuration may differ from test to test."""
    texts = [text for text in _texts(written) if _OPEN in text]
    return any("llmprof" in text or not _is_simple(text) for text in texts)


def resolve(written: Mapping[str, Any]) -> dict[str, Any]:
    """*written* with the values of its interpolations. Raises what OmegaConf does.

    OmegaConf takes its time, so it only gets the values that hold an interpolation and what they name.
    """
    from omegaconf import OmegaConf

    wanted = list(_interpolated(written, ()))
    if not wanted:
        return dict(written)
    needed = _needed(written, wanted)
    content: Any = OmegaConf.to_container(OmegaConf.create(dict(needed or written)), resolve=True)
    if needed is None:
        return dict(content)
    found = dict(written)
    for path in wanted:
        found = put(found, path, _get(content, path))
    return found


def _needed(written: Mapping[str, Any], wanted: list[_Path]) -> dict[str, Any] | None:
    """The part of *written* that the values at *wanted* can be resolved with; None where that takes the whole."""
    found: dict[str, Any] = {}
    todo, seen = list(wanted), set()
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        try:
            value = _get(written, path)
        except KeyError:  # an error, or an item of a list
            return None
        found = put(found, path, value)
        for text in _texts(value):
            if _OPEN in text and not _is_simple(text):
                return None
            todo += [tuple(name.split(".")) for name in _KEY.findall(text)]
    return found


def _is_simple(text: str) -> bool:
    """Whether its interpolations are whole keys and environment variables alone."""
    return _OPEN not in _VARIABLE.sub("", _KEY.sub("", text))


def _interpolated(tree: Mapping[Any, Any], path: _Path) -> Iterator[_Path]:
    """The paths of the values that hold an interpolation."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _interpolated(value, (*path, name))
        elif interpolates(value):
            yield (*path, name)


def _texts(value: Any) -> Iterator[str]:
    """All texts in *value*."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


def depends_on(value: Any, config: Mapping[str, Any]) -> set[str]:
    """What the texts in *value* name, themselves or by other keys of *config*: "test" (or its stage), "environment"."""
    found = set()
    for text in _texts(value):
        if _ENVIRONMENT in text:
            found.add("environment")
        for name in _KEY.findall(text):
            if name.startswith("llmprof."):
                found.add("test")
            with suppress(KeyError):  # in an escaped text
                found |= depends_on(_get(config, tuple(name.split("."))), config)
    return found


def with_interpolations(value: Any, raw: Any, config: Mapping[str, Any], kept: Collection[str]) -> Any:
    """*value*, plain and resolved, to be saved. A text that depends on one of *kept* stays as it is written in *raw*.

    So a saved configuration serves any test, and holds no environment variable's value. *config* is the whole one, not
    resolved.
    """
    if isinstance(value, Mapping) and isinstance(raw, Mapping):
        return {name: with_interpolations(item, raw.get(name), config, kept) for name, item in value.items()}
    if isinstance(value, list) and isinstance(raw, list) and len(value) == len(raw):
        return [with_interpolations(item, one, config, kept) for item, one in zip(value, raw, strict=True)]
    stays = isinstance(raw, str) and not depends_on(raw, config).isdisjoint(kept)
    return raw if stays else escaped(value)
