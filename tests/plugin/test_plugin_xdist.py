"""Under pytest-xdist: one run directory, one benchmark.json, clean errors."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from plugin_bench import OUTPUT, clean, files, wait_for

STAGE = ["--llmprof-stage=direct_inference"]
MANY = """
import pytest
@pytest.mark.parametrize("x", range(4))
def test_pages(llmprof, x):
    llmprof.run()
def test_plain():
    pass
"""


def test_one_run_of_the_real_model(bench):
    bench.test(MANY)
    # An old driver beside a torch for CUDA is the machine's matter.
    result = bench.run_apart(args=["-n2", *STAGE, "-W", "error", "-W", "ignore:CUDA initialization"], fresh=True)
    result.assert_outcomes(passed=5)
    clean(result)
    assert result.stderr.str() == ""
    assert "Benchmarks are automatically disabled" not in result.stdout.str()
    run = bench.run_json()
    assert run["status"] == "complete"
    assert {test["id"] for test in run["tests"]} == {f"test_it.py::test_pages[{x}-direct_inference]" for x in range(4)}
    assert {test["outcome"] for test in run["tests"]} == {"passed"}
    assert {test["kind"] for test in run["tests"]} == {"pages"}
    for test in run["tests"]:
        assert (bench.run_dir / test["dir"] / "metrics.json").is_file()
    assert {"config.yaml", "run.json", "benchmark.json"} <= files(bench.run_dir)
    # The summary is the controller's, with every row.
    result.stdout.fnmatch_lines(["*llmprof*", "test *stage *TTFT*"])
    assert len([line for line in result.outlines if "] direct_inference " in re.sub(" +", " ", line)]) == 4
    # pytest-benchmark's has them, too.
    result.stdout.fnmatch_lines(["*benchmark: 4 tests*"])

    file = bench.run_dir / "benchmark.json"
    merged = json.loads(file.read_text())["benchmarks"]
    assert len(merged) == 4
    assert merged[0]["extra_info"]["xdist_workers"] == 2
    done = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", "compare", str(file), "--csv"],
        cwd=bench.path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test_pages[") >= 4


@pytest.mark.parametrize("args", [["-n2", "--dist=loadgroup"], ["--tx=2*popen", "--dist=loadscope"], ["-n0"]])
def test_other_ways_to_spread(bench, args):
    bench.test(
        """
import pytest
@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("x", range(3))
def test_it(llmprof_artifacts, llmprof_stage, x):
    llmprof_artifacts.out_dir(llmprof_stage).mkdir(parents=True)
"""
    )
    result = bench.run_apart(args=[*args, *STAGE])
    result.assert_outcomes(passed=3)
    clean(result)
    assert {test["dir"] for test in bench.run_json()["tests"]} == {
        f"test_it/test_it-{x}/direct_inference" for x in range(3)
    }
    for test in bench.run_json()["tests"]:
        assert (bench.run_dir / test["dir"]).is_dir()


@pytest.mark.parametrize("configured", [True, False])
def test_all_tests_in_each_worker_are_refused(bench, configured):
    bench.test(OUTPUT)
    if not configured:
        bench.ini(tiny=False)
    each = ["-n2", "--dist=each"]
    text = bench.usage_error(args=[*each, *(STAGE if configured else [])], apart=True)
    assert text.startswith("--dist each runs each test in every worker, and one run holds it once: leave it out, or ")
    bench.test("def test_plain(): pass")
    bench.run_apart(args=each).assert_outcomes(passed=2)
    bench.test(OUTPUT)
    bench.run_apart(args=["-n1", "--dist=each", *STAGE]).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("overrides", "args", "words"),
    [
        (["infer.max_new_token=3"], [], "did you mean 'infer.max_new_tokens'"),
        (["model=deepseek_orc"], [], "did you mean 'deepseek_ocr'"),
        ([], ["--llmprof-stage=torch"], "unknown stage 'torch'"),
        ([], ["--llmprof-config-dir=missing"], "does not exist"),
        (["pipeline.direct_inference.output.visualization.save_dir=.."], STAGE, "leaves the stage directory"),
    ],
)
def test_usage_errors(bench, overrides, args, words):
    bench.test(MANY)
    assert words in bench.usage_error(*overrides, args=["-n2", *args], apart=True)


def test_usage_error_in_the_ini(bench):
    bench.test(MANY)
    bench.ini("measure.rounds=0")
    assert "measure.rounds=0 is not allowed" in bench.usage_error(args=["-n2"], apart=True)


def test_a_run_directory_that_holds_a_run(bench):
    bench.test(MANY)
    (bench.path / "mine").mkdir()
    (bench.path / "mine" / "run.json").write_text("{}")
    assert "already holds a run" in bench.usage_error(args=["-n2", "--llmprof-run-dir=mine"], apart=True)
    assert (bench.path / "mine" / "run.json").read_text() == "{}"


LIGHT = """
import pytest
@pytest.mark.llmprof(overrides=["measure.round=3"])
def test_bad(llmprof_output):
    pass
@pytest.mark.llmprof(overrides=["pipeline.direct_inference.output.visualization.save_dir=/tmp/llmprof-shared"])
@pytest.mark.parametrize("x", range(2))
def test_clash(llmprof_output, x):
    pass
@pytest.mark.parametrize("x", range(2))
def test_good(llmprof_output, x):
    pass
"""


def test_a_markers_mistake_and_a_collision_fail_their_tests(bench):
    bench.test(LIGHT)
    result = bench.run_apart(args=[*STAGE, "-n2"])
    result.assert_outcomes(errors=3, passed=2)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    clean(result)
    assert result.stdout.str().count("would both write into /tmp/llmprof-shared") >= 2
    result.stdout.fnmatch_lines(["measure.round=3: unknown key*did you mean 'measure.rounds'*"])
    assert {test["outcome"] for test in bench.run_json()["tests"]} == {"passed", "failed"}


def test_an_unwritable_run_directory(bench):
    bench.test("def test_it(llmprof_output): pass\ndef test_plain(): pass\n")
    (bench.path / "file").write_text("in the way")
    words = "file/below: Not a directory"
    for args in ([], ["-n2"]):  # one answer with and without workers
        assert words in bench.usage_error(args=[*STAGE, *args, "--llmprof-run-dir=file/below"], apart=True)


def test_a_worker_that_dies_is_told_and_the_others_go_on(bench):
    bench.test(
        LIGHT.partition("@pytest.mark.llmprof(")[0]
        + LIGHT[LIGHT.index('@pytest.mark.parametrize("x", range(2))\ndef test_good') :]
        + """
import os
@pytest.fixture
def deadly():
    os._exit(3)
def test_dies(llmprof_output):
    os._exit(3)
def test_dies_early(llmprof_output, deadly):
    pass
@pytest.mark.parametrize("x", ["direct_inference"])
def test_plain(x):
    pass
"""
    )
    result = bench.run_apart(args=[*STAGE, "-n2"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "INTERNALERROR" not in result.stdout.str()
    run = bench.run_json()
    assert run["status"] == "complete"
    tests = {test["id"].removeprefix("test_it.py::"): test for test in run["tests"]}
    assert {name: (test["outcome"], test["stage"], test["error"]) for name, test in tests.items()} == {
        "test_good[0-direct_inference]": ("passed", "direct_inference", None),
        "test_good[1-direct_inference]": ("passed", "direct_inference", None),
        "test_dies[direct_inference]": ("failed", "direct_inference", "worker crashed"),
        "test_dies_early[direct_inference]": ("failed", "direct_inference", "worker crashed"),
    }
    assert tests["test_dies[direct_inference]"]["dir"] == "test_it/test_dies/direct_inference"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_terminated_run_is_marked_interrupted(bench, sent):
    bench.echo()
    bench.test("def test_slow(llmprof): llmprof.run()\n")
    child = bench.start("model=echo", "dataset=blank", "infer.prompt='slow one'", args=[*STAGE, "-n1"])
    wait_for(bench.path / "slow.started")
    os.kill(child.pid, sent)
    out, _ = child.communicate(timeout=180)
    assert child.returncode == pytest.ExitCode.INTERRUPTED, out
    assert "INTERNALERROR" not in out
    run = bench.run_json()
    assert run["status"] == "interrupted"
    assert [(test["id"], test["outcome"], test["dir"]) for test in run["tests"]] == [
        ("test_it.py::test_slow[direct_inference]", "interrupted", "test_it/test_slow/direct_inference")
    ]


def test_the_header_line_without_options(bench):
    bench.ini(tiny=False)
    bench.test("def test_it(llmprof_config): pass\n")
    result = bench.run_apart(args=["-n1"])
    result.assert_outcomes(passed=1)
    assert result.stdout.str().count("llmprof: stages torch_profiler; model deepseek_ocr_tiny") == 1


def test_a_run_that_a_worker_begins_after_an_interrupt_is_ended(bench):
    bench.test("def test_it(llmprof_output): pass\n")
    (bench.path / "conftest.py").write_text(
        "import time, pytest\n"
        "def pytest_configure(config):\n"
        "    config.pluginmanager.register(Worker() if hasattr(config, 'workerinput') else Controller())\n"
        "class Controller:\n"
        "    def pytest_testnodeready(self, node):\n"
        "        raise KeyboardInterrupt\n"
        "class Worker:\n"
        "    def pytest_collection_finish(self):\n"
        "        time.sleep(1)  # by now the controller's session has ended\n"
    )
    result = bench.run_apart(args=[*STAGE, "-n1"])
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert bench.run_json()["status"] == "interrupted"


def test_pytest_xdist_is_not_needed(bench):
    bench.echo()
    bench.test()
    args = ["-p", "no:xdist", "-p", "no:xdist.looponfail", "--llmprof-stage=direct_inference"]
    bench.passed("model=echo", "dataset=blank", args=args)


@pytest.mark.parametrize("used", [True, False])
def test_a_machine_that_ssh_does_not_reach(bench, monkeypatch, used):
    ssh = bench.path / "bin/ssh"
    ssh.parent.mkdir()
    ssh.write_text("#!/bin/sh\nread -r line\nexit 255\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")
    bench.test()
    args = ["--dist=load", "--tx=ssh=nowhere//python=python3", *(STAGE if used else ())]
    text = bench.usage_error(args=args, apart=True)
    assert text.startswith("--tx: ssh does not reach nowhere, for the reason that it gives above; it must")


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize(("made", "why"), [(False, "no such file or directory"), (True, "permission denied")])
def test_an_interpreter_that_cannot_be_started(bench, used, made, why):
    python = bench.path / "python"
    if made:
        python.touch(0o644)
    bench.test()
    args = ["--dist=load", f"--tx=popen//python={python}", *(STAGE if used else ())]
    assert bench.usage_error(args=args, apart=True) == f"--tx: cannot start {python}: {why}"
