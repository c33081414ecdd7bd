"""`llmprof ab`: with processes that write a run at once, and with the real pytest."""

import datetime
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_llmprof.cli import ab as ab_module
from pytest_llmprof.cli import main
from pytest_llmprof.compare.sequential import Plan


def git(*arguments):
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(stub):
    """A repository in the current directory, whose second commit is 10 % slower; tags `old` and `new`."""
    git("init", "-q", "-b", "main")
    for tag, speed in (("old", "0.50"), ("new", "0.55")):
        Path("speed.txt").write_text(speed)
        git("add", ".")
        git("commit", "-q", "-m", tag)
        git("tag", tag)


def row_of(comparison, metric="tpot_ms"):
    return next(row for row in comparison["rows"] if row["metric"] == metric)


@pytest.mark.parametrize(
    ("after", "verdict", "code"), [("0.55", "slower", 1), ("0.45", "faster", 0), ("0.5", "same", 0)]
)
def test_two_overrides(ab, after, verdict, code):
    got, out, err = ab("--a", "tpot=0.5", "--b", f"tpot={after}", "--metric", "tpot_ms", "--format", "json", "tests")
    found = json.loads(out)
    row = row_of(found)
    assert (got, row["verdict"]) == (code, verdict)
    assert row["low"] < float(after) / 0.5 < row["high"]
    assert 0 < row["control"] < 0.01
    assert found["before"]["name"].startswith("A, tpot=0.5")
    assert found["job"]["order"].startswith("ABBABAABABBA")
    assert "pair 1 of at most 24 took" in err


def test_the_table_shows_what_the_machine_can_see(ab):
    code, out, err = ab("--a", "tpot=0.5", "--b", "tpot=0.6", "--metric", "tpot_ms:2%")
    assert code == 1
    assert out.startswith("Slower than A, tpot=0.5")
    line = next(line for line in out.splitlines() if line.startswith("  Time per output token"))
    assert "+20.0 %" in line
    assert "slower   FAILED, limit 2%" in line
    assert "Can see" in out
    assert "6 pairs (ABBA BAAB ...) in " in out
    assert "gated: 1 slower; exit code 1" in out
    directory = Path(err.splitlines()[-1].removeprefix("all runs are in "))
    assert len(list(directory.glob("[ab]/*/run.json"))) == 12
    assert json.loads((directory / "comparison.json").read_text())["job"]["pairs"] == 6
    assert main(["compare", str(directory / "a"), str(directory / "b"), "--fail-on", "tpot_ms:2%"]) == 1


def test_jobs_of_one_second_get_a_directory_each(stub, monkeypatch):
    class Now(datetime.datetime):
        @classmethod
        def now(cls):
            return cls(2026, 11, 29, 1, 2, 3)

    monkeypatch.setattr(ab_module.datetime, "datetime", Now)
    found = [ab_module._out(None).name for _ in range(3)]
    assert found == ["ab-2026-11-29T01-02-03", "ab-2026-11-29T01-02-03-2", "ab-2026-11-29T01-02-03-3"]
    assert Path("llmprof-runs/.gitignore").is_file()


def test_markdown(ab):
    _, out, _ = ab("--a", "tpot=0.5", "--b", "tpot=0.6", "--metric", "tpot_ms", "--format", "markdown")
    assert out.startswith("**Slower than A, tpot=0.5")
    assert "| Interval | Can see | Verdict | Note |" in out


def test_the_main_times_are_gated_by_default(ab):
    _, out, _ = ab("--a", "tpot=0.5", "--b", "tpot=0.5", "--format", "json", "--margin", "1%")
    limits = {row["metric"]: row["limit"] for row in json.loads(out)["rows"]}
    assert limits["tpot_ms"] == limits["ttft_ms"] == "1%"
    assert limits["peak_memory_gib"] is None


def test_a_metric_of_quality_is_gated_without_a_share(ab):
    _, out, _ = ab("--a", "tpot=0.5", "--b", "tpot=0.6", "--metric", "cer", "--metric", "tpot_ms", "--format", "json")
    found = json.loads(out)
    assert (row_of(found, "cer")["limit"], row_of(found, "cer")["verdict"]) == ("0", "same")


def test_arguments_after_two_dashes_reach_pytest(ab):
    code, _, err = ab("--", "-k", "free", "--llmprof-override=end=4", "--llmprof-override=say=ERROR: x")
    assert (code, "A, process 1: pytest refused its command line: x" in err) == (4, True)


def test_overrides_of_a_side_come_after_those_of_both(ab):
    _, out, _ = ab("--b", "tpot=0.6", "--metric=tpot_ms", "--format=json", "--", "--llmprof-override=tpot=0.5")
    row = row_of(json.loads(out))
    assert (row["before"], row["after"]) == (pytest.approx(0.5, rel=0.01), pytest.approx(0.6, rel=0.01))


def test_two_revisions(ab, repository):
    code, out, err = ab("--a-ref", "old", "--b-ref", "new", "--metric", "tpot_ms", "--format", "json")
    row = row_of(json.loads(out))
    assert (code, row["verdict"]) == (1, "slower")
    assert row["before"] == pytest.approx(0.5, rel=0.01)
    assert row["after"] == pytest.approx(0.55, rel=0.01)
    assert "A: revision old" in err
    assert "uncommitted" not in err
    assert len(git("worktree", "list").splitlines()) == 1


def test_a_revision_against_the_work_tree(ab, repository):
    Path("speed.txt").write_text("0.45")
    code, out, err = ab("--a-ref", "HEAD", "--metric", "tpot_ms", "--format", "json")
    found = json.loads(out)
    assert (code, row_of(found)["verdict"]) == (0, "faster")
    assert "1 file has uncommitted changes, which are in B alone" in found["notices"]
    assert "note: 1 file has" in err


def test_uncommitted_changes_are_in_no_revision(ab, repository):
    Path("speed.txt").write_text("0.45")
    _, out, _ = ab("--a-ref", "old", "--b-ref", "new", "--metric", "tpot_ms")
    assert "1 file has uncommitted changes, which are in neither side" in out


@pytest.mark.parametrize(
    "sides", [("--a", "tpot=0.5", "--b", "tpot=0.5"), ("--a-ref", "new"), ("--a-ref=new", "--b-ref=HEAD")]
)
def test_the_same_on_both_sides_is_an_a_a_check(ab, repository, sides):
    code, out, _ = ab(*sides, "--metric", "tpot_ms")
    assert (code, "A and B are the same: an A/A check" in out) == (0, True)


def test_a_revision_runs_in_the_directory_below_it(ab, repository, monkeypatch):
    Path("bench").mkdir()
    Path("bench/speed.txt").write_text("0.40")
    git("add", ".")
    git("commit", "-q", "-m", "more")
    monkeypatch.chdir("bench")
    _, out, _ = ab("--a-ref", "HEAD", "--metric", "tpot_ms", "--format", "json")
    assert row_of(json.loads(out))["before"] == pytest.approx(0.40, rel=0.01)
    code, _, err = ab("--a-ref", "old")
    assert code == 4
    assert err.endswith(" has no directory bench\n")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--a", "x='"), "--a: \"x='\" cannot be split as a shell does: No closing quotation"),
        (("--a=-k x",), "--a: '-k' is no Hydra override"),
        (("--margin", "5"), "--margin: '5' is not allowed; a threshold is a percentage above 0"),
        (("--margin=-1%",), "--margin: '-1%' is not allowed"),
        (("--minutes", "0"), "--minutes: '0' is not allowed; give a number above 0"),
        (("--minutes", "nan"), "--minutes: 'nan' is not allowed"),
        (("--metric", "tpot_ms:5"), "--metric tpot_ms:5: '5' is not allowed"),
        (("--metric", "cer:1%"), "--metric cer:1%: '1%' is not allowed; the limit is an amount"),
        (("--metric", "tokens"), "neither way of tokens is worse"),
        (("--metric", "tpot", "--a", "tpot=1", "--b", "tpot=1"), "unknown metric tpot (did you mean 'tpot_ms'?)"),
        (("tests", "--minutes", "3"), "--minutes stands after the first argument of pytest: give it before tests"),
        (("tests", "--llmprof-run-dir=x"), "--out names where they go"),
        (("tests", "--llmprof-save=x"), "--llmprof-save: both sides would be runs of one name"),
        (("--install",), "--install is for revisions"),
        (("--install", "--a-ref", "old"), "leave --a-python out"),
        (("--a-ref", "old"), "is not in a git repository"),
        (("--out", "full"), "/full is not empty: name a new directory"),
        (("--a", "end=5"), "A, process 1: no tests were collected (log: "),
        (("--a", "end=4 'say=ERROR: unknown key'"), "process 1: pytest refused its command line: unknown key (log: "),
        (("--a", "tpot=1", "--b", "end=2 'say=E  ImportError: x'"), "tests could not be collected: E ImportError: x"),
    ],
)
def test_bad_input_is_one_line_and_code_4(ab, arguments, why):
    Path("full").mkdir()
    Path("full/x").touch()
    code, out, err = ab(*arguments)
    errors = [line for line in err.splitlines() if "pair 1" not in line and line[:3] not in ("A: ", "B: ", "not")]
    assert (code, out, len(errors)) == (4, "", 1), err
    assert errors[0].startswith("ERROR: ")
    assert why in errors[0]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--a-ref", "onld"), "--a-ref: unknown revision 'onld' (did you mean 'old'?)"),
        (("--a-ref=-x",), "--a-ref: unknown revision '-x'"),
        (("--a-ref", "old", "{top}/tests"), "/work/tests: give tests relative to"),
    ],
)
def test_bad_revisions(ab, repository, arguments, why):
    arguments = [one.replace("{top}", os.getcwd()) for one in arguments]
    code, out, err = ab(*arguments)
    assert (code, out, err.count("\n")) == (4, "", 1)
    assert why in err


def test_options_of_pytest_before_a_path(stub, capsys):
    with pytest.raises(SystemExit) as found:
        main(["ab", "-k", "free", "tests"])
    assert found.value.code == 4
    expected = 'ERROR: unrecognized arguments: -k; options of pytest come after a path or "--" (see llmprof --help)\n'
    assert capsys.readouterr().err == expected


def test_no_git(stub, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["ab", "--a-ref", "old"]) == 4
    assert capsys.readouterr().err == "ERROR: --a-ref: there is no git on PATH\n"


def test_no_interpreter(stub, capsys):
    assert main(["ab", "--a-python", "./nope"]) == 4
    assert capsys.readouterr().err == "ERROR: --a-python: there is no program ./nope\n"


def test_an_interpreter_without_the_plugin(stub, capsys, monkeypatch):
    monkeypatch.delenv("PYTHONPATH")
    bare = Path("bare")
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    assert main(["ab", "--a-python", "./bare"]) == 4
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.endswith("work/bare: pytest, pytest_llmprof, packaging are missing")


def test_a_failed_test_stops_with_the_log(ab):
    code, out, err = ab("--a", "tpot=1", "--b", "tpot=1 end=1 'say=assert 1 == 2'")
    assert (code, out) == (3, "")
    lines = err.splitlines()
    place = next(place for place, line in enumerate(lines) if line.startswith("ERROR: B, process 2: ended with exit"))
    assert lines[place].endswith("b/02.log)")
    assert lines[place + 1 :] == ["    assert 1 == 2"]


def test_a_killed_process_stops(ab):
    code, out, err = ab("--a", "tpot=1", "--b", "end=-9")
    assert (code, out) == (3, "")
    assert "B, process 2: ended with signal SIGKILL" in err


def test_what_was_measured_before_a_failure_is_shown(ab):
    code, out, err = ab("--a", "tpot=1", "--b", "tpot=2 end=1 from=5 say=oops", "--format", "json", "--out", "runs")
    found = json.loads(out)
    assert (code, found["job"]["pairs"], row_of(found)["verdict"]) == (3, 2, "unclear")
    assert found["job"]["stopped"].startswith("B, process 5: ended with exit code 1")
    assert "ERROR: B, process 5: ended with exit code 1" in err
    assert json.loads(Path("runs/comparison.json").read_text()) == found


def test_half_a_run_is_not_measured(ab):
    code, _, err = ab("--a", "tpot=1 status=stopped")
    assert (code, "A, process 1: its run is stopped (log: " in err) == (3, True)


def test_out_of_time(ab):
    code, out, err = ab("--a", "tpot=1 sleep=60", "--b", "tpot=1", "--minutes", "0.01")
    assert (code, out) == (3, "")
    assert "out of time, after 1 s; its last process was ended: no pair was measured" in err


def test_a_revision_that_does_not_install(ab, repository, stub, capfd, monkeypatch):
    Path("pyproject.toml").write_text('[project]\nname = "x"\nversion = "1"\ndependencies = ["nothere-llmprof>=3"]\n')
    git("add", ".")
    git("commit", "-q", "-m", "needs")
    git("tag", "needs")
    git("reset", "-q", "--hard", "new")
    code, _, err = ab("--a-ref", "needs")
    assert code == 4
    assert err.splitlines()[-1].endswith("stub: nothere-llmprof>=3 is missing")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    code = main(["ab", "--b-ref", "needs"])
    err = capfd.readouterr().err.splitlines()
    assert code == 4
    assert err[-2] == "B: making an environment of its own, as nothere-llmprof>=3 is missing here"
    assert err[-1].startswith("ERROR: --b-ref: the revision does not install: No matching distribution")
    assert len(git("worktree", "list").splitlines()) == 1


def test_packages_of_another_place_are_refused(ab, repository, tmp_path, monkeypatch):
    """As with an editable install whose finder comes before the import path."""
    Path("model").mkdir()
    Path("model/__init__.py").touch()
    git("add", ".")
    git("commit", "-q", "-m", "package")
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        f"""
import importlib.util
import sys

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "model":
            return importlib.util.spec_from_file_location(name, {os.path.abspath("model/__init__.py")!r})

sys.meta_path.insert(0, Finder)
"""
    )
    monkeypatch.setenv("PYTHONPATH", f"{hook}:{os.environ['PYTHONPATH']}")
    code, _, err = ab("--a-ref", "HEAD")
    assert code == 4
    assert err.endswith("work/model/__init__.py, not from the work tree\n")


_HEAVY = """
import sys
from pytest_llmprof.cli import main
code = main(sys.argv[1:])
print("heavy:", sorted({"torch", "transformers", "pytest", "hydra", "omegaconf"} & set(sys.modules)))
sys.exit(code)
"""


def test_neither_torch_nor_pytest_is_imported(stub):
    arguments = ["ab", "--a", "tpot=1", "--b", "tpot=2", f"--a-python={stub}", f"--b-python={stub}"]
    done = subprocess.run([sys.executable, "-c", _HEAVY, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "heavy: []")


_REAL = """
import time
def test_wait(llmprof, llmprof_config):
    llmprof.measure(lambda: time.sleep(0.05 if llmprof_config.measure.rounds == 5 else 0.25))
"""
_REAL_ARGS = ("test_it.py", "--llmprof-stage=direct_inference")


@pytest.mark.slow
def test_the_real_pytest_with_two_overrides(stub, capfd, monkeypatch):
    """Three pairs: the least 12 processes of a job would take a minute."""
    monkeypatch.setattr(ab_module, "Plan", lambda: Plan(first=3, max_pairs=3))
    Path("test_it.py").write_text(_REAL)
    Path("pytest.ini").write_text("[pytest]\nllmprof_save = main\n")
    code = main(["ab", "--a", "measure.rounds=5", "--b", "measure.rounds=6", "--metric=total_ms:5%", *_REAL_ARGS])
    out, err = capfd.readouterr()
    assert code == 1, err
    line = next(line for line in out.splitlines() if line.startswith("  Total a call"))
    assert "slower   FAILED, limit 5%" in line
    assert "the configurations differ: measure.rounds 5 → 6" in out
    assert not Path(".llmprof").exists()  # both sides would be runs of one name


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_real_pytest_with_two_revisions_is_interrupted(repository, interrupted, number):
    """Each side imports the package of its own revision; what was measured is shown, no work tree stays."""
    Path("test_it.py").write_text("import pace\nimport time\ndef test_wait(llmprof):\n    llmprof.measure(pace.wait)\n")
    Path("pace").mkdir()
    for tag, seconds in (("quick", 0.02), ("slow", 0.06)):
        Path("pace/__init__.py").write_text(f"import time\ndef wait():\n    time.sleep({seconds})\n")
        git("add", ".")
        git("commit", "-q", "-m", tag)
        git("tag", tag)
    arguments = ("--a-ref", "quick", "--b-ref", "slow", "--format", "json", *_REAL_ARGS)
    code, out, err = interrupted(*arguments, after="pair 1 of", number=number)
    assert code == 3, err
    found = json.loads(out)
    row = row_of(found, "total_ms")
    assert row["before"] == pytest.approx(20, abs=8)
    assert row["after"] == pytest.approx(60, abs=12)
    assert (row["verdict"], found["job"]["stopped"]) == ("unclear", f"interrupted by {number.name}")
    assert found["before"]["commit"] != found["after"]["commit"]
    assert len(git("worktree", "list").splitlines()) == 1
