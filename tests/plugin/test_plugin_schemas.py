"""Real runs against the JSON Schemas of docs/schemas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"
EVERYTHING = """
import pytest

@pytest.mark.llmprof_gate(total_ms=">0", peak_memory_gib=">0")
def test_pages(llmprof):
    llmprof.run()

def test_callable(llmprof):
    import torch
    llmprof.measure(torch.ones(4).sum)

def test_failing(llmprof):
    llmprof.run()
    raise AssertionError("as it should")
"""


def validate(name: str, value: Any) -> None:
    """*value* against its schema, in which no field of it may be missing."""
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
    closed = json.loads(json.dumps(schema), object_hook=_closed)
    jsonschema.Draft202012Validator(closed).validate(value)


def _closed(node: dict[str, Any]) -> dict[str, Any]:
    return {**node, "additionalProperties": False} if node.get("type") == "object" and "properties" in node else node


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_files_of_a_run_follow_their_schemas(bench):
    bench.test(EVERYTHING)
    result = bench.run(
        "pipeline.torch_profiler.output.prediction.enable=true",
        "dataset.limit=2",
        args=["--llmprof-stage=torch_profiler,static_analysis,direct_inference"],
    )
    result.assert_outcomes(passed=6, failed=3)
    run = bench.run_json()
    validate("run", run)
    assert len(run["tests"]) == 9
    for test in run["tests"]:
        directory = bench.run_dir / test["dir"]
        metrics = read(directory / "metrics.json")
        validate("metrics", metrics)
        assert (metrics["profile"] is not None) == (metrics["stage"] == "torch_profiler")
        assert ("static_analysis" in metrics) == (metrics["stage"] == "static_analysis")
        validate("environment", read(directory / "environment.json"))
        predictions = directory / "pred" / "predictions.jsonl"
        for line in predictions.read_text(encoding="utf-8").splitlines() if predictions.exists() else ():
            validate("predictions", json.loads(line))


def test_a_field_that_no_schema_knows_is_seen():
    with pytest.raises(jsonschema.ValidationError, match="surprise"):
        validate("run", {"status": "complete", "argv": [], "started": "", "versions": {}, "tests": [], "surprise": 1})
