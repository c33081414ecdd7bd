"""Stages under a tool through real pytest: the child, what it is handed, and what comes back.

The tool is a stand-in that runs the child; `test_plugin_nsys.py` has the real one.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
import yaml
from plugin_bench import PAGES, clean, files, wait_for

TESTS = Path(__file__).parents[1]
ECHO = ("model=echo", "dataset=blank", "dataset.limit=2", "infer.prompt=hello world")
STAGE = "--llmprof-stage=nsys"
OPTIONS = """
def pytest_addoption(parser):
    parser.addoption("--colour")
    parser.addoption("--flag", action="store_true")
"""
pytestmark = pytest.mark.slow


@pytest.fixture
def tools(bench, monkeypatch):
    """The stand-ins on PATH, and a report of ranges alone."""
    monkeypatch.syspath_prepend(TESTS / "analysis")
    from nsys_tables import Export

    export = Export()
    export.range("round", 0, 100)
    export.range("prefill", 5, 20)
    export.range("decode", 20, 90)
    directory = bench.path / "bin"
    directory.mkdir(exist_ok=True)
    for name in ("nsys", "ncu"):
        path = directory / name
        path.write_text(f"#!{sys.executable}\n" + (TESTS / "stages" / "fake_tool.py").read_text(encoding="utf-8"))
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(directory), prepend=":")
    monkeypatch.setenv("FAKE_REPORT", str(export.write(directory / "recorded.sqlite")))
    monkeypatch.setenv("FAKE_PID", str(directory / "pid"))
    monkeypatch.setenv("FAKE", "run")
    return directory


def workload(bench, test: str = "test_it/test_pages") -> Path:
    return bench.run_dir / test / "tmp" / "workload"


def configs(bench, stage: str) -> tuple[dict, dict]:
    """The configuration of this test in *stage*, and its child's."""
    mine = bench.stage_dir(stage=stage) / "config.yaml"
    (childs,) = (workload(bench) / "run").rglob("torch_profiler/config.yaml")
    return yaml.safe_load(mine.read_text()), yaml.safe_load(childs.read_text())


def expected(mine: dict, **output: object) -> dict:
    """What the child's configuration is, with *output* in both kinds of output."""
    measure = {**mine["measure"], "rounds": 1, "warmup": 1, "iterations": 1}
    childs = mine | {"stages": ["torch_profiler"], "measure": measure}
    childs["llmprof"]["stage"] = "torch_profiler"
    block = childs["pipeline"]["torch_profiler"]
    block["enable"] = False
    for kind in ("prediction", "visualization"):
        block["output"][kind] |= output
    return childs


def test_the_real_model_under_the_tool(bench, tools):
    """One run of everything: same predictions, the frozen configuration, the files, run.json."""
    bench.test(
        """
import os
from pathlib import Path
import pytest

@pytest.fixture(autouse=True)
def elsewhere():
    Path("fixtures.txt").open("a").write(f"{os.getpid()}\\n")

@pytest.mark.llmprof(overrides=["infer.max_new_tokens=6", "infer.prompt=free"])
@pytest.mark.llmprof_gate(ttft_ms="<=0.000001", runaway_pages="<=5")
def test_pages(llmprof, llmprof_stage):
    Path(f"body-{llmprof_stage}-{os.getpid()}").touch()
    run = llmprof.run()
    if llmprof_stage == "torch_profiler":
        assert (run.ttft_ms, run.total_ms, run.tokens) == (None, None, 6.0)
    assert run.ttft_ms < 1e-9
    raise AssertionError("this line is not reached under a tool")
"""
    )
    bench.ini(
        "pipeline.torch_profiler.output.prediction.enable=true",
        "pipeline.direct_inference.output.prediction.enable=true",
        "measure.rounds=2",
    )
    keep = ["--junitxml=out.xml", "-x", "-k", "nsys or direct", "-q", "--benchmark-disable"]
    bench.run(args=["--llmprof-stage=nsys", *keep]).assert_outcomes(passed=1)
    stage = bench.stage_dir(stage="nsys")
    assert {
        *("command.txt", "config.yaml", "environment.json", "inputs.jsonl", "metrics.json", "nsys.nsys-rep"),
        *("nsys.sqlite", "output.log", "phases.csv", "phases.md", "report.md", "timeline.json"),
    } == files(stage)
    metrics = json.loads((stage / "metrics.json").read_text())
    assert metrics["nsys"]["not_applied"] == ["test_it.py:17: assert run.ttft_ms < 1e-9"]
    assert {gate["name"]: gate["outcome"] for gate in metrics["gates"]} == {
        "ttft_ms": "not measured",
        "runaway_pages": "passed",
    }
    assert (metrics["kind"], metrics["figures"]["tokens"], metrics["figures"]["ttft_ms"]) == ("pages", 6.0, None)
    assert list(metrics["nsys"]["phases"]) == ["prefill", "decode"]
    assert "test_it.py:17" in (stage / "report.md").read_text()
    (test,) = bench.run_json()["tests"]
    assert (test["stage"], test["outcome"], test["kind"]) == ("nsys", "passed", "pages")

    # Its body and its fixtures ran in the child alone.
    (process,) = set((bench.path / "fixtures.txt").read_text().split())
    assert [path.name for path in bench.path.glob("body-*")] == [f"body-torch_profiler-{process}"]

    # What the child was handed: this test's configuration but for the keys that the stage changes.
    mine, childs = configs(bench, "nsys")
    outputs = str(workload(bench) / "torch_profiler")
    assert childs["infer"]["max_new_tokens"] == 6
    assert childs == expected(mine, save_dir=outputs)
    command = (stage / "command.txt").read_text()
    for word in ("--junitxml", " -x", " -k", "nsys or direct"):
        assert word not in command
    assert " -q " in command
    assert "test_it.py::test_pages[torch_profiler]" in command

    # The predictions are those of a direct run, in the plan's place, without times.
    assert {"predictions.jsonl", "predictions.md"} <= files(Path(outputs))
    (line,) = (Path(outputs) / "predictions.jsonl").read_text().splitlines()
    under = json.loads(line)
    assert (under["total_ms"], under["ttft_ms"], under["decode_ms"]) == (None, None, None)
    direct = "--llmprof-run-dir=direct"
    bench.run(args=["--llmprof-stage=direct_inference", direct])
    (line,) = (bench.path / "direct").rglob("predictions.jsonl")
    other = json.loads(line.read_text().splitlines()[0])
    for key in ("page", "text_raw", "text_clean", "boxes", "tokens", "finish_reason", "cer", "wer"):
        assert under[key] == other[key], key


BODIES = """
import pytest

def test_fails(llmprof):
    run = llmprof.run()
    assert run.quality.cer > 7, "the test's own words"

def test_breaks(llmprof):
    llmprof.run()
    raise TypeError("a NoneType of its own library")

def test_skips(llmprof):
    pytest.skip("not on Tuesdays")

@pytest.mark.xfail(strict=True)
def test_known(llmprof):
    llmprof.run()
    raise ValueError("known")

@pytest.fixture
def broken():
    raise RuntimeError("the fixture broke")

def test_fixture(broken, llmprof):
    llmprof.run()
"""


def test_what_the_child_says(bench, tools):
    bench.echo()
    bench.test(BODIES)
    result = bench.run(*ECHO, args=[STAGE, "-rs"])
    result.assert_outcomes(failed=2, skipped=1, xfailed=1, passed=1)
    clean_text = result.stdout.str()
    assert "the test failed in its child under nsys: the test's own words" in clean_text
    assert "the test failed in its child under nsys: RuntimeError: the fixture broke" in clean_text
    assert "llmprof: where it failed" in clean_text
    assert "def test_fails(llmprof):" in clean_text  # the child's own failure, from its output
    result.stdout.fnmatch_lines(["SKIPPED*not on Tuesdays"])
    # A TypeError about None after run() reads as an assertion on a time; it is told.
    told = json.loads((bench.stage_dir("test_it/test_breaks", "nsys") / "metrics.json").read_text())
    assert told["nsys"]["not_applied"] == ['test_it.py:10: raise TypeError("a NoneType of its own library")']
    errors = {test["id"]: test["error"] for test in bench.run_json()["tests"]}
    assert "the fixture broke" in errors["test_it.py::test_fixture[nsys]"]


def test_failures_of_the_tool_are_one_line(bench, tools, monkeypatch):
    bench.test()
    monkeypatch.setenv("FAKE", "nothing")
    result = bench.run(args=[STAGE])
    result.assert_outcomes(failed=1)
    clean(result)
    result.stdout.fnmatch_lines(["nsys captured nothing: the range round@llmprof*never opened*"])
    metrics = json.loads((bench.stage_dir(stage="nsys") / "metrics.json").read_text())
    assert metrics["status"] == "error"
    assert "captured nothing" in metrics["errors"][0]["error"]
    assert "captured nothing" in (bench.stage_dir(stage="nsys") / "report.md").read_text()


def test_metrics_of_answers_hold_under_the_tool(bench, tools):
    """They need no clock; those that are computed of times are null."""
    bench.own_metrics()
    gates = 'words="==2", greetings="==2", longest_ms="<0"'
    bench.test(f"import pytest\n@pytest.mark.llmprof_gate({gates})\ndef test_pages(llmprof): llmprof.run()\n")
    bench.passed(*ECHO, args=[STAGE])
    metrics = json.loads((bench.stage_dir(stage="nsys") / "metrics.json").read_text())
    figures = metrics["figures"]
    assert (figures["words"], figures["longest_ms"], metrics["quality"]["greetings"]) == (2.0, None, 2.0)
    assert [gate["outcome"] for gate in metrics["gates"]] == ["passed", "passed", "not measured"]
    assert "| Words a page | 2.00 |" in (bench.stage_dir(stage="nsys") / "report.md").read_text()


TOOL_STAGE = """
@dataclass(frozen=True)
class WeighOptions:
    timeout_s: float = 60.0

from pytest_llmprof.records.catalogue import Metric
from pytest_llmprof.report.sections import Section
from pytest_llmprof.stages.base import ToolStagePlugin

def run(context):
    context.child.run([], {}, "nothing")
    context.figures["weight_g"] = 1.25

def report(records):
    return Section("Scales", ["Level.\\n"])

def pytest_llmprof_stages(config):
    metrics = (Metric("weight_g", "g", "Weight"),)
    return [
        ToolStagePlugin(
            "weigh",
            options=WeighOptions,
            metrics=metrics,
            report=report,
            outputs=False,
            workload="torch_profiler",
            run=run,
        )
    ]
"""


@pytest.mark.parametrize("name", ["weight_g", "wieght_g"])
def test_a_tool_stage_of_a_third_party(bench, name):
    bench.echo()
    path = bench.path / "conftest.py"
    own = TOOL_STAGE.replace('figures["weight_g"]', f'figures["{name}"]')
    path.write_text(path.read_text().replace("def pytest_llmprof_stages", "def stages_of_the_echo") + own)
    bench.test('import pytest\n@pytest.mark.llmprof_gate(tokens=">=2")\ndef test_pages(llmprof): llmprof.run()\n')
    result = bench.run(*ECHO, args=["--llmprof-stage=weigh"])
    metrics = json.loads((bench.stage_dir(stage="weigh") / "metrics.json").read_text())
    assert name == "weight_g" or name not in metrics["figures"]
    assert "## Scales\n\nLevel." in (bench.stage_dir(stage="weigh") / "report.md").read_text()
    if name == "weight_g":
        result.assert_outcomes(passed=1)
        assert metrics["figures"]["weight_g"] == 1.25
    else:
        result.assert_outcomes(failed=1)
        text = "the stage weigh reported an unknown metric: declare it in StagePlugin.metrics (unknown metric wieght_g"
        result.stdout.fnmatch_lines([f"{text} (did you mean 'weight_g'?)*"])
        assert metrics["errors"][0]["error"].startswith(text)


def test_ncu_on_a_cpu(bench, tools):
    bench.test()
    result = bench.run("model.device=cpu", args=["--llmprof-stage=ncu"])
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["ncu profiles CUDA kernels, and this test runs on cpu*"])


def test_tool_off_runs_the_child_alone(bench, tools):
    bench.echo()
    bench.test()
    bench.passed(*ECHO, "pipeline.nsys.enable=false", args=[STAGE])
    stage = bench.stage_dir(stage="nsys")
    assert "nsys profile" not in (stage / "command.txt").read_text()
    assert json.loads((stage / "metrics.json").read_text())["quality"]["cer"] == 0.0
    assert "predictions.md" in files(workload(bench) / "torch_profiler")


def test_outputs_are_off_where_kernels_are_replayed(bench, tools):
    bench.echo()
    bench.test()
    on = "pipeline.torch_profiler.output.prediction.enable=true"
    bench.passed(*ECHO, on, "pipeline.ncu.enable=false", args=["--llmprof-stage=ncu"])
    mine, childs = configs(bench, "ncu")
    assert mine["pipeline"]["torch_profiler"]["output"]["prediction"]["enable"]
    assert childs == expected(mine, enable=False)
    assert not list(workload(bench).rglob("predictions.*"))


def test_ini_and_environment_reach_the_child_but_for_its_own(bench, tools, monkeypatch):
    """addopts, PYTEST_ADDOPTS, options of a conftest, classes, awkward ids; no state is shared."""
    bench.echo()
    conftest = bench.path / "conftest.py"
    conftest.write_text(conftest.read_text() + OPTIONS)
    bench.test(
        """
import pytest
class TestIt:
    @pytest.mark.parametrize("x", ["a b", "c[d]", "e::f", "é"])
    def test_pages(self, llmprof, request, tmp_path, x):
        assert request.config.getoption("colour") == "deep red"
        assert request.config.getoption("flag") and request.config.getini("xfail_strict")
        assert not request.config.getoption("maxfail") and "workload" in str(tmp_path)
        llmprof.run()
"""
    )
    bench.ini(tiny=False)
    ini = bench.path / "pytest.ini"
    ini.write_text(
        ini.read_text().replace("addopts =", "xfail_strict = true\naddopts = --maxfail=1 --flag --junitxml=junit.xml")
        + "log_file = pytest.log\n"
    )
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:faulthandler --basetemp=base")
    result = bench.run(*ECHO, args=[STAGE, "--colour", "deep red", "-k", "test_pages and (b or d)", "test_it.py"])
    result.assert_outcomes(passed=2, deselected=2)
    command = next(bench.run_dir.rglob("nsys/command.txt")).read_text()
    for word in ("--flag", "'deep red'", "no:faulthandler", "addopts=", f"--rootdir={bench.path}"):
        assert word in command
    for word in ("--maxfail", "--junitxml", "--basetemp=base"):
        assert word not in command


def test_two_workers(bench, tools):
    bench.echo()
    bench.test(PAGES + "\ndef test_more(llmprof):\n    llmprof.run()\n")
    result = bench.run_apart(*ECHO, args=["-n2", "--llmprof-stage=nsys,direct_inference"])
    result.assert_outcomes(passed=4)
    clean(result)
    for path in bench.run_dir.rglob("nsys/command.txt"):
        assert " -n2 " not in path.read_text()
    assert len(list(bench.run_dir.rglob("nsys/metrics.json"))) == 2


def test_plugin_given_by_name(bench, tools):
    """Without an entry point: `-p pytest_llmprof.plugin`, which the child is given too."""
    bench.echo()
    bench.test()
    args = ["-p", "no:llmprof", "-p", "pytest_llmprof.plugin", STAGE]
    result = bench.run_apart(*ECHO, args=args)
    result.assert_outcomes(passed=1)
    assert "-p pytest_llmprof.plugin" in (bench.stage_dir(stage="nsys") / "command.txt").read_text()


def test_ctrl_c(bench, tools, monkeypatch):
    bench.echo()
    bench.test()
    monkeypatch.setenv("FAKE", "hang")
    process = bench.start(*ECHO, args=[STAGE])
    wait_for(tools / "pid")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, output
    assert bench.run_json()["status"] == "interrupted"
    stat = Path(f"/proc/{(tools / 'pid').read_text()}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_an_output_block_of_nsys(bench, tools):
    bench.test()
    error = bench.usage_error("pipeline.nsys.output.prediction.enable=true", args=[STAGE])
    assert "stage nsys has no output block of its own" in error
    assert "tmp/workload/torch_profiler" in error
    assert "pipeline.torch_profiler.output.prediction.enable" in error


def test_a_loaded_model_is_freed_first(bench, tools):
    bench.echo()
    conftest = bench.path / "conftest.py"
    conftest.write_text(conftest.read_text() + '\nEcho.close = lambda self: Path("closed").touch()\n')
    bench.test(
        """
from pathlib import Path
def test_pages(llmprof, llmprof_stage):
    assert Path("closed").exists() == (llmprof_stage == "torch_profiler")
    llmprof.run()
"""
    )
    bench.passed(*ECHO, args=["--llmprof-stage=direct_inference,nsys"], count=2)


def test_a_callable(bench, tools):
    bench.test("def test_sum(llmprof):\n    assert llmprof.measure(sum, [1, 2]).total_ms is None\n")
    bench.passed("model.device=cpu", args=[STAGE])
    metrics = json.loads((bench.stage_dir("test_it/test_sum", "nsys") / "metrics.json").read_text())
    assert (metrics["kind"], metrics["callable"], metrics["nsys"]["captures"]) == ("callable", "sum", 1)
