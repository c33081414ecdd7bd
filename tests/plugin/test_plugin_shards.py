"""`--llmprof-shard`: each test in one shard, whatever the jobs know of each other."""

from __future__ import annotations

import errno
import json
import random
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from plugin_bench import Bench, clean
from test_plugin_schemas import validate

from pytest_llmprof.errors import ArtifactError, ConfigError
from pytest_llmprof.run.shards import SuiteTest, Times, agreed_times, digest, parse_shard, split

STAGE = ["--llmprof-stage=direct_inference"]
LIGHT = """
import pytest
@pytest.mark.parametrize("n", range(4))
def test_it(llmprof_artifacts, n):
    pass
"""


def suite(*names: str) -> list[SuiteTest]:
    return [SuiteTest(name, name.partition("[")[0]) for name in names]


def shard_runs(bench: Bench, count: int, *args: str) -> list[dict]:
    """run.json of each shard, run one after the other in directories s1, s2, ..."""
    found = []
    for index in range(1, count + 1):
        result = bench.run(args=[*STAGE, *args, f"--llmprof-shard={index}/{count}", f"--llmprof-run-dir=s{index}"])
        assert result.ret == 0, result.stdout.str()
        clean(result)
        found.append(json.loads((bench.path / f"s{index}" / "run.json").read_text()))
    return found


def names(run: dict) -> list[str]:
    ids = (test["id"].rpartition("/")[2] for test in run["tests"])
    return [name.replace(".py::", ":").replace("-direct_inference", "") for name in ids]


@pytest.mark.parametrize("text", ["0/2", "3/2", "x", "", "1", "1/0", "-1/2", "1/2/3", "1.0/2", "1/99999", "²/3"])
def test_what_is_no_shard(text):
    with pytest.raises(ConfigError, match=r"--llmprof-shard: .* is not allowed; give I/N"):
        parse_shard(text)


@pytest.mark.parametrize("text", ["9/10001", "9/1000000000", "1/" + "9" * 5000, "1" * 5000 + "/20000"])
def test_more_shards_than_the_most(text):
    with pytest.raises(ConfigError, match=r"such as 1/4; 10000 shards are the most$") as error:
        parse_shard(text)
    assert len(str(error.value)) < 200


def test_what_is_one():
    assert [(shard.index, shard.count) for shard in map(parse_shard, ("1/1", "2/4", " 4 / 4 "))] == [
        (1, 1),
        (2, 4),
        (4, 4),
    ]


def test_the_longest_go_first_onto_the_lightest():
    seconds = {"a": 10.0, "b": 7.0, "c": 6.0, "d": 5.0, "e": 1.0}
    assert split(suite(*"abcde"), 2, seconds) == {"a": 1, "b": 2, "c": 2, "d": 1, "e": 2}
    assert split(suite(*"abcde"), 9, seconds) == {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}


def test_a_new_test_counts_as_the_median():
    seconds = {"a": 10.0, "b": 7.0, "c": 1.0}
    found = split(suite(*"abc", "new"), 2, seconds)
    assert found == {"a": 1, "b": 2, "new": 2, "c": 1}


def test_a_unit_stays_whole():
    tests = suite("a[one]", "b[one]", "a[two]", "b[two]", "c[one]")
    for seconds in ({}, {"a[one]": 3.0, "b[two]": 1.0}):
        found = split(tests, 3, seconds)
        assert found["a[one]"] == found["a[two]"]
        assert found["b[one]"] == found["b[two]"]
        assert set(found.values()) == {1, 2, 3}


@pytest.mark.parametrize("known", [0.0, 0.5, 1.0])
def test_any_order_of_any_suite_gives_one_balanced_split(known):
    source = random.Random(7)
    for _ in range(200):
        tests = [SuiteTest(f"t{number}", f"u{source.randrange(12)}", source.random() < 0.9) for number in range(30)]
        seconds = {test.id: source.expovariate(1) for test in tests if test.ours and source.random() < known}
        count = source.randrange(1, 9)
        found = split(tests, count, seconds)
        assert set(found) == {test.id for test in tests}
        assert set(found.values()) <= set(range(1, count + 1))
        by_unit = {}
        for test in tests:
            assert by_unit.setdefault(test.unit, found[test.id]) == found[test.id]
        shuffled = source.sample(tests, len(tests))
        again = split(shuffled, count, dict(source.sample(sorted(seconds.items()), len(seconds))))
        assert again == found
        assert digest(again) == digest(found)
        if known == 1.0:
            loads = [0.0] * count
            for test in tests:
                loads[found[test.id] - 1] += seconds.get(test.id, 0.01)
            longest = max(sum(seconds.get(t.id, 0.01) for t in tests if t.unit == unit) for unit in by_unit)
            # Graham's bound for any list order.
            assert max(loads) <= sum(loads) / count + longest


def test_without_times_neighbours_stay_together():
    tests = suite(*(f"{module}.py::test_{number}" for module in "abc" for number in range(4)))
    found = split(tests, 3, {})
    assert [{found[test.id] for test in tests if test.id.startswith(module)} for module in "abc"] == [{1}, {2}, {3}]


def test_the_digest_tells_splits_apart():
    assert digest({"a": 1, "b": 2}) != digest({"a": 2, "b": 1})
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def test_all_tests_run_once_in_their_shards(bench):
    bench.test(LIGHT)
    bench.test(LIGHT, "sub/test_it.py")  # its directories are named by the path, in each shard
    bench.test("def test_plain(): pass\n", "test_plain.py")
    (bench.path / "sub" / "__init__.py").touch()
    (bench.path / "__init__.py").touch()
    runs = shard_runs(bench, 3)
    ran = [name for run in runs for name in names(run)]
    assert sorted(ran) == sorted(2 * [f"test_it:test_it[{n}]" for n in range(4)])
    assert [run["shard"]["index"] for run in runs] == [1, 2, 3]
    assert {run["shard"]["count"] for run in runs} == {3}
    assert len({run["shard"]["split"] for run in runs}) == 1
    assert runs[0]["shard"]["split"]
    whole = bench.run(args=[*STAGE, "--llmprof-run-dir=whole"])
    whole.assert_outcomes(passed=9)
    run = json.loads((bench.path / "whole" / "run.json").read_text())
    assert run["shard"] is None
    assert {test["id"]: test["dir"] for one in runs for test in one["tests"]} == {
        test["id"]: test["dir"] for test in run["tests"]
    }


def test_stages_and_groups_stay_together_and_the_rest_is_deselected(bench):
    bench.test(
        """
import pytest
@pytest.mark.parametrize("n", range(6))
def test_it(llmprof_artifacts, n):
    pass
@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("n", range(3))
def test_group(llmprof_artifacts, n):
    pass
@pytest.mark.xdist_group(name="one")
def test_plain_of_the_group():
    pass
"""
    )
    where = {}
    for index in (1, 2, 3):
        args = ["--llmprof-stage=direct_inference,torch_profiler", f"--llmprof-shard={index}/3", "-rA"]
        result = bench.run(args=args)
        found = re.findall(r"^PASSED test_it.py::(\S+)", result.stdout.str(), re.MULTILINE)
        result.assert_outcomes(passed=len(found), deselected=19 - len(found))
        where.update(dict.fromkeys(found, index))
    assert len(where) == 19
    for n in range(6):
        assert where[f"test_it[{n}-direct_inference]"] == where[f"test_it[{n}-torch_profiler]"]
    assert len({shard for name, shard in where.items() if "group" in name}) == 1
    assert set(where.values()) == {1, 2, 3}


SLEEPS = """
import time, pytest
@pytest.mark.parametrize("n", [60, 1, 1, 1, 1, 1, 1], ids="abcdefg")
def test_it(llmprof_config, n):
    time.sleep(n / 100)
"""


def test_times_of_the_store_balance_it(bench):
    bench.test(SLEEPS)
    # By number the first half would go to the first shard.
    assert names(shard_runs(bench, 2)[0]) == [f"test_it:test_it[{n}]" for n in "abc"]
    bench.run(args=[*STAGE, "--llmprof-save=main", "--llmprof-run-dir=all"]).assert_outcomes(passed=7)
    first = bench.run(args=[*STAGE, "--llmprof-shard=1/2", "--llmprof-run-dir=t1"])
    first.assert_outcomes(passed=1, deselected=6)
    first.stdout.fnmatch_lines(["shard 1/2: 1 of 7 tests, * s of * s by the times in the store .llmprof"])
    # The same by its name, by the run directory, and by the saved file.
    saved = next((bench.path / ".llmprof").glob("main/*/*.json"))
    for given in ("main", "all", str(saved)):
        again = bench.run(args=[*STAGE, "--llmprof-shard=1/2", f"--llmprof-durations={given}"])
        again.assert_outcomes(passed=1, deselected=6)
        again.stdout.fnmatch_lines([f"shard 1/2: 1 of 7 tests, * s of * s by the times in {given}"])


def test_the_newest_time_of_each_test_counts(bench):
    bench.test(SLEEPS)
    bench.run(args=[*STAGE, "--llmprof-run-dir=old"])
    bench.run(args=[*STAGE, "--llmprof-run-dir=new", "-k", "not b"])
    for name, changes in (("old", {"a": 1.0, "b": 50.0}), ("new", {"a": 30.0})):
        path = bench.path / name / "run.json"
        run = json.loads(path.read_text())
        for test in run["tests"]:
            test["seconds"] = changes.get(test["id"].partition("[")[2][0], 1.0)
        path.write_text(json.dumps(run))
    (bench.path / "runs").mkdir()
    for place, name in enumerate(("old", "new")):
        (bench.path / name).rename(bench.path / "runs" / f"{place}")
    result = bench.run(args=[*STAGE, "--llmprof-shard=1/2", "--llmprof-durations=runs"])
    result.stdout.fnmatch_lines(["shard 1/2: 1 of 7 tests, 50.0 s of 1 min 25 s by the times in runs"])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--llmprof-shard=0/2"], "--llmprof-shard: '0/2' is not allowed; give I/N"),
        (["--llmprof-shard=3/2"], "such as 1/4; with 2 shards, 1/2 to 2/2"),
        (["--llmprof-shard=x", "-n2"], "'x' is not allowed"),
        (["--llmprof-shard=1/2", "--llmprof-durations=nope"], "--llmprof-durations: no run is saved under 'nope'"),
        (["--llmprof-shard=1/2", "--llmprof-durations="], "--llmprof-durations is empty"),
        (["--llmprof-shard=1/2", "--llmprof-durations=./nope"], "--llmprof-durations: there is no run at "),
        (["--llmprof-shard=1/2", "--llmprof-durations=bare.json"], "--llmprof-durations: bare.json holds no times"),
        (["--llmprof-shard=1/2", "--llmprof-durations=foreign.json"], "foreign.json is not a file of this kind"),
    ],
)
def test_bad_input(bench, args, words):
    bench.test(LIGHT)
    (bench.path / "bare.json").write_text('{"schema": 1, "tests": [{"id": "a"}]}')
    (bench.path / "foreign.json").write_text('{"benchmarks": []}')
    assert words in bench.usage_error(args=args, apart="-n2" in args)


def keep_cache(bench: Bench) -> None:
    """Let pytest remember failures."""
    ini = bench.path / "pytest.ini"
    ini.write_text(ini.read_text().replace("-p no:cacheprovider ", ""))


def test_stepwise_is_refused(bench):
    bench.test(LIGHT)
    keep_cache(bench)
    assert "does not go with --stepwise" in bench.usage_error(args=["--llmprof-shard=1/2", "--stepwise"])


def test_an_unreadable_file_of_the_store_is_told(bench):
    bench.test(LIGHT)
    broken = bench.path / ".llmprof" / "main" / "H100" / "2026-01-01T00-00-00-x.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    assert f"{broken} is not JSON" in bench.usage_error(args=["--llmprof-shard=1/2"])


@pytest.mark.parametrize("workers", [(), ("-n2",)])
def test_an_empty_shard_is_no_failure_and_leaves_its_run(bench, workers):
    bench.test("def test_it(llmprof_config): pass\n")
    results = []
    for index in (1, 2):
        args = [*STAGE, *workers, f"--llmprof-shard={index}/2", f"--llmprof-run-dir=s{index}"]
        results.append(bench.run_apart(args=args))
        clean(results[-1])
        assert results[-1].ret == 0, results[-1].stdout.str()
    runs = [json.loads((bench.path / f"s{index}" / "run.json").read_text()) for index in (1, 2)]
    assert sorted(len(run["tests"]) for run in runs) == [0, 1]
    assert [run["status"] for run in runs] == ["complete", "complete"]
    assert {run["shard"]["split"] for run in runs} == {runs[0]["shard"]["split"]} != {None}
    assert any("0 of 1 test" in result.stdout.str() for result in results)


def test_a_suite_without_tests_stays_an_error(bench):
    bench.test("")
    assert bench.run(args=["--llmprof-shard=1/2"]).ret == pytest.ExitCode.NO_TESTS_COLLECTED
    bench.test(LIGHT)
    result = bench.run(args=["--llmprof-shard=1/2", "-k", "nothing"])
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED


@pytest.mark.parametrize("spread", ["load", "loadgroup"])
def test_with_workers_it_is_the_same_split(bench, spread):
    bench.test(SLEEPS + '@pytest.mark.xdist_group("one")\ndef test_group(llmprof_config): pass\n')
    bench.run_apart(args=[*STAGE, "--llmprof-save=main", "--llmprof-run-dir=all", "-n2", f"--dist={spread}"])
    alone = bench.run(args=[*STAGE, "--llmprof-shard=2/2", "--llmprof-run-dir=alone"])
    alone.assert_outcomes(passed=7, deselected=1)
    result = bench.run_apart(args=[*STAGE, "--llmprof-shard=2/2", "--llmprof-run-dir=s", "-n2", f"--dist={spread}"])
    result.assert_outcomes(passed=7)
    one, other = (json.loads((bench.path / name / "run.json").read_text()) for name in ("alone", "s"))
    assert one["shard"] == other["shard"] == {"index": 2, "count": 2, "split": one["shard"]["split"]}
    assert sorted(test["dir"] for test in one["tests"]) == sorted(test["dir"] for test in other["tests"])
    result.stdout.fnmatch_lines(["shard 2/2: 7 of 8 tests, *by the times in the store .llmprof"])


def test_with_k_all_shards_split_what_it_leaves(bench):
    bench.test(LIGHT)
    runs = shard_runs(bench, 2, "-k", "1 or 2")
    assert [names(run) for run in runs] == [["test_it:test_it[1]"], ["test_it:test_it[2]"]]


def test_last_failed_of_one_job_runs_all_that_failed_there(bench):
    """Each job of a CI has a cache of its own."""
    bench.test(LIGHT.replace("    pass", "    assert n % 2"))
    other = bench.test(LIGHT, "test_other.py")
    keep_cache(bench)
    args = [*STAGE, "--llmprof-shard=1/2"]
    first = bench.run_apart(args=args)
    failed = set(re.findall(r"^FAILED (\S+)", first.stdout.str(), re.MULTILINE))
    assert failed
    assert other.exists()
    again = bench.run_apart(args=[*args, "--lf"])
    assert set(re.findall(r"^FAILED (\S+)", again.stdout.str(), re.MULTILINE)) == failed
    again.assert_outcomes(failed=len(failed), deselected=8 - len(failed))


def test_a_shard_is_not_saved_as_a_run(bench):
    bench.test(LIGHT)
    result = bench.run(args=[*STAGE, "--llmprof-shard=1/2", "--llmprof-save=main"])
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*not saved as main: a shard is a part of a run; llmprof merge --save saves*"])
    assert not list((bench.path / ".llmprof").rglob("*.json"))


def test_a_suite_that_does_not_use_llmprof_is_split_too(bench):
    bench.test("import pytest\n@pytest.mark.parametrize('n', range(4))\ndef test_it(n): pass\n")
    for index in (1, 2):
        result = bench.run(args=[f"--llmprof-shard={index}/2"])
        result.assert_outcomes(passed=2, deselected=2)
    assert not (bench.path / "llmprof-runs").exists()


MEASURED = """
import pytest, time
@pytest.mark.parametrize("n", range(4))
def test_sleeps(llmprof, n):
    llmprof.measure(time.sleep, 0.001)
def test_pages(llmprof):
    llmprof.run()
def test_fails(llmprof_config):
    assert 0
"""


def llmprof(bench: Bench, *arguments: str) -> str:
    """Run the command in the bench's directory, and give what it printed."""
    code = f"import sys; from pytest_llmprof.cli import main; sys.exit(main({list(arguments)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=bench.path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_joined_shards_are_a_run(bench):
    """By the schema, for compare, --llmprof-compare, trend and pytest-benchmark."""
    bench.echo()
    bench.test(MEASURED)
    echo = ["--llmprof-override=model=echo", "--llmprof-override=dataset=blank", "--llmprof-override=measure.rounds=2"]
    for index in (1, 2, 3):
        bench.run(args=[*STAGE, *echo, f"--llmprof-shard={index}/3", f"--llmprof-run-dir=shards/{index}"])
    shown = llmprof(bench, "merge", "shards", "-o", "all", "--save", "main")
    assert shown.startswith("3 runs, 6 tests: 5 passed, 1 failed\n")
    run = json.loads((bench.path / "all" / "run.json").read_text())
    validate("run", run)
    assert run["status"] == "complete"
    assert [one["shard"]["index"] for one in run["merged"]] == [1, 2, 3]
    assert len({test["id"] for test in run["tests"]}) == 6
    assert {"config.yaml", "summary.md", "benchmark.json"} <= {path.name for path in (bench.path / "all").iterdir()}
    assert "test_fails" in (bench.path / "all" / "summary.md").read_text()
    # The next run takes it as its baseline, by its directory and by its name.
    for given in ("all", "main"):
        result = bench.run(args=[*STAGE, *echo, f"--llmprof-compare={given}", "--llmprof-durations=all"])
        result.assert_outcomes(passed=5, failed=1)
        result.stdout.fnmatch_lines([f"before: {given} (1 run, *", "test_it.py::test_sleeps*"])
        assert "only before" not in result.stdout.str()
    second = json.loads((bench.path / "shards" / "2" / "run.json").read_text())["tests"]
    shown = llmprof(bench, "compare", "all", "shards/2")
    assert all(f"\n{test['id']}  (" in shown or f"\n{test['id']}\n" in shown for test in second)
    assert llmprof(bench, "trend", "main").startswith("main on ")  # on a busy machine no time of it counts
    file = bench.path / "all" / "benchmark.json"
    assert len(json.loads(file.read_text())["benchmarks"]) == 5
    done = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", "compare", str(file), "--csv"],
        cwd=bench.path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test_sleeps[") >= 4


def test_shards_of_other_times_are_not_joined(bench):
    """A store that changes between the jobs: a test could be in no shard."""
    bench.test(SLEEPS)
    shard_runs(bench, 1)
    bench.run(args=[*STAGE, "--llmprof-shard=1/2", "--llmprof-run-dir=one"])
    bench.run(args=[*STAGE, "--llmprof-shard=2/2", "--llmprof-run-dir=two", "--llmprof-durations=s1"])
    with pytest.raises(AssertionError, match="one and two split other tests, or by other times"):
        llmprof(bench, "merge", "one", "two", "-o", "all")
    assert not (bench.path / "all").exists()


def test_the_shards_of_a_submission_use_the_times_of_the_first(bench):
    """Whatever is saved between their jobs."""
    bench.test(SLEEPS)
    shared = ["--llmprof-shard-times=place/times.json"]
    first = bench.run(args=[*STAGE, *shared, "--llmprof-shard=1/2", "--llmprof-run-dir=one"])
    first.assert_outcomes(passed=3, deselected=4)
    bench.run(args=[*STAGE, "--llmprof-save=main"])
    second = bench.run(args=[*STAGE, *shared, "--llmprof-shard=2/2", "--llmprof-run-dir=two"])
    second.assert_outcomes(passed=4, deselected=3)
    assert llmprof(bench, "merge", "one", "two", "-o", "all").startswith("2 runs, 7 tests: 7 passed\n")
    assert json.loads((bench.path / "all" / "run.json").read_text())["argv"] == STAGE


def test_of_many_jobs_at_once_the_first_decides(tmp_path):
    path = tmp_path / "place" / "times.json"
    start = threading.Barrier(16)

    def job(number: int) -> Times:
        start.wait()
        return agreed_times(path, lambda: Times({"t": float(number)}, str(number)))

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(job, range(16)))
    assert len({times.source for times in found}) == 1
    assert [one.name for one in path.parent.iterdir()] == ["times.json"]
    path.write_text("{")
    with pytest.raises(ArtifactError, match="is not JSON"):
        agreed_times(path, Times)
    with pytest.raises(ArtifactError, match=r"cannot write .*: Not a directory"):
        agreed_times(path / "below" / "times.json", Times)


def test_times_that_cannot_be_written_leave_nothing(tmp_path, monkeypatch):
    def full(path: Path, data: bytes) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        agreed_times(tmp_path / "times.json", Times)
    assert list(tmp_path.iterdir()) == []


def test_last_failed_runs_the_whole_shard_where_nothing_of_it_failed(bench):
    bench.test(LIGHT.replace("    pass", "    assert n != 3"))
    keep_cache(bench)
    bench.run_apart(args=STAGE).assert_outcomes(passed=3, failed=1)
    both = [bench.run_apart(args=[*STAGE, "--lf", f"--llmprof-shard={index}/2"]) for index in (1, 2)]
    both[0].assert_outcomes(passed=2, deselected=2)
    both[1].assert_outcomes(failed=1, deselected=3)
