"""The first line of a comparison."""

from __future__ import annotations

from typing import Any

import pytest
from saved_runs import saved_run, saved_test

from pytest_llmprof.compare.compare import Terms, compare
from pytest_llmprof.compare.headline import headline
from pytest_llmprof.compare.result import Comparison, Row, Side
from pytest_llmprof.compare.rules import parse_rules
from pytest_llmprof.compare.table import comparison_section, render
from pytest_llmprof.compare.verdicts import Verdict
from pytest_llmprof.records.catalogue import BUILTIN

SIDES = (Side("main", 1, ("1",), "H100", None, False), Side("llmprof-runs/x", 1, ("2",), "H100", None, False))


def row(verdict: Verdict, ratio: float | None = None, **changes: Any) -> Row:
    values = {
        "test": "test_x.py::test_pages[free]",
        "stage": "direct_inference",
        "metric": "decode_ms",
        "title": "Decode (ms)",
        "shown": True,
        "before": 540.0,
        "after": None if ratio is None else 540.0 * ratio,
        "ratio": ratio,
        "verdict": verdict,
    }
    return Row(**{**values, **changes})


def comparison(*rows: Row, **changes: Any) -> Comparison:
    values: dict[str, Any] = {
        "margin": 0.006,
        "alpha": 0.01,
        "gated": sum(row.limit is not None for row in rows),
        "notices": [],
        "only_before": [],
        "only_after": [],
        "texts": [],
        "kernels": [],
    }
    return Comparison(before=SIDES[0], after=SIDES[1], rows=list(rows), **{**values, **changes})


SLOWER = row(Verdict.SLOWER, 1.05, low=1.032, high=1.07)
MUCH_SLOWER = row(Verdict.SLOWER, 1.5, title="Prefill (ms)")
FASTER = row(Verdict.FASTER, 0.8)
SAME = row(Verdict.SAME, 1.0)
UNCLEAR = row(Verdict.UNCLEAR, 1.01, low=0.99, high=1.03)
ABSENT = row(Verdict.NOT_MEASURED, note="missing after")


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (
            [SLOWER],
            "Slower than main: Decode (ms) of test_x.py::test_pages[free] +5.0 % (+3.2 to +7.0 %), 540 → 567; "
            "1 of 1 metric slower",
        ),
        (
            [SAME, FASTER, SLOWER, MUCH_SLOWER],
            "Slower than main: Prefill (ms) of test_x.py::test_pages[free] +50.0 %, 540 → 810; "
            "2 of 4 metrics slower, 1 faster, 1 same",
        ),
        (
            [SAME, FASTER, UNCLEAR],
            "Faster than main: Decode (ms) of test_x.py::test_pages[free] -20.0 %, 540 → 432; "
            "1 of 3 metrics faster, 1 unclear, 1 same",
        ),
        (
            [SAME, UNCLEAR],
            "Unclear against main: Decode (ms) of test_x.py::test_pages[free] +1.0 % (-1.0 to +3.0 %), 540 → 545; "
            "1 of 2 metrics unclear, 1 same",
        ),
        ([SAME, SAME], "The same as main within 0.6 %: 2 metrics"),
        (
            [SAME, ABSENT],
            "Not measured against main: Decode (ms) of test_x.py::test_pages[free], 540 → n/a (missing after); "
            "1 of 2 metrics not measured, 1 same",
        ),
        ([], "Not compared with main: no metric is on both sides"),
        ([row(Verdict.SAME, 1.0, shown=False)], "Not compared with main: no metric is on both sides"),
    ],
)
def test_each_verdict(rows, text):
    assert headline(comparison(*rows)) == text


def test_gated_rows_decide_and_others_are_named():
    gated = row(Verdict.SAME, 1.0, limit="2%")
    assert headline(comparison(gated)) == "The same as main within 0.6 %: 1 metric with a gate"
    text = headline(comparison(row(Verdict.UNCLEAR, 1.0, limit="2%"), SLOWER))
    assert text.startswith("Unclear against main: Decode (ms) of test_x.py::test_pages[free] +0.0 %, 540 → 540, limit")
    assert text.endswith("; without a gate: 1 slower")


def test_a_slower_metric_without_a_gate_is_not_hidden_behind_gates_that_hold():
    text = headline(comparison(row(Verdict.SAME, 1.0, limit="2%"), SLOWER))
    assert text == "The same as main within 0.6 %: 1 metric with a gate; without a gate: 1 slower"


def test_a_broken_gate_comes_first():
    broken = row(Verdict.WORSE, None, title="Character error rate", before=0.03, after=0.04, limit="0.005", failed=True)
    text = headline(comparison(row(Verdict.SLOWER, 1.5, limit="60%"), broken))
    assert text.startswith("Worse than main: Character error rate of test_x.py::test_pages[free], 0.0300 → 0.0400, ")


@pytest.mark.parametrize(("names", "text"), [(["a"], "1 test of main was"), (["a", "b"], "2 tests of main were")])
def test_missing_tests_are_counted(names, text):
    assert headline(comparison(SAME, only_before=names)).endswith(f"; {text} not run")


def test_it_is_one_line_whatever_names_hold():
    text = headline(comparison(row(Verdict.SLOWER, 1.05, test="a\nb\x1b[31m", title="x\ry")))
    assert "\n" not in text
    assert "\x1b" not in text
    assert "\r" not in text


@pytest.mark.parametrize(("form", "first"), [("text", "{}"), ("markdown", "**{}**")])
def test_text_and_markdown_begin_with_it(form, first):
    rules = parse_rules(["tpot_ms:2%"], [metric.declaration for metric in BUILTIN])
    before, after = (saved_run(saved_test(figures={"tpot_ms": value}), key=str(value)) for value in (0.5, 0.6))
    found = compare([before], [after], Terms(rules=rules))
    line = render(found, form).splitlines()[0].replace("\\", "")
    assert line == first.format(headline(found))
    assert line.strip("*").startswith("Slower than runs/0.5: Time per output token (ms) of test_x.py::test_pages +20.0")


def test_a_section_has_tests_that_changed_first_and_at_most_50():
    rows = [row(Verdict.SAME, 1.0, test=f"test_{number}") for number in range(60)]
    text = comparison_section(comparison(*rows, row(Verdict.SLOWER, 1.05, test="changed")))
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings[:3] == ["## Compared with main", "### changed", "### test_0"]
    assert len(headings) == 51
    assert "11 more tests: see comparison.json" in text
