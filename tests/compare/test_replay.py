"""Gates drawn from recorded processes: the scripts, and the rates that docs/comparing.md promises of the pools."""

import gzip
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pytest_llmprof.compare.verdicts import Verdict

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks" / "gates"
FOUND = {
    "h100_compiled": {0.01: 0.9, 0.02: 0.95, 0.05: 0.99},
    "h100_fast": {0.05: 0.99},  # 28 processes: 14 pairs of the 24 that a gate may have
    "h100_fast_ahead_8": {0.02: 0.95, 0.05: 0.99},
    "h100_reference": {},
    "h200_fast": {},  # two speeds, 3.5 % apart
    "cpu": {0.1: 0.9},
    "cpu_16_rounds": {},
}
"""The share of slowdowns that is found at least, by pool and delay."""
GATES = 400


@pytest.fixture(scope="module")
def replay():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("replay")
        for name in ("replay", "simulate"):
            del sys.modules[name]


def write(path, processes=64, spread=0.003, levels=(0, 0.05), rises=None, drift=0.0, seed=1):
    """A pool whose processes differ by *spread*; TPOT rises by *rises*, by default by what the levels say."""
    random = np.random.default_rng(seed)
    place = {"gpu": None, "host": {"cpu": "a CPU"}, "python": "CPython 3.12.1", "versions": {"torch": "2.11.0"}}
    head = {"session": "1", "engine": "fast", "levels": levels, "import_s": 4.0, "environment": place}
    lines = [head]
    for number in range(processes):
        tpot = np.exp(random.normal(0, spread)) * (1 + drift * number)
        rounds = [
            [level, 0.0, [[tpot * (1 + rise), 50.0, 100.0]]]
            for _ in range(3)
            for level, rise in enumerate(rises or levels)
        ]
        lines.append({"at": 6.0 * number, "prepare_s": 1.7, "injected": levels, "rounds": rounds})
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    return path


def test_a_pool_gives_what_metrics_json_would_have(replay, tmp_path):
    pool = replay.read_pool(write(tmp_path / "made.jsonl.gz", processes=5))
    assert (pool.name, len(pool.processes), pool.levels) == ("made", 5, (0, 0.05))
    assert pool.risen(1) == pytest.approx(0.05)
    process = pool.processes[0]
    assert process.values[1] == pytest.approx(1.05 * process.values[0])
    assert process.seconds == pytest.approx(4.0 + 1.7 + 3 * 0.150)
    assert "5 processes in 1 session(s) of infer=fast on a CPU" in str(pool)
    assert replay.read_pool(tmp_path / "made.jsonl.gz", "ttft_ms").processes[0].values == (50, 50)


def test_a_gate_draws_neighbours_and_none_twice(replay):
    drawn = replay.draw(np.random.default_rng(1), range(50), 12)
    assert len(drawn) == len(set(drawn)) == 48
    blocks = np.array(drawn).reshape(-1, 4)
    assert (np.diff(blocks, axis=1) == 1).all()
    assert len(replay.draw(np.random.default_rng(1), range(11), 12)) in (8, 11 // 4 * 4)
    assert len(replay.draw(np.random.default_rng(1), range(5), 12)) == 4


def test_gates_of_a_made_pool(replay, tmp_path):
    pool = replay.read_pool(write(tmp_path / "made.jsonl.gz"))
    same, slower = (replay.gates(pool, level, 100, seed=3) for level in (0, 1))
    assert same.count(Verdict.SAME) >= 95
    assert slower.count(Verdict.SLOWER) == 100
    assert (slower.pairs, slower.seconds) == (6, pytest.approx(12 * 6.15))
    assert "| made | 5% | 5.00% | 5.00% | 100 | 0.0 % (0.0 to 3.6) | 100.0 %" in replay.line(pool, 1, slower)
    faster = replay.read_pool(write(tmp_path / "other.jsonl.gz", rises=(0, -0.05)))
    assert replay.gates(faster, 1, 50, seed=3).count(Verdict.FASTER) == 50


def test_a_steady_drift_is_no_slowdown(replay, tmp_path):
    pool = replay.read_pool(write(tmp_path / "made.jsonl.gz", drift=0.002))
    assert replay.gates(pool, 0, 100, seed=3).count(Verdict.SLOWER, Verdict.FASTER) == 0


def test_a_small_pool_ends_a_gate_as_unclear(replay, tmp_path):
    pool = replay.read_pool(write(tmp_path / "made.jsonl.gz", processes=9))
    assert replay.gates(pool, 1, 20, seed=3).count(Verdict.UNCLEAR) == 20
    with pytest.raises(SystemExit, match="no session of 4 processes"):
        replay.read_pool(write(tmp_path / "few.jsonl.gz", processes=3))


def test_a_process_is_recorded(replay, tmp_path, monkeypatch):
    """The recorder on a CPU: a process from the fork to its line, its delay on the clock."""
    script = [sys.executable, str(SCRIPTS / "record.py"), str(tmp_path), "--processes=1", "--minutes=2"]
    path = os.pathsep.join([str(SCRIPTS.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*script, "--override=infer.max_new_tokens=9"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "TPOT with a delay of 2%" in done.stdout
    head, found = map(json.loads, (tmp_path / "reference.jsonl").read_text().splitlines())
    assert head["levels"] == [0, 0.02, 0.05, 0.1]
    assert [level for level, _, _ in found["rounds"]] == [0, 1, 2, 3, 3, 2, 1, 0] * 2
    step_s = found["step_ms"] / 1e3
    assert found["delays"] == pytest.approx([share * step_s for share in head["levels"]], rel=1e-3)
    # The host spins within the step, so no round can be faster than its delay.
    assert all(pages[0][0] > 1e3 * found["delays"][level] for level, _, pages in found["rounds"])
    monkeypatch.setattr(replay, "BLOCK", 1)
    (process,) = replay.read_pool(tmp_path / "reference.jsonl").processes
    assert process.values[0] == pytest.approx(1e3 * found["delays"][3] / found["injected"][3], rel=1e-3)


@pytest.mark.parametrize("path", sorted((SCRIPTS / "pools").glob("*.jsonl.gz")), ids=lambda path: path.name)
def test_the_promised_rates_hold(replay, path):
    pool = replay.read_pool(path)
    promised = FOUND[pool.name]
    equal = replay.gates(pool, 0, GATES, seed=11)
    assert equal.count(Verdict.SLOWER, Verdict.FASTER) <= 0.01 * GATES
    for level, share in enumerate(pool.levels):
        if share not in promised:
            continue
        outcome = replay.gates(pool, level, 100, seed=11)
        assert outcome.count(Verdict.SLOWER) >= 100 * promised[share], share
        assert outcome.count(Verdict.FASTER) == 0, share
        assert outcome.count(Verdict.UNCLEAR) <= 10, share
        if pool.head["delay"] == "kernel":
            # A step of `compiled` has gaps, in which a part of the delay is lost.
            assert pool.risen(level) == pytest.approx(share, rel=0.12)


def test_pools_are_there_and_small():
    names = {path.name.split(".")[0] for path in (SCRIPTS / "pools").iterdir()}
    assert names == set(FOUND)
    assert sum(path.stat().st_size for path in SCRIPTS.rglob("*") if path.is_file()) < 2e6
