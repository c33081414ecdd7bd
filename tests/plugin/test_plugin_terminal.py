"""What the user sees: the header, progress, the summary."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from plugin_bench import OUTPUT

from pytest_llmprof.plugin.rows import Row
from pytest_llmprof.plugin.terminal import Clock, columns, summary
from pytest_llmprof.records.catalogue import Catalogue, Declaration

ECHO = ("model=echo", "dataset=blank", "infer.prompt='hello world'")
STAGE = ["--llmprof-stage=direct_inference"]


def test_header_line(bench):
    bench.test("def test_it(llmprof_config): pass")
    result = bench.passed("infer=reference", args=STAGE)
    result.stdout.fnmatch_lines(
        [
            "llmprof: stages direct_inference; model deepseek_ocr_tiny (mode tiny, device auto); engine reference; "
            "run directory llmprof-runs/20*"
        ]
    )
    assert result.stdout.str().count("llmprof: stages") == 1


def test_header_line_without_options_comes_when_a_test_asks(bench):
    bench.test("def test_it(llmprof_config): pass")
    bench.ini("model.mode=base")
    result = bench.passed()
    assert result.stdout.str().count("llmprof: stages torch_profiler; model deepseek_ocr_tiny (mode base") == 1


def test_summary_table(bench):
    bench.echo()
    bench.test(
        """
import pytest
@pytest.mark.parametrize("x", ["one"])
def test_pages(llmprof, x):
    llmprof.run()
def test_callable(llmprof):
    llmprof.measure(int)
def test_config(llmprof_config):
    pass
"""
    )
    result = bench.passed(*ECHO, args=STAGE, count=3)
    start = result.outlines.index(next(line for line in result.outlines if "= llmprof =" in line))
    lines = result.outlines[start + 1 :]
    assert lines[0].split() == ["test", "stage", "TTFT", "ms", "tokens/s", "page/call", "ms", "CER"]
    name, stage, ttft, rate, page, cer = lines[1].split()
    assert (name, stage, cer) == ("test_pages[one]", "direct_inference", "0")
    ttft_ms, tokens_per_s, page_ms = (float(text.replace(",", "")) for text in (ttft, rate, page))
    assert ttft_ms <= page_ms
    assert tokens_per_s > 0
    assert lines[2].strip() == "test_it/test_pages-one/direct_inference"
    assert lines[3].split()[:4] == ["test_callable", "direct_inference", "-", "-"]
    # A busy host adds a line for each contended test.
    directory, page = [line for line in lines[5:] if "The host was contended" not in line][:2]
    assert directory.startswith("run directory: llmprof-runs/20")
    assert page == f"page: {directory.partition(': ')[2]}/index.html"
    assert (bench.path / page.partition(": ")[2]).is_file()
    assert (bench.path / directory.partition(": ")[2] / lines[2].strip() / "report.md").is_file()


def test_files_stand_in_the_table_where_there_is_room(bench, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    bench.echo()
    bench.test()
    result = bench.passed(*ECHO, args=STAGE)
    result.stdout.fnmatch_lines(["test *files", "test_pages * 0  test_it/test_pages/direct_inference"])


def test_why_there_is_no_cer(bench):
    bench.test()
    result = bench.passed("model.weights=random", args=STAGE)
    result.stdout.fnmatch_lines(["CER is not applicable: random weights"])


def test_nothing_where_nothing_was_asked(bench):
    bench.test("def test_it(): pass")
    assert "llmprof:" not in bench.passed().stdout.str()
    assert "= llmprof =" not in bench.passed(args=STAGE).stdout.str()


def test_lines_off_a_terminal_are_throttled(bench, monkeypatch):
    bench.echo()
    bench.test()
    quiet = bench.passed(*ECHO, args=STAGE).stdout.str()
    assert "page 1 of 1" not in quiet
    monkeypatch.setattr("pytest_llmprof.plugin.terminal.LINE_EVERY_S", 0.0)
    result = bench.passed(*ECHO, args=STAGE)
    result.stdout.fnmatch_lines(["llmprof: test_it.py::test_pages: direct_inference: round 1, page 1 of 1*"])
    assert "page 1 of 1" not in bench.passed(*ECHO, args=[*STAGE, "-q"]).stdout.str()


@pytest.mark.parametrize("args", [[], ["-v"], ["-q"], ["-s"], ["-p", "no:capture"], ["-p", "no:terminal"]])
def test_however_pytest_is_asked_to_talk(bench, args, monkeypatch):
    monkeypatch.setattr("pytest_llmprof.plugin.terminal.LINE_EVERY_S", 0.0)
    bench.echo()
    bench.test()
    assert bench.run(*ECHO, args=[*STAGE, *args]).ret == 0


def on_a_terminal(bench, *args: str, columns: int = 100) -> str:
    """What pytest writes to a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "CI")}
    child = subprocess.Popen(
        [sys.executable, "-m", "pytest", *args],
        cwd=bench.path,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**environment, "TERM": "xterm"},
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end was closed
            break
        if not part:
            break
        written += part
    os.close(ours)
    assert child.wait() == 0, written.decode()
    return written.decode()


def test_a_live_line_on_a_terminal(bench):
    bench.echo()
    bench.test()
    bench.ini("dataset.limit=2")
    text = on_a_terminal(bench, *bench.args(ECHO, STAGE))
    # Each text stands behind the cursor, which goes back; the last is erased before pytest writes its dot.
    shown = "\x1b7 direct_inference: round 1, page {}[^\x1b\n]*\x1b\\[K\x1b8".format
    found = re.search(shown("1 of 2") + shown("2 of 2") + "\x1b\\[K", text)
    assert found
    assert found.end() <= text.index("[100%]")


def test_no_live_line_where_there_is_no_room(bench):
    bench.echo()
    bench.test(name="test_a_name_that_is_rather_long.py")
    assert "\x1b7" not in on_a_terminal(bench, *bench.args(ECHO, STAGE), columns=45)


def test_output_fixture_alone_has_no_row(bench):
    bench.test(OUTPUT)
    result = bench.passed(args=STAGE)
    assert "TTFT" not in result.stdout.str()
    result.stdout.fnmatch_lines(["run directory: llmprof-runs/20*"])


def row(name: str, *warnings: str, **values: float) -> Row:
    return Row(
        id=f"test_it.py::{name}",
        name=f"test_it::{name}",
        stage="direct_inference",
        kind="pages",
        dir=f"test_it/{name}/direct_inference",
        values={"total_ms": 10.0, **values},
        quality_reason=None,
        machine_warnings=list(warnings),
        gate_notes=[],
        group=None,
        round_seconds=[],
        iterations=1,
        params={},
        param="",
        xdist_workers=None,
    )


def test_numbers_are_those_of_the_reports():
    """Unless a metric's author asks for decimal places."""
    rows = [
        row("test_a", ttft_ms=9.96, tokens_per_s=2939.4, cer=0.92607, grams=4.0),
        row("test_b", ttft_ms=152.4, tokens_per_s=60.0, cer=0.0, grams=0.00123),
    ]
    grams = Declaration("grams", digits=2)
    shown = [*columns(Catalogue(), None, ""), grams]
    assert summary(rows, shown, 200) == [
        "test    stage             TTFT ms  tokens/s  page ms    CER    grams  files",
        "test_a  direct_inference     9.96     2,939     10.0  0.926     4.00  test_it/test_a/direct_inference",
        "test_b  direct_inference      152      60.0     10.0      0  0.00123  test_it/test_b/direct_inference",
    ]


def test_the_summary_says_where_a_gpu_was_throttled_or_shared():
    shared, throttled = "The GPU was shared with 1 other process.", "The GPU was throttled (x)."
    rows = [row("test_a", shared), row("test_b", shared, throttled), row("test_c")]
    lines = summary(rows, columns(Catalogue(), None, ""), 200)
    assert lines[4:] == [
        f"test_a (direct_inference) and 1 more: {shared}",
        f"test_b (direct_inference): {throttled}",
    ]


def test_progress_has_elapsed_and_remaining_time():
    clock = Clock()
    assert clock.times("test_a", None, 100.0) == ""  # it has just begun
    assert clock.times("test_a", None, 130.0) == "; 30 s"  # warm-up: nobody knows how long
    assert clock.times("test_a", 0.0, 140.0) == "; 40 s"  # the rounds begin
    assert clock.times("test_a", 0.25, 170.0) == "; 1 min 10 s, about 1 min 30 s left"
    assert clock.times("test_a", 0.5, 200.0) == "; 1 min 40 s, about 1 min 0 s left"
    assert clock.times("test_a", None, 261.0) == "; 2 min 41 s"  # the profiled window
    assert clock.times("test_b", 0.0, 300.0) == ""
    assert clock.times("test_b", 0.5, 7500.0) == "; 2 h 0 min, about 2 h 0 min left"
    assert clock.times("test_b", 1.5, 7600.0) == "; 2 h 1 min"  # a stage with more rounds of its own


def test_lines_of_progress_off_a_terminal(bench, monkeypatch):
    """Every page shows progress; a line comes only every LINE_EVERY_S of the clock, here a page a second."""
    bench.echo()
    bench.test()
    seconds = iter(range(1000))
    monkeypatch.setattr("pytest_llmprof.plugin.terminal.time.monotonic", lambda: float(next(seconds)))
    text = bench.passed(*ECHO, "dataset.limit=2", "measure.rounds=11", args=STAGE).stdout.str()
    lines = re.findall(r"llmprof: test_it.py::test_pages: direct_inference: round (.*)", text)
    assert len(lines) == 2
    assert re.fullmatch(r"\d+, page \d of 2; 1\d s, about 1\d s left", lines[0])
    assert re.fullmatch(r"\d+, page \d of 2; 2\d s, about \d s left", lines[1])


NASTY = "red \x1b[31m bell \x07 turn \u202e title \x1b]0;mine\x07"
BAD = "\x1b]0;mine", "\x1b[31m", "\x07", "\u202e"
RAISING = f"""
import pytest
NASTY = {NASTY!r}
def work():
    try:
        raise KeyError(NASTY) from ValueError(NASTY)
    except KeyError as error:
        raise RuntimeError(NASTY)
def test_callable(llmprof):
    llmprof.measure(work)
def test_page(llmprof):
    llmprof.run()
def test_skipped(llmprof):
    pytest.skip(NASTY)
@pytest.fixture
def broken():
    raise OSError(NASTY)
def test_setup(llmprof, broken):
    pass
"""


@pytest.mark.parametrize("args", [[], ["--tb=native"], ["--tb=short", "-l"], ["--tb=line"], ["--full-trace"], ["-n1"]])
def test_control_characters_of_exceptions_never_reach_the_terminal(bench, args):
    bench.echo()
    path = bench.path / "conftest.py"
    path.write_text(path.read_text().replace('"the echo broke\\nin two lines"', repr(NASTY)))
    assert NASTY.encode("unicode_escape").decode() in path.read_text()
    bench.test(RAISING)
    result = (bench.run_apart if "-n1" in args else bench.run)(
        "model=echo", "dataset=blank", "infer.prompt=boom", args=[*STAGE, "-rA", *args]
    )
    result.assert_outcomes(failed=2, skipped=1, errors=1)
    text = result.stdout.str() + result.stderr.str()
    assert [bad for bad in BAD if bad in text] == []
    result.stdout.fnmatch_lines(["*RuntimeError: red ␛[[]31m bell ␇ turn <U+202E> title ␛[]]0;mine␇*"])


def test_control_characters_of_names_and_values_never_reach_the_terminal(bench):
    bench.echo()
    bench.test()
    assert "no\u241b[31mdir" in bench.usage_error(args=[*STAGE, "--llmprof-config-dir=no\x1b[31mdir"])
    result = bench.run(*ECHO, args=[*STAGE, "--llmprof-run-dir=a\x1b[31mb"])
    result.stdout.fnmatch_lines(["llmprof: stages*run directory a␛[[]31mb", "run directory: a␛[[]31mb"])
    assert not any(bad in result.stdout.str() for bad in BAD)


def test_a_warning_that_nobody_can_act_on_does_not_show(bench):
    """Others do, and in tests that are not ours this one does, too."""
    bench.test(
        """
import warnings
def work():
    warnings.warn("`torch.jit.script_method` is deprecated. Please switch to `torch.compile`.", DeprecationWarning)
    warnings.warn("mine", DeprecationWarning)
def test_callable(llmprof):
    llmprof.measure(work)
def test_plain():
    work()
"""
    )
    result = bench.run(args=[*STAGE, "-o", "addopts="])
    result.assert_outcomes(passed=2, warnings=3)
    shown = result.stdout.str()
    assert shown.count("DeprecationWarning: `torch.jit") == 1
    assert shown.count("test_it.py::test_callable[direct_inference]") == 1


def test_the_log_of_a_failure_lacks_the_trace_of_torch(bench):
    bench.test(
        """
import logging
def work():
    trace = logging.getLogger("torch.__trace")
    trace.setLevel(logging.DEBUG)
    trace.propagate = logging.getLogger("torch").propagate = True  # torch 2.6 sets them to False
    for number in range(3):
        trace.debug("")
    logging.getLogger("mine").warning("kept")
    trace.debug("")
def test_callable(llmprof):
    work()
    assert False
def test_only_the_trace(llmprof):
    logging.getLogger("torch.__trace").debug("")
    assert False
def test_plain():
    work()
    assert False
"""
    )
    result = bench.run(args=[*STAGE, "-o", "addopts="])
    result.assert_outcomes(failed=3)
    ours, only, plain = result.stdout.str().partition("short test summary")[0].split("____ test_")[1:]
    assert "WARNING  mine:" in ours
    assert "torch.__trace:" not in ours
    assert "Captured log" not in only
    assert plain.count("DEBUG    torch.__trace:") == 4


@pytest.mark.slow
def test_the_real_model_and_torchs_compiler_warn_of_nothing(bench):
    bench.test()
    # torch built for CUDA warns of a machine that has NVML's library but no driver, which is true.
    warnings = ["-W", "default", "-W", "ignore:Can't initialize NVML:UserWarning"]
    result = bench.run_apart("infer=compiled", "measure.warmup=1", args=[*STAGE, *warnings, "-o", "addopts="])
    result.assert_outcomes(passed=1, warnings=0)
