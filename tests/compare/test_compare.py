"""Rows, verdicts and refusals of a comparison."""

import math
import random
from statistics import median

import msgspec
import pytest
from saved_runs import H100, noisy, saved_run, saved_test, side

from pytest_llmprof.compare.compare import Terms, compare
from pytest_llmprof.compare.result import Comparison
from pytest_llmprof.compare.rules import Rule, parse_rules
from pytest_llmprof.compare.table import render
from pytest_llmprof.compare.verdicts import Verdict
from pytest_llmprof.errors import ArtifactError, ConfigError
from pytest_llmprof.measure.figures import percentile
from pytest_llmprof.records.baseline import SavedMachine, SavedPage, SavedRun
from pytest_llmprof.records.catalogue import BUILTIN
from pytest_llmprof.records.environment import Git
from pytest_llmprof.records.metrics import Fingerprint


def rows(comparison):
    return {row.metric: row for row in comparison.rows}


def one(before, after, metric="tpot_ms", **terms):
    return rows(compare(before, after, Terms(**terms)))[metric]


def pair(before, after, **terms):
    return compare([saved_run(before, key="one")], [saved_run(after, key="two")], Terms(**terms))


@pytest.mark.parametrize(
    ("ratio", "verdict"), [(1.03, Verdict.SLOWER), (0.97, Verdict.FASTER), (1.0, Verdict.SAME)]
)
def test_several_processes_show_their_own_noise(ratio, verdict):
    row = one(
        side(noisy(0.54, 0.002, 12, 1), prefix="a"), side(noisy(0.54 * ratio, 0.002, 12, 2), prefix="b"), margin=0.01
    )
    assert row.verdict == verdict
    assert row.low < ratio < row.high
    assert row.how == "12 and 12 processes"


def test_one_process_against_a_baseline_of_several():
    baseline = side(noisy(0.54, 0.002, 8, 1), prefix="a")
    assert one(baseline, side([0.60], prefix="b")).verdict == Verdict.SLOWER
    assert one(baseline, side([0.545], prefix="b")).verdict == Verdict.UNCLEAR


def test_one_process_a_side_takes_a_spread_that_is_told():
    row = rows(pair(saved_test(), saved_test(figures={"tpot_ms": 0.58})))["tpot_ms"]
    assert (row.verdict, row.how) == (Verdict.SLOWER, "1 and 1 process, SD 0.5 % assumed")
    assert rows(pair(saved_test(), saved_test(figures={"tpot_ms": 0.545})))["tpot_ms"].verdict == Verdict.UNCLEAR


@pytest.mark.parametrize(
    "changes", [{"engine": "reference"}, {"machine": SavedMachine(cpu="Xeon", cores=2)}], ids=["eager", "cpu"]
)
def test_host_bound_times_are_assumed_to_be_noisy(changes):
    slower = saved_test(figures={"tpot_ms": 0.70}, **changes)
    row = rows(pair(saved_test(**changes), slower))["tpot_ms"]
    assert (row.verdict, row.how) == (Verdict.UNCLEAR, "1 and 1 process, SD 15 % assumed")
    told = rows(pair(saved_test(**changes), slower, process_sd=0.01))["tpot_ms"]
    assert told.verdict == Verdict.SLOWER


@pytest.mark.parametrize("engines", [("fast", "reference"), ("reference", "fast")])
def test_the_noisier_of_two_engines_counts(engines):
    before, after = (saved_test(engine=engine, figures={"tpot_ms": value})
                     for engine, value in zip(engines, (0.54, 0.58), strict=True))
    row = rows(pair(before, after))["tpot_ms"]
    assert (row.verdict, row.how) == (Verdict.UNCLEAR, "1 and 1 process, SD 15 % assumed")


@pytest.mark.parametrize("rounds", [2, 3])
def test_few_rounds_are_not_believed_to_agree(rounds):
    """The interquartile range of so few is on average much less than that of their noise, here of 1 %."""
    source = random.Random(1)

    def measured():
        speed = 0.54 * (1 + source.gauss(0, 0.004))
        values = [speed * (1 + source.gauss(0, 0.01)) for _ in range(rounds)]
        middle = median(values)
        spread = (percentile(values, 0.75) - percentile(values, 0.25)) / middle
        return saved_test(figures={"tpot_ms": middle}, noise={"tpot_ms": spread}, rounds=rounds)

    found = [rows(pair(measured(), measured()))["tpot_ms"].verdict for _ in range(1000)]
    assert len(found) - found.count(Verdict.UNCLEAR) <= 8


def test_counts_and_memory_are_exact():
    changed = saved_test(figures={"peak_memory_gib": 7.6, "tokens": 255.0, "kernels_per_token": 3.0})
    before = saved_test(figures={"peak_memory_gib": 7.5, "tokens": 256.0, "kernels_per_token": 4.0})
    metrics = [*BUILTIN, msgspec.structs.replace(BUILTIN[0], name="kernels_per_token", unit="", better="lower")]
    runs = [saved_run(test, key=key) for test, key in ((before, "one"), (changed, "two"))]
    for run in runs:
        run.metrics = [metric.declaration for metric in metrics]
    found = rows(compare(runs[:1], runs[1:]))
    assert found["peak_memory_gib"].verdict == Verdict.WORSE
    assert found["tokens"].verdict == Verdict.CHANGED
    assert found["kernels_per_token"].verdict == Verdict.BETTER
    assert found["peak_memory_gib"].low is None
    memory = rows(pair(saved_test(), saved_test(figures={"peak_memory_gib": 7.52})))["peak_memory_gib"]
    assert memory.verdict == Verdict.SAME


def test_a_faster_run_whose_text_changed_says_so():
    changed = saved_test(
        figures={"tpot_ms": 0.40},
        quality={"cer": 0.05},
        pages={"a": SavedPage(256, "aaaa"), "b": SavedPage(256, "other")},
    )
    comparison = pair(saved_test(), changed)
    row = rows(comparison)["tpot_ms"]
    assert (row.verdict, row.note) == (
        Verdict.FASTER,
        "one process on a side: a single disturbed one looks the same; "
        "text of 1 of 2 pages differs, CER 0.0300 → 0.0500",
    )
    assert rows(comparison)["cer"].verdict == Verdict.WORSE
    assert [(change.differ, change.pages, change.exact) for change in comparison.texts] == [(1, 2, True)]


def test_without_texts_the_token_counts_speak():
    old = saved_test(pages={"a": SavedPage(256), "b": SavedPage(256)})
    new = saved_test(pages={"a": SavedPage(256), "b": SavedPage(250)})
    comparison = pair(old, new)
    assert [(change.differ, change.exact) for change in comparison.texts] == [(1, False)]
    assert any("only their token counts" in notice for notice in comparison.notices)


def test_why_a_test_has_no_times_is_told_once_for_it():
    doubts = ["the host was contended in 100 % of the rounds"]
    old, new = (saved_test(doubts=doubts, figures={"tpot_ms": 1.0, "ttft_ms": 9.0}) for _ in range(2))
    comparison = pair(old, new, rules=(Rule("tpot_ms", 0.02, "2%"),))
    why = "before and after: the host was contended in 100 % of the rounds"
    assert {row.note for row in comparison.rows if row.verdict == Verdict.NOT_MEASURED} == {why}
    _, _, text = render(comparison).partition("\n")  # without the headline
    assert f"\ntest_x.py::test_pages\n  not measured: {why}\n" in text
    assert text.count(why) == 1
    assert "not measured  limit 2%\n" in text
    _, _, markdown = render(comparison, "markdown").partition("\n")
    assert f"\n\nNot measured: {why}\n\n| Metric |" in markdown
    assert markdown.count(why) == 1
    one_side = pair(old, msgspec.structs.replace(new, doubts=["1 other process used the GPU"]))
    assert rows(one_side)["tpot_ms"].note == f"before: {doubts[0]}; after: 1 other process used the GPU"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"doubts": ["the GPU was throttled (power cap)"]}, "after: the GPU was throttled (power cap)"),
        ({"doubts": ["1 other process used the GPU"]}, "after: 1 other process used the GPU"),
        ({"machine": SavedMachine("NVIDIA A100", 400.0, 1410)}, "another GPU"),
        ({"machine": msgspec.structs.replace(H100, power_limit_w=350.0)}, "another power limit of the GPU (700"),
        ({"machine": msgspec.structs.replace(H100, sm_clock_max_mhz=1200)}, "another clock limit of the GPU"),
        ({"machine": SavedMachine(cpu="EPYC", cores=2)}, "another GPU (NVIDIA H100 80GB HBM3 against none)"),
        ({"figures": {}}, "missing after"),
        ({"figures": {"tpot_ms": math.nan}}, "missing after"),
        ({"figures": {"tpot_ms": 0.0}}, "not above 0"),
    ],
)
def test_what_is_not_measured_is_never_the_same(changes, why):
    comparison = pair(saved_test(), saved_test(**changes), rules=(Rule(None, 0.02, "2%"),))
    row = rows(comparison)["tpot_ms"]
    assert row.verdict == Verdict.NOT_MEASURED
    assert why in row.note
    assert comparison.exit_code == 3
    assert rows(comparison)["cer"].verdict == Verdict.SAME


def test_what_is_shown_is_of_the_processes_that_count():
    runs = side([0.541, 0.540, 0.539, 0.80, 0.81, 0.82, 0.83], prefix="after")
    for run in runs[3:]:
        run.tests[0].doubts = ["the GPU was throttled (power cap)"]
    row = rows(compare(side([0.54, 0.541, 0.539], prefix="before"), runs))["tpot_ms"]
    assert (row.before, row.after, row.how) == (0.54, 0.54, "3 and 3 processes")


def test_a_failed_test_is_not_measured_and_its_gate_not_passed():
    comparison = pair(
        saved_test(), saved_test(problem="page b: out of memory", figures={}), rules=(Rule("tpot_ms", 0.02, "2%"),)
    )
    row = rows(comparison)["tpot_ms"]
    assert (row.verdict, row.note) == (Verdict.NOT_MEASURED, "after: page b: out of memory")
    assert comparison.exit_code == 3


def test_a_gate_on_what_nobody_measured_is_not_passed():
    comparison = pair(saved_test(), saved_test(), rules=(Rule("joules_per_page", 0.02, "2%"),))
    row = rows(comparison)["joules_per_page"]
    assert (row.verdict, row.note, comparison.exit_code) == (Verdict.NOT_MEASURED, "missing on both sides", 3)
    nothing = saved_test(figures={"tokens": 1.0})
    with pytest.raises(ArtifactError, match="nothing that the limit 2% is for was measured in any test"):
        pair(nothing, nothing, rules=(Rule(None, 0.02, "2%"),))


def test_force_compares_another_machine():
    other = saved_test(machine=SavedMachine("NVIDIA A100"), figures={"tpot_ms": 0.9}, doubts=["throttled"])
    assert rows(pair(saved_test(), other, force=True))["tpot_ms"].verdict == Verdict.SLOWER


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"fingerprint": Fingerprint(model="model-2")}, "another model (model-1 against model-2)"),
        ({"fingerprint": Fingerprint(dataset="pages-2")}, "other inputs"),
        ({"pages": {"a": SavedPage(1), "c": SavedPage(1)}}, "other pages (only before: b; only after: c)"),
    ],
)
def test_other_work_is_named_and_refused(changes, why):
    with pytest.raises(ArtifactError) as found:
        pair(saved_test(), saved_test(**changes))
    assert why in str(found.value)
    assert str(found.value).endswith("; llmprof compare --force compares them all the same"), "not all commands have it"
    with pytest.raises(ArtifactError, match=r"; --force compares them all the same$"):
        pair(saved_test(), saved_test(**changes), force_option="--force")
    assert "tpot_ms" in rows(pair(saved_test(), saved_test(**changes), force=True))


def test_rows_of_a_callable_are_of_calls():
    figures = {"total_ms": 1.0, "pages_per_s": 1000.0}
    old, new = (saved_test(kind="callable", figures=figures, quality={}) for _ in range(2))
    comparison = pair(old, new)
    assert {row.title for row in comparison.rows if row.after is not None} == {
        "Total a call (ms)", "Throughput (calls/s)"
    }


def test_a_batch_of_one_page_has_no_rows_of_its_own():
    """They would say the same twice, and take a part of the error of the gates."""
    figures = {"total_ms": 20.0, "batch_total_ms": 20.0 + 1e-12, "tokens_per_s": None, "batch_tokens_per_s": None}
    one = pair(*(saved_test(figures=figures) for _ in range(2)), rules=parse_rules(["slower:5%"], BUILTIN))
    assert not [row for row in one.rows if row.metric.startswith("batch_")]
    named = pair(*(saved_test(figures=figures) for _ in range(2)), rules=parse_rules(["batch_total_ms:5%"], BUILTIN))
    assert rows(named)["batch_total_ms"].limit == "5%"
    several = pair(saved_test(figures=figures), saved_test(figures={**figures, "batch_total_ms": 30.0}))
    assert "batch_total_ms" in rows(several)
    assert one.gated == 1


def test_other_work_of_one_test_leaves_the_others():
    second = saved_test("test_more", fingerprint=Fingerprint(model="model-2"))
    comparison = compare(
        [saved_run(saved_test(), saved_test("test_more"), key="one")], [saved_run(saved_test(), second, key="two")]
    )
    verdicts = {(row.test, row.metric): row.verdict for row in comparison.rows}
    assert verdicts["test_x.py::test_more", "tpot_ms"] == Verdict.NOT_MEASURED
    assert verdicts["test_x.py::test_pages", "cer"] == Verdict.SAME
    assert comparison.reasons == {"test_x.py::test_more": "another model (model-1 against model-2)"}


def test_configuration_versions_and_work_tree_are_named():
    old = saved_run(key="one", configs={"config-1": {"infer.engine": "fast", "infer.batch_size": 1}})
    print_ = Fingerprint("NVIDIA H100", "cuda:0", "model-1", "pages-1", "config-2", {"torch": "2.10"})
    new = saved_run(saved_test(fingerprint=print_), key="two", git=Git("0123456789abcdef", True))
    new.configs = {"config-2": {"infer.engine": "compiled", "infer.batch_size": 1}}
    assert compare([old], [new]).notices == [
        "after: the work tree had changes that its commit 0123456789ab does not have",
        "the configurations differ: infer.engine fast → compiled",
        "versions differ: torch 2.9 → 2.10",
    ]


@pytest.mark.parametrize(
    ("dirty", "words", "notice"),
    [
        (False, "", []),
        (True, " with changes", ["before: the work tree had changes that its commit 0123456789ab does not have"]),
        (
            None,
            ", local changes not known",
            ["before: git does not know whether the work tree had changes that its commit 0123456789ab does not have"],
        ),
    ],
)
def test_a_side_says_what_git_knows_of_its_work_tree(dirty, words, notice):
    comparison = compare([saved_run(key="one", git=Git("0123456789abcdef", dirty))], [saved_run(key="two")])
    assert comparison.notices == notice
    assert msgspec.json.decode(msgspec.json.encode(comparison), type=Comparison) == comparison
    before, after = render(comparison).splitlines()[1:3]
    assert before == f"before: runs/one (1 run, H100, commit 0123456789ab{words})"
    assert after == "after: runs/two (1 run, H100)"


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (saved_run(key="one"), saved_run(key="one"), "runs/one is the same run as its baseline runs/one"),
        (saved_run(key="one"), saved_run(key="two", status="interrupted"), "half a run (its status is interrupted)"),
        (SavedRun(key="none", source="empty", started=""), saved_run(key="two"), "empty has no test"),
        (saved_run(key="one"), saved_run(saved_test("other"), key="two"), "have no test in common"),
        (saved_run(saved_test(rounds=1, noise={})), saved_run(key="two"), "a single round on one side"),
    ],
    ids=["same", "half", "empty", "no-common", "one-round"],
)
def test_refused_in_one_line(before, after, why):
    with pytest.raises(ArtifactError) as found:
        compare([before], [after])
    assert why in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("place", ["before", "after"])
def test_copies_of_a_run_are_no_processes(place):
    copies, other = [saved_run(key="one")] * 3, [saved_run(key="two")]
    with pytest.raises(ArtifactError, match="are copies of one run, which counts once"):
        compare(*((copies, other) if place == "before" else (other, copies)))


def test_a_test_that_a_run_has_twice_is_one_process():
    row = rows(compare([saved_run(saved_test(), saved_test(), saved_test(), key="one")], [saved_run(key="two")]))
    assert row["tpot_ms"].how == "1 and 1 process, SD 0.5 % assumed"


@pytest.mark.parametrize(("before", "after", "verdict"), [
    (1e-308, 1e308, Verdict.SLOWER), (1e308, 1e-308, Verdict.FASTER),
])
@pytest.mark.parametrize("rounds", [1, 5])
def test_times_at_the_ends_of_a_float_have_a_ratio(before, after, verdict, rounds):
    found = pair(*(saved_test(figures={"tpot_ms": value}, rounds=rounds) for value in (before, after)), force=True)
    row = rows(found)["tpot_ms"]
    assert row.verdict == (verdict if rounds > 1 else Verdict.UNCLEAR)
    assert (row.ratio > 1e300) == (after > before)


def test_rounds_without_any_agreement_are_unclear():
    assert rows(pair(saved_test(), saved_test(noise={"tpot_ms": 1e308})))["tpot_ms"].verdict == Verdict.UNCLEAR


def test_a_change_of_just_the_limit_keeps_it():
    def failed(rule, **values):
        before, after = ({section: {name: value} for section, (name, value, _) in values.items()},
                         {section: {name: value} for section, (name, _, value) in values.items()})
        return rows(pair(saved_test(**before), saved_test(**after), rules=(rule,)))[rule.metric].failed

    cer, memory = Rule("cer", 0.005, "0.005"), Rule("peak_memory_gib", 0.29, "29%")
    assert not failed(cer, quality=("cer", 0.03, 0.035))
    assert failed(cer, quality=("cer", 0.03, 0.0351))
    assert not failed(memory, figures=("peak_memory_gib", 100.0, 129.0))
    assert failed(memory, figures=("peak_memory_gib", 100.0, 129.1))


def test_single_rounds_of_three_processes_are_enough():
    assert one(
        side([0.54, 0.541, 0.539], prefix="a", rounds=1, noise={}),
        side([0.60, 0.601, 0.599], prefix="b", rounds=1, noise={}),
    ).verdict == Verdict.SLOWER
    forced = pair(saved_test(rounds=1, noise={}), saved_test(rounds=1, noise={}), force=True)
    assert rows(forced)["tpot_ms"].verdict == Verdict.UNCLEAR


def test_gates_share_the_error_and_set_the_margin():
    tests = [saved_test(f"test_{number}", figures={"tpot_ms": 0.54}) for number in range(20)]
    slower = [saved_test(f"test_{number}", figures={"tpot_ms": 0.553}) for number in range(20)]
    runs = [saved_run(*tests, key="one")], [saved_run(*slower, key="two")]
    free = compare(*runs)
    gated = compare(*runs, Terms(rules=(Rule("tpot_ms", 0.02, "2%"),)))
    assert gated.gated == 20
    assert gated.rows[0].high - gated.rows[0].low > free.rows[0].high - free.rows[0].low
    wide = compare(*runs, Terms(process_sd=0.0005, rules=(Rule("tpot_ms", 0.03, "3%"),)))
    assert {row.verdict for row in wide.rows} >= {Verdict.SAME}
    assert wide.exit_code == 0


def test_exit_code():
    slow = saved_test(figures={"tpot_ms": 0.70})
    assert pair(saved_test(), slow).exit_code == 0
    assert pair(saved_test(), slow, rules=(Rule(None, 0.02, "2%"),)).exit_code == 1
    assert pair(saved_test(), saved_test(), rules=(Rule("tpot_ms", 0.02, "2%"),), process_sd=0.001).exit_code == 0
    assert pair(saved_test(), saved_test(), rules=(Rule("tpot_ms", 0.02, "2%"),), process_sd=0.2).exit_code == 3
    worse = saved_test(quality={"cer": 0.034})
    assert pair(saved_test(), worse, rules=(Rule("cer", 0.005, "0.005"),)).exit_code == 0
    assert pair(saved_test(), worse, rules=(Rule("cer", 0.003, "0.003"),)).exit_code == 1
    vanished = compare(
        [saved_run(saved_test(), saved_test("gone"), key="one")],
        [saved_run(key="two")],
        Terms(rules=(Rule("tpot_ms", 0.05, "5%"),), process_sd=0.001),
    )
    assert (vanished.only_before, vanished.exit_code) == (["test_x.py::gone"], 3)


def test_rules():
    metrics = list(BUILTIN)
    assert parse_rules(["slower:2%, cer:0.005", "tpot_ms:1%"], metrics) == (
        Rule(None, 0.02, "2%"),
        Rule("cer", 0.005, "0.005"),
        Rule("tpot_ms", 0.01, "1%"),
    )
    for text, why in (
        ("slower", "give WHAT:LIMIT"),
        ("slower:5", "a percentage above 0"),
        ("slower:-1%", "a percentage above 0"),
        ("tpot:2%", "unknown metric tpot (did you mean 'tpot_ms'?); allowed: slower, ttft_ms"),
        ("tokens:2%", "neither way of tokens is worse"),
        ("cer:2%", "an amount of 0 or more"),
        ("", "give WHAT:LIMIT"),
        ("tpot_ms:50%,tpot_ms:1%", "tpot_ms has a limit already"),
        ("slower:1%,slower:50%", "slower has a limit already"),
        ("cer:1e400", "an amount of 0 or more"),
    ):
        with pytest.raises(ConfigError) as found:
            parse_rules([text], metrics)
        assert why in str(found.value)
        assert "\n" not in str(found.value)
