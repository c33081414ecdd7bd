"""The tree of all keys, made of the typed settings and of what the registry adds to them."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import MappingProxyType
from typing import Any

from pytest_llmprof.config.convert import Mismatch, convert, describe
from pytest_llmprof.config.registry import Registry, StageSpec
from pytest_llmprof.config.render import plain
from pytest_llmprof.config.schema import (
    DatasetSettings,
    InferSettings,
    MeasureSettings,
    ModelSettings,
    OutputSettings,
    PredictionSettings,
    StageSettings,
    VisualizationSettings,
)
from pytest_llmprof.errors import nearest

__all__ = [
    "MISSING_VALUE",
    "Block",
    "Leaf",
    "build",
    "dotted",
    "find",
    "known_paths",
    "leaves",
    "root_block",
    "unknown",
    "with_defaults",
    "without_null_blocks",
]

MISSING_VALUE = "???"
"""Hydra's word for a value that somebody must set."""

# Stages of the design that have no output block; named even where they are not registered, since users ask.
_NO_OUTPUT = ("nsys", "ncu", "static_analysis")


@dataclass(frozen=True)
class Leaf:
    """A key with a value."""

    hint: Any
    default: Any


@dataclass(frozen=True)
class Block:
    """A key with keys below it."""

    fields: Mapping[str, Block | Leaf]
    make: Callable[[dict[str, Any]], Any]
    """Makes the typed object of the converted values of all `fields`."""


def _block(cls: type) -> Block:
    hints = typing.get_type_hints(cls)
    default = cls()
    found: dict[str, Block | Leaf] = {}
    for field in fields(cls):
        hint = hints[field.name]
        nested = isinstance(hint, type) and is_dataclass(hint)
        found[field.name] = _block(hint) if nested else Leaf(hint, getattr(default, field.name))
    return Block(found, lambda values: cls(**values))


def _output_block(registry: Registry) -> Block:
    extras = {name: _block(model.extra) for name, model in registry.models.items() if model.extra is not None}
    return Block(
        {
            "prediction": _block(PredictionSettings),
            "visualization": _block(VisualizationSettings),
            "extra": Block(extras, MappingProxyType),
        },
        lambda values: OutputSettings(**values),
    )


def _stage_block(stage: StageSpec, registry: Registry) -> Block:
    options = _block(stage.options) if stage.options is not None else None
    found: dict[str, Block | Leaf] = {"enable": Leaf(bool, True)}
    if options is not None:
        found |= options.fields
    if stage.output:
        found["output"] = _output_block(registry)

    def make(values: dict[str, Any]) -> StageSettings:
        own = {name: value for name, value in values.items() if name not in ("enable", "output")}
        return StageSettings(values["enable"], options.make(own) if options else None, values.get("output"))

    return Block(found, make)


def root_block(registry: Registry) -> Block:
    """The tree of all keys. Its `make` gives a dict of the typed top-level blocks."""
    stages = {stage.name: _stage_block(stage, registry) for stage in registry.stages.values()}
    return Block(
        {
            "stages": Leaf(tuple[str, ...], ("torch_profiler",)),
            "model": _block(ModelSettings),
            "infer": _block(InferSettings),
            "measure": _block(MeasureSettings),
            "dataset": _block(DatasetSettings),
            "pipeline": Block(stages, MappingProxyType),
            "llmprof": Block({"test": Leaf(str, MISSING_VALUE), "stage": Leaf(str, MISSING_VALUE)}, dict),
        },
        dict,
    )


def find(root: Block, path: str) -> Block | Leaf | None:
    """The node at *path*; for a path inside a mapping-valued leaf, that leaf; None where there is none."""
    node: Block | Leaf = root
    for part in path.split(".") if path else ():
        if isinstance(node, Leaf):
            origin = typing.get_origin(node.hint)
            return node if isinstance(origin, type) and issubclass(origin, Mapping) else None
        if part not in node.fields:
            return None
        node = node.fields[part]
    return node


def known_paths(node: Block | Leaf, prefix: str = "") -> Iterator[str]:
    """All paths at and below *node*."""
    if prefix:
        yield prefix
    if isinstance(node, Block):
        for name, child in node.fields.items():
            yield from known_paths(child, f"{prefix}.{name}" if prefix else name)


def unknown(root: Block, path: str) -> tuple[str, str]:
    """Why *path* is no key: (what it is: "unknown key", what there is and what to use)."""
    node: Block | Leaf = root
    parts = path.split(".")
    if parts[0] == "pipeline" and parts[2:3] == ["output"]:
        stage = find(root, ".".join(parts[:2]))
        if parts[1] in _NO_OUTPUT or (isinstance(stage, Block) and "output" not in stage.fields):
            rest = ".".join(["pipeline.torch_profiler", *parts[2:]])
            use = rest if find(root, rest) is not None else "pipeline.torch_profiler.output"
            none = f"stage {parts[1]} has no output block of its own"
            if parts[1] in ("nsys", "ncu"):
                none = (
                    "nsys and ncu have no output block of their own (under nsys outputs go to the test's "
                    "tmp/workload/torch_profiler, under ncu there are none)"
                )
            return "unknown key", f"{none}; use {use}"
    for depth, part in enumerate(parts):
        parent = ".".join(parts[:depth])
        if isinstance(node, Leaf):
            return "unknown key", f"{parent} is {describe(node.hint)}, with no keys below it: set it whole"
        if part in node.fields:
            node = node.fields[part]
            continue
        names = ", ".join(node.fields) or "no keys"
        if parent == "pipeline":
            return "unknown stage", f"the stages are {names}{nearest(part, node.fields)}"
        hint = _suggest(root, node, parts, depth)
        return "unknown key", f"{parent or 'the top level'} has {names}{hint}"
    raise AssertionError(f"{path} is a known key")


def _suggest(root: Block, node: Block, parts: list[str], depth: int) -> str:
    """The key that was meant: a close one beside it, else one of the same name, else the closest of all."""
    for name in difflib.get_close_matches(parts[depth], node.fields, n=1):
        whole = ".".join([*parts[:depth], name, *parts[depth + 1 :]])
        if find(root, whole) is not None:
            return f" (did you mean {whole!r}?)"
        return nearest(whole, list(known_paths(root)))
    same = [path for path in known_paths(root) if path.split(".")[-1] == parts[-1]]
    if same:
        # The fewest parts to take away, then to add; where no stage was typed, that of the outputs most people set.
        far = {path: (*_differing(parts, path.split(".")), "direct_inference" in path) for path in same}
        best = [path for path in same if far[path] == min(far.values())]
        return f" (did you mean {' or '.join(map(repr, best[:2]))}?)"
    above = {".".join(parts[:length]) for length in range(1, len(parts))}
    return nearest(".".join(parts), [path for path in known_paths(root) if path not in above])


def _differing(typed: list[str], path: list[str]) -> tuple[int, int]:
    """How many parts of *typed* are not in *path*, and the other way round; the order of parts counts."""
    shared = sum(block.size for block in difflib.SequenceMatcher(None, typed, path, False).get_matching_blocks())
    return len(typed) - shared, len(path) - shared


def with_defaults(block: Block, value: Mapping[Any, Any]) -> dict[str, Any]:
    """*value* as plain data with the defaults of the keys that it lacks, so that others can name them."""
    found = dict(value)
    for name, child in block.fields.items():
        if isinstance(child, Block):
            found[name] = with_defaults(child, value.get(name) or {})
        elif name not in found:
            found[name] = plain(child.default)
    return found


def without_null_blocks(root: Block, body: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A YAML section whose keys are all commented out reads as null: it sets nothing."""
    found = {}
    for name, value in body.items():
        path = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(find(root, path), Block) and value is None:
            continue
        found[name] = without_null_blocks(root, value, path) if isinstance(value, Mapping) else value
    return found


def dotted(root: Block, body: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(block, name) of the keys written as `a.b`. Hydra merges presets by name, so which of two presets sets
    such a key can't be told any more; unlike in config.yaml it can't be applied."""
    for name, value in body.items():
        path = f"{prefix}.{name}" if prefix else str(name)
        if "." in str(name):
            yield prefix, str(name)
        elif isinstance(value, Mapping) and isinstance(find(root, path), Block):
            yield from dotted(root, value, path)


def build(block: Block, value: Mapping[str, Any], prefix: str = "") -> Any:
    """The typed object for *value*, a plain mapping; keys that are not set take their defaults.

    Raises `Mismatch` with the full path, also for a value of ``???``, which is one that must be set.
    """
    found: dict[str, Any] = {}
    for name, child in block.fields.items():
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(child, Block):
            given = value.get(name, {})
            if not isinstance(given, Mapping):
                raise Mismatch(path, given, "a block of keys")
            found[name] = build(child, given, path)
            continue
        given = value.get(name, child.default)
        if isinstance(given, str) and given == MISSING_VALUE:
            raise Mismatch(path, MISSING_VALUE, describe(child.hint))
        try:
            found[name] = convert(child.hint, given) if name in value else given
        except Mismatch as error:
            raise error.below(path) from None
    return block.make(found)


def leaves(root: Block, values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The typed values that may have a rule of their own: the leaves of the blocks that every test has."""
    found = []
    for name, node in root.fields.items():
        if isinstance(node, Leaf):
            found.append((name, values[name]))
        elif name not in ("pipeline", "llmprof"):
            found += [(f"{name}.{key}", getattr(values[name], key)) for key in node.fields]
    return found
