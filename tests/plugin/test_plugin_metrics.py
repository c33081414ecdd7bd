"""Metrics of third parties show wherever the built-in ones do; `--llmprof-columns` chooses those of the terminal."""

from __future__ import annotations

import json
import re

import pytest
from plugin_bench import clean

ECHO = ("model=echo", "dataset=blank", "dataset.limit=2", "infer.prompt='hello world'")
"""Two pages, answered with two words each."""
STAGE = ["--llmprof-stage=weigh"]
NAMES = ("weight_g", "longest_ms", "words", "greetings")
GATED = """
import pytest

@pytest.mark.llmprof_gate({gates})
def test_pages(llmprof):
    run = llmprof.run()
    assert run.weight_g == run["weight_g"]
"""


def read(bench, name: str = "metrics.json", stage: str = "weigh") -> dict:
    return json.loads((bench.stage_dir(stage=stage) / name).read_text(encoding="utf-8"))


def start(bench, workers: list[str], *overrides: str, args: list[str]) -> pytest.RunResult:
    """Run it, in a process of its own where it has workers."""
    return (bench.run_apart if workers else bench.run)(*overrides, args=[*args, *workers])


def heading(result: pytest.RunResult) -> list[str]:
    """The columns of the summary's table between the stage's and the files'."""
    (line,) = [line for line in result.outlines if line.startswith("test ") and " stage " in line]
    return [cell for cell in re.split(r"\s{2,}", line.strip()) if cell not in ("test", "stage", "files")]


def test_they_show_in_every_file(bench):
    bench.own_metrics()
    bench.test()
    bench.passed(*ECHO, "pipeline.weigh.output.prediction.enable=true", args=STAGE)
    metrics = read(bench)
    figures = metrics["figures"]
    assert (figures["weight_g"], figures["words"], metrics["quality"]["greetings"]) == (1.25, 2.0, 2.0)
    assert figures["longest_ms"] == max(sample["total_ms"] for sample in metrics["samples"])
    assert metrics["scales"] == {"pages": ["one", "two"]}
    lines = (bench.stage_dir(stage="weigh") / "pred" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["scores"] for line in lines] == [{"words": 2.0, "greetings": 1.0}] * 2

    report = (bench.stage_dir(stage="weigh") / "report.md").read_text(encoding="utf-8")
    table, _, rest = report.partition("## What to look at")
    for row in ("| Weight of the answers (g) | 1.25 |", "| Longest page (ms) | ", "| Words a page | 2.00 |"):
        assert row in table, row
    assert "> **Note:** the scales were not level" in table
    assert "1. The answers are heavy." in rest
    assert "| Greetings | 2.00 |" in rest.partition("## Quality")[2]
    assert "## Scales\n\n| Page | g |\n| --- | ---: |\n| one | 1.25 |\n| two | 1.25 |\n" in rest

    declared = {metric["name"]: metric for metric in bench.run_json()["metrics"]}
    assert list(declared)[-4:] == list(NAMES)
    assert declared["weight_g"] == {
        "name": "weight_g",
        "unit": "g",
        "label": "Weight of the answers",
        "better": "lower",
        "reduce": "given",
        "shown": ["report", "terminal", "gate"],
        "heading": "grams",
        "digits": 2,
        "section": "figures",
        "description": "",
    }
    benchmark = json.loads((bench.run_dir / "benchmark.json").read_text(encoding="utf-8"))["benchmarks"][0]
    assert benchmark["extra_info"]["weight_g"] == 1.25
    assert benchmark["extra_info"]["greetings"] == 2.0


@pytest.mark.parametrize("workers", [[], ["-n2"]])
def test_they_show_in_the_terminal(bench, workers, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    bench.own_metrics()
    bench.test()
    result = start(bench, workers, *ECHO, args=["--llmprof-stage=weigh,direct_inference"])
    result.assert_outcomes(passed=2)
    built_in = ["TTFT ms", "tokens/s", "page ms", "CER"]
    assert heading(result) == [*built_in, "grams", "Longest page ms", "Words a page", "Greetings"]
    rows = ["test_pages  weigh * 0 * 1.25 * 2.00 * 2  *", "test_pages  direct_inference * 0 * - * 2.00 * 2  *"]
    result.stdout.fnmatch_lines_random(rows)


def test_gates_pass_and_do_not_apply_in_other_stages(bench):
    bench.own_metrics()
    gates = 'weight_g="<=2", longest_ms=">0", words="==2", greetings=">=2"'
    bench.test(GATED.format(gates=gates))
    bench.passed(*ECHO, args=["--llmprof-stage=weigh,direct_inference"], count=2)
    assert [(gate["name"], gate["outcome"]) for gate in read(bench)["gates"]] == [(name, "passed") for name in NAMES]
    report = (bench.stage_dir(stage="weigh") / "report.md").read_text(encoding="utf-8")
    assert "| weight_g | `<=2` | 1.25 | passed |" in report
    outcomes = {gate["name"]: gate["outcome"] for gate in read(bench, stage="direct_inference")["gates"]}
    assert outcomes == {**dict.fromkeys(NAMES, "passed"), "weight_g": "measured in another stage"}


@pytest.mark.parametrize(
    ("name", "limit", "value"),
    [("weight_g", "<=1", "1.25"), ("longest_ms", "<0", "*"), ("words", ">=3", "2"), ("greetings", "==3", "2")],
)
def test_a_gate_fails(bench, name, limit, value):
    bench.own_metrics()
    bench.test(GATED.format(gates=f'{name}="{limit}"'))
    result = bench.run(*ECHO, args=STAGE)
    result.assert_outcomes(failed=1)
    clean(result)
    result.stdout.fnmatch_lines([f"llmprof_gate: {name} is {value}, limit {limit}", f"{name} *{limit} * failed"])
    assert read(bench)["gates"][0]["outcome"] == "failed"


def test_an_unknown_gate_names_the_nearest_of_them(bench):
    bench.own_metrics()
    bench.test(GATED.format(gates='wieght_g="<=1"'))
    result = bench.run(*ECHO, args=STAGE)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["llmprof_gate(wieght_g=*) at *: unknown metric wieght_g (did you mean 'weight_g'?*"])


def test_a_metric_that_the_stage_does_not_declare_fails_the_test(bench):
    bench.own_metrics('result.figures["weight_g"]', 'result.figures["wieght_g"]')
    bench.test()
    result = bench.run(*ECHO, args=STAGE)
    result.assert_outcomes(failed=1)
    clean(result)
    line = (
        "the stage weigh reported an unknown metric: declare it in StagePlugin.metrics "
        "(unknown metric wieght_g (did you mean 'weight_g'?)"
    )
    assert [found for found in result.outlines if found.startswith(line)]
    metrics = read(bench)  # what was measured is kept
    assert (metrics["status"], len(metrics["samples"])) == ("error", 2)
    assert metrics["errors"][0]["error"].startswith(line)
    assert "wieght_g" not in metrics["figures"]
    assert (bench.stage_dir(stage="weigh") / "report.md").is_file()


@pytest.mark.parametrize("name", ["weight_g", "ttft_ms"])
@pytest.mark.parametrize("args", [STAGE, []])
def test_two_metrics_of_one_name_are_an_error_before_anything_runs(bench, name, args):
    bench.own_metrics('"greetings",', f'"{name}",')
    bench.test("raise AssertionError('it was collected')" if args else "def test_it(llmprof): pass")
    if args:
        assert bench.usage_error(args=args) == f"two plugins declare the metric {name!r}: names must differ"
        return
    result = bench.run()  # found where a test asks
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    clean(result)
    assert [line for line in result.errlines if line] == [
        f"ERROR: two plugins declare the metric {name!r}: names must differ"
    ]


def test_one_metric_may_be_declared_twice(bench):
    """As two stages that share one do."""
    hook = "def pytest_llmprof_metrics(config):\n    return ["
    bench.own_metrics(hook, f"{hook}WEIGHT, ")
    bench.test()
    bench.passed(*ECHO, args=STAGE)
    assert [metric["name"] for metric in bench.run_json()["metrics"]].count("weight_g") == 1


def test_a_name_that_cannot_be_a_key(bench):
    bench.own_metrics('"greetings",', '"Greetings here",')
    assert bench.usage_error(args=STAGE).startswith("the metric name 'Greetings here' cannot be a key: ")


def test_a_score_that_raises_fails_its_page(bench):
    bench.own_metrics()
    bench.test()
    given = [word.replace("hello world", "uncountable words") for word in ECHO]
    result = bench.run(*given, "pipeline.weigh.output.prediction.enable=true", args=STAGE)
    result.assert_outcomes(failed=1)
    text = "the metric words cannot be computed: ValueError: no luck"
    result.stdout.fnmatch_lines([f"2 pages failed: one: {text} (and 1 more: two)"])
    metrics = read(bench)
    assert metrics["errors"] == [{"page": page, "error": text} for page in ("one", "two")]
    assert (metrics["quality"]["pages"], metrics["figures"]["words"]) == (0, None)
    lines = (bench.stage_dir(stage="weigh") / "pred" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [(json.loads(line)["status"], json.loads(line)["error"]) for line in lines] == [("error", text)] * 2


def test_a_section_that_cannot_be_made_costs_the_section_alone(bench):
    bench.own_metrics("    if scales is None:\n", "    raise ValueError('no luck')\n    if scales is None:\n")
    bench.test(GATED.format(gates='weight_g="<=2"'))
    result = bench.run(*ECHO, args=STAGE)
    result.assert_outcomes(failed=1)
    clean(result)
    text = "the stage weigh cannot make its section of the report: ValueError: no luck"
    result.stdout.fnmatch_lines([text, "test_pages  weigh *1.25*"])
    assert bench.run_json()["tests"][0]["error"] == text
    assert read(bench)["gates"][0]["outcome"] == "passed"
    report = (bench.stage_dir(stage="weigh") / "report.md").read_text(encoding="utf-8")
    assert "| Weight of the answers (g) | 1.25 |" in report
    assert "## Scales" not in report


def test_a_callable_has_those_that_need_no_page(bench):
    bench.own_metrics()
    bench.test("def test_pages(llmprof):\n    assert llmprof.measure(sum, [1, 2]).words is None\n")
    bench.passed(args=STAGE)
    metrics = read(bench)
    assert (metrics["figures"]["weight_g"], metrics["quality"]) == (1.25, None)
    assert metrics["figures"]["longest_ms"] > 0


# -- --llmprof-columns ----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [[], ["-n2"]])
def test_chosen_columns(bench, workers):
    bench.own_metrics()
    bench.test()
    chosen = ["--llmprof-columns=decode_ms, cer", "--llmprof-columns", "weight_g,wer"]
    result = start(bench, workers, *ECHO, args=[*STAGE, *chosen])
    result.assert_outcomes(passed=1)
    assert heading(result) == ["Decode ms", "CER", "grams", "WER"]
    result.stdout.fnmatch_lines(["test_pages  weigh * 0 *1.25 * 0 *"])


def test_columns_of_the_ini_file(bench):
    bench.echo()
    bench.ini(llmprof_columns=["tpot_ms", "cer, tokens", "cer"])
    bench.test()
    result = bench.passed(*ECHO, args=["--llmprof-stage=direct_inference"])
    assert heading(result) == ["TPOT ms", "CER", "Tokens a page"]
    result = bench.passed(*ECHO, args=["--llmprof-stage=direct_inference", "--llmprof-columns=round_s"])
    assert heading(result) == ["Round s"]


def test_columns_of_the_ini_file_under_xdist(bench):
    bench.echo()
    bench.ini(*ECHO, "stages=[direct_inference]", tiny=False, llmprof_columns="cer")
    bench.test()
    result = bench.run_apart(args=["-n2"])
    result.assert_outcomes(passed=1)
    assert heading(result) == ["CER"]


def test_no_option_at_all_under_xdist(bench):
    bench.echo()
    bench.ini(tiny=False)
    marker = f"@pytest.mark.llmprof(overrides={list(ECHO)})"
    bench.test(f"import pytest\n{marker}\ndef test_pages(llmprof): llmprof.run()\n")
    result = bench.run_apart(args=["-n2"])
    result.assert_outcomes(passed=1)
    assert heading(result) == ["TTFT ms", "tokens/s", "page ms", "CER"]


@pytest.mark.parametrize("workers", [[], ["-n2"]])
@pytest.mark.parametrize(
    ("ini", "args", "text"),
    [
        ({}, ["--llmprof-columns=ttft"], "--llmprof-columns: unknown metric ttft (did you mean 'ttft_ms'?); allowed: "),
        (
            {"llmprof_columns": ["cer", "ttf_ms"]},
            [],
            "the ini value llmprof_columns: unknown metric ttf_ms (did you mean 'ttft_ms'?); allowed: ",
        ),
    ],
)
def test_an_unknown_column(bench, ini, args, text, workers):
    bench.ini(**ini)
    bench.test("def test_it(llmprof): raise AssertionError('it ran')")
    result = start(bench, workers, args=args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    clean(result)
    (line,) = [line for line in result.errlines if line.strip()]
    assert line.startswith(f"ERROR: {text}")
    assert "ttft_ms" in line.partition("allowed: ")[2]
    assert "it ran" not in result.stdout.str()
    assert not (bench.path / "llmprof-runs").exists()
