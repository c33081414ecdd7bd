"""What a run's numbers hold, and what spoils them, with the plugin's real options."""

from __future__ import annotations

import json
import sys

import pytest
from plugin_bench import clean

ECHO = ("model=echo", "dataset=blank", "infer.prompt='hello world'")
DIRECT = ("--llmprof-stage=direct_inference",)


def test_the_next_test_runs_after_an_out_of_memory(bench):
    bench.echo()
    bench.test(
        """
import gc
import pytest
import conftest

@pytest.mark.llmprof(overrides=["infer.prompt='oom oom'", "infer.batch_size=2"])
def test_too_much(llmprof):
    llmprof.run()

def test_next(llmprof):
    assert conftest.HELD and all(held() is None for held in conftest.HELD)
    assert len(llmprof.run().predictions) == 2

def test_callable_too_much(llmprof):
    llmprof.measure(conftest.Echo._fill)

def test_last(llmprof):
    assert all(held() is None for held in conftest.HELD)
    llmprof.measure(lambda: 1)
"""
    )
    bench.ini(*ECHO, "measure.rounds=1", tiny=False)
    result = bench.run(args=DIRECT)
    result.assert_outcomes(passed=2, failed=2)
    clean(result)
    line = "*out of device memory in phase prefill, batch of 2 (one ... two), 20.00 GiB more asked for: *"
    result.stdout.fnmatch_lines([line])
    metrics = json.loads((bench.stage_dir("test_it/test_too_much", "direct_inference") / "metrics.json").read_text())
    assert metrics["status"] == "error"
    assert "infer.batch_size" in metrics["errors"][0]["error"]
    result.stdout.fnmatch_lines(["*warm-up: out of device memory in the callable Echo._fill, 20.00 GiB more asked*"])


def test_what_was_measured_is_kept_whatever_the_window_meets(bench):
    bench.test(
        """
import itertools
import torch

def test_breaks(llmprof):
    calls = itertools.count()

    def call():
        if next(calls) == 4:
            raise ValueError("no luck")
        return torch.ones(3).sum()

    llmprof.measure(call)
"""
    )
    result = bench.run("measure.warmup=1", "measure.rounds=3", "measure.iterations=1")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*ValueError: no luck"])
    metrics = json.loads((bench.stage_dir("test_it/test_breaks") / "metrics.json").read_text())
    assert (metrics["status"], len(metrics["samples"])) == ("error", 3)
    assert metrics["errors"] == [{"page": None, "error": "ValueError: no luck"}]


def test_a_contended_host_is_in_metrics_gates_and_the_summary(bench, monkeypatch):
    bench.echo()
    bench.test(
        """
import pytest

@pytest.mark.llmprof_gate(contended="==0")
def test_pages(llmprof):
    assert llmprof.run().contended == 1

def test_call(llmprof):
    llmprof.measure(sum, [1, 2])
"""
    )
    monkeypatch.setattr("pytest_llmprof.measure.host.CONTENDED", -1.0)
    monkeypatch.setattr("pytest_llmprof.measure.host.LEAST_WAIT_NS", -1)
    result = bench.run(*ECHO, "measure.rounds=3", args=DIRECT)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*llmprof_gate: contended is 1, limit ==0",
            "test_pages (direct_inference) and 1 more: The host was contended in 3 of 3 rounds: *",
        ]
    )
    (run_dir,) = (bench.path / "llmprof-runs").glob("20*")
    assert "::test_pages[direct_inference]` and 1 more: The host was" in (run_dir / "summary.md").read_text()
    for test in ("test_it/test_pages", "test_it/test_call"):
        stage_dir = bench.stage_dir(test, "direct_inference")
        metrics = json.loads((stage_dir / "metrics.json").read_text())
        assert metrics["figures"]["contended"] == 1
        assert len(metrics["round_host"]) == 3
        for host in metrics["round_host"]:
            assert set(host) == {"load", "cpu_share", "waited_share", "contended"}
            assert host["cpu_share"] >= 0
        assert "> **Note:** The host was contended in 3 of 3 rounds (" in (stage_dir / "report.md").read_text()


WAITS = """
import os, sys
sys.path.insert(0, os.getcwd())
for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
    os.environ.pop(name, None)
os.environ.update(%r)
from pathlib import Path
from pytest_llmprof.measure import openmp
openmp.LOADAVG = Path("loadavg").absolute()
import pytest
sys.exit(pytest.main(%r))
"""


@pytest.mark.parametrize(
    ("running", "source", "args", "given", "policy", "at_start"),
    [
        (999, "def test_it(llmprof_config):", DIRECT, {}, "PASSIVE", "PASSIVE"),
        (1, "def test_it(llmprof_config):", DIRECT, {}, "None", "None"),  # a quiet host
        (999, "def test_it(llmprof_config):", (), {}, "PASSIVE", "None"),  # no option: when a test asks
        (999, "def test_it():", (), {}, "None", "None"),  # nothing asks
        (999, "def test_it(llmprof_config):", DIRECT, {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE", "ACTIVE"),
    ],
)
def test_threads_of_a_busy_host_wait_passively(bench, running, source, args, given, policy, at_start):
    """From before a conftest can import torch."""
    (bench.path / "loadavg").write_text(f"0.10 0.10 0.10 {running}/1234 5678\n")
    bench.ini(tiny=False)
    bench.test(f"import os\n{source}\n    print('in the test', os.environ.get('OMP_WAIT_POLICY'))\n")
    bench.test("import os\nprint('at start', os.environ.get('OMP_WAIT_POLICY'))\n", "conftest.py")
    result = bench.pytester.run(sys.executable, "-c", WAITS % (given, ["-s", *args]))
    result.assert_outcomes(passed=1)
    text = result.stdout.str()
    assert f"at start {at_start}" in text
    assert f"in the test {policy}" in text


@pytest.mark.parametrize("args", [DIRECT, ()])
def test_the_host_is_looked_at_once_in_a_session(bench, monkeypatch, args):
    looks = []
    monkeypatch.setattr("pytest_llmprof.plugin.manager.shorten_waits", lambda *_: looks.append(1))
    bench.test("".join(f"def test_{number}(llmprof_config): pass\n" for number in range(3)))
    bench.run(args=[*args, "--collect-only"])
    assert len(looks) == 1


COMPILED = """
import itertools
import torch

def double(tensor):
    return tensor * 2

def halve(tensor):
    return tensor / 2

def test_stays(llmprof):
    call = torch.compile(double, backend="eager")
    llmprof.measure(lambda: call(torch.ones(3)))

def test_changes(llmprof):
    call, sizes = torch.compile(halve, backend="eager"), itertools.count(3)
    llmprof.measure(lambda: call(torch.ones(next(sizes))))
"""


@pytest.mark.slow
def test_a_compile_inside_the_clock_fails_the_test(bench):
    bench.test(COMPILED)
    bench.ini("measure.rounds=2", "measure.warmup=1", "measure.iterations=1")
    result = bench.run_apart(args=DIRECT)
    result.assert_outcomes(passed=1, failed=1)
    clean(result)
    from torch._dynamo.utils import CompilationMetrics

    where = "round 1, test_changes.<locals>.<lambda>"
    cause = " again (cause: *expected 3, actual 4*)" if hasattr(CompilationMetrics, "recompile_reason") else ""
    result.stdout.fnmatch_lines([f"*{where}: torch.compile compiled halve (*){cause} inside the clock: *"])
    stage_dir = bench.stage_dir("test_it/test_changes", "direct_inference")
    metrics = json.loads((stage_dir / "metrics.json").read_text())
    assert metrics["status"] == "error"
    assert len(metrics["samples"]) == 2
    assert "raise measure.warmup" in metrics["errors"][0]["error"]
    assert "raise measure.warmup" in (stage_dir / "report.md").read_text()


@pytest.mark.slow
def test_a_compiled_test_without_warmup_says_so(bench):
    bench.test(COMPILED)
    bench.ini("measure.rounds=1", "measure.warmup=0")
    result = bench.run_apart(args=[*DIRECT, "-k", "stays"])
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*round 1, *torch.compile compiled double (*there was no warm-up; set measure.warmup to 1 or more*"]
    )


def test_times_lie_within_one_another_on_the_tiny_model(bench):
    bench.test("def test_pages(llmprof):\n    llmprof.run()\n")
    bench.ini("dataset.limit=3", "infer.batch_size=2", "measure.warmup=1")
    bench.passed("model=deepseek_ocr_random", "model.size=tiny", "model.mode=tiny", args=DIRECT)
    metrics = json.loads((bench.stage_dir(stage="direct_inference") / "metrics.json").read_text())
    assert len(metrics["samples"]) == 3
    for sample in metrics["samples"]:
        phases = sample["phases"]
        assert phases["preprocess"] + phases["vision"] + phases["prefill"] <= sample["ttft_ms"]
        assert phases["sam"] + phases["clip"] + phases["projector"] <= phases["vision"]
        assert sample["ttft_ms"] <= sample["total_ms"] <= sample["batch_total_ms"]
        assert sample["other_ms"] >= 0
        assert sample["peak_bytes"] is None
    first, second, last = metrics["samples"]
    assert first["batch_total_ms"] == second["batch_total_ms"] != last["batch_total_ms"]
    assert first["batch_tokens_per_s"] > 1000 / first["tpot_ms"]
    assert sum(metrics["round_seconds"]) * 1000 == pytest.approx(first["batch_total_ms"] + last["batch_total_ms"])
    assert metrics["token_block"] == 1
    assert metrics["phase_peaks"] is None
    assert metrics["energy"] == {"reason": "the device is cpu", "update_s": None, "rounds": []}
    assert metrics["figures"]["joules_per_page"] is None
    report = (bench.stage_dir(stage="direct_inference") / "report.md").read_text()
    assert "| Decode of a batch (tokens/s) |" in report
    assert "Share of a batch" in report
    assert "Peak GiB" not in report
