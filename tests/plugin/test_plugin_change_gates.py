"""Gates against a baseline: each verdict in marker, configuration and command line, and what sees the failure."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from plugin_bench import DATA, clean

from pytest_llmprof.records.baseline import SavedRun

QUIET = (10.0, 10.01, 9.99, 10.02, 9.98)
"""Milliseconds of rounds that differ by 0.2 %."""
LOUD = (9.0, 11.0, 10.0, 9.5, 10.5)
SLOWER = tuple(1.1 * value for value in QUIET)
FASTER = tuple(0.9 * value for value in QUIET)
GATE = 'slower={"total_ms": "2%"}'
TEST = """
import pytest

{mark}
def test_call(llmprof, work):
    llmprof.measure(work)
"""
SURE = ("measure.rounds=10", "measure.iterations=1", "gate.process_sd=0.1%")
COMPARE = "--llmprof-compare=main"


class Runs:
    """Sessions whose rounds last as long as they are told."""

    def __init__(self, bench) -> None:
        self.bench = bench
        shutil.copy(DATA / "clock_conftest.py", bench.path / "conftest.py")
        bench.ini(*SURE, llmprof_stage="direct_inference")
        self.test(GATE)

    def test(self, gate: str | None) -> None:
        mark = "" if gate is None else f"@pytest.mark.llmprof_gate({gate})"
        self.bench.test(TEST.format(mark=mark))

    def go(self, durations, *overrides: str, args=(COMPARE,), apart: bool = False) -> pytest.RunResult:
        (self.bench.path / "durations.json").write_text(json.dumps(durations))
        run = self.bench.run_apart if apart else self.bench.run
        result = run(*overrides, args=["--benchmark-disable", *args])
        clean(result)
        return result

    def save(self, durations=QUIET, *overrides: str, times: int = 1) -> None:
        for _ in range(times):
            self.go(durations, *overrides, args=["--llmprof-save=main"]).assert_outcomes(passed=1)

    def edit(self, change) -> None:
        """Change the saved test."""
        for path in (self.bench.path / ".llmprof" / "main").glob("*/*.json"):
            run = msgspec.json.decode(path.read_bytes(), type=SavedRun)
            run.tests = [change(test) for test in run.tests]
            path.write_bytes(msgspec.json.encode(run))

    @property
    def run_dir(self) -> Path:
        return (self.bench.path / "llmprof-runs" / "latest").resolve()

    @property
    def gate(self) -> SimpleNamespace:
        """The one gate in the newest run's metrics.json."""
        metrics = json.loads((self.run_dir / "test_it/test_call/direct_inference/metrics.json").read_text())
        (gate,) = metrics["gates"]
        return SimpleNamespace(**gate, rounds=metrics["rounds"])


@pytest.fixture
def runs(bench):
    return Runs(bench)


def given(runs: Runs, how: str, gate: tuple[str, str]) -> list[str]:
    """Set the gate (what, limit) in a marker, the ini file or the command line. Gives overrides."""
    what, limit = gate
    if how == "marker":
        runs.test(f'slower={{"{what}": "{limit}"}}')
        return []
    runs.test(None)
    override = f"gate.slower.{what}={limit}"
    if how == "ini":
        runs.bench.ini(*SURE, override, llmprof_stage="direct_inference")
    return [override] if how == "command line" else []


@pytest.mark.parametrize("how", ["marker", "ini", "command line"])
@pytest.mark.parametrize(
    ("durations", "verdict", "outcome"),
    [
        (SLOWER, "slower", "failed"),
        (FASTER, "faster", "passed"),
        (QUIET, "same", "passed"),
        (LOUD, "unclear", "unclear"),
        (None, "not measured", "not measured"),
    ],
    ids=["slower", "faster", "same", "unclear", "not-measured"],
)
def test_each_verdict(runs, how, durations, verdict, outcome):
    runs.save()
    if durations is None:
        runs.edit(lambda test: msgspec.structs.replace(test, doubts=["the GPU was throttled (power)"]))
    overrides = given(runs, how, ("total_ms", "2%"))
    result = runs.go(durations or SLOWER, *overrides)
    result.assert_outcomes(**{"failed" if outcome == "failed" else "passed": 1})
    found = runs.gate
    assert (found.name, found.limit, found.verdict, found.outcome) == ("total_ms", "2% slower", verdict, outcome)
    said = {
        "failed": "llmprof_gate: total_ms is slower: 10.0 → 11.0, +10.0 % (+* to +* %), limit 2% slower*",
        "unclear": "test_call (direct_inference): gate total_ms is unclear: 10.0 → 10.0, *, limit 2% slower (1 and 1 *",
        "not measured": "test_call (direct_inference): gate total_ms 2% slower is not measured: before: the GPU was *",
    }
    if outcome in said:
        result.stdout.fnmatch_lines([said[outcome]])
    result.stdout.fnmatch_lines([f"  Total a call (ms) * {verdict}*limit 2% slower*"])


def test_the_section_shows_limit_values_interval_and_verdict(runs):
    runs.test('total_ms="<=200", slower={"total_ms": "2%"}')
    runs.save()
    result = runs.go(SLOWER)
    result.stdout.fnmatch_lines(
        [
            "*llmprof gates*",
            "metric * limit * measured * baseline * change * interval  outcome",
            "total_ms * <=200 * 11 *  passed",
            "total_ms *2% slower * 11 * 10 * +10.0 % * +* to +* %  failed, slower*",
        ]
    )
    test = json.loads((runs.run_dir / "run.json").read_text())["tests"][0]
    assert test["outcome"] == "failed"
    assert test["error"].startswith("llmprof_gate: total_ms is slower: 10.0 → 11.0")


@pytest.mark.parametrize("workers", [[], ["-n1"]], ids=["alone", "xdist"])
def test_junitxml_maxfail_and_x_see_a_failure(runs, workers):
    runs.bench.test(TEST.format(mark=f"@pytest.mark.llmprof_gate({GATE})") + "\ndef test_last(work): pass\n")
    runs.go(QUIET, args=["--llmprof-save=main"]).assert_outcomes(passed=2)
    args = [COMPARE, "--junitxml=junit.xml", *workers]
    result = runs.go(SLOWER, args=args, apart=bool(workers))
    result.assert_outcomes(failed=1, passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    failures = list(ElementTree.parse(runs.bench.path / "junit.xml").iter("failure"))
    assert [one.get("message").startswith("Failed: llmprof_gate: total_ms is slower") for one in failures] == [True]
    result.stdout.fnmatch_lines(["*llmprof gates*"])
    for stop in ("-x", "--maxfail=1"):
        if not workers:
            runs.go(SLOWER, args=[*args, stop]).assert_outcomes(failed=1)


@pytest.mark.parametrize("workers", [[], ["-n1"]], ids=["alone", "xdist"])
@pytest.mark.parametrize(("second", "outcome"), [(QUIET, "passed"), (SLOWER, "failed")])
def test_a_rerun_sees_a_failure_and_measures_again(runs, second, outcome, workers):
    runs.save()
    args = [COMPARE, "--reruns=1", *workers]
    result = runs.go([*(SLOWER * 2), *(second * 2)], args=args, apart=bool(workers))
    result.stdout.fnmatch_lines([f"*1 {outcome}, 1 rerun*"])
    (test,) = json.loads((runs.run_dir / "run.json").read_text())["tests"]
    assert test["outcome"] == outcome
    assert runs.gate.verdict == ("same" if outcome == "passed" else "slower")


@pytest.mark.parametrize("unclear", ["pass", "fail"])
def test_what_stays_unclear_measures_all_rounds_then_does_as_told(runs, unclear):
    runs.save()
    result = runs.go(LOUD, f"gate.unclear={unclear}", "gate.max_rounds=25")
    assert runs.gate.rounds == 25
    result.assert_outcomes(**{"passed" if unclear == "pass" else "failed": 1})
    line = "gate total_ms is unclear" if unclear == "pass" else "llmprof_gate: total_ms is unclear: 10.0 → 10.0"
    result.stdout.fnmatch_lines([f"*{line}*25 rounds: save 3 runs or more, or set gate.process_sd)"])


def test_more_rounds_settle_what_their_own_noise_left_unclear(runs):
    noisy = [10.0 + 0.1 * (number % 5 - 2) for number in range(40)]
    runs.save(noisy, "measure.rounds=40")
    runs.go(noisy, "measure.rounds=5", "gate.max_rounds=5").assert_outcomes(passed=1)
    assert (runs.gate.verdict, runs.gate.rounds) == ("unclear", 5)
    runs.go(noisy, "measure.rounds=5", "gate.max_rounds=40").assert_outcomes(passed=1)
    assert runs.gate.verdict == "same"
    assert 5 < runs.gate.rounds <= 40


def test_no_more_rounds_where_the_processes_alone_leave_it_unclear(runs):
    runs.save()
    runs.go(QUIET, "gate.process_sd=null", "gate.max_rounds=100").assert_outcomes(passed=1)
    assert (runs.gate.verdict, runs.gate.rounds) == ("unclear", 10)
    assert runs.gate.how == "1 and 1 process, SD 15 % assumed, 10 rounds"


def test_a_slower_test_ends_at_once(runs):
    runs.save()
    runs.go(SLOWER, "gate.max_rounds=100").assert_outcomes(failed=1)
    assert runs.gate.rounds == 10


def test_three_saved_runs_show_their_own_spread(runs):
    for factor in (0.999, 1.0, 1.001):
        runs.save([factor * value for value in QUIET])
    runs.go([1.3 * value for value in QUIET]).assert_outcomes(failed=1)
    assert runs.gate.how == "3 and 1 process"
    runs.go(SLOWER, "gate.max_rounds=100").assert_outcomes(passed=1)
    assert (runs.gate.verdict, runs.gate.rounds) == ("unclear", 10)  # more rounds cannot narrow what three runs show


def test_several_gates_share_the_error(runs):
    runs.save()
    levels = []
    for gate in (GATE, 'slower={"total_ms": "2%", "round_s": "2%"}'):
        runs.test(gate)
        runs.go(SLOWER).assert_outcomes(failed=1)
        metrics = json.loads((runs.run_dir / "test_it/test_call/direct_inference/metrics.json").read_text())
        levels.append(1 - metrics["gates"][0]["level"])
    assert levels == pytest.approx([0.002, 0.001])


def test_the_marker_wins_over_the_configuration(runs):
    runs.save()
    runs.test('slower={"total_ms": "30%"}, total_ms=None')
    result = runs.go(SLOWER, "gate.slower.total_ms=2%", "gate.limits.total_ms='<=1'")
    result.assert_outcomes(passed=1)
    assert runs.gate.limit == "30% slower"


def test_a_gate_of_the_configuration_holds_tests_that_measure_and_no_others(runs):
    runs.test(None)
    source = runs.bench.path / "test_it.py"
    source.write_text(source.read_text() + "\ndef test_settings(llmprof_config): pass\n")
    result = runs.go(SLOWER, "gate.limits.total_ms='<=1'", args=[])
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["llmprof_gate: total_ms is 11, limit <=1"])


@pytest.mark.parametrize("strict", [False, True])
def test_without_a_baseline_it_is_not_measured(runs, strict):
    result = runs.go(SLOWER, args=["--llmprof-strict"] if strict else [])
    result.assert_outcomes(**{"failed" if strict else "passed": 1})
    result.stdout.fnmatch_lines(
        ["*total_ms 2% slower is not measured: there is no baseline (--llmprof-compare names one)"]
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": "test_it.py::test_cal[direct_inference]"}, "the baseline main has no test test_it.py::test_call[[]*"),
        ({"figures": {"total_ms": float("nan")}}, "missing before"),
        ({"problem": "page a: it broke"}, "before: page a: it broke"),
        ({"doubts": ["1 other process used the GPU"]}, "before: 1 other process used the GPU"),
        ({"machine": {"gpu": "NVIDIA H100"}}, "another GPU (NVIDIA H100 against none)"),
    ],
)
def test_why_a_gate_is_not_measured(runs, changes, reason):
    runs.save()

    def change(test):
        values = {**changes}
        if "machine" in values:
            values["machine"] = msgspec.structs.replace(test.machine, **values["machine"])
        return msgspec.structs.replace(test, **values)

    runs.edit(change)
    result = runs.go(SLOWER)
    result.assert_outcomes(passed=1)
    assert (runs.gate.outcome, runs.gate.ratio) == ("not measured", None)
    result.stdout.fnmatch_lines([f"*gate total_ms 2% slower is not measured: {reason}"])
    runs.go(SLOWER, args=[COMPARE, "--llmprof-strict"]).assert_outcomes(failed=1)


def test_single_rounds_are_not_measured_and_one_measures_more(runs):
    runs.save(QUIET, "measure.rounds=1")
    result = runs.go(SLOWER, "measure.rounds=1", "gate.max_rounds=1")
    result.stdout.fnmatch_lines(["*gate total_ms 2% slower is not measured: a single round on both sides: its noise*"])
    runs.go(SLOWER, "measure.rounds=1", "gate.max_rounds=16").assert_outcomes(failed=1)


def test_a_worker_compares_with_what_its_controller_found(runs):
    runs.save()
    args = ["--llmprof-compare=llmprof-runs/latest", "-n1"]  # which links to this run once it has begun
    runs.go(SLOWER, args=args, apart=True).assert_outcomes(failed=1)
    assert runs.gate.baseline == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ('slower={"total_ms": "5"}', """llmprof_gate(slower={'total_ms': '5'}) at *: '5' is not allowed; *"""),
        ('slower={"total_ms": "-1%"}', "llmprof_gate(slower=*) at *: '-1%' is not allowed; a *"),
        ('slower={"total_ms": "nan%"}', "llmprof_gate(slower=*) at *: 'nan%' is not allowed; *"),
        ('slower={"totl_ms": "2%"}', "llmprof_gate(slower=*) at *: unknown metric totl_ms (did you mean 'total_ms'?*"),
        ('slower={"tokens": "2%"}', "llmprof_gate(slower=*) at *: neither way of tokens is worse, *"),
        ('slower={"cer": "2%"}', 'llmprof_gate(slower=*) at *: cer is a metric of quality: write cer_worse=*'),
        ('slower="2%"', """llmprof_gate(slower='2%') at *: write slower={METRIC: LIMIT}, *"""),
        ('slwer={"total_ms": "2%"}', "llmprof_gate(slwer=*) at *: unknown metric slwer (did you mean 'slower'?); *"),
        ('cer_worse="1%"', "llmprof_gate(cer_worse='1%') at *: '1%' is not allowed; the limit is *"),
        ('cre_worse="0.1"', "llmprof_gate(cre_worse='0.1') at *: unknown metric cre (did you mean 'cer'?); *"),
    ],
)
def test_a_marker_that_is_no_gate_fails_its_test(runs, gate, message):
    runs.test(gate)
    result = runs.go(QUIET, args=[])
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([message])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gate.slower.total_ms=5", "gate.slower.total_ms=5, set on the command line: '5' is not allowed; *"),
        ("gate.slower.total_ms=-1%", "gate.slower.total_ms=-1%, set on the command line: '-1%' is not allowed; *"),
        ("gate.slower.totl_ms=2%", "gate.slower.totl_ms=2%, set on *: unknown metric totl_ms (did you*"),
        ("gate.slower.tokens=2%", "gate.slower.tokens=2%, set on *: neither way of tokens is worse, *"),
        ("gate.slower.cer=2%", "gate.slower.cer=2%, set on *: cer is a metric of quality: *the key gate.worse.cer"),
        ("gate.worse.cer=-1", "gate.worse.cer=-1, set on the command line: '-1' is not allowed; the limit is *"),
        ("gate.worse.cer=1e400", "gate.worse.cer=*, set on the command line: *"),
        ("gate.limits.total_ms=5", 'gate.limits.total_ms=5, set on the command line: a limit is a text such *'),
        ("gate.slwer.total_ms=2%", "gate.slwer.total_ms=2%: unknown key, set on the command line; gate has limits, *"),
        ("gate.margin=5", "gate.margin=5 is not allowed, set on the command line; it must be a percentage above 0*"),
        ("gate.process_sd=0%", "gate.process_sd, set on the command line: '0%' is not allowed; *"),
        ("gate.alpha=100%", "gate.alpha, set on the command line: '100%' is not allowed; give less than 100%"),
        ("gate.max_rounds=0", "gate.max_rounds=0 is not allowed, set on the command line; it must be an int*"),
        ("gate.unclear=maybe", "gate.unclear=maybe is not allowed, set on the command line; it must be one of pass*"),
    ],
)
def test_a_configuration_that_is_no_gate_is_refused_before_anything_runs(runs, override, message):
    text = runs.bench.usage_error(override)
    pytest.LineMatcher([text]).fnmatch_lines([message])


def test_two_keys_that_limit_one_change_are_refused(runs):
    text = runs.bench.usage_error("gate.slower.total_ms=50%", "gate.worse.total_ms=2%")
    assert text.startswith("gate.worse.total_ms=2%, set on the command line: gate.slower.total_ms is a limit on the")


def test_quality_against_a_baseline(bench):
    bench.echo()
    bench.ini("model=echo", "dataset=blank", llmprof_stage="direct_inference")
    bench.test(
        'import pytest\n@pytest.mark.llmprof_gate(cer_worse="0.005")\ndef test_pages(llmprof): llmprof.run()\n'
    )
    bench.passed("infer.prompt='hello world'", args=["--llmprof-save=main"])
    bench.passed("infer.prompt='hello world'", args=[COMPARE])
    result = bench.run("infer.prompt='hello there'", args=[COMPARE])
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["llmprof_gate: cer is worse: 0 → 0.*, limit 0.005 worse*"])
    assert bench.run("infer.prompt='hello there'", "gate.worse.cer=1", args=[COMPARE]).ret == 1  # the marker wins
