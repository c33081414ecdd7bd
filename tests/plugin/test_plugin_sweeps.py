"""The sweeps run by path, at their smallest, and only by path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(tmp_path: Path, request: pytest.FixtureRequest, *arguments: str) -> str:
    # A plugin that no entry point names (the package is on the path, not installed) is asked for.
    plugin = () if request.config.pluginmanager.hasplugin("llmprof") else ("-p", "pytest_llmprof.plugin")
    options = ("-p", "no:cacheprovider", "-q", "--llmprof-stage=direct_inference")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugin, *options, f"--llmprof-run-dir={tmp_path / 'run'}", *arguments],
        cwd=ROOT,
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
    small = ["model.weights=random", "model.mode=tiny", "infer.max_new_tokens=3", "dataset.limit=2"]
    shown = run(
        tmp_path,
        request,
        "benchmarks/sweeps",
        "-k=tiny or 64- or 100- or 2- or reference",
        *(f"--llmprof-override={key}" for key in [*small, "measure.rounds=1", "measure.warmup=0"]),
    )
    for test in (
        "test_batch[2]",
        "test_decode[64]",
        "test_engine[reference]",
        "test_page[tiny]",
        "test_prefill[100]",
        "test_vision_encoder[tiny]",
    ):
        assert test in shown
    configs = list((tmp_path / "run").rglob("direct_inference/config.yaml"))
    assert len(configs) >= 6
    assert all("  max_new_tokens: 3\n" in path.read_text(encoding="utf-8") for path in configs)
