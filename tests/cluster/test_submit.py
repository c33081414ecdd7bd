"""llmprof submit: shards as jobs of submitit's local executor, and of a real Slurm."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time

import pytest
from plugin_bench import wait_for

from pytest_llmprof.cli import clusters, main

pytestmark = pytest.mark.slow
LONG = os.environ.get("LLMPROF_FAULTS") == "long"
WHOLE = {"passed": 6}


def test_local_jobs_and_one_run_of_them(suite, monkeypatch, capsys):
    suite.tell("fail", 1)
    lines = suite.submit(*suite.new("local"), code=1)
    suite.check({"passed": 5, "failed": 1})
    assert "2 shards, 6 tests: 5 passed, 1 failed" in lines
    assert any(line.startswith("shard 1/2: 3 tests: ") for line in lines)
    assert suite.submit("--resume=run", code=4) == ["ERROR: --resume run: it is whole, there is nothing to do"]
    again = suite.submit(*suite.new("local"), code=4)
    assert again[0].endswith("/run exists: name a new run")

    # All shards may be complete when it is interrupted.
    shutil.rmtree(suite.path / "run")
    monkeypatch.chdir(suite.path)
    wait = "pytest_llmprof.cli.submit._Submitted._wait"
    with monkeypatch.context() as patch:
        patch.setattr(wait, lambda self, shards: signal.raise_signal(signal.SIGINT))
        assert main(["submit", "--resume=run"]) == 3
    assert capsys.readouterr().err.splitlines()[-1] == (
        "all shards are complete: llmprof submit --resume run joins them"
    )
    suite.submit("--resume=run", code=1)
    suite.check({"passed": 5, "failed": 1})


def test_a_killed_shard_is_named_and_resumed_alone(suite):
    """Whatever is saved meanwhile: the split stays."""
    suite.tell("die", 4)
    lines = suite.submit(*suite.new("local"), code=3)
    assert any(
        line.startswith("shard 2/2: did not complete: pytest ended with signal SIGKILL (log: ") for line in lines
    ), lines
    assert lines[-1] == (
        "ERROR: shard 2 of 2 did not complete, so there is no joined run: llmprof submit --resume run runs it again"
    )
    assert not (suite.path / "run").exists()
    saved = suite.path / ".llmprof" / "main" / "here" / "2099-01-01T00-00-00-x.json"
    saved.parent.mkdir(parents=True)
    ids = [test["id"] for test in json.loads(next(suite.path.glob("run.shards/1/*/run/run.json")).read_text())["tests"]]
    times = [{"id": name, "seconds": 100.0 + place} for place, name in enumerate(ids)]
    saved.write_text(json.dumps({"schema": 1, "tests": times}))
    lines = suite.submit("--resume=run")
    assert not any(line.startswith("shard 1/2") for line in lines)
    suite.check(WHOLE)


def test_ctrl_c_ends_local_jobs(suite):
    suite.tell("wait", 0, 1, 2, 3, 4, 5)
    process = suite.start(*suite.new("local"))
    wait_for(suite.path / "began-0")
    wait_for(suite.path / "began-3")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=180)
    assert process.returncode == 3, out
    assert "interrupted by SIGINT: the jobs are cancelled" in out
    assert "ERROR: shards 1, 2 of 2 did not complete" in out
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nothing of it is left
    for test in range(6):
        (suite.path / f"wait-{test}").unlink()
    suite.submit("--resume=run")
    suite.check(WHOLE)


def process_of(suite, shard: int) -> int:
    """The process that runs *shard*."""
    found = json.loads((suite.path / "run.shards" / str(shard) / "attempt-1" / "job.json").read_text())
    return found["process"]["pid"]


def test_a_killed_job_takes_its_pytest_along(suite):
    suite.tell("wait", 0)
    process = suite.start(*suite.new("local"))
    wait_for(suite.path / "began-0")
    os.kill(process_of(suite, 1), signal.SIGKILL)
    out, _ = process.communicate(timeout=180)
    assert process.returncode == 3, out
    assert "shard 1/2: did not complete: job " in out
    end = time.monotonic() + 180
    while True:  # its pytest ends in good order
        run = json.loads((suite.path / "run.shards/1/attempt-1/run/run.json").read_text())
        if run["status"] == "interrupted":
            break
        assert time.monotonic() < end, run
        time.sleep(0.1)


def test_a_local_job_that_goes_on_is_not_started_twice(suite):
    suite.tell("wait", 0)
    process = suite.start(*suite.new("local"))
    wait_for(suite.path / "began-0")
    process.kill()
    process.wait()
    pid = process_of(suite, 1)
    assert suite.submit("--resume=run", code=4)[-1] == (
        f"ERROR: shard 1/2 still runs (process {pid}): wait for its end, or end it"
    )
    (suite.path / "wait-0").unlink()
    for shard in (1, 2):
        job = suite.path / "run.shards" / str(shard) / "attempt-1" / "job.json"
        end = time.monotonic() + 180
        while json.loads(job.read_text())["code"] is None:
            assert time.monotonic() < end
            time.sleep(0.1)
    assert not any("submitted" in line for line in suite.submit("--resume=run"))
    suite.check(WHOLE)


def test_what_pytest_refuses_is_told(suite):
    lines = suite.submit(*suite.new("local"), "--llmprof-stage=torch", code=4)
    (told,) = [line for line in lines if line.startswith("shard 1/2: did not complete: pytest ended with exit code 4")]
    assert "unknown stage 'torch'" in told


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "--cluster slurm or --cluster local is missing"),
        (["--cluster=local"], "--shards N is missing"),
        (["--cluster=local", "--shards=0"], "--shards: '0' is not allowed; give a number from 1 to 1000"),
        (["--cluster=local", "--shards=x"], "--shards: 'x' is not allowed; give a number from 1 to 1000"),
        (["--cluster=local", f"--shards={'9' * 5000}"], "… is not allowed; give a number from 1 to 1000"),
        (["--cluster=pbs"], "invalid choice: 'pbs' (choose from"),
        (["--cluster=local", "--shards=2", "--slurm-time=1"], "--slurm-time=1 is for --cluster slurm"),
        (["--cluster=slurm", "--shards=2", "--slurm-array=1-3"], "--slurm-array is not allowed: llmprof submit"),
        (["--cluster=local", "--shards=2", "--", "--llmprof-shard=1/2"], "--llmprof-shard is not for shards: each"),
        (["--cluster=local", "--shards=2", "--", "--llmprof-save=x"], "the joined run is saved by llmprof merge"),
        (["--cluster=local", "--shards=2", "--nonsense"], "unrecognized arguments: --nonsense; options of pytest"),
        (["--resume=run", "--shards=2"], "--resume takes all from its run"),
        (["--resume=run"], "no llmprof submit has made it"),
    ],
)
def test_bad_input_is_one_line(words, text, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["submit", *words])
    except SystemExit as error:  # argparse's own errors
        code = error.code
    out, err = capsys.readouterr()
    assert (code, out) == (4, "")
    assert err.count("\n") == 1
    assert text in err
    assert list(tmp_path.iterdir()) == []


def test_without_submitit_or_slurm(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(clusters.shutil, "which", lambda name: None)
    assert main(["submit", "--cluster=slurm", "--shards=2"]) == 4
    assert capsys.readouterr().err == (
        "ERROR: --cluster slurm: there is no program sbatch here: run it on a machine of the cluster\n"
    )
    monkeypatch.setattr(clusters.importlib.util, "find_spec", lambda name: None)
    assert main(["submit", "--cluster=local", "--shards=2"]) == 4
    assert capsys.readouterr().err == (
        "ERROR: llmprof submit needs the package submitit: pip install 'pytest-llmprof[slurm]'\n"
    )


# -- Slurm -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_slurm(suite, slurm):
    suite.environment |= slurm
    return suite


def squeue(suite, *words: str) -> list[str]:
    done = subprocess.run(["squeue", "-h", *words], capture_output=True, text=True, env=suite.environment, check=True)
    return done.stdout.split()


def jobs(lines: list[str]) -> dict[int, str]:
    """The job of each shard, as it was said."""
    found = {}
    for line in lines:
        words = line.split()
        if words[-1] == "submitted":
            found[int(words[1].partition("/")[0])] = words[3]
    return found


def test_jobs_of_slurm(on_slurm):
    lines = on_slurm.submit(*on_slurm.new("slurm", "--slurm-time=10", "--slurm-job-name=pages"))
    on_slurm.check(WHOLE)
    one, two = jobs(lines).values()
    assert f"shard 1/2: job {one} running" in lines
    script = (on_slurm.path / "run.shards" / "jobs" / f"{two}_submission.sh").read_text()
    assert "#SBATCH --time=10\n" in script
    assert "#SBATCH --job-name=pages\n" in script
    assert squeue(on_slurm) == []


def test_what_slurm_refuses_is_one_line(on_slurm):
    lines = on_slurm.submit(*on_slurm.new("slurm", "--slurm-partition=gpu"), code=4)
    assert lines[-1] == "ERROR: the job was refused: invalid partition specified: gpu"
    assert not (on_slurm.path / "run.shards").exists()


@pytest.mark.skipif(not LONG, reason="Slurm counts time limits in minutes: LLMPROF_FAULTS=long")
def test_a_job_whose_time_is_over_ends_in_good_order(on_slurm):
    on_slurm.tell("wait", 0)
    lines = on_slurm.submit(*on_slurm.new("slurm", "--slurm-time=1"), code=3)
    (told,) = [line for line in lines if line.startswith("shard 1/2: did not complete: ")]
    assert "was told to end (SIGUSR2, as Slurm sends before a job's time is over)" in told
    run = json.loads((on_slurm.path / "run.shards/1/attempt-1/run/run.json").read_text())
    assert run["status"] == "interrupted"
    (on_slurm.path / "wait-0").unlink()
    on_slurm.submit("--resume=run", "--slurm-time=10")
    on_slurm.check(WHOLE)


def test_ctrl_c_cancels_jobs_of_slurm(on_slurm):
    on_slurm.tell("wait", 0, 3)
    process = on_slurm.start(*on_slurm.new("slurm"))
    wait_for(on_slurm.path / "began-0")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=180)
    assert process.returncode == 3, out
    assert squeue(on_slurm) == []
    for test in (0, 3):
        (on_slurm.path / f"wait-{test}").unlink()
    on_slurm.submit("--resume=run")
    on_slurm.check(WHOLE)


def test_jobs_outlive_the_command(on_slurm):
    on_slurm.tell("wait", 0)
    process = on_slurm.start(*on_slurm.new("slurm"))
    wait_for(on_slurm.path / "began-0")
    process.kill()
    process.wait()
    second = on_slurm.start("--resume=run")
    time.sleep(2)
    (on_slurm.path / "wait-0").unlink()
    out, _ = second.communicate(timeout=180)
    assert second.returncode == 0, out
    assert "shard 1/2: job" in out
    assert "goes on" in out
    assert "submitted" not in out
    on_slurm.check(WHOLE)


@pytest.mark.skipif(not LONG, reason="Slurm waits two minutes before it starts a job again: LLMPROF_FAULTS=long")
def test_a_job_that_slurm_starts_again(on_slurm):
    on_slurm.tell("wait", 0)
    process = on_slurm.start(*on_slurm.new("slurm"))
    wait_for(on_slurm.path / "began-0")
    (job,) = squeue(on_slurm, "--sort=i", "-o", "%i")[:1]
    (on_slurm.path / "began-0").unlink()
    subprocess.run(["scontrol", "requeue", job], env=on_slurm.environment, check=True)
    (on_slurm.path / "wait-0").unlink()
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    assert len(list((on_slurm.path / "run.shards" / "1").glob("attempt-*"))) == 2
    on_slurm.check(WHOLE)


@pytest.mark.parametrize("number", range(10 if LONG else 2))
def test_a_job_that_is_killed_at_random(on_slurm, number):
    """By scancel, or by SIGKILL of its processes; while it waits, starts, or runs a test."""
    moments = random.Random(number)
    process = on_slurm.start(*on_slurm.new("slurm"))
    wait_for(on_slurm.path / "run.shards" / "submit.json")
    time.sleep(moments.uniform(0.0, 8.0))
    queued = squeue(on_slurm, "--sort=i", "-o", "%i")
    victim = queued[number % len(queued)] if queued else None
    if victim is not None:
        kill = ["scancel", victim] if number % 2 == 0 else ["scancel", "--signal=KILL", "--full", victim]
        subprocess.run(kill, env=on_slurm.environment, check=True)
    out, _ = process.communicate(timeout=200)
    assert "Traceback" not in out
    if process.returncode:
        assert process.returncode == 3, out
        assert out.count("did not complete: ") == 1, out
        assert not (on_slurm.path / "run").exists()
        on_slurm.submit("--resume=run")
    on_slurm.check(WHOLE)
