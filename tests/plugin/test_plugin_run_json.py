"""run.json and the run directory: whole, interrupted, refused, linked; names of any test id."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from plugin_bench import clean, files, wait_for

from pytest_llmprof.records.files import decode_record
from pytest_llmprof.records.run import SCHEMA, RunRecord

ECHO = ("model=echo", "dataset=blank", "infer.prompt='hello world'")
STAGE = ["--llmprof-stage=direct_inference"]


def test_complete(bench):
    bench.echo()
    bench.test(
        """
import pytest
def test_pages(llmprof):
    llmprof.run()
def test_callable(llmprof):
    llmprof.measure(int)
def test_config(llmprof_config):
    pass
def test_wrong(llmprof_config):
    assert 1 == 2
def test_empty(llmprof_config):
    raise ValueError
def test_lines(llmprof_config):
    raise KeyError("one\\ntwo")
@pytest.mark.skip(reason="not today")
def test_skipped(llmprof):
    pass
def test_skips(llmprof):
    pytest.skip("not now")
@pytest.mark.xfail
def test_expected(llmprof_config):
    assert False
@pytest.fixture
def broken_after():
    yield
    raise RuntimeError("after")
def test_teardown(llmprof_config, broken_after):
    pass
"""
    )
    result = bench.run(*ECHO, args=[*STAGE, "-q"])
    result.assert_outcomes(passed=4, failed=3, skipped=2, xfailed=1, errors=1)
    run = bench.run_json()
    assert run["schema"] == 1
    assert run["status"] == "complete"
    assert "--llmprof-stage=direct_inference" in run["argv"]
    for name in ("pytest-llmprof", "python", "pytest", "torch", "transformers", "hydra-core"):
        assert run["versions"][name]
    tests = {test["id"].partition("::")[2].partition("[")[0]: test for test in run["tests"]}
    assert len(tests) == 10
    for test in tests.values():
        assert set(test) == {"id", "stage", "kind", "outcome", "dir", "error", "seconds"}
        assert 0 < test["seconds"] < 60
        assert test["stage"] == "direct_inference"
        assert test["dir"].endswith("/direct_inference")
    assert (tests["test_pages"]["kind"], tests["test_callable"]["kind"], tests["test_config"]["kind"]) == (
        "pages",
        "callable",
        None,
    )
    assert {name: (test["outcome"], test["error"]) for name, test in tests.items()} == {
        "test_pages": ("passed", None),
        "test_callable": ("passed", None),
        "test_config": ("passed", None),
        "test_wrong": ("failed", "assert 1 == 2"),
        "test_empty": ("failed", "ValueError"),
        "test_lines": ("failed", "KeyError: 'one\\ntwo'"),
        "test_skipped": ("skipped", None),
        "test_skips": ("skipped", None),
        "test_expected": ("skipped", None),
        "test_teardown": ("failed", "RuntimeError: after"),
    }
    assert "broken_after" not in (bench.run_dir / "config.yaml").read_text()


@pytest.mark.parametrize("workers", [(), ("-n1",)])
def test_seconds_are_those_of_setup_call_and_teardown_and_of_reruns(bench, workers):
    bench.test(
        """
import time, pytest
@pytest.fixture
def slow():
    time.sleep(0.2)
    yield
    time.sleep(0.2)
def test_all_parts(llmprof_config, slow):
    time.sleep(0.2)
tries = []
@pytest.mark.flaky(reruns=1)
def test_twice(llmprof_config):
    time.sleep(0.2)
    tries.append(1)
    assert len(tries) == 2
"""
    )
    bench.run_apart(args=[*STAGE, *workers]).assert_outcomes(passed=2)
    seconds = {test["id"].partition("::")[2].partition("[")[0]: test["seconds"] for test in bench.run_json()["tests"]}
    assert 0.6 <= seconds["test_all_parts"] < 5
    assert 0.4 <= seconds["test_twice"] < 5


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(bench, sent):
    bench.echo()
    bench.test(
        """
import pytest
def test_first(llmprof_config):
    pass
@pytest.mark.llmprof(overrides=["infer.prompt='slow one two'"])
def test_slow(llmprof):
    llmprof.run()
def test_never(llmprof):
    pass
"""
    )
    child = bench.start("model=echo", "dataset=blank", "output/torch=full", args=STAGE)
    wait_for(bench.path / "slow.started")
    os.kill(child.pid, sent)
    out, _ = child.communicate(timeout=180)
    assert child.returncode == pytest.ExitCode.INTERRUPTED, out
    assert "INTERNALERROR" not in out
    run = bench.run_json()
    assert run["status"] == "interrupted"
    assert [(test["id"], test["outcome"]) for test in run["tests"]] == [
        ("test_it.py::test_first[direct_inference]", "passed"),
        ("test_it.py::test_slow[direct_inference]", "interrupted"),
    ]
    assert run["shard"] is None
    first, slow = (test["seconds"] for test in run["tests"])
    assert first > 0
    assert slow is None or slow > 0.01
    # What there is, is whole.
    found = files(bench.run_dir)
    assert {"config.yaml", "run.json"} <= found
    for name in found:
        if name.endswith(".json"):
            json.loads((bench.run_dir / name).read_text())
    assert "run directory: llmprof-runs/" in out


def test_interrupted_with_pages_done_keeps_them(bench):
    bench.echo()
    conftest = bench.path / "conftest.py"
    # The second page is the one that is interrupted.
    conftest.write_text(
        conftest.read_text().replace(
            'if words[0] == "interrupt":', 'if words[0] == "interrupt" and images[0].size == (30, 40):'
        )
    )
    bench.test()
    bench.ini(tiny=False)
    result = bench.run(
        "model=echo",
        "dataset=blank",
        "infer.prompt='interrupt me'",
        "measure.warmup=0",
        "output/torch=full",
        args=STAGE,
    )
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert bench.run_json()["status"] == "interrupted"
    lines = (bench.stage_dir(stage="direct_inference") / "pred" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["page"] for line in lines] == ["one"]
    assert "one" in (bench.stage_dir(stage="direct_inference") / "viz" / "predictions.md").read_text()


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (["-x"], "stopped"),
        (["--stepwise", "-o", "addopts="], "stopped"),
        (["-n1", "--maxfail=1"], "stopped"),
        (["--maxfail=2"], "complete"),
        (["-n1", "--maxfail=2"], "complete"),
    ],
)
def test_a_run_that_its_own_options_stop_is_told_from_an_interrupted_one(bench, args, status):
    bench.test(
        """
def test_a(llmprof_config): assert 0
def test_b(llmprof_config): pass
def test_c(llmprof_config): pass
def test_d(llmprof_config): pass
"""
    )
    assert bench.run_apart(args=args).ret in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED)
    run = bench.run_json()
    assert run["status"] == status
    assert (len(run["tests"]) == 4) is (status == "complete")


@pytest.mark.parametrize("workers", [[], ["-n1"]])
def test_a_test_of_which_only_the_fixtures_were_made_is_skipped(bench, workers):
    bench.test(
        """
import pytest
@pytest.fixture
def broken():
    yield
    assert False
def test_a(llmprof_config): pass
def test_b(llmprof_config, broken): pass
"""
    )
    bench.run_apart(args=["--setup-only", *workers])
    run = bench.run_json()
    assert (run["status"], [test["outcome"] for test in run["tests"]]) == ("complete", ["skipped", "failed"])
    assert "interrupted" not in (bench.run_dir / "summary.md").read_text()


def test_a_fixture_that_is_not_there_is_named(bench):
    bench.test("""
import pytest
@pytest.fixture
def again(llmprof_config, request): request.getfixturevalue("nor_this")
def test_a(llmprof_config, bencmark): pass
def test_b(again): pass
""")
    bench.run()
    assert [test["error"] for test in bench.run_json()["tests"]] == [
        "fixture 'bencmark' not found",
        "fixture 'nor_this' not found",
    ]


@pytest.mark.parametrize("workers", [[], ["-n1"]])
@pytest.mark.parametrize("cause", ["raise KeyboardInterrupt", "import pytest; pytest.exit('enough')"])
def test_a_test_that_interrupts(bench, workers, cause):
    bench.test(f"def test_a(llmprof_config): {cause}\ndef test_b(llmprof_config): pass\n")
    bench.run_apart(args=workers)
    assert bench.run_json()["status"] == "interrupted"


def test_a_test_whose_own_process_crashed_has_failed(bench):
    (bench.path / "conftest.py").write_text(
        """
import pytest
def pytest_runtest_protocol(item):
    \"\"\"As pytest-forked reports a child that was killed.\"\"\"
    lost = pytest.TestReport(item.nodeid, item.location, {}, "failed", "CRASHED with signal 9", "???")
    item.ihook.pytest_runtest_logreport(report=lost)
    return True
"""
    )
    bench.test("def test_lost(llmprof_config): pass\ndef test_plain(): pass")
    bench.run(args=["--llmprof-stage=direct_inference"]).assert_outcomes(failed=2)
    (test,) = bench.run_json()["tests"]
    assert (test["id"], test["outcome"], test["error"]) == (
        "test_it.py::test_lost[direct_inference]", "failed", "process crashed"
    )  # fmt: skip


def test_an_existing_run_is_refused(bench):
    bench.test("def test_it(llmprof_config): pass")
    args = ["--llmprof-run-dir=mine"]
    bench.passed(args=args)
    before = (bench.path / "mine" / "run.json").read_bytes()
    text = bench.usage_error(args=args)
    assert "mine already holds a run (run.json): name a new directory or remove that one" in text
    assert (bench.path / "mine" / "run.json").read_bytes() == before


def test_a_killed_run_is_told_from_a_live_one(bench):
    """By the process in run.json (issue 15, line 12)."""
    bench.echo()
    bench.test()
    args = [*STAGE, "--llmprof-run-dir=mine"]
    child = bench.start("model=echo", "dataset=blank", "infer.prompt='slow one two'", args=args)
    wait_for(bench.path / "slow.started")
    path = bench.path / "mine" / "run.json"
    before = path.read_bytes()
    record = decode_record(before, RunRecord, SCHEMA, path)
    assert record.process.pid == child.pid
    assert record.alive() is True
    assert f"mine already holds a run that goes on (run.json, process {child.pid})" in bench.usage_error(args=args)
    child.kill()
    child.communicate(timeout=180)
    assert path.read_bytes() == before
    assert (record.status, record.alive()) == ("running", False)
    text = bench.usage_error(args=args)
    assert "mine already holds a run that was killed (run.json): name a new directory or remove that one" in text


def test_an_existing_run_of_the_ini_is_refused_too(bench):
    bench.test("def test_it(llmprof_config): pass")
    bench.ini(llmprof_run_dir="mine")
    bench.passed()
    assert bench.run().ret == pytest.ExitCode.USAGE_ERROR


def test_run_dir_is_relative_to_where_pytest_started_and_the_inis_to_the_rootdir(bench, monkeypatch):
    bench.test("def test_it(llmprof_config): pass", "sub/test_it.py")
    monkeypatch.chdir(bench.path / "sub")
    bench.passed(args=["--llmprof-run-dir=from_cli"])
    bench.ini(llmprof_run_dir="from_ini")
    bench.passed()
    assert (bench.path / "sub" / "from_cli" / "run.json").is_file()
    assert (bench.path / "from_ini" / "run.json").is_file()


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/llmprof"])
def test_a_run_dir_that_cannot_be_made(bench, place):
    (bench.path / "file").write_text("in the way")
    bench.test("def test_it(llmprof_config): pass")
    text = bench.usage_error(args=[f"--llmprof-run-dir={place}"])
    assert place in text


def test_a_run_dir_that_may_not_be_entered(bench, monkeypatch):
    bench.test()
    (bench.path / "closed").mkdir()
    real = Path.stat

    def stat(path, **options):
        if path.parent.name == "closed":
            raise PermissionError(13, "Permission denied")
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    text = bench.usage_error(args=["--llmprof-run-dir=closed"])
    assert text == f"--llmprof-run-dir {bench.path / 'closed'}: permission denied"


def test_a_run_dir_that_goes_away_is_told_and_fails_the_run(bench):
    bench.test(
        """
import shutil
def test_it(llmprof_artifacts):
    run_dir = llmprof_artifacts.test_dir.parent.parent
    shutil.rmtree(run_dir)
    run_dir.write_text("in the way")
"""
    )
    result = bench.run(args=["--llmprof-run-dir=mine"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["ERROR: cannot write *mine/run.json: *"])
    clean(result)


def test_latest_is_the_newest_run(bench):
    bench.test("def test_it(llmprof_config): pass")
    bench.passed()
    first = bench.run_dir
    latest = first.parent / "latest"
    assert latest.resolve() == first
    bench.passed()
    second = latest.resolve()
    assert second != first
    assert (second / "run.json").is_file()
    assert (first / "run.json").is_file()
    assert (first.parent / ".gitignore").read_text().endswith("*\n")
    assert not list(first.parent.glob(".latest-*"))


def test_something_else_named_latest(bench):
    """A directory or file of the user's own stays; the run goes on."""
    bench.test("def test_it(llmprof_config): pass")
    latest = bench.path / "llmprof-runs" / "latest"
    latest.mkdir(parents=True)
    result = bench.run_apart(args=["-n1"])
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["WARNING: *llmprof-runs/latest is no link: it stays as it is, and this run is *"])
    clean(result)
    latest.rmdir()
    latest.write_text("mine")
    result = bench.passed()
    assert latest.read_text() == "mine"
    result.stdout.fnmatch_lines(["WARNING: *latest is no link*"])


def test_strange_ids(bench):
    bench.test(
        """
import pytest
STRANGE = ["ü 字", "a/b", "../..", "a b", "A B", "x" * 300, "x" * 300 + "y", "", ".", "-v", "nul", "a\\\\b"]
@pytest.mark.parametrize("x", [*STRANGE, "\\x1b[31m", "a-direct_inference", "\\n"])
def test_it(llmprof_artifacts, llmprof_stage, x):
    path = llmprof_artifacts.out_dir(llmprof_stage)
    path.mkdir(parents=True)
class TestOne:
    def test_it(self, llmprof_artifacts, llmprof_stage):
        llmprof_artifacts.out_dir(llmprof_stage).mkdir(parents=True)
"""
    )
    bench.test("def test_it(llmprof_stage): pass", "sub/test_it_2.py")
    bench.test("def test_it(llmprof_stage): pass", "sub/other/test_it_2.py")
    (bench.path / "sub" / "__init__.py").touch()
    (bench.path / "sub" / "other" / "__init__.py").touch()
    bench.passed(args=STAGE, count=18)
    dirs = [test["dir"] for test in bench.run_json()["tests"]]
    assert len(set(dirs)) == 18
    assert {"sub.test_it_2/test_it/direct_inference", "sub.other.test_it_2/test_it/direct_inference"} <= set(dirs)
    assert "test_it/test_it-a-direct_inference/direct_inference" in dirs
    assert "test_it/TestOne.test_it/direct_inference" in dirs
    for name in dirs:
        path = bench.run_dir / name
        assert path.resolve().is_relative_to(bench.run_dir)
        assert name.isprintable()
        assert len(name.split("/")) == 3
        assert all(len(part.encode()) <= 255 for part in name.split("/"))


def test_modules_with_one_readable_name_have_a_directory_each(bench):
    """Also one with the name of a file of the run (issue 15, line 10)."""
    write = "def test_it(llmprof): llmprof.measure(int)\n"
    for name in ("v1.0/test_y.py", "v1/0/test_y.py", "V1.0/test_y.py", "test_config.yaml.py", "config.yaml.py"):
        bench.test(write, name)
    bench.ini(python_files="*.py")
    result = bench.run(args=[*STAGE, "--import-mode=importlib"])
    result.assert_outcomes(passed=5)
    dirs = {test["id"].partition("::")[0]: test["dir"] for test in bench.run_json()["tests"]}
    assert len(dirs) == len({name.casefold() for name in dirs.values()}) == 5
    for module, name in dirs.items():
        record = json.loads((bench.run_dir / name / "metrics.json").read_text())
        assert record["id"].startswith(f"{module}::")
    assert {"run.json", "config.yaml", "benchmark.json"} <= files(bench.run_dir)


def test_unicode_ids_as_they_are(bench):
    bench.test("import pytest\n@pytest.mark.parametrize('x', ['字'])\ndef test_it(llmprof_stage, x): pass\n")
    bench.ini(disable_test_id_escaping_and_forfeit_all_rights_to_community_support="true")
    bench.passed(args=STAGE)
    assert bench.run_json()["tests"][0]["dir"] == "test_it/test_it-字/direct_inference"


TWO_MODELS = """
import pytest
def test_one(llmprof):
    llmprof.run()
@pytest.mark.llmprof(overrides=["model.dtype=float32"])
def test_other(llmprof):
    llmprof.run()
"""


@pytest.mark.parametrize("workers", [[], ["-n1"]])
def test_a_model_that_cannot_be_closed_is_told_and_costs_nothing_else(bench, workers):
    bench.echo()
    conftest = bench.path / "conftest.py"
    failing = 'def close(self):\n        raise RuntimeError("the card is gone\\nfor good")'
    conftest.write_text(conftest.read_text().replace("def close(self):\n        pass", failing))
    bench.test(TWO_MODELS)
    result = bench.run_apart(*ECHO, args=[*STAGE, *workers, "--junitxml=junit.xml"])
    result.assert_outcomes(passed=2)
    assert result.ret == pytest.ExitCode.OK
    clean(result)
    # One when another was asked for, in the midst of an innocent test, and one at the end.
    warning = "WARNING: model echo could not be closed: RuntimeError: the card is gone for good"
    assert [line for line in result.outlines if line.startswith("WARNING")] == [warning] * 2
    assert bench.run_json()["status"] == "complete"
    assert {"run.json", "benchmark.json"} <= files(bench.run_dir)
    assert (bench.path / "junit.xml").is_file()


ANOTHER_SESSION = """
import pytest
from pytest_llmprof.plugin.shared import SHARED
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config):
    run_dir = config.stash[SHARED].session.run_dir
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "run.json").write_text("{}")
"""


@pytest.mark.parametrize("workers", [[], ["-n2"]])
def test_another_session_got_to_the_run_directory_first(bench, workers):
    (bench.path / "conftest.py").write_text(ANOTHER_SESSION)
    bench.test("def test_it(llmprof_artifacts): llmprof_artifacts.out_dir('mine').mkdir(parents=True)\n")
    result = bench.run_apart(args=[*workers, *STAGE])
    result.assert_outcomes(passed=1)
    clean(result)
    runs = bench.path / "llmprof-runs"
    mine = (runs / "latest").resolve()
    theirs = mine.with_name(mine.name.removesuffix("-2"))
    assert mine != theirs
    assert files(theirs) == {"run.json"}
    assert (mine / "test_it" / "test_it" / "mine").is_dir()
    assert json.loads((mine / "run.json").read_text())["status"] == "complete"
    assert {path.name for path in runs.iterdir()} == {".gitignore", "latest", mine.name, theirs.name}
    result.stdout.fnmatch_lines([f"run directory: llmprof-runs/{mine.name}"])


@pytest.mark.parametrize("workers", [[], ["-n2"]])
def test_another_session_got_to_the_named_run_directory_first(bench, workers):
    (bench.path / "conftest.py").write_text(ANOTHER_SESSION)
    bench.test("def test_it(llmprof_config): pass")
    text = bench.usage_error(args=[*workers, "--llmprof-run-dir=mine"], apart=True)
    assert "mine: another session has begun a run there meanwhile: name a new directory" in text
    assert files(bench.path / "mine") == {"run.json"}


def test_sessions_that_begin_at_once_get_a_directory_each(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    from pytest_llmprof.records.run import RunRecord
    from pytest_llmprof.run.directory import begin_run_dir, begun_run_dir

    def begin(session):
        record = RunRecord(status="running", argv=[], started="", session=session, versions={}, tests=[])
        return begin_run_dir(wanted, "a: 1\n", record, explicit=False)

    wanted = tmp_path / "some" / "run"
    ids = [str(number % 4) for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(begin, ids))
    found = dict(zip(ids, paths, strict=True))
    assert len(set(found.values())) == 4
    assert [found[session] for session in ids] == paths
    assert all(begun_run_dir(wanted, session, explicit=False) == path for session, path in found.items())
    assert begun_run_dir(wanted, "another", explicit=False) is None
