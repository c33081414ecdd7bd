"""pytest --tx ssh=...: workers on another machine, whose files come home.

The other machine is this one: a worker comes through a real sshd, in a mount namespace that hides the run directory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from plugin_bench import Bench, clean, files

import pytest_llmprof

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
PYTHONPATH={checkout} TMPDIR={temp} OMP_NUM_THREADS=1 exec {python} "$@"
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
        text = _NEAR.format(checkout=CHECKOUT, temp=self.temp, python=sys.executable)
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
