"""The sweeps run by path, at their smallest, and only by path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = [
    f"--llmprof-override={key}"
    for key in (
        "model.weights=random",
        "model.mode=tiny",
        "infer.max_new_tokens=3",
        "dataset.limit=2",
        "measure.rounds=1",
        "measure.warmup=0",
    )
]
ONE_PAGE = """
from pytest_llmprof.errors import ModelError
from pytest_llmprof.models.deepseek_ocr.engines.reference import ReferenceEngine as Engine

generate = Engine.generate


def alone(self, inputs, *rest):
    if len(inputs.grids) > 1:
        raise ModelError("this engine reads one page at a time")
    return generate(self, inputs, *rest)


Engine.generate = alone
"""


def run(tmp_path: Path, request: pytest.FixtureRequest, *arguments: str) -> str:
    # A plugin that no entry point names (the package is on the path, not installed) is asked for.
    plugin = () if request.config.pluginmanager.hasplugin("llmprof") else ("-p", "pytest_llmprof.plugin")
    options = ("-p", "no:cacheprovider", "-q", "--llmprof-stage=direct_inference")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugin, *options, f"--llmprof-run-dir={tmp_path / 'run'}", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_default_benchmarks_leave_the_sweeps_out(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    found = run(tmp_path, request, "benchmarks", "--collect-only")
    assert "benchmarks/test_pages.py::" in found
    assert "sweeps" not in found


def test_one_of_each_sweep_runs_and_the_command_line_beats_it(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    some = "-k=(tiny or 64- or 100- or 2- or reference or table) and not profiled"
    shown = run(tmp_path, request, "benchmarks/sweeps", some, *SMALL)
    for test in (
        "test_batch[2]",
        "test_decode[64]",
        "test_engine[reference-page]",
        "test_engine[reference-late]",
        "test_engine[reference-eight]",
        "test_page[tiny]",
        "test_prefill[100]",
        "test_vision_encoder[tiny]",
    ):
        assert test in shown
    configs = list((tmp_path / "run").rglob("direct_inference/config.yaml"))
    assert len(configs) >= 8
    assert all("  max_new_tokens: 3\n" in path.read_text(encoding="utf-8") for path in configs)
    the_engines_table(tmp_path / "run/test_engines/test_table/direct_inference", shown)


def the_engines_table(directory: Path, shown: str) -> None:
    text = (directory / "engines.md").read_text(encoding="utf-8")
    assert text in shown
    found = json.loads((directory / "engines.json").read_text(encoding="utf-8"))
    rows = {row["kind"]: row for row in found["rows"]}
    assert list(rows) == ["page", "late", "eight"]
    # tiny: 73 tokens of the picture; the middle of two steps is the first
    assert rows["late"]["position"] == 73 + 2 + 1561 + 1
    assert rows["eight"]["pages"] == 2  # all that dataset.limit leaves
    for row in rows.values():
        floor = row["bytes_per_step"] / found["copy_bytes_per_s"] * 1e3
        assert row["floor_ms"] == pytest.approx(floor)
        assert row["of_floor"] == pytest.approx(floor / row["figures"]["tpot_ms"])
        assert row["equal_tokens"] == 1.0
    assert rows["late"]["bytes_per_step"] > rows["page"]["bytes_per_step"]
    assert found["copy_bytes_per_s_least"] <= found["copy_bytes_per_s"] <= found["copy_bytes_per_s_most"]


def test_batches_that_an_engine_does_not_take_are_skipped(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    (tmp_path / "one_page.py").write_text(ONE_PAGE, encoding="utf-8")
    sizes = (f"benchmarks/sweeps/test_batch.py::test_batch[{size}-direct_inference]" for size in (1, 2))
    shown = run(tmp_path, request, "-pone_page", "-rs", *sizes, *SMALL)
    assert "1 passed, 1 skipped" in shown
    assert "this engine reads one page at a time" in shown
