"""What the docs take from the code is up to date."""

from __future__ import annotations

from pathlib import Path

import write_docs

ROOT = Path(__file__).parents[2]


def test_schemas_and_the_table_of_metrics_are_those_of_the_code():
    old = [
        path.relative_to(ROOT)
        for path, text in write_docs.documents().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    assert old == [], "run python tools/write_docs.py"


def test_every_metric_has_a_definition():
    assert [metric.name for metric in write_docs.catalogue() if not metric.description or not metric.label] == []
