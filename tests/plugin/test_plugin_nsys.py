"""The stage nsys with the real Nsight Systems, on the CPU: what NVTX shows of the tiny model.

Newer nvtx packages stay silent under an old nsys; which of the two is tested is said where the other is skipped.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from importlib.metadata import version

import pytest

from pytest_llmprof.stages.nsys.stage import NSYS
from pytest_llmprof.stages.tools import find_tool

pytestmark = [pytest.mark.nsys, pytest.mark.slow]

ONE = ("dataset.limit=2", "infer.max_new_tokens=4", "model.device=cpu", "measure.warmup=1")
PREDICT = tuple(f"pipeline.{name}.output.prediction.enable=true" for name in ("torch_profiler", "direct_inference"))


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Whether this nvtx finds this nsys: newer ones stay silent under an old one."""
    directory = tmp_path_factory.mktemp("probe")
    code = "import nvtx; print('domain', type(nvtx.get_domain('probe')).__name__)"
    nsys = str(find_tool(NSYS, None, {}).path)
    command = [nsys, "profile", "--trace=nvtx", "--sample=none", "--cpuctxsw=none", "-o", str(directory / "r")]
    done = subprocess.run([*command, sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "domain " in done.stdout, done.stdout + done.stderr
    return "DummyDomain" not in done.stdout


@pytest.fixture
def recording(records):
    if not records:
        pytest.skip(f"nvtx {version('nvtx')} stays silent under this nsys: pip install nvtx==0.2.11")


def test_an_nvtx_that_stays_silent_is_named(bench, records):
    if records:
        pytest.skip(f"nvtx {version('nvtx')} records under this nsys")
    bench.test()
    result = bench.run(*ONE, args=["--llmprof-stage=nsys"])
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"NVTX recorded nothing under nsys*nvtx {version('nvtx')}*pip install nvtx==0.2.11*"])


def test_phases_and_predictions(bench, recording):
    bench.test()
    result = bench.run(*ONE, *PREDICT, args=["--llmprof-stage=direct_inference,nsys"])
    stage = bench.stage_dir(stage="nsys")
    result.assert_outcomes(passed=2)
    found = json.loads((stage / "metrics.json").read_text())["nsys"]
    assert (found["captures"], found["kernels"]) == (1, None)
    # Two pages in one pass; the warm-up's ranges are in no capture.
    assert {name: phase["count"] for name, phase in found["phases"].items()} == {
        "preprocess": 2,
        "vision": 2,
        "sam": 2,
        "clip": 2,
        "projector": 2,
        "prefill": 2,
        "decode": 2,
    }
    assert found["phases"]["sam"]["parent"] == "vision"
    assert found["steps"] == 6  # three after each page's first token
    with (stage / "phases.csv").open() as stream:
        assert all(float(row["host_ms"]) > 0 for row in csv.DictReader(stream))
    pages = [
        [json.loads(line)["text_raw"] for line in path.read_text().splitlines()]
        for path in (
            bench.stage_dir(stage="direct_inference") / "pred" / "predictions.jsonl",
            stage.parent / "tmp" / "workload" / "torch_profiler" / "predictions.jsonl",
        )
    ]
    assert pages[0] == pages[1]
    assert len(pages[0]) == 2


def test_occurrences_of_one_phase_and_one_that_never_opens(bench, recording):
    bench.test()
    capture = ("pipeline.nsys.capture=decode", "pipeline.nsys.occurrences=2")
    result = bench.run(*ONE, *capture, args=["--llmprof-stage=nsys", "--llmprof-run-dir=two"])
    result.assert_outcomes(passed=1)
    (path,) = (bench.path / "two").rglob("nsys/metrics.json")
    found = json.loads(path.read_text())["nsys"]
    assert (found["captures"], found["steps"], list(found["phases"])) == (2, 6, ["decode"])
    assert found["phases"]["decode"]["count"] == 2
    result = bench.run(*ONE, "pipeline.nsys.capture=decoder", args=["--llmprof-stage=nsys"])
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["nsys captured nothing: the range decoder@llmprof*never opened; this test*all,*"])
