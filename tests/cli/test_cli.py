"""The command `llmprof`, in this process and in one of its own."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import msgspec
import pytest
from msgspec import structs
from saved_runs import noisy, saved_run, saved_test, write_run

from pytest_llmprof.cli import main, merge
from pytest_llmprof.cli.command import COMMANDS
from pytest_llmprof.compare.store import Store
from pytest_llmprof.records.environment import Git


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Store(tmp_path / ".llmprof")


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_compare_text(store, tmp_path, capsys):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", tpot=0.60)
    code, out, _ = run(capsys, "compare", "a", "b")
    assert code == 0
    assert "Time per output token (ms)" in out
    assert "+11.1 %" in out
    assert "slower" in out


@pytest.mark.parametrize(
    ("tpot", "limit", "code"),
    [(0.60, "slower:2%", 1), (0.541, "tpot_ms:1%", 3), (0.541, "tpot_ms:2%", 0), (0.50, "tpot_ms:50%", 0)],
)
def test_fail_on(store, tmp_path, capsys, tpot, limit, code):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", tpot=tpot)
    assert run(capsys, "compare", "a", "b", "--fail-on", limit)[0] == code


@pytest.mark.parametrize("command", [["report", "a", "-o"], ["submit", "--resume"], ["init", "--model"]])
def test_a_path_that_cannot_be_used(store, tmp_path, capsys, command):
    """Each as one line: it is too long, or lies below a directory that may not be entered."""
    write_run(tmp_path / "a")
    code, out, err = run(capsys, *command, "x" * 300)
    assert (code, out, err.count("\n")) == (4, "", 1)
    assert err.startswith("ERROR: cannot use ")
    assert err.endswith(": file name too long\n")


def test_trend_of_a_name_of_which_no_run_is_left(store, tmp_path, capsys):
    (tmp_path / ".llmprof" / "main").mkdir(parents=True)
    code, _, err = run(capsys, "trend", "main")
    assert (code, err) == (4, "ERROR: no run is saved under 'main' any more: .llmprof/main holds none\n")


LLMPROF = [sys.executable, "-m", "pytest_llmprof.cli"]


@pytest.mark.parametrize(("reader", "code"), [("| true", 1), (">&-", 1), ("> /dev/full", 4)])
def test_output_that_nobody_reads_does_not_change_the_verdict(store, tmp_path, reader, code):
    """The reader has gone, there is none, or the disk is full, which is no verdict at all."""
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", tpot=0.60)
    command = shlex.join([*LLMPROF, "compare", "a", "b", "--fail-on", "tpot_ms:2%"])
    shell = ["bash", "-c", f"set -o pipefail; (sleep 1; {command}) {reader}"]
    done = subprocess.run(shell, capture_output=True, text=True, check=False)
    full = "ERROR: cannot write standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (code, full if code == 4 else "")


def test_output_in_an_encoding_that_lacks_some_of_it(store, tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "ü", tpot=0.60)
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [*LLMPROF, "compare", "a", "ü"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ascii_only)
    assert (done.returncode, done.stderr) == (0, "")
    assert "0.540 \\u2192 0.600" in done.stdout
    done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=False, env=ascii_only)
    assert json.loads(done.stdout)["after"]["name"] == "ü"


def test_compare_json(store, tmp_path, capsys):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", tpot=0.60)
    code, out, _ = run(capsys, "compare", "a", "b", "--format", "json", "--fail-on", "tpot_ms:2%")
    found = json.loads(out)
    row = next(row for row in found["rows"] if row["metric"] == "tpot_ms")
    assert (code, found["schema"], row["verdict"], row["failed"]) == (1, 1, "slower", True)
    assert row["low"] < row["ratio"] < row["high"]


def test_compare_markdown_is_a_table(store, tmp_path, capsys):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", tpot=0.60)
    _, out, _ = run(capsys, "compare", "a", "b", "--format", "markdown", "--fail-on", "tpot_ms:2%")
    assert "| Time per output token (ms) | 0.540 | 0.600 | +11.1 % |" in out
    assert "| slower | FAILED, limit 2%; one process" in out


def test_compare_a_saved_baseline(store, tmp_path, capsys):
    for place, value in enumerate(noisy(0.54, 0.002, 6)):
        store.save(saved_run(saved_test(figures={"tpot_ms": value}), key=str(place)), "main")
    store.save(saved_run(saved_test(figures={"tpot_ms": 0.62}), key="new"), "branch")
    code, out, _ = run(capsys, "compare", "main", "branch", "--fail-on", "slower:2%")
    assert (code, "6 and 1 process" in out) == (1, True)


def test_runs(store, capsys):
    assert run(capsys, "runs")[1].startswith("no run is saved")
    store.save(saved_run(key="one"), "main")
    store.save(saved_run(saved_test(problem="failed"), key="two"), "other")
    lines = run(capsys, "runs")[1].splitlines()
    assert len(lines) == 2
    assert "1 test, 1 not measured" in lines[1]
    assert len(run(capsys, "runs", "main")[1].splitlines()) == 1


@pytest.mark.parametrize(("dirty", "shown"), [(False, ""), (True, "+"), (None, " (local changes not known)")])
def test_runs_say_what_git_knows_of_local_changes(store, capsys, dirty, shown):
    store.save(saved_run(git=Git("0123456789abcdef", dirty)), "main")
    assert f"  0123456789ab{shown}  " in run(capsys, "runs")[1]


def test_trend(store, tmp_path, capsys):
    for place, value in enumerate([*noisy(0.54, 0.003, 10, 1), *noisy(0.57, 0.003, 10, 2)]):
        begun = f"2026-11-{place + 1:02d}T10:00:00+00:00"
        store.save(saved_run(saved_test(figures={"tpot_ms": value}), key=str(place), started=begun), "main")
    code, out, _ = run(capsys, "trend", "main", "--metric", "tpot_ms", "--svg", tmp_path / "svg")
    assert code == 0
    assert "at 2026-11-11T10:00:00+00:00" in out
    assert len(list((tmp_path / "svg").glob("*.svg"))) == 1
    found = json.loads(run(capsys, "trend", "main", "--metric", "tpot_ms", "--format", "json")[1])
    assert found[0]["changes"][0]["index"] == 10


def test_a_comparison_says_how_many_rows_it_shows(store, capsys):
    for name in ("a", "b"):
        store.save(saved_run(saved_test(quality={"cer": 0.03, "wer": 0.1}), key=name), name)
    shown = run(capsys, "compare", "a", "b")[1].splitlines()[-1]
    every = run(capsys, "compare", "a", "b", "--all")[1].splitlines()[-1]
    assert shown.startswith("6 rows, 5 of them shown: ")
    assert every.startswith("6 rows: ")


def test_a_trend_without_values_says_why(store, capsys):
    store.save(saved_run(saved_test(doubts=["the host was contended in 100 % of the rounds"])), "main")
    code, out, _ = run(capsys, "trend", "main")
    assert code == 0
    assert out.splitlines() == [
        "main on H100: 1 run",
        "",
        "nothing to show: no test has a value that a trend takes "
        "(test_x.py::test_pages: the host was contended in 100 % of the rounds)",
    ]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("compare", "a", "a"), "is the same run as its baseline"),
        (("compare", "a", "nope"), "no run is saved under 'nope'"),
        (("compare", "a", "./nope"), "there is no run at nope"),
        (("compare", "a", "x" * 5000), "the path is too long"),
        (("compare", "a", "x" * 300), "the path is too long"),
        (("compare", "a", "loop/x"), "too many levels of symbolic links"),
        (("compare", "a", "~nobody_at_all/x"), "there is no run at ~nobody_at_all/x"),
        (("runs", "--store", "x" * 5000), "the path is too long"),
        (("runs", "--store", "loop"), "too many levels of symbolic links"),
        (("compare", "a", "one-round"), "single round on one side"),
        (("compare", "a", "other-pages"), "other pages (only before: page-2, page-3)"),
        (("compare", "a", "half"), "half a run"),
        (("compare", "a", "b", "--fail-on", "slower:5"), 'a percentage above 0, such as "2%"'),
        (("compare", "a", "b", "--fail-on", "slower:-1%"), 'a percentage above 0, such as "2%"'),
        (("compare", "a", "b", "--fail-on", "tpot:2%"), "did you mean 'tpot_ms'"),
        (("compare", "a", "b", "--margin", "5"), "--margin: '5' is not allowed"),
        (("compare", "a", "b", "--process-sd", "200%"), "--process-sd: '200%' is not allowed"),
        (("runs", "nope"), "no run is saved under 'nope'"),
        (("trend", "main", "--metric", "tpot"), "unknown metric tpot (did you mean 'tpot_ms'?)"),
        (("trend", "main", "--machine", "A100"), "no run of main is of 'A100'; saved: H100"),
    ],
)
def test_bad_input_is_one_line_and_code_4(store, tmp_path, capsys, arguments, why):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", tpot=0.6)
    (tmp_path / "loop").symlink_to("loop")
    write_run(tmp_path / "one-round", rounds=1, tpot=0.7)
    write_run(tmp_path / "other-pages", pages=2, tpot=0.7)
    half = write_run(tmp_path / "half", tpot=0.8) / "run.json"
    half.write_text(half.read_text().replace('"complete"', '"running"'))
    store.save(saved_run(key="one"), "main")
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (4, "")
    assert err.startswith("ERROR: ")
    assert why in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [(), ("nope",), ("compare", "a"), ("compare", "a", "b", "--format", "xml")])
def test_a_wrong_command_line_has_code_4(capsys, arguments):
    with pytest.raises(SystemExit) as found:
        main(arguments)
    assert found.value.code == 4
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "meant"), [(("doctr",), "'doctor'"), (("compare", "a", "b", "--format", "jsn"), "'json'")]
)
def test_a_wrong_word_names_the_nearest(capsys, arguments, meant):
    with pytest.raises(SystemExit):
        main(arguments)
    assert f" (did you mean {meant}?) (see llmprof" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_interrupted_cleans_up(capsys, monkeypatch, handlers, number):
    cleaned = []

    def joined(_):
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        finally:
            cleaned.append(True)

    monkeypatch.setattr(merge, "_run", joined)
    signal.signal(number, signal.SIG_DFL)  # under nohup SIGHUP would stay ignored
    assert run(capsys, "merge", "a", "b", "-o", "c") == (130, "", "ERROR: interrupted\n")
    assert signal.getsignal(number) == signal.SIG_DFL
    assert cleaned == [True]


_COUNT = """
import sys
from pytest_llmprof.cli import main
code = main(sys.argv[1:])
heavy = sorted({"torch", "transformers", "pytest", "hydra", "omegaconf", "pandas", "matplotlib"} & set(sys.modules))
heavy += [name for name in ("scipy.stats",) if name in sys.modules]
print("heavy:", heavy, file=sys.stderr)
sys.exit(code)
"""


def test_300_tests_are_compared_quickly_without_torch(store, tmp_path):
    kernels = "name,phase,count,busy_ms,total_ms\n" + "".join(
        f"void at::native::kernel_{place}x<float>(int),decode,64,{place + 1}.5,{place + 2}.5\n" for place in range(60)
    )
    write_run(tmp_path / "a", 300, pages=8, kernels=kernels)
    write_run(tmp_path / "b", 300, pages=8, tpot=0.56, kernels=kernels)
    begun = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-c", _COUNT, "compare", "a", "b"], capture_output=True, text=True, check=True
    )
    print(f"{time.perf_counter() - begun:.2f} s")
    assert result.stderr == "heavy: []\n"
    assert result.stdout.count("\n  Time per output token") == 300


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(name in out for name in ("compare", "ab", "runs", "trend"))


@pytest.mark.parametrize("command", [module.__name__.rpartition(".")[2] for module in COMMANDS])
def test_help_of_a_command_says_what_it_does(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    usage, says, *_ = capsys.readouterr().out.split("\n\n")
    assert usage.startswith(f"usage: llmprof {command}")
    assert says.endswith(".")


def test_control_characters_never_reach_the_terminal(store, capsys):
    code, out, err = run(capsys, "compare", "a", "no\x1b[31mrun")
    assert code == 4
    with pytest.raises(SystemExit):
        run(capsys, "compare", "a", "b", "--no\x1b[31m")
    refused = capsys.readouterr().err
    assert "--no␛[31m" in refused
    assert "\x1b" not in out + err + refused


def test_a_name_that_is_no_text_is_shown(tmp_path, capsys):
    page = tmp_path / "page\udcff\x1b.html"  # a byte that is not UTF-8
    shown = f"{tmp_path}/page\N{REPLACEMENT CHARACTER}␛.html\n"
    assert run(capsys, "report", write_run(tmp_path / "run"), "-o", page) == (0, shown, "")
    assert page.exists()


@pytest.mark.parametrize(
    "command", [("runs",), ("trend", "main"), ("compare", "main", "other"), ("compare", "main", "other", "--all")]
)
def test_control_characters_of_a_file_never_reach_the_terminal(store, capsys, command):
    bad = "x\x1b[31m\u202e\n"
    metrics = [structs.replace(metric, label=bad) for metric in saved_run().metrics]
    metrics.append(structs.replace(next(metric for metric in metrics if metric.name == "tpot_ms"), name=bad))
    for key, name, test in (("one", "main", saved_test(figures={bad: 1.0})), ("two", "other", saved_test(problem=bad))):
        unsafe = structs.replace(
            saved_run(test, key=key, started=bad, git=Git(commit=bad, dirty=True)), metrics=metrics
        )
        path = store.save(unsafe, name)
        path.write_bytes(msgspec.json.encode(structs.replace(unsafe, name=bad)))
    code, out, err = run(capsys, *command)
    assert code == 0
    assert "x␛[31m" in out
    assert not {"\x1b", "\u202e"} & set(out + err)


@pytest.mark.parametrize("command", [("runs",), ("trend", "main"), ("compare", "main", "other")])
def test_a_store_that_is_a_file_is_named(store, capsys, command):
    store.root.write_text("")
    assert run(capsys, *command) == (4, "", "ERROR: cannot read the store .llmprof: not a directory\n")
