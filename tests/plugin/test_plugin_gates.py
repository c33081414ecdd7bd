"""`@pytest.mark.llmprof_gate`: absolute limits that fail the test itself."""

from __future__ import annotations

import json

import pytest
from plugin_bench import clean

ECHO = ("model=echo", "dataset=blank", "infer.prompt='hello world'")
"""One page with the truth "hello world", and a model that says just that."""
STAGE = ["--llmprof-stage=direct_inference"]


def gated(gate: str, body: str = "llmprof.run()") -> str:
    return f"import pytest\n@pytest.mark.llmprof_gate({gate})\ndef test_pages(llmprof):\n    {body}\n"


def metrics(bench) -> dict:
    return json.loads((bench.stage_dir(stage="direct_inference") / "metrics.json").read_text())


def test_passes(bench):
    bench.echo()
    bench.test(gated('cer="<=0.05", ttft_ms="<=100000", tokens=">=2", pages_per_s=">0"'))
    bench.passed(*ECHO, args=STAGE)
    assert {gate["name"]: gate["outcome"] for gate in metrics(bench)["gates"]} == {
        "cer": "passed",
        "ttft_ms": "passed",
        "tokens": "passed",
        "pages_per_s": "passed",
    }


def test_fails_the_test_with_limit_and_figure(bench):
    bench.echo()
    bench.test(gated('cer="<=0.05", tokens=">=2"'))
    result = bench.run("model=echo", "dataset=blank", "infer.prompt='hello there'", args=STAGE)
    result.assert_outcomes(failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    clean(result)
    result.stdout.fnmatch_lines(
        [
            "llmprof_gate: cer is 0.*, limit <=0.05",
            "*llmprof gates*",
            "metric*limit*measured*outcome",
            "cer *<=0.05*0.*failed",
            "tokens *>=2*2*passed",
        ]
    )
    (test,) = bench.run_json()["tests"]
    assert test["outcome"] == "failed"
    assert "cer is 0." in test["error"]
    assert [gate["outcome"] for gate in metrics(bench)["gates"]] == ["failed", "passed"]


def test_not_applicable_does_not_fail(bench):
    bench.test(gated('cer="<=0.05", peak_memory_gib="<=1", tokens="==4"'))
    result = bench.passed("model.weights=random", args=[*STAGE, "-rA"])
    result.stdout.fnmatch_lines(
        ["cer *<=0.05*n/a*not applicable*", "peak_memory_gib *<=1*n/a*not applicable*", "tokens *==4*4*passed"]
    )
    assert [gate["figure"] for gate in metrics(bench)["gates"]] == [None, None, 4.0]


def test_a_callables_figures(bench):
    bench.test(gated('total_ms="<=100000", ttft_ms="<=1"', "llmprof.measure(sum, [1, 2])"))
    bench.passed(args=STAGE)


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (
            'cre="<=0.05"',
            "llmprof_gate(cre='<=0.05') at *: unknown metric cre (did you mean 'cer'?); allowed: *",
        ),
        ('cer="0.05"', "llmprof_gate(cer='0.05') at *: a limit is a text such as *<=0.05*"),
        ("cer=0.05", "llmprof_gate(cer=0.05) at *: a limit is a text such as *<=0.05*"),
        ('cer="<=five"', "llmprof_gate(cer='<=five') at *"),
        ('"cer<=0.05"', "llmprof_gate of * takes limits by name, not 'cer<=0.05': write llmprof_gate(cer=*"),
    ],
)
def test_a_broken_gate_fails_its_test_before_it_runs(bench, gate, message):
    bench.test(gated(gate, "raise AssertionError('it ran')") + "def test_good(llmprof_config): pass\n")
    result = bench.run()
    result.assert_outcomes(errors=1, passed=1)
    result.stdout.fnmatch_lines([message.replace("[", "[[]")])
    assert "it ran" not in result.stdout.str()
    clean(result)


def test_a_gate_without_a_run(bench):
    bench.test(gated('cer="<=0.05"', "pass"))
    result = bench.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["llmprof_gate: the test called neither llmprof.run() nor llmprof.measure()"])


def test_a_gate_on_a_test_that_does_not_ask(bench):
    bench.test("import pytest\n@pytest.mark.llmprof_gate(cer='<=0.05')\ndef test_it(): pass\n")
    result = bench.run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["llmprof_gate of test_it.py::test_it: the test asks for no fixture of llmprof*"])


def test_the_nearest_limit_holds(bench):
    bench.echo()
    bench.test(
        """
import pytest
pytestmark = pytest.mark.llmprof_gate(tokens=">=100", cer="<=0.5")
def test_module(llmprof):
    llmprof.run()
@pytest.mark.llmprof_gate(tokens=">=2")
def test_function(llmprof):
    llmprof.run()
"""
    )
    result = bench.run(*ECHO, args=STAGE)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["llmprof_gate: tokens is 2, limit >=100"])


def test_a_failed_assertion_comes_first(bench):
    bench.echo()
    bench.test(gated('tokens=">=100"', "assert llmprof.run().tokens == 7"))
    result = bench.run(*ECHO, args=STAGE)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *assert 2.0 == 7*", "*llmprof gates*", "tokens *failed"])
    assert "assert 2.0 == 7" in bench.run_json()["tests"][0]["error"]


def test_xfail_covers_a_gate(bench):
    bench.echo()
    bench.test("import pytest\n" + gated('tokens=">=100"').replace("@pytest", "@pytest.mark.xfail\n@pytest", 1))
    result = bench.run(*ECHO, args=STAGE)
    result.assert_outcomes(xfailed=1)


def test_an_answer_without_a_token_fails_its_page_before_any_gate(bench):
    bench.echo()
    bench.test(
        """
import pytest

@pytest.mark.llmprof_gate(tokens=">=1")
def test_pages(llmprof):
    llmprof.run()
"""
    )
    result = bench.run("model=echo", "dataset=blank", "infer.prompt=mute", args=STAGE)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*page failed: one: the model's answer breaks its contract: no token at all*"])


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("garbled words", "ValueError: no luck"),
        ("typeless words", "parse() returned a ParsedOutput of other types: Expected `str`, got `bytes`"),
    ],
)
def test_an_answer_that_the_model_cannot_read_fails_its_page(bench, prompt, text):
    bench.echo()
    bench.test()
    result = bench.run("model=echo", "dataset=blank", f"infer.prompt='{prompt}'", args=STAGE)
    result.assert_outcomes(failed=1)
    found = json.loads((bench.stage_dir(stage="direct_inference") / "metrics.json").read_text())
    (error,) = found["errors"]
    assert error["page"] == "one"
    assert error["error"].startswith(f"the model cannot read its answer: {text}")
    assert found["quality_reason"] == "no page was answered"


def test_a_coroutine_is_not_measured(bench):
    bench.test(
        """
async def call():
    pass

def test_call(llmprof):
    llmprof.measure(call)
"""
    )
    result = bench.run(args=STAGE)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["llmprof.measure() got a coroutine function: give it what runs the coroutine"])
