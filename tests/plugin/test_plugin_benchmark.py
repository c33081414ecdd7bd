"""pytest-benchmark as a sink: its table, its files and its switches, with our rounds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from plugin_bench import clean

ECHO = ("model=echo", "dataset=blank", "infer.prompt='hello world'", "measure.rounds=3")
STAGE = ["--llmprof-stage=direct_inference"]
SOURCE = """
def test_pages(llmprof):
    llmprof.run()
def test_plain():
    pass
def test_config(llmprof_config):
    pass
"""


@pytest.fixture
def run(bench):
    """Run the echo model's tests with some arguments."""
    bench.echo()
    bench.test(SOURCE)

    def run(*args: str, ret: int = 0, apart: bool = False) -> pytest.RunResult:
        result = (bench.run_apart if apart else bench.run)(*ECHO, args=[*STAGE, *args])
        clean(result)
        assert result.ret == ret
        return result

    return run


def benchmarks(path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["benchmarks"]


def test_the_table_shows_our_rounds(run, bench):
    result = run()
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*benchmark: 1 tests*", "test_pages[[]direct_inference[]] *"])
    (row,) = [line for line in result.outlines if line.startswith("test_pages[direct_inference]") and ";" in line]
    assert row.split()[-2:] == ["3", "1"]
    metrics = json.loads((bench.stage_dir(stage="direct_inference") / "metrics.json").read_text())
    (ours,) = benchmarks(bench.run_dir / "benchmark.json")
    assert ours["stats"]["data"] == metrics["round_seconds"]
    assert ours["fullname"] == "test_it.py::test_pages[direct_inference]"
    assert ours["extra_info"]["cer"] == 0
    assert ours["extra_info"]["ttft_ms"] == metrics["figures"]["ttft_ms"]


def test_calls_of_a_short_callable_are_iterations(bench):
    bench.test("def test_sum(llmprof):\n    assert llmprof.measure(sum, range(1000)).total_ms < 1\n")
    result = bench.passed("measure.rounds=3", "measure.warmup=1", args=[*STAGE, "--benchmark-json=its.json"])
    metrics = json.loads((bench.stage_dir("test_it/test_sum", "direct_inference") / "metrics.json").read_text())
    calls = metrics["iterations"]
    assert calls >= 16
    assert all(seconds > 0.003 for seconds in metrics["round_seconds"])
    assert metrics["figures"]["round_s"] == pytest.approx(sorted(metrics["round_seconds"])[1] / calls)
    assert metrics["figures"]["total_ms"] == pytest.approx(metrics["figures"]["round_s"] * 1e3)
    (theirs,), (ours,) = benchmarks(bench.path / "its.json"), benchmarks(bench.run_dir / "benchmark.json")
    for stats in (theirs["stats"], ours["stats"]):
        assert stats["iterations"] == calls
        assert stats["data"] == pytest.approx([seconds / calls for seconds in metrics["round_seconds"]])
    # The table's words and digits are those of a call.
    (head,) = [line for line in result.outlines if line.startswith("test ")]
    assert "call ms" in head
    assert "page" not in head
    (row,) = [line.split() for line in result.outlines if line.startswith("test_sum  ")]
    assert 0 < float(row[4]) < 1


def test_json_equals_ours(run, bench):
    run("--benchmark-json=theirs.json")
    (theirs,) = benchmarks(bench.path / "theirs.json")
    (ours,) = benchmarks(bench.run_dir / "benchmark.json")
    for name in ("name", "fullname", "params", "param", "group", "extra_info"):
        assert theirs[name] == ours[name]
    # Theirs leaves out the rounds' own times unless asked to keep them.
    for name in ("min", "max", "mean", "rounds", "iterations", "total"):
        assert theirs["stats"][name] == ours["stats"][name]


@pytest.mark.parametrize("workers", [[], ["-n1"]])
def test_parameters_keep_their_types(bench, workers):
    bench.echo()
    bench.test(
        """
import pytest
VALUES = [1, 2**70, 0.5, True, None, "1", "\\ud800", float("nan"), (1, 2), int]
@pytest.mark.parametrize("x", VALUES, ids=range(10))
def test_pages(llmprof, x):
    llmprof.run()
"""
    )
    result = bench.run_apart(*ECHO, args=[*STAGE, *workers])
    result.assert_outcomes(passed=10)
    clean(result)
    found = {row["param"]: row["params"] for row in benchmarks(bench.run_dir / "benchmark.json")}
    values = [found[f"{number}-direct_inference"]["x"] for number in range(10)]
    assert values == [1, 2**70, 0.5, True, None, "1", "\ufffd", "nan", "(1, 2)", "<class 'int'>"]
    assert [type(value) for value in values[:4]] == [int, int, float, bool]
    assert {row["llmprof_stage"] for row in found.values()} == {"direct_inference"}


def test_autosave_and_compare(run, bench):
    run("--benchmark-autosave")
    result = run("--benchmark-compare")
    result.stdout.fnmatch_lines(["test_pages[[]direct_inference[]] (*NOW*"])


def test_our_file_is_read_by_the_compare_command(run, bench):
    run()
    file = bench.run_dir / "benchmark.json"
    done = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", "compare", str(file)],
        cwd=bench.path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "test_pages[direct_inference]" in done.stdout


def test_disable_still_measures_and_writes_our_files(run, bench):
    result = run("--benchmark-disable")
    result.assert_outcomes(passed=3)
    assert "benchmark: 1 tests" not in result.stdout.str()
    assert len(benchmarks(bench.run_dir / "benchmark.json")[0]["stats"]["data"]) == 3


def test_only_runs_ours_and_skips_the_rest(run):
    run("--benchmark-only").assert_outcomes(passed=1, skipped=2)


def test_skip_skips_ours(run):
    run("--benchmark-skip").assert_outcomes(passed=2, skipped=1)


def test_without_the_plugin(run, bench):
    result = run("-p", "no:benchmark")
    result.assert_outcomes(passed=3)
    assert len(benchmarks(bench.run_dir / "benchmark.json")) == 1


@pytest.mark.parametrize("args", [[], ["--benchmark-disable"], ["--benchmark-only"], ["-p", "no:benchmark"]])
def test_quiet_where_each_complaint_is_an_error(run, args):
    result = run("-W", "error", *args)
    assert "warning" not in result.parseoutcomes()
    assert result.parseoutcomes()["passed"] >= 1


def test_a_test_that_fails_early_leaves_no_warning(bench):
    bench.test(
        """
def test_early(llmprof):
    raise ValueError("early")
def test_never(llmprof):
    pass
"""
    )
    result = bench.run(args=["-W", "error", *STAGE])
    result.assert_outcomes(failed=1, passed=1)


def test_beside_a_benchmark_of_the_users_own(bench):
    bench.echo()
    bench.test(
        """
def test_both(llmprof, benchmark):
    llmprof.run()
    benchmark(sum, [1, 2])
"""
    )
    result = bench.run(*ECHO, args=[*STAGE, "--benchmark-max-time=0.01", "--benchmark-min-rounds=1"])
    result.assert_outcomes(passed=1)
    assert len(benchmarks(bench.run_dir / "benchmark.json")[0]["stats"]["data"]) == 3


def test_a_failed_page_keeps_what_was_measured_out_of_nothing(bench):
    bench.echo()
    bench.test()
    result = bench.run("model=echo", "dataset=blank", "infer.prompt=boom", args=STAGE)
    result.assert_outcomes(failed=1)
    assert not (bench.run_dir / "benchmark.json").exists()


OTHERS = """
import pytest
@pytest.fixture
def benchmark():
    open("called", "w").close()
    return {"mine": 1}
"""


@pytest.mark.parametrize("place", ["test_it.py", "conftest.py", "other_plugin.py"])
def test_a_fixture_of_that_name_which_is_not_pytest_benchmarks(bench, place):
    """pytest-codspeed has one, and so may a conftest or a module: it is not run for tests that do not ask for it."""
    bench.echo()
    bench.test((OTHERS if place == "test_it.py" else "") + "def test_pages(llmprof): llmprof.run()\n")
    if place == "conftest.py":
        path = bench.path / place
        path.write_text(path.read_text() + OTHERS)
    elif place == "other_plugin.py":
        bench.test(OTHERS, name=place)
    args = ["-p", "other_plugin"] if place == "other_plugin.py" else []
    result = bench.run_apart(*ECHO, args=[*STAGE, *args])
    result.assert_outcomes(passed=1)
    assert not (bench.path / "called").exists()
    assert len(benchmarks(bench.run_dir / "benchmark.json")) == 1


def test_a_test_with_a_fixture_of_that_name_of_its_own(bench):
    bench.echo()
    bench.test(OTHERS + "def test_pages(llmprof, benchmark):\n    assert benchmark['mine']\n    llmprof.run()\n")
    result = bench.run(*ECHO, args=[*STAGE, "-p", "no:benchmark"])
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize("workers", [[], ["-n2"]])
def test_their_options_work_with_workers_too(run, bench, workers):
    result = run("--benchmark-json=theirs.json", "--benchmark-save=first", *workers, apart=True)
    result.stdout.fnmatch_lines(["*benchmark: 1 tests*", "test_pages[[]direct_inference[]] *"])
    (theirs,) = benchmarks(bench.path / "theirs.json")
    (ours,) = benchmarks(bench.run_dir / "benchmark.json")
    assert (theirs["fullname"], theirs["extra_info"]) == (ours["fullname"], ours["extra_info"])
    assert theirs["stats"]["mean"] == ours["stats"]["mean"]
    (saved,) = (bench.path / ".benchmarks").rglob("*_first.json")
    shutil.rmtree(bench.run_dir)
    baseline = json.loads(saved.read_text())
    for name in ("min", "max", "mean", "median"):
        baseline["benchmarks"][0]["stats"][name] /= 1000
    saved.write_text(json.dumps(baseline))
    result = bench.run_apart(*ECHO, args=[*STAGE, "--benchmark-compare", "--benchmark-compare-fail=mean:50%", *workers])
    assert result.ret != 0
    assert "Performance has regressed" in result.stdout.str() + result.stderr.str()


def test_switched_off_they_stay_so_with_workers(run, bench):
    result = run("--benchmark-disable", "--benchmark-json=theirs.json", "-n1", apart=True)
    assert "benchmark: 1 tests" not in result.stdout.str()
    assert len(benchmarks(bench.run_dir / "benchmark.json")) == 1


@pytest.mark.parametrize("workers", [[], ["-n1"]])
def test_groups(bench, workers):
    bench.echo()
    bench.test(
        """
import pytest
@pytest.mark.benchmark(group="small")
def test_one(llmprof): llmprof.run()
@pytest.mark.benchmark(group=2)
def test_two(llmprof): llmprof.run()
"""
    )
    result = bench.run_apart(*ECHO, args=[*STAGE, *workers])
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines_random(["*benchmark 'small': 1 tests*", "*benchmark '2': 1 tests*"])
    assert {row["group"] for row in benchmarks(bench.run_dir / "benchmark.json")} == {"small", "2"}
