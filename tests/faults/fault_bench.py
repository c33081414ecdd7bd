"""A directory in which pytest runs with faults, and what must hold of the run that is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pytest_llmprof.outputs.predictions import read_predictions
from pytest_llmprof.records.run import RunRecord
from pytest_llmprof.records.stage import StageRecords

HERE = Path(__file__).parent
DATA = HERE.parent / "plugin" / "data"
LONG = os.environ.get("LLMPROF_FAULTS") == "long"
TESTS = """
import torch
def test_pages(llmprof):
    llmprof.run()
def test_callable(llmprof):
    llmprof.measure(torch.ones(8).sum)
"""
ECHO = ("model=echo", "dataset=blank", "infer.prompt='hello world'", "output/torch=full", "measure.rounds=2")


def options(*overrides: str, stage: str = "direct_inference") -> list[str]:
    """pytest's arguments of a run of the echo model."""
    given = [word for override in (*ECHO, *overrides) for word in ("--llmprof-override", override)]
    return [*given, f"--llmprof-stage={stage}"]


def some(total: int, short: int, long: int | None = None) -> list[int]:
    """Moments 1 to *total*: about *short* of them, evenly; in a long run *long*, by default all."""
    count = (long or total) if LONG else short
    return list(range(1, total + 1, max(1, total // count)))


@dataclass
class Ended:
    """A run of pytest that has ended."""

    code: int
    """Exit code; negative for a signal."""
    text: str
    """What it printed."""
    moments: int
    """Moments at which the fault could have come; 0 where the run was killed."""
    seconds: float
    root: Path

    @property
    def runs(self) -> list[Path]:
        """The run directories that it left."""
        found = (self.root / "llmprof-runs").glob("[!.]*")
        return [path for path in found if path.is_dir() and not path.is_symlink()]


class FaultBench:
    """Keeps a fork server, and runs pytest in *root* with a fault each."""

    def __init__(self, root: Path, logs: Path) -> None:
        self.root = root
        self.kills = self.lost = 0
        self._log = logs / "log"
        shutil.copy(DATA / "echo_plugin.py", root / "conftest.py")
        shutil.copytree(DATA / "echo_conf", root / "echo_conf")
        # A worker of pytest-rerunfailures ends in a traceback of its own when its controller is killed.
        (root / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider -p no:rerunfailures\n")
        (root / "test_it.py").write_text(TESTS)
        (root / ".benchmarks").mkdir()  # pytest-benchmark makes it
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        self._server = subprocess.Popen(
            [sys.executable, str(HERE / "fork_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self._ask({"cwd": str(root), "args": options(stage="direct_inference,torch_profiler")}) == "ready"

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def run(self, fault: dict[str, Any], args: Sequence[str] | None = None, root: Path | None = None) -> Ended:
        """Run pytest with *fault* in an empty place."""
        root = root or self.root
        shutil.rmtree(root / "llmprof-runs", ignore_errors=True)
        count = Path(f"{self._log}.count")
        count.unlink(missing_ok=True)
        request = {"cwd": str(root), "fault": fault, "args": list(options() if args is None else args)}
        begin = time.monotonic()
        code = self._ask({**request, "log": str(self._log), "timeout": 120})
        text = self._log.read_text(errors="replace")
        moments = int(count.read_text()) if count.exists() else 0
        return Ended(code, text, moments, time.monotonic() - begin, root)

    def kill(self, number: int, args: Sequence[str] | None = None, **when: Any) -> Ended:
        """Send the signal *number* *when* a fault says, and see that nothing is lost."""
        ended = self.run({"signal": number, **when}, args)
        self.kills += 1
        self.lost += 1
        check_run(ended, killed=number == signal.SIGKILL)
        self.lost -= 1
        return ended

    def close(self) -> None:
        """End the server."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(30)


def check_run(ended: Ended, *, killed: bool, full: bool = False) -> None:
    """What holds of each run, however it ended: one directory or none, whole files, an honest run.json.

    On a *full* disk run.json may be older than the run.
    """
    assert "INTERNALERROR" not in ended.text
    assert "Traceback (most recent call last)" not in ended.text
    assert len(ended.runs) <= 1
    for run in ended.runs:
        record = msgspec.json.decode((run / "run.json").read_bytes(), type=RunRecord)
        assert (run / "config.yaml").is_file()
        assert record.alive() is False
        assert killed or full or record.status != "running", record.status
        _check_files(run, killed=killed)
        for test in record.tests:
            if test.outcome == "passed":
                assert test.dir
                stage = run / test.dir
                metrics = StageRecords.read(stage).metrics
                assert (metrics.status, metrics.kind) == ("ok", test.kind)
                assert (stage / "report.md").is_file()
                if test.kind == "pages":
                    assert len(read_predictions(stage / "pred" / "predictions.jsonl")) == metrics.pages
                    assert (stage / "viz" / "predictions.md").is_file()


def _check_files(run: Path, *, killed: bool) -> None:
    """Files under their final names are whole; only a killed run leaves others."""
    for path in run.rglob("*"):
        if any(part.startswith(".tmp-") for part in path.relative_to(run).parts):
            assert killed, path
        elif path.suffix == ".json":
            msgspec.json.decode(path.read_bytes())
        elif path.name == "predictions.jsonl":
            read_predictions(path)
        elif path.suffix in (".jsonl", ".md", ".yaml"):
            assert path.read_bytes().endswith(b"\n"), path
