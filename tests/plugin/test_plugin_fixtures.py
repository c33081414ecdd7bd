"""The fixtures that a test asks for."""

from __future__ import annotations

import json

import pytest
from plugin_bench import clean, files


def test_each_fixture(bench):
    bench.test(
        """
from pathlib import Path

def test_all(
    request, llmprof_config, llmprof_stage, llmprof_artifacts, llmprof_output, llmprof_model, llmprof_dataset
):
    assert llmprof_stage == llmprof_config.stage == "torch_profiler"
    assert llmprof_config.test == "test_it/test_all"
    assert llmprof_config.infer.max_new_tokens == 4
    assert llmprof_config.stages == ("torch_profiler",)
    stage_dir = llmprof_artifacts.out_dir("torch_profiler")
    assert stage_dir.parent.parent.parent.parent.name == "llmprof-runs"
    assert stage_dir.parts[-3:] == ("test_it", "test_all", "torch_profiler")
    assert llmprof_output.prediction.enable is False
    assert llmprof_output.prediction.dir == stage_dir / "pred"
    assert llmprof_output.visualization.enable is True
    assert llmprof_output.visualization.dir == stage_dir / "viz"
    assert llmprof_output.visualization.dir.is_absolute()
    assert llmprof_output.extra.visualization.max_images == 16
    assert llmprof_output.extra.prediction.strip_special_tokens is False
    assert llmprof_model.info.device == "cpu"
    assert llmprof_model.info.dtype == "float32"
    assert len(llmprof_dataset) == 1
    assert llmprof_dataset[0].load().size == (512, 512)
    assert llmprof_dataset[0].truth("markdown")
    assert not stage_dir.exists()
"""
    )
    bench.passed()


def test_run_gives_the_figures_of_metrics_json(bench):
    bench.test(
        """
import json

def test_pages(llmprof, llmprof_artifacts):
    run = llmprof.run()
    assert run.ttft_ms > 0
    assert run.tpot_ms > 0
    assert run.tokens == 4
    assert run.tokens_per_s > 0
    assert run.peak_memory_gib is None
    assert run.quality.cer is None
    assert run.deterministic is True
    assert len(run.predictions) == 1
    assert len(run.samples) == 2
    assert run.dir == llmprof_artifacts.out_dir("torch_profiler")
    metrics = json.loads((run.dir / "metrics.json").read_text())
    for name, value in metrics["figures"].items():
        assert getattr(run, name) == value
"""
    )
    bench.passed("model.weights=random", "measure.rounds=2", "pipeline.torch_profiler.enable=false")


def test_measure_a_callable(bench):
    bench.test(
        """
import torch

def matmul(a, *, times):
    for _ in range(times):
        a = a @ a
    return a

def test_kernel(llmprof):
    run = llmprof.measure(matmul, torch.eye(32), times=3)
    assert run.value.shape == (32, 32)
    assert run.total_ms > 0
    assert run.ttft_ms is None
    assert run.quality is None
    assert run.round_s > 0
"""
    )
    bench.passed("measure.rounds=3", "measure.warmup=1")
    found = files(bench.stage_dir("test_it/test_kernel"))
    assert {"metrics.json", "report.md", "environment.json", "config.yaml", "trace.json.gz"} <= found
    metrics = json.loads((bench.stage_dir("test_it/test_kernel") / "metrics.json").read_text())
    assert metrics["kind"] == "callable"
    assert len(metrics["samples"]) == 3
    assert bench.run_json()["tests"][0]["kind"] == "callable"


def test_a_callables_report_speaks_of_calls_and_lists_operators_alone(bench):
    bench.test("import torch\n\ndef test_kernel(llmprof):\n    llmprof.measure(torch.eye(32).matmul, torch.eye(32))\n")
    bench.passed("measure.rounds=2", "measure.warmup=1")
    stage_dir = bench.stage_dir("test_it/test_kernel")
    metrics = json.loads((stage_dir / "metrics.json").read_text())
    report = (stage_dir / "report.md").read_text()
    assert "| Total a call (ms) |" in report
    calls = metrics["iterations"]  # 1 where the machine was too busy for a warm-up call that tells its time
    assert f"A callable, 2 rounds{f' of {calls:,} calls' if calls > 1 else ''}." in report
    assert "of  is Python" not in report
    assert "page" not in report.partition("## Metrics")[2].partition("## Environment")[0]
    for name in ("operators.csv", "operators.md", "report.md"):
        text = (stage_dir / name).read_text()
        assert "llmprof/call" in text
        assert "llmprof/end" not in text
    operators = metrics["profile"]["top_operators"]
    assert {row["phase"] for row in operators} == {"call"}
    assert sum(row["share"] for row in operators) == pytest.approx(1)


@pytest.mark.parametrize("first", ["run()", "measure(int)"])
@pytest.mark.parametrize("second", ["run()", "measure(int)"])
def test_a_second_use_is_an_error(bench, first, second):
    bench.echo()
    bench.test(f"def test_twice(llmprof):\n    llmprof.{first}\n    llmprof.{second}\n")
    result = bench.run("model=echo", "dataset=blank", "infer.prompt=a", args=["--llmprof-stage=direct_inference"])
    result.assert_outcomes(failed=1)
    name = {"run()": "run()", "measure(int)": "measure()"}
    result.stdout.fnmatch_lines(
        [f"llmprof.{name[second]} after llmprof.{name[first]}: one run() or measure() a test; make it two tests"]
    )
    clean(result)


def test_fixture_texts(bench):
    bench.test("")
    result = bench.run(args=["--fixtures"])
    text = " ".join(result.stdout.str().split())
    for name in ("llmprof", "config", "stage", "artifacts", "output", "model", "dataset"):
        name = name if name == "llmprof" else f"llmprof_{name}"
        assert f"{name} -- " in text
    assert "no docstring available" not in text.partition("fixtures defined from pytest_llmprof")[2]
    for words in (
        "`llmprof.run()` sends every page of the dataset through the model",
        "a test runs once for each stage of the session",
        '`.out_dir("torch_profiler")` is the stage directory',
        "`.prediction.dir` (absolute)",
        "One is kept between tests",
    ):
        assert words in text


def test_marker_texts(bench):
    bench.test("")
    text = " ".join(bench.run(args=["--markers"]).stdout.str().split())
    assert "@pytest.mark.llmprof(overrides=['key=value', ...])" in text
    assert '@pytest.mark.llmprof_gate(cer="<=0.05"' in text


def test_help_names_the_options(bench):
    text = " ".join(bench.run(args=["--help"]).stdout.str().split())
    for name in ("stage", "override", "config-dir", "run-dir", "show-config"):
        assert f"--llmprof-{name}" in text
    for name in ("stage", "override", "config_dir", "run_dir"):
        assert f"llmprof_{name} (" in text


STAGES = """
import pytest
@pytest.mark.parametrize("mode", ["base", "fast"])
def test_pages(llmprof_config, mode, llmprof_stage):
    assert llmprof_config.stage == llmprof_stage
class TestIt:
    def test_plain(self, llmprof_stage):
        pass
def test_other():
    pass
"""


@pytest.mark.parametrize(
    "stages",
    [
        ["--llmprof-stage=torch_profiler,direct_inference"],
        ["--llmprof-stage=torch_profiler", "--llmprof-stage=direct_inference"],
        ["--llmprof-override=stages=[torch_profiler,direct_inference]"],
    ],
)
def test_two_stages_and_the_id(bench, stages):
    bench.test(STAGES)
    result = bench.run(args=[*stages, "--collect-only", "-q"])
    assert [line for line in result.outlines if "::" in line] == [
        "test_it.py::test_pages[base-torch_profiler]",
        "test_it.py::test_pages[base-direct_inference]",
        "test_it.py::test_pages[fast-torch_profiler]",
        "test_it.py::test_pages[fast-direct_inference]",
        "test_it.py::TestIt::test_plain[torch_profiler]",
        "test_it.py::TestIt::test_plain[direct_inference]",
        "test_it.py::test_other",
    ]
    bench.passed(args=stages, count=7)
    dirs = {(test["dir"], test["stage"]) for test in bench.run_json()["tests"]}
    assert ("test_it/test_pages-base/torch_profiler", "torch_profiler") in dirs
    assert ("test_it/TestIt.test_plain/direct_inference", "direct_inference") in dirs
    assert len(dirs) == 6


def test_select_a_stage_by_k_and_by_id(bench):
    bench.test(STAGES)
    both = "--llmprof-stage=torch_profiler,direct_inference"
    bench.passed(args=[both, "-k", "direct_inference and fast"])
    bench.passed(args=[both, "test_it.py::test_pages[base-torch_profiler]"])


def test_stages_of_the_ini(bench):
    bench.test("def test_it(llmprof_stage): pass")
    bench.ini(llmprof_stage=["direct_inference", "torch_profiler"])
    result = bench.run(args=["-v"])
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*test_it[[]direct_inference[]]*", "*test_it[[]torch_profiler[]]*"])
    # The command line is above it, as option and as key.
    bench.passed(args=["--llmprof-stage=torch_profiler"])
    bench.passed("stages=[torch_profiler]")


def test_a_users_fixture_may_ask(bench):
    bench.test(
        """
import pytest
@pytest.fixture
def pages(llmprof_dataset):
    return [page.name for page in llmprof_dataset]
@pytest.mark.usefixtures("llmprof_stage")
def test_marked():
    pass
def test_names(pages):
    assert len(pages) == 1
"""
    )
    bench.passed(count=2)


def test_a_users_pages_take_the_datasets_place(bench):
    bench.echo()
    bench.test(
        """
import dataclasses
import pytest
@pytest.fixture
def llmprof_dataset(llmprof_dataset):
    return [dataclasses.replace(page, name=f"my-{page.name}") for page in llmprof_dataset]
def test_pages(llmprof):
    run = llmprof.run()
    assert [prediction.page for prediction in run.predictions] == ["my-one"]
"""
    )
    bench.passed("model=echo", "dataset=blank", "infer.prompt=a", args=["--llmprof-stage=direct_inference"])


def test_asking_while_the_test_runs_is_explained(bench):
    bench.test("def test_it(request):\n    request.getfixturevalue('llmprof')\n")
    result = bench.run()
    result.assert_outcomes(failed=1)
    clean(result)
    result.stdout.fnmatch_lines(["*asks for llmprof* while it runs: name the fixture among the test's arguments*"])


def test_an_llmprof_error_has_a_traceback_only_when_asked_for(bench):
    bench.echo()
    bench.test("def test_it(llmprof):\n    llmprof.run()\n    llmprof.run()\n")
    args = ["--llmprof-stage=direct_inference"]
    overrides = ("model=echo", "dataset=blank", "infer.prompt=a")
    assert ">       llmprof.run()" not in bench.run(*overrides, args=args).stdout.str()
    assert "llmprof.run()\n" in bench.run(*overrides, args=[*args, "--full-trace"]).stdout.str()


def test_one_model_is_kept_and_freed_for_another(bench):
    bench.test(
        """
import pytest
SEEN = []
@pytest.mark.parametrize("number", range(3))
def test_model(llmprof_model, number):
    SEEN.append(llmprof_model)
    assert llmprof_model is SEEN[0]
@pytest.mark.llmprof(overrides=["model.seed=7"])
def test_other(llmprof_model):
    assert llmprof_model is not SEEN[0]
"""
    )
    bench.passed(count=4)
