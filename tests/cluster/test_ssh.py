"""pytest --tx ssh=...: workers on another machine, whose files come home.

The other machine is this one: a worker comes through a real sshd, in a mount namespace that hides the run directory.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from plugin_bench import Bench, clean, files, wait_for

import pytest_llmprof
from pytest_llmprof.records.stage import StageRecords

pytestmark = pytest.mark.slow
CHECKOUT = Path(pytest_llmprof.__file__).parents[1]
STAGE = "--llmprof-stage=direct_inference"
ECHO = ("model=echo", "dataset=blank", "infer.prompt='hello world'", "output/torch=full")
PAGES = """
import pytest
@pytest.mark.parametrize("x", range(4))
def test_pages(llmprof, x):
    llmprof.run()
"""
_NEAR = """\
#!/bin/sh
export PYTHONPATH={checkout} TMPDIR={temp} OMP_NUM_THREADS=1 {more}
exec {python} "$@"
"""
_FAR = """\
#!/bin/sh
# As on a machine that has other files than this one: "runs" is an empty directory of its own.
exec unshare {user} -m sh -c 'mount -t tmpfs none {runs} && exec {near} "$@"' sh "$@"
"""


class Machines:
    """A bench, this machine through sshd, and another one that does not see the bench's run directories."""

    def __init__(self, bench: Bench, ssh_config: Path) -> None:
        self.bench = bench
        self.temp = bench.path / "far-tmp"
        """TMPDIR of the workers."""
        self.environment: dict[str, str] = {}
        """More variables of the workers."""
        self._config = ssh_config
        bench.echo()
        bench.test(PAGES)
        for path in (self.temp, bench.path / "llmprof-runs"):
            path.mkdir()

    def near(self, *more: str) -> str:
        """The spec of a worker that sees the same files."""
        return self._spec(self._near(), *more)

    def far(self, *more: str) -> str:
        """The spec of a worker that does not see the run directory."""
        user = "" if os.geteuid() == 0 else "-r"
        if subprocess.run(["unshare", *user.split(), "-m", "true"], capture_output=True).returncode:
            pytest.skip("unshare makes no mount namespace here")
        runs = self.bench.path / "llmprof-runs"
        return self._spec(self._script("far_python", _FAR.format(user=user, runs=runs, near=self._near())), *more)

    def _near(self) -> Path:
        more = " ".join(f"{name}={shlex.quote(value)}" for name, value in self.environment.items())
        text = _NEAR.format(checkout=CHECKOUT, temp=self.temp, more=more, python=sys.executable)
        return self._script("near_python", text)

    def _script(self, name: str, text: str) -> Path:
        path = self.bench.path / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def _spec(self, python: Path, *more: str) -> str:
        parts = ("ssh=loopback", f"ssh_config={self._config}", f"python={python}", f"chdir={self.bench.path}", *more)
        return "--tx=" + "//".join(parts)

    def run(self, *workers: str, args: Sequence[str] = (), overrides: Sequence[str] = ()) -> pytest.RunResult:
        """Run the tests with *workers*, without pytest's own directory that xdist copies there."""
        words = [*workers, "--dist=load", STAGE, "--ignore=pytest", "--ignore=_pytest", *args]
        return self.bench.run_apart(*ECHO, *overrides, args=words)

    def left(self) -> list[str]:
        """What workers left in their TMPDIR."""
        return [path.name for path in self.temp.iterdir() if path.name.startswith("llmprof")]


@pytest.fixture
def machines(bench, ssh_config):
    return Machines(bench, ssh_config)


def test_a_worker_that_sees_the_run_directory_writes_there(machines):
    result = machines.run(machines.near())
    result.assert_outcomes(passed=4)
    clean(result)
    assert machines.left() == []
    run = machines.bench.run_json()
    assert (run["status"], len(run["tests"])) == ("complete", 4)


def test_files_come_home_as_a_run_here_would_leave_them(machines):
    result = machines.run(machines.far())
    result.assert_outcomes(passed=4)
    clean(result)
    home = machines.bench.run_dir
    run = machines.bench.run_json()
    assert run["status"] == "complete"
    assert {test["outcome"] for test in run["tests"]} == {"passed"}
    assert len(json.loads((home / "benchmark.json").read_text())["benchmarks"]) == 4
    assert machines.left() == []
    come = files(home)
    for path in come:
        assert b"llmprof-worker" not in (home / path).read_bytes(), path
    home.rename(machines.bench.path / "kept")
    assert machines.run().ret == 0
    assert come == files(machines.bench.run_dir)
    assert "test_it/test_pages-0/direct_inference/viz/predictions.md" in come


def test_near_and_far_workers_share_a_run(machines):
    result = machines.run("--tx=popen", machines.far())
    result.assert_outcomes(passed=4)
    clean(result)
    for test in machines.bench.run_json()["tests"]:
        found = files(machines.bench.run_dir / test["dir"])
        assert {"metrics.json", "report.md", "environment.json", "pred/predictions.jsonl"} <= found


def test_a_crash_loses_the_test_that_was_running(machines):
    machines.bench.test(
        PAGES + "import os\n"
        "def test_dies_after_its_run(llmprof):\n"
        "    llmprof.run()\n"
        "    os._exit(3)\n"
    )
    result = machines.run(machines.far())
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "INTERNALERROR" not in result.stdout.str()
    run = machines.bench.run_json()
    assert run["status"] == "complete"
    outcomes = {test["id"].partition("::")[2]: (test["outcome"], test["error"]) for test in run["tests"]}
    assert outcomes.pop("test_dies_after_its_run[direct_inference]") == ("failed", "worker crashed")
    assert set(outcomes.values()) == {("passed", None)}
    assert len(outcomes) == 4
    for test in run["tests"]:
        assert (machines.bench.run_dir / test["dir"] / "metrics.json").is_file() == (test["outcome"] == "passed")


def test_what_a_test_writes_at_its_end_comes_too(machines):
    machines.bench.test(
        """
import pytest
@pytest.fixture
def notes(llmprof_artifacts, llmprof_stage):
    yield
    place = llmprof_artifacts.out_dir(llmprof_stage)
    (place / "notes" / "more").mkdir(parents=True)
    (place / "notes" / "more" / "end.txt").write_text("the end")
    (place / "big.bin").write_bytes(bytes(range(256)) * 20000)
    (place / "notes" / "link.txt").symlink_to("more/end.txt")
def test_notes(llmprof, notes):
    llmprof.run()
"""
    )
    machines.run(machines.far()).assert_outcomes(passed=1)
    place = machines.bench.stage_dir("test_it/test_notes", "direct_inference")
    assert (place / "notes" / "more" / "end.txt").read_text() == "the end"
    assert (place / "big.bin").read_bytes() == bytes(range(256)) * 20000
    assert not (place / "notes" / "link.txt").is_symlink()
    assert (place / "notes" / "link.txt").read_text() == "the end"
    assert (place / "metrics.json").is_file()


def test_files_that_cannot_be_written_at_home_fail_their_test(machines):
    machines.bench.test("def test_it(llmprof): llmprof.run()\ndef test_other(llmprof): llmprof.run()\n")
    with (machines.bench.path / "conftest.py").open("a") as conftest:
        conftest.write(
            "\n"
            "@pytest.hookimpl(tryfirst=True)\n"
            "def pytest_runtest_logstart(nodeid):\n"
            "    import glob, os, sys\n"
            "    if 'PYTEST_XDIST_WORKER' not in os.environ and 'test_it[' in nodeid:\n"
            "        for run in glob.glob('llmprof-runs/2*'):\n"
            "            os.mkdir(run + '/test_it')\n"
            "            os.symlink('/nowhere', run + '/test_it/test_it')\n"
        )
    result = machines.run(machines.far(), args=["-s"])
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["its files are lost: * is a link, and a run writes nothing behind one: remove it"])
    clean(result)
    outcomes = {test["id"].partition("::")[2]: test["outcome"] for test in machines.bench.run_json()["tests"]}
    assert outcomes == {"test_it[direct_inference]": "failed", "test_other[direct_inference]": "passed"}


def test_outputs_with_an_absolute_path_stay_and_are_named(machines):
    out = machines.bench.path / "out"
    machines.bench.test("def test_pages(llmprof): llmprof.run()\n")
    key = "pipeline.direct_inference.output.prediction.save_dir"
    result = machines.run(machines.far(), overrides=[f"{key}={out}"])
    result.assert_outcomes(passed=1)
    assert (out / "predictions.jsonl").is_file()
    result.stdout.fnmatch_lines(
        [f"WARNING: {out} of test_it.py::test_pages?direct_inference? is on the machine of worker gw0*"]
    )


def test_a_baseline_that_only_the_controller_has(machines):
    machines.bench.test("def test_pages(llmprof): llmprof.run()\n")
    first = machines.run()
    assert first.ret == 0
    baseline = machines.bench.run_dir
    gate = ["gate.slower={ttft_ms: '90%'}"]
    result = machines.run(machines.far(), args=[f"--llmprof-compare={baseline}"], overrides=gate)
    result.assert_outcomes(passed=1)
    newest = (machines.bench.path / "llmprof-runs" / "latest").resolve()
    assert newest != baseline
    metrics = json.loads((newest / "test_it/test_pages/direct_inference/metrics.json").read_text())
    (found,) = metrics["gates"]
    assert found["name"] == "ttft_ms"
    assert found["baseline"] > 0  # what it says of the change is the host's matter


def test_xdist_copies_the_files_there(machines, tmp_path_factory):
    there = tmp_path_factory.mktemp("there")
    tx = machines.far().replace(f"chdir={machines.bench.path}", f"chdir={there}")
    project = machines.bench.path
    result = machines.run(tx, f"--rsyncdir={project}", "--rsyncignore=far*", f"{project}/test_it.py")
    result.assert_outcomes(passed=4)
    assert {test["dir"] for test in machines.bench.run_json()["tests"]} == {
        f"test_it/test_pages-{x}/direct_inference" for x in range(4)
    }


def test_machines_are_told_apart(machines):
    machines.bench.test("def test_pages(llmprof): llmprof.run()\n")
    machines.run(machines.far()).assert_outcomes(passed=1)
    environment = json.loads((machines.bench.stage_dir(stage="direct_inference") / "environment.json").read_text())
    assert environment["host"]["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_a_stage_under_a_tool(machines, monkeypatch):
    """The tool is a stand-in that runs the child, as in tests/plugin/test_plugin_tools.py."""
    monkeypatch.syspath_prepend(CHECKOUT / "tests" / "analysis")
    from nsys_tables import Export

    export = Export()
    export.range("round", 0, 100)
    export.range("prefill", 5, 20)
    export.range("decode", 20, 90)
    programs = machines.bench.path / "bin"
    programs.mkdir()
    fake = (CHECKOUT / "tests" / "stages" / "fake_tool.py").read_text(encoding="utf-8")
    (programs / "nsys").write_text(f"#!{sys.executable}\n{fake}")
    (programs / "nsys").chmod(0o755)
    machines.environment |= {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "FAKE_REPORT": str(export.write(programs / "recorded.sqlite")),
        "FAKE_PID": str(programs / "pid"),
        "FAKE": "run",
    }
    machines.bench.test("def test_pages(llmprof): llmprof.run()\n")
    result = machines.run(machines.far(), args=["--llmprof-stage=nsys"])
    result.assert_outcomes(passed=2)
    clean(result)
    found = files(machines.bench.run_dir / "test_it" / "test_pages")
    assert {"nsys/metrics.json", "nsys/report.md", "direct_inference/metrics.json"} <= found
    assert "tmp/workload/torch_profiler/predictions.jsonl" in found
    assert machines.left() == []


def test_a_controller_that_is_stopped_or_killed(machines):
    machines.bench.test(MANY)
    for number, status in ((signal.SIGTERM, "interrupted"), (signal.SIGKILL, "running")):
        shutil.rmtree(machines.bench.path / "llmprof-runs")
        (machines.bench.path / "llmprof-runs").mkdir()
        (machines.temp / "pid").unlink(missing_ok=True)
        session = machines.bench.start(*ECHO, args=[machines.far(), "--dist=load", STAGE, "--ignore=pytest"])
        wait_for(machines.temp / "pid")
        time.sleep(0.5)
        session.send_signal(number)
        out, _ = session.communicate(timeout=180)
        assert "Traceback" not in out
        run = machines.bench.run_json()
        assert run["status"] == status
        for test in run["tests"]:
            if test["outcome"] == "passed":
                assert StageRecords.read(machines.bench.run_dir / test["dir"]).metrics.status == "ok"
        end = time.monotonic() + 180
        while machines.left():
            assert time.monotonic() < end, machines.left()
            time.sleep(0.1)


MANY = """
import os, time, pytest
from pathlib import Path
@pytest.mark.parametrize("x", range(12))
def test_pages(llmprof, x):
    Path(os.environ["TMPDIR"], "pid").write_text(str(os.getpid()))
    llmprof.run()
    time.sleep(0.1)
"""


@pytest.mark.parametrize("number", range(20 if os.environ.get("LLMPROF_FAULTS") == "long" else 2))
def test_a_worker_that_is_killed_at_random(machines, number):
    machines.bench.test(MANY)
    words = [machines.far(), "--dist=load", STAGE, "--ignore=pytest", "--ignore=_pytest"]
    session = machines.bench.start(*ECHO, args=words)
    pid = machines.temp / "pid"
    wait_for(pid)
    time.sleep(random.Random(number).uniform(0.0, 2.5))
    os.kill(int(pid.read_text()), signal.SIGKILL)
    out, _ = session.communicate(timeout=180)
    assert "INTERNALERROR" not in out
    assert "Traceback" not in out
    run = machines.bench.run_json()
    assert run["status"] == "complete", out
    ids = [test["id"] for test in run["tests"]]
    assert sorted(ids) == sorted(f"test_it.py::test_pages[{x}-direct_inference]" for x in range(12)), out
    lost = [test for test in run["tests"] if test["outcome"] != "passed"]
    assert [test["error"] for test in lost] in ([], ["worker crashed"])
    files(machines.bench.run_dir)  # none is half-written
    for test in run["tests"]:
        if test["outcome"] == "passed":
            place = machines.bench.run_dir / test["dir"]
            assert StageRecords.read(place).metrics.status == "ok"
            assert {"report.md", "pred/predictions.jsonl", "viz/predictions.md"} <= files(place)


def test_a_path_that_xdist_does_not_hand_on_is_refused(machines):
    result = machines.bench.run_apart(*ECHO, args=[machines.near(), "--dist=load", STAGE, "test_it.py"])
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    clean(result)
    (line,) = [line for line in result.errlines if line.strip()]
    assert line.startswith("ERROR: test_it.py: to workers on other machines pytest-xdist hands no path")


def test_tests_of_a_model_stay_together(machines):
    machines.bench.ini(testpaths="test_it.py", tiny=False)
    words = [machines.far(), machines.far("id=second"), "--dist=loadgroup", STAGE]
    result = machines.bench.run_apart(*ECHO, args=words)
    result.assert_outcomes(passed=4)
    clean(result)
    assert {test["id"] for test in machines.bench.run_json()["tests"]} == {
        f"test_it.py::test_pages[{x}-direct_inference]" for x in range(4)
    }


def test_a_run_directory_that_cannot_be_made_is_one_line(machines):
    (machines.bench.path / "file").write_text("in the way")
    result = machines.run(machines.far(), args=["--llmprof-run-dir=file/below"])
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    clean(result)
    (line,) = [line for line in result.errlines if line.strip()]
    assert line.startswith("ERROR: cannot make the run directory ")
    assert line.endswith("file/below: Not a directory; name another with --llmprof-run-dir")


def test_a_session_without_tests_of_ours_leaves_nothing(machines):
    machines.bench.test("def test_plain(): pass\n")
    result = machines.bench.run_apart(args=[machines.far(), "--dist=load", "--ignore=pytest", "--ignore=_pytest"])
    result.assert_outcomes(passed=1)
    clean(result)
    assert list((machines.bench.path / "llmprof-runs").iterdir()) == []
    assert machines.left() == []
