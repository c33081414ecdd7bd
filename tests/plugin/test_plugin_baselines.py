"""`--llmprof-save` and `--llmprof-compare`: the store, the comparison after a session, and what is refused before."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path

import jsonschema
import msgspec
import pytest
from plugin_bench import DATA, clean

from pytest_llmprof.compare.saved import saved_run
from pytest_llmprof.compare.store import Store
from pytest_llmprof.records.baseline import SavedMachine, SavedRun

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"
STAGE = ["--llmprof-stage=direct_inference"]
CALLS = """
def test_first(llmprof, work):
    llmprof.measure(work)

def test_second(llmprof, work):
    llmprof.measure(work)
"""


@pytest.fixture
def calls(bench):
    """Two tests of callables, four rounds each: a run without a model, on a clock that is told what to show."""
    shutil.copy(DATA / "clock_conftest.py", bench.path / "conftest.py")
    (bench.path / "durations.json").write_text("[10.0, 10.01, 9.99]")
    bench.test(CALLS)
    bench.ini("measure.rounds=4")
    return bench


def saved(bench, name: str = "main") -> list[Path]:
    return sorted((bench.path / ".llmprof" / name).glob("*/*.json"))


def edit(path: Path, **changes) -> None:
    """Change fields of a saved run."""
    run = msgspec.json.decode(path.read_bytes(), type=SavedRun)
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(run, **changes)))


def newest(bench) -> Path:
    return (bench.path / "llmprof-runs" / "latest").resolve()


@pytest.mark.parametrize("workers", [[], ["-n1"]], ids=["alone", "xdist"])
def test_a_run_is_saved_and_the_next_is_compared_with_it(calls, workers):
    run = calls.run_apart if workers else calls.run
    first = run(args=[*STAGE, *workers, "--llmprof-save=main"])
    first.assert_outcomes(passed=2)
    (path,) = saved(calls)
    first.stdout.fnmatch_lines([f"saved as main: {path.relative_to(calls.path)}"])
    stored = msgspec.json.decode(path.read_bytes(), type=SavedRun)
    assert (stored.name, stored.status, len(stored.tests)) == ("main", "complete", 2)

    second = run(args=[*STAGE, *workers, "--llmprof-compare=main"])
    second.assert_outcomes(passed=2)
    assert second.ret == 0
    clean(second)
    second.stdout.fnmatch_lines(
        [
            "*llmprof comparison*",
            "before: main (1 run, *",
            "after: llmprof-runs/20* (1 run, *",
            "test_it.py::test_first[[]direct_inference[]]  (1 and 1 process, SD 15 % assumed)",
            "  Total a call (ms) *",
        ]
    )
    found = json.loads((newest(calls) / "comparison.json").read_text())
    schema = json.loads((SCHEMAS / "comparison.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(found)
    assert {row["test"] for row in found["rows"]} == {test.id for test in stored.tests}
    assert len(saved(calls)) == 1  # comparing saves nothing


def test_several_stages_and_runs_in_one_baseline(calls):
    stages = ["--llmprof-stage=direct_inference,torch_profiler"]
    for _ in range(3):
        calls.run(args=[*stages, "--llmprof-save=main"]).assert_outcomes(passed=4)
    result = calls.run(args=[*stages, "--llmprof-compare=main"])
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(
        [
            "before: main (3 runs, *",
            "test_it.py::test_first[[]direct_inference[]]  (3 and 1 process)",
            "test_it.py::test_first[[]torch_profiler[]]  (3 and 1 process)",
        ]
    )


def test_the_ini_twins(calls):
    calls.ini("measure.rounds=4", llmprof_save="main", llmprof_store="kept", llmprof_stage="direct_inference")
    calls.passed(count=2)
    assert len(Store(calls.path / "kept").runs("main")) == 1
    calls.ini("measure.rounds=4", llmprof_compare="main", llmprof_store="kept", llmprof_stage="direct_inference")
    calls.passed(count=2).stdout.fnmatch_lines(["before: main (1 run, *"])


def test_an_ini_value_does_not_concern_other_tests(bench):
    bench.ini(llmprof_compare="main", tiny=False)
    bench.test("def test_plain(): pass")
    bench.run().assert_outcomes(passed=1)


def test_latest_is_the_run_before(calls):
    calls.passed(args=STAGE, count=2)
    before = newest(calls)
    result = calls.passed(args=[*STAGE, "--llmprof-compare=llmprof-runs/latest"], count=2)
    assert newest(calls) != before
    result.stdout.fnmatch_lines([f"before: llmprof-runs/{before.name} (1 run, *"])


def test_a_relative_path_of_the_command_line_lies_where_pytest_was_started(calls, monkeypatch):
    calls.passed(args=[*STAGE, "--llmprof-run-dir=below/one"], count=2)
    monkeypatch.chdir(calls.path / "below")
    result = calls.passed(args=[*STAGE, "--llmprof-compare=one", "--rootdir=..", "-c../pytest.ini", ".."], count=2)
    result.stdout.fnmatch_lines(["before: one (1 run, *"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--llmprof-compare=mian"],
            "--llmprof-compare: no run is saved under 'mian' in *.llmprof (did you mean 'main'?); saved: main",
        ),
        (["--llmprof-compare=there/is/none"], "--llmprof-compare: there is no run at *there/is/none: name a run dir*"),
        ([f"--llmprof-compare={'x' * 5000}"], "--llmprof-compare: there is no run at */xxx*…: the path is too long"),
        (["--llmprof-compare="], "--llmprof-compare is empty: give a name, or leave the option out"),
        (["--llmprof-save=a/b"], "--llmprof-save: 'a/b' cannot be the name of a baseline: letters, digits, *"),
        (["--llmprof-store="], "--llmprof-store is empty: give a directory, or leave the option out"),
    ],
)
@pytest.mark.parametrize("workers", [[], ["-n1"]], ids=["alone", "xdist"])
def test_what_is_wrong_is_refused_before_anything_runs(calls, args, message, workers):
    Store(calls.path / ".llmprof").save(SavedRun(key="1", source="x", started="2026-11-28", machine="cpu"), "main")
    if args == ["--llmprof-store="]:
        args = [*args, "--llmprof-save=main"]
    text = calls.usage_error(args=[*STAGE, *args, *workers], apart=bool(workers))
    pytest.LineMatcher([text]).fnmatch_lines([message.replace("[", "[[]")])


def test_a_store_that_cannot_be_written_is_refused_before_anything_runs(calls, monkeypatch):
    (calls.path / "file").write_text("")
    text = calls.usage_error(args=[*STAGE, "--llmprof-save=main", "--llmprof-store=file"])
    assert text.endswith("file: not a directory")
    (calls.path / "locked").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **more: "locked" not in str(path) and access(path, mode))
    text = calls.usage_error(args=[*STAGE, "--llmprof-save=main", "--llmprof-store=locked/store"])
    assert text.endswith("locked/store: permission denied")


def test_copies_in_a_baseline_are_refused(calls):
    calls.passed(args=[*STAGE, "--llmprof-run-dir=side/one"], count=2)
    shutil.copytree(calls.path / "side" / "one", calls.path / "side" / "two")
    text = calls.usage_error(args=[*STAGE, "--llmprof-compare=side"])
    assert text.endswith("are copies of one run, which counts once: remove one")


def test_an_unknown_name_in_the_ini_file_is_refused_once_a_test_is_there(calls):
    calls.ini(llmprof_compare="main")
    text = calls.usage_error(args=STAGE)
    assert text.startswith("the ini value llmprof_compare: no run is saved under 'main'")
    assert text.endswith("nothing is saved yet (--llmprof-save NAME)")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("half", "--llmprof-compare: *.json is not JSON: *"),
        ("newer", "--llmprof-compare: *.json has schema 99, and this pytest-llmprof reads up to *"),
        ("stopped", "--llmprof-compare: *.json is half a run (its status is stopped): run it to its end, or *"),
        ("empty", "--llmprof-compare: *.json has no test of pytest-llmprof in it"),
    ],
)
def test_a_baseline_that_cannot_be_used(calls, content, message):
    calls.passed(args=[*STAGE, "--llmprof-save=main"], count=2)
    (path,) = saved(calls)
    if content == "half":
        path.write_bytes(path.read_bytes()[:200])
    else:
        edit(path, **{"newer": {"schema": 99}, "stopped": {"status": "stopped"}, "empty": {"tests": []}}[content])
    result = calls.run(args=[*STAGE, "--llmprof-compare=main"])
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in result.errlines if line.strip()]
    pytest.LineMatcher([line]).fnmatch_lines([f"ERROR: {message}"])
    assert len(list((calls.path / "llmprof-runs").glob("20*"))) == 1  # nothing ran


def test_other_tests_are_not_compared(calls):
    calls.passed(args=[*STAGE, "--llmprof-save=main"], count=2)
    calls.test("def test_other(llmprof): llmprof.measure(sum, [1])")
    result = calls.passed(args=[*STAGE, "--llmprof-compare=main"])
    result.stdout.fnmatch_lines(["WARNING: not compared with main: main and llmprof-runs/* have no test in common: *"])
    assert not (newest(calls) / "comparison.json").exists()


@pytest.mark.parametrize("what", ["machine", "config"])
def test_another_machine_or_configuration_is_named(calls, what):
    calls.passed(args=[*STAGE, "--llmprof-save=main"], count=2)
    (path,) = saved(calls)
    run = msgspec.json.decode(path.read_bytes(), type=SavedRun)
    if what == "machine":
        gpu = msgspec.structs.replace(run.tests[0].machine, gpu="NVIDIA H100")
        edit(path, tests=[msgspec.structs.replace(test, machine=gpu) for test in run.tests])
    changed = ["measure.warmup=2"] if what == "config" else []
    result = calls.passed(*changed, args=[*STAGE, "--llmprof-compare=main"], count=2)
    result.stdout.fnmatch_lines(
        ["test_it.py::test_first[[]direct_inference[]]", "  not measured: another GPU (NVIDIA H100 against none)"]
        if what == "machine"
        else ["note: the configurations differ: measure.warmup 0 → 2"]
    )


def test_a_stopped_run_is_compared_but_not_saved(calls):
    calls.passed(args=[*STAGE, "--llmprof-save=main"], count=2)
    calls.test(CALLS.replace("(work)", "(work)\n    assert False", 1))
    result = calls.run(args=[*STAGE, "-x", "--llmprof-compare=main", "--llmprof-save=main"])
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "WARNING: not saved as main: the run was stopped, so it is half a run",
            "note: after: this run was stopped",
            "note: only before: test_it.py::test_second[[]direct_inference[]]",
        ]
    )
    assert len(saved(calls)) == 1


def test_a_store_that_cannot_be_written_fails_the_session(calls):
    (calls.path / ".llmprof").mkdir()
    (calls.path / ".llmprof" / "main").write_text("a file")
    result = calls.run(args=[*STAGE, "--llmprof-save=main"])
    result.assert_outcomes(passed=2)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["ERROR: cannot write the store *.llmprof: *"])
    clean(result)


def test_the_run_directory_itself_is_what_is_saved(calls):
    calls.passed(args=[*STAGE, "--llmprof-save=main"], count=2)
    (path,) = saved(calls)
    again = saved_run(newest(calls))
    assert msgspec.json.decode(path.read_bytes(), type=SavedRun).key == again.key


def test_a_run_on_several_gpus_is_saved_as_one_for_each_and_compared_with_its_own(calls, monkeypatch):
    """As workers on several machines give."""
    machines = itertools.cycle([SavedMachine(gpu="A", power_limit_w=300.0), SavedMachine(gpu="B")])
    monkeypatch.setattr("pytest_llmprof.compare.saved._machine", lambda environment: next(machines))
    first = calls.run(args=[*STAGE, "--llmprof-save=main"])
    first.assert_outcomes(passed=2)
    paths = saved(calls)
    assert [path.parent.name for path in paths] == ["A", "B"]
    for path in paths:
        assert f"saved as main: {path.relative_to(calls.path)}" in first.stdout.str()
    runs = [stored.run for stored in Store(calls.path / ".llmprof").runs("main")]
    assert sorted([test.id.partition("[")[0] for test in run.tests] for run in runs) == [
        ["test_it.py::test_first"],
        ["test_it.py::test_second"],
    ]
    result = calls.run(args=[*STAGE, "--llmprof-compare=main"])
    assert "only after" not in result.stdout.str()
    assert "another GPU" not in result.stdout.str()
    comparison = json.loads((newest(calls) / "comparison.json").read_text())
    assert {row["test"].partition("[")[0] for row in comparison["rows"] if row["verdict"] != "not measured"} == {
        "test_it.py::test_first",
        "test_it.py::test_second",
    }
