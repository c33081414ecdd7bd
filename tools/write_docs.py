"""Write what the docs take from the code: docs/schemas/*.json, and tables of metrics (docs/measures.md) and of
configuration keys (docs/configuration.md).

    python tools/write_docs.py           write them
    python tools/write_docs.py --check   list the files that are out of date; exit code 1 where there are any
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import yaml

from pytest_llmprof.compare.result import Comparison
from pytest_llmprof.config.compose import Composer, ConfigSources
from pytest_llmprof.config.convert import describe
from pytest_llmprof.config.registry import Registry, StageSpec
from pytest_llmprof.config.schema import AUTO, OutputExtra, PredictionSettings, StageSettings, VisualizationSettings
from pytest_llmprof.config.tree import BLOCKS, TestBlock, is_block, keys_below
from pytest_llmprof.datasets import builtin
from pytest_llmprof.models import packaged_models
from pytest_llmprof.records.catalogue import BUILTIN, Catalogue, Metric
from pytest_llmprof.records.checks import MachineReport
from pytest_llmprof.records.environment import Environment
from pytest_llmprof.records.metrics import Metrics
from pytest_llmprof.records.predictions import Prediction
from pytest_llmprof.records.run import RunRecord
from pytest_llmprof.stages import packaged_stages

DOCS = Path(__file__).resolve().parent.parent / "docs"
_PLACE = r"(<!-- {}: written by tools/write_docs.py -->\n).*?(<!-- end of {} -->)"


def schema_of(kind: type, blocks: dict[str, type] | None = None) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a file; *blocks* are the stages' own objects in it, by key."""
    (root, *others), components = msgspec.json.schema_components(
        [kind, *(blocks or {}).values()], ref_template="#/$defs/{name}"
    )
    if blocks:
        properties = components[kind.__name__]["properties"]
        for name, block in zip(blocks, others, strict=True):
            properties[name] = {"anyOf": [{"type": "null"}, block]}
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **root, "$defs": components}
    return _null_last(schema)


def _null_last(value: Any) -> Any:
    """A schema with null as the last of several types: versions of msgspec differ in their order."""
    if isinstance(value, dict):
        return {
            key: sorted(map(_null_last, item), key=lambda one: one == {"type": "null"})
            if key == "anyOf"
            else _null_last(item)
            for key, item in value.items()
        }
    return [_null_last(item) for item in value] if isinstance(value, list) else value


def schemas() -> dict[str, dict[str, Any]]:
    """The schema of each file, by the schema's file name."""
    blocks = {name: kind for stage in packaged_stages() for name, kind in stage.blocks.items()}
    return {
        "metrics.schema.json": schema_of(Metrics, blocks),
        "environment.schema.json": schema_of(Environment),
        "predictions.schema.json": schema_of(Prediction),
        "run.schema.json": schema_of(RunRecord),
        "comparison.schema.json": schema_of(Comparison),
        "doctor.schema.json": schema_of(MachineReport),
    }


def catalogue() -> Catalogue:
    """The metrics of the package."""
    own = [metric for plugin in (*packaged_stages(), *packaged_models()) for metric in plugin.metrics]
    return Catalogue((*BUILTIN, *own))


def metrics_table() -> str:
    """The catalogue as a Markdown table."""
    lines = ["| Metric | Unit | Better | Over | Definition |", "|:--|:--|:--|:--|:--|"]
    return "\n".join([*lines, *map(_row, catalogue())]) + "\n"


def _row(metric: Metric) -> str:
    over = {"page": "pages", "page_rate": "pages", "batch": "batches", "batch_rate": "batches", "max": "all samples"}
    unit = {"share": "0…1", "": ""}.get(metric.unit, metric.unit)
    name = f"`{'quality.' if metric.section == 'quality' else ''}{metric.name}`"
    return f"| {name} | {unit} | {metric.better or ''} | {over.get(metric.reduce, '')} | {metric.description} |"


def keys_tables() -> dict[str, str]:
    """The tables of all configuration keys, by their names in configuration.md."""
    registry = Registry.of(packaged_models(), packaged_stages(), builtin())
    sources = ConfigSources(invocation_dir=DOCS, rootdir=DOCS, cli_overrides=(), config_dir=None)
    values = yaml.safe_load(Composer(sources, registry).show())
    values["infer"]["engine"] = AUTO  # shown as the engine that it becomes on this machine
    tables = {name: _table(_keys(name, block), values) for name, block in BLOCKS.items()}
    for stage in registry.stages.values():
        if rows := list(_stage_keys(stage)):
            tables[f"pipeline.{stage.name}"] = _table(rows, values)
    return {**tables, "outputs": _table(_output_keys(registry), values), "llmprof": _table(_keys("llmprof", TestBlock))}


Key = tuple[str, str, str]
"""A key's path, what it may be, and what it means."""


def _keys(prefix: str, block: type) -> Iterator[Key]:
    """The keys of a dataclass and of those below it."""
    for name, child in keys_below(block).items():
        path = f"{prefix}.{name}"
        if is_block(child):
            yield from _keys(path, child)
        else:
            yield path, describe(child), _meanings(block)[name]


def _stage_keys(stage: StageSpec) -> Iterator[Key]:
    """A stage's own keys; `enable` where it is not told for all stages with outputs."""
    if not stage.output:
        yield f"pipeline.{stage.name}.enable", describe(bool), _meanings(StageSettings)["enable"]
    if stage.options is not None:
        yield from _keys(f"pipeline.{stage.name}", stage.options)


def _output_keys(registry: Registry) -> Iterator[Key]:
    """The keys of all stages with outputs."""
    output = "pipeline.<stage>.output"
    yield "pipeline.<stage>.enable", describe(bool), _meanings(StageSettings)["enable"]
    yield from _keys(f"{output}.prediction", PredictionSettings)
    yield from _keys(f"{output}.visualization", VisualizationSettings)
    for model in registry.models.values():
        yield from _keys(f"{output}.extra.{model.name}", model.extra or OutputExtra)


@cache
def _meanings(block: type) -> dict[str, str]:
    """The docstrings of a dataclass's fields, those of the classes that it extends included."""
    found = {}
    for one in reversed(block.__mro__[:-1]):
        (tree,) = ast.parse(inspect.getsource(one)).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in pairwise(tree.body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def _table(keys: Iterator[Key] | list[Key], values: dict[str, Any] | None = None) -> str:
    """The keys as a Markdown table; *values* are the packaged defaults, None where there are none."""
    lines = ["| Key | Type | Default | Meaning |", "|:--|:--|:--|:--|"]
    for path, kind, meaning in keys:
        default = "none" if values is None else f"`{_default(path, values)}`"
        lines.append(f"| `{path}` | {kind} | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _default(path: str, values: dict[str, Any]) -> str:
    """A default as YAML in one line."""
    found: Any = values
    for part in path.replace("<stage>", "torch_profiler").split("."):
        found = found[part]
    return yaml.safe_dump(found, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")


def _with_tables(file: Path, tables: dict[str, str]) -> str:
    """The text of *file* with *tables* in their places. Raises `SystemExit` for one without a place."""
    text = file.read_text(encoding="utf-8")
    for name, table in tables.items():
        place = re.compile(_PLACE.format(re.escape(name), re.escape(name)), re.DOTALL)
        text, replaced = place.subn(lambda match, table=table: f"{match[1]}{table}{match[2]}", text)
        if replaced != 1:
            raise SystemExit(f"{file} has no place for the table of {name}")
    return text


def documents() -> dict[Path, str]:
    """Every file that is written, with its text."""
    found = {
        DOCS / "schemas" / name: json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        for name, schema in schemas().items()
    }
    for name, tables in {
        "measures.md": {"metrics": metrics_table()},
        "configuration.md": {f"keys of {block}": table for block, table in keys_tables().items()},
    }.items():
        found[DOCS / name] = _with_tables(DOCS / name, tables)
    return found


def main() -> int:
    """Write or check."""
    old = [
        path
        for path, text in documents().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if "--check" in sys.argv[1:]:
        for path in old:
            print(f"out of date: {path.relative_to(DOCS.parent)}; run python tools/write_docs.py")
        return bool(old)
    (DOCS / "schemas").mkdir(exist_ok=True)
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
