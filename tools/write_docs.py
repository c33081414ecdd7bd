"""Write what the docs take from the code: docs/schemas/*.json, and the table of metrics in docs/measures.md.

    python tools/write_docs.py           write them
    python tools/write_docs.py --check   list the files that are out of date; exit code 1 where there are any
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import msgspec

from pytest_llmprof.compare.result import Comparison
from pytest_llmprof.models import packaged_models
from pytest_llmprof.records.catalogue import BUILTIN, Catalogue, Metric
from pytest_llmprof.records.checks import MachineReport
from pytest_llmprof.records.environment import Environment
from pytest_llmprof.records.metrics import Metrics
from pytest_llmprof.records.predictions import Prediction
from pytest_llmprof.records.run import RunRecord
from pytest_llmprof.stages import packaged_stages

DOCS = Path(__file__).resolve().parent.parent / "docs"
_TABLE = re.compile(r"(<!-- metrics: written by tools/write_docs.py -->\n).*?(<!-- end of metrics -->)", re.DOTALL)


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


def documents() -> dict[Path, str]:
    """Every file that is written, with its text."""
    found = {
        DOCS / "schemas" / name: json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        for name, schema in schemas().items()
    }
    measures = DOCS / "measures.md"
    table = metrics_table()
    text, replaced = _TABLE.subn(lambda match: f"{match[1]}{table}{match[2]}", measures.read_text(encoding="utf-8"))
    if replaced != 1:
        raise SystemExit(f"{measures} has no place for the table of metrics")
    return {**found, measures: text}


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
