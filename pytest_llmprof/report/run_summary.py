"""summary.md of a run: what a reader of a CI job wants first. Made only of the files in the run directory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_llmprof.compare.headline import headline
from pytest_llmprof.compare.result import COMPARISON, SCHEMA, Comparison
from pytest_llmprof.compare.table import comparison_section
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.records.catalogue import CALLABLE, Declaration, of_calls
from pytest_llmprof.records.environment import Environment
from pytest_llmprof.records.files import decode_record, read_bytes, write_text
from pytest_llmprof.records.metrics import Metrics
from pytest_llmprof.records.run import RunRecord, TestRecord
from pytest_llmprof.records.stage import StageRecords
from pytest_llmprof.report.failing_pages import FailingPage, failing_pages
from pytest_llmprof.report.findings import machine_warnings, page_notes
from pytest_llmprof.text.escape import inline
from pytest_llmprof.text.markdown import code, table
from pytest_llmprof.text.numbers import count, number

SUMMARY = "summary.md"
"""Its file in the run directory."""
_TESTS, _FAILED, _PAGES = 200, 50, 50
"""At most so many tests, failed tests and failing pages are shown: a CI job's summary takes 1 MiB."""
_OUTCOMES = ("passed", "failed", "skipped", "interrupted", "running")


@dataclass(frozen=True)
class TestSummary:
    """A test in one stage, with what it measured."""

    __test__ = False

    record: TestRecord
    metrics: Metrics | None = None
    """None where it measured nothing."""
    environment: Environment | None = None
    pages: Sequence[FailingPage] = ()
    problem: str | None = None
    """Why its files cannot be read."""

    @property
    def values(self) -> Mapping[str, float | None]:
        """Its metrics by name."""
        return {**self.metrics.figures, **(self.metrics.quality or {})} if self.metrics else {}

    @property
    def machine(self) -> str | None:
        """What it ran on: the GPU's name, or "CPU"."""
        return None if self.metrics is None else self.metrics.fingerprint.card or "CPU"


def write_summary(run_dir: Path, *, not_compared: str = "") -> None:
    """Write `summary.md` into *run_dir* from run.json, comparison.json and the tests' files there.

    *not_compared* says why the run has no comparison with the baseline that was asked for. Raises `ArtifactError`
    where run.json or comparison.json cannot be read, or summary.md cannot be written.
    """
    run = RunRecord.read(run_dir)
    path = run_dir / COMPARISON
    comparison = decode_record(read_bytes(path), Comparison, SCHEMA, path) if path.exists() else None
    tests = [_read(run_dir, test, run.metrics) for test in run.tests]
    write_text(run_dir / SUMMARY, run_summary(run, tests, comparison, not_compared=not_compared))


def run_summary(
    run: RunRecord, tests: Sequence[TestSummary], comparison: Comparison | None = None, *, not_compared: str = ""
) -> str:
    """The summary as Markdown. Its first line is the verdict against the baseline; without one, what was measured."""
    parts = [f"{_first_line(run, tests, comparison, not_compared)}\n", _table(run, tests), _notes(tests)]
    failed = [test for test in tests if test.record.outcome in ("failed", "interrupted") or test.problem]
    if failed:
        lines = [f"- {code(test.record.id, 300, cell=False)}: {inline(_why(test), 600)}\n" for test in failed[:_FAILED]]
        lines += [f"- and {len(failed) - _FAILED} more, in run.json\n"] if len(failed) > _FAILED else []
        parts.append(f"## Failed tests\n\n{''.join(lines)}")
    parts.append(_failing_pages(tests))
    if comparison is not None:
        parts.append(comparison_section(comparison))
    return "\n".join(part for part in parts if part)


def _first_line(
    run: RunRecord, tests: Sequence[TestSummary], comparison: Comparison | None, not_compared: str
) -> str:
    outcomes = Counter(test.record.outcome for test in tests)
    counts = ", ".join(f"{outcomes[outcome]} {outcome}" for outcome in _OUTCOMES if outcomes[outcome])
    ended = {"interrupted": "The run was interrupted. ", "stopped": "The run was stopped. "}.get(run.status, "")
    if comparison is not None:
        verdict, _, rest = inline(headline(comparison), 1000).partition(":")
        broken = outcomes["failed"] + outcomes["interrupted"]
        failed = f" {broken} of {count(len(tests), 'test')} failed." if broken else ""
        return f"{ended}**{verdict}**{f':{rest}' if rest else ''}.{failed}"
    begin = f"{ended}**{count(len(tests), 'test')}{f': {counts}' if counts else ''}.**"
    if not_compared:
        begin = f"**Not compared:** {inline(not_compared, 600)}. {begin}"
    measured = [_measured(run.metrics, tests, machine) for machine in dict.fromkeys(test.machine for test in tests)]
    found = [text for text in measured if text]
    return " ".join([begin, *found]) if found else f"{begin} Nothing was measured."


def _measured(metrics: Sequence[Declaration], tests: Sequence[TestSummary], machine: str | None) -> str:
    """The tests' main metrics on one machine: "CPU: Time to first token 61.2 to 70.3 ms, Decode 240 to 248 tokens/s."

    One GPU's numbers never stand in one range with another's, nor a callable's with those of pages, which come first.
    """
    if machine is None:
        return ""
    here = [test for test in tests if test.machine == machine]
    pages = [test for test in here if test.record.kind != CALLABLE]
    parts = []
    for metric in _columns(metrics, here):
        values = [value for test in pages or here if (value := test.values.get(metric.name)) is not None]
        if values:
            ends = dict.fromkeys((number(min(values)), number(max(values))))
            unit = f" {inline(metric.unit)}" if metric.unit and metric.unit != "share" else ""
            label = of_calls(metric.label or metric.name, _kinds(pages or here))
            parts.append(f"{inline(label)} {' to '.join(ends)}{unit}")
    return f"{inline(machine)}: {', '.join(parts)}." if parts else ""


def _kinds(tests: Sequence[TestSummary]) -> set[str | None]:
    return {test.record.kind for test in tests if test.metrics}


def _columns(metrics: Sequence[Declaration], tests: Sequence[TestSummary]) -> list[Declaration]:
    """The metrics that the terminal shows and a test has."""
    return [
        metric
        for metric in metrics
        if "terminal" in metric.shown and any(test.values.get(metric.name) is not None for test in tests)
    ]


def _table(run: RunRecord, tests: Sequence[TestSummary]) -> str:
    columns = _columns(run.metrics, tests)
    several = len({test.machine for test in tests if test.machine}) > 1
    rows = []
    for test in tests[:_TESTS]:
        outcome = "passed" if test.record.outcome == "passed" else f"**{inline(test.record.outcome)}**"
        values = [number(value) if (value := test.values.get(metric.name)) is not None else "–" for metric in columns]
        rows.append([code(test.record.id, 300), outcome, *([inline(test.machine or "–")] if several else []), *values])
    headings = [inline(of_calls(metric.column, _kinds(tests))) for metric in columns]
    head = ["Test", "Outcome", *(["GPU"] if several else []), *headings]
    more = f"\n{len(tests) - _TESTS} more tests: see run.json\n" if len(tests) > _TESTS else ""
    return table(head, rows, 3 if several else 2) + more


def _notes(tests: Sequence[TestSummary]) -> str:
    """What makes times doubtful and which pages are not in them, each with its tests."""
    found: dict[str, list[str]] = {}
    for test in tests:
        if test.metrics is None:
            continue
        for text in (*machine_warnings(test.metrics, test.environment, brief=True), *page_notes(test.metrics, inline)):
            found.setdefault(text, []).append(test.record.id)
    lines = [
        f"> **Note:** {code(ids[0], 300, cell=False)}{f' and {len(ids) - 1} more' if len(ids) > 1 else ''}: {text}\n"
        for text, ids in list(found.items())[:_FAILED]
    ]
    return ">\n".join(lines)


def _why(test: TestSummary) -> str:
    if test.problem:
        return test.problem
    return test.record.error or (test.record.outcome if test.record.outcome != "failed" else "no reason is recorded")


def _failing_pages(tests: Sequence[TestSummary]) -> str:
    pages = [(test.record.id, page) for test in tests for page in test.pages]
    if not pages:
        return ""
    rows = [
        [code(test, 300), inline(page.page, 120), inline(page.why), code(page.image or "", 500)]
        for test, page in pages[:_PAGES]
    ]
    more = f"\n{len(pages) - _PAGES} more: see each test's report.md\n" if len(pages) > _PAGES else ""
    return f"## Failing pages\n\n{table(['Test', 'Page', 'Why', 'Image'], rows, 4)}{more}"


def _read(run_dir: Path, test: TestRecord, metrics: Sequence[Declaration]) -> TestSummary:
    """A test with its files; one that cannot be read says why."""
    stage_dir = run_dir / test.dir if test.dir else None
    if stage_dir is None or not (stage_dir / "metrics.json").exists():
        return TestSummary(test)
    try:
        records = StageRecords.read(stage_dir)
    except ArtifactError as error:
        return TestSummary(test, problem=str(error))
    summary = TestSummary(test, records.metrics, records.environment)
    return replace(summary, pages=list(failing_pages(run_dir, stage_dir, records.metrics, metrics)))
