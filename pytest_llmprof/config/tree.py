"""The tree of all keys: dataclasses, made of the typed settings and of what the registry adds to them.

A node is a type: a dataclass is a block of keys, any other type is that of a value.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from functools import cache, partial
from types import MappingProxyType
from typing import Annotated, Any, get_origin, get_type_hints

from msgspec import Meta

from pytest_llmprof.config.convert import Mismatch, bare, convert, describe
from pytest_llmprof.config.registry import Registry, StageSpec
from pytest_llmprof.config.render import plain
from pytest_llmprof.config.schema import (
    NO_KEY,
    DatasetSettings,
    GateSettings,
    InferSettings,
    MeasureSettings,
    ModelSettings,
    OutputExtra,
    OutputSettings,
    PredictionSettings,
    StageSettings,
    VisualizationSettings,
)
from pytest_llmprof.errors import nearest

MISSING_VALUE = "???"
"""Hydra's word for a value that somebody must set."""

_Stages = Annotated[tuple[str, ...], Meta(min_length=1, description="a list of at least one stage")]


@dataclass(frozen=True)
class TestBlock:
    """`llmprof.*`"""

    test: str = MISSING_VALUE
    """The test's directory below the run directory. Set for each test, for use in other values: `${llmprof.test}`."""
    stage: str = MISSING_VALUE
    """Its stage, likewise."""


BLOCKS: Mapping[str, type] = {
    "model": ModelSettings,
    "infer": InferSettings,
    "measure": MeasureSettings,
    "gate": GateSettings,
    "dataset": DatasetSettings,
}
"""The blocks of keys that no plugin adds to."""


def _made(name: str, keys: Mapping[str, tuple[Any, Any]]) -> type:
    """A frozen dataclass of *keys*: name -> (type, default)."""
    defaults = {key: field(default_factory=partial(_same, value)) for key, (_, value) in keys.items()}
    return make_dataclass(name, [(key, hint, defaults[key]) for key, (hint, _) in keys.items()], frozen=True)


def _same(value: Any) -> Any:
    return value


def _nested(name: str, blocks: Mapping[str, type]) -> type:
    return _made(name, {key: (block, block()) for key, block in blocks.items()})


def root_block(registry: Registry, stages: tuple[str, ...] = ()) -> type:
    """The tree of all keys of *registry*; *stages* is the default of the key `stages`."""
    extras = {model.name: model.extra or OutputExtra for model in registry.models.values()}
    output = _nested(
        "Output",
        {
            "prediction": PredictionSettings,
            "visualization": VisualizationSettings,
            "extra": _nested("Extra", extras),
        },
    )

    def stage_block(stage: StageSpec) -> type:
        keys: dict[str, tuple[Any, Any]] = {"enable": (bool, StageSettings().enable)}
        if stage.options is not None:
            defaults = stage.options()
            keys |= {key: (hint, getattr(defaults, key)) for key, hint in keys_below(stage.options).items()}
        return _made("Stage", keys | ({"output": (output, output())} if stage.output else {}))

    pipeline = _nested("Pipeline", {name: stage_block(stage) for name, stage in registry.stages.items()})
    blocks = {**BLOCKS, "pipeline": pipeline, "llmprof": TestBlock}
    return _made("Root", {"stages": (_Stages, stages), **{key: (block, block()) for key, block in blocks.items()}})


def stage_settings(stage: StageSpec, block: Any) -> StageSettings:
    """The settings of *stage* from its block of the tree."""
    options = stage.options
    own = options(**{one.name: getattr(block, one.name) for one in fields(options)}) if options is not None else None
    if not stage.output:
        return StageSettings(block.enable, own)
    extra = {one.name: getattr(block.output.extra, one.name) for one in fields(block.output.extra)}
    output = OutputSettings(block.output.prediction, block.output.visualization, MappingProxyType(extra))
    return StageSettings(block.enable, own, output)


def is_block(node: Any) -> bool:
    """Whether *node* has keys below it."""
    return isinstance(node, type) and is_dataclass(node)


@cache
def keys_below(block: type) -> Mapping[str, Any]:
    """The nodes below *block*, by name."""
    hints = get_type_hints(block, include_extras=True)
    return {one.name: hints[one.name] for one in fields(block) if one.metadata != NO_KEY}


def find(root: Any, path: str) -> Any:
    """The node at *path*; for a path inside a mapping, that mapping's; None where there is none."""
    node = root
    for part in path.split(".") if path else ():
        if not is_block(node):
            origin = get_origin(bare(node))
            return node if isinstance(origin, type) and issubclass(origin, Mapping) else None
        if part not in keys_below(node):
            return None
        node = keys_below(node)[part]
    return node


def known_paths(node: Any, prefix: str = "") -> Iterator[str]:
    """All paths at and below *node*."""
    if prefix:
        yield prefix
    if is_block(node):
        for name, child in keys_below(node).items():
            yield from known_paths(child, f"{prefix}.{name}" if prefix else name)


def output_stage(root: Any) -> str:
    """The stage whose outputs most people set: the first default one that has an output block; "" for none."""
    names = (*root().stages, *keys_below(keys_below(root)["pipeline"]))
    return next((name for name in names if find(root, f"pipeline.{name}.output") is not None), "")


def why_no_output(registry: Registry, stage: str) -> str:
    """That *stage* has no output block, and where its outputs go instead."""
    why = registry.stages[stage].why_no_output if stage in registry.stages else ""
    return f"stage {stage} has no output block of its own" + (f" ({why})" if why else "")


def unknown(root: Any, path: str, registry: Registry) -> tuple[str, str]:
    """Why *path* is no key: (what it is: "unknown key", which keys there are and what to use)."""
    node = root
    parts = path.split(".")
    if parts[0] == "pipeline" and parts[2:3] == ["output"] and parts[1] in registry.stages:
        block = f"pipeline.{output_stage(root)}.output"
        same = ".".join([block, *parts[3:]])
        use = same if find(root, same) is not None else block
        if find(root, ".".join(parts[:3])) is None:
            return "unknown key", f"{why_no_output(registry, parts[1])}; use {use}"
    for depth, part in enumerate(parts):
        parent = ".".join(parts[:depth])
        if not is_block(node):
            return "unknown key", f"{parent} is {describe(bare(node))}, with no keys below it: set it whole"
        children = keys_below(node)
        if part in children:
            node = children[part]
            continue
        names = ", ".join(children) or "no keys"
        if parent == "pipeline":
            return "unknown stage", f"the stages are {names}{nearest(part, children)}"
        return "unknown key", f"{parent or 'the top level'} has {names}{_suggest(root, children, parts, depth)}"
    raise AssertionError(f"{path} is a known key")


def _suggest(root: Any, beside: Mapping[str, Any], parts: list[str], depth: int) -> str:
    """The key that was meant: a close one *beside* it, else one of the same name, else the closest of all."""
    for name in difflib.get_close_matches(parts[depth], beside, n=1):
        whole = ".".join([*parts[:depth], name, *parts[depth + 1 :]])
        if find(root, whole) is not None:
            return f" (did you mean {whole!r}?)"
        return nearest(whole, list(known_paths(root)))
    same = [path for path in known_paths(root) if path.split(".")[-1] == parts[-1]]
    if same:
        # The fewest parts to remove, then to add; where no stage was typed, the stage whose outputs most people set.
        usual = f"pipeline.{output_stage(root)}."
        far = {path: (*_differing(parts, path.split(".")), not path.startswith(usual)) for path in same}
        best = [path for path in same if far[path] == min(far.values())]
        return f" (did you mean {' or '.join(map(repr, best[:2]))}?)"
    above = {".".join(parts[:length]) for length in range(1, len(parts))}
    return nearest(".".join(parts), [path for path in known_paths(root) if path not in above])


def _differing(typed: list[str], path: list[str]) -> tuple[int, int]:
    """How many parts of *typed* are not in *path*, and the other way round; the order of parts counts."""
    shared = sum(block.size for block in difflib.SequenceMatcher(None, typed, path, False).get_matching_blocks())
    return len(typed) - shared, len(path) - shared


def with_defaults(block: Any, value: Mapping[Any, Any], default: Any = None) -> dict[str, Any]:
    """*value* as plain data with the defaults of the keys that it lacks, so that other values can name them."""
    default = block() if default is None else default
    found = dict(value)
    for name, child in keys_below(block).items():
        if is_block(child):
            found[name] = with_defaults(child, value.get(name) or {}, getattr(default, name))
        elif name not in found:
            found[name] = plain(getattr(default, name))
    return found


def dotted(root: Any, body: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(block, name) of the keys written as `a.b`. Unlike in config.yaml they can't be applied in a preset: Hydra
    merges presets by name, and so does not see that such a key and a nested one of another preset are the same."""
    for name, value in body.items():
        path = f"{prefix}.{name}" if prefix else str(name)
        if "." in str(name):
            yield prefix, str(name)
        elif isinstance(value, Mapping) and is_block(find(root, path)):
            yield from dotted(root, value, path)


def build(block: Any, value: Mapping[str, Any], built: dict[tuple[str, str], Any], prefix: str = "") -> Any:
    """The dataclass *block* of *value*, a plain mapping with all its keys.

    *built* keeps the blocks below it, which are frozen, for other calls with the same *block* and equal values. Raises
    `Mismatch` with the full path, also for a value of ``???``, which is one that must be set.
    """
    found: dict[str, Any] = {}
    for name, child in keys_below(block).items():
        path = f"{prefix}.{name}" if prefix else name
        given = value.get(name, {} if is_block(child) else MISSING_VALUE)
        if is_block(child):
            if not isinstance(given, Mapping):
                raise Mismatch(path, given, "a block of keys")
            key = path, repr(given)
            if key not in built:
                built[key] = build(child, given, built, path)
            found[name] = built[key]
        elif isinstance(given, str) and given == MISSING_VALUE:
            raise Mismatch(path, MISSING_VALUE, describe(child))
        else:
            try:
                found[name] = convert(child, given)
            except Mismatch as error:
                raise error.below(path) from None
    return block(**found)
