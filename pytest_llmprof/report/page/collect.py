"""Reads the files of a run into what the page shows."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from msgspec import Raw
from msgspec.structs import replace

from pytest_llmprof.compare.result import Comparison
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.records.catalogue import CALLABLE, Declaration, of_calls
from pytest_llmprof.records.files import decode_record, read_bytes
from pytest_llmprof.records.metrics import Metrics, Sample, gate_texts
from pytest_llmprof.records.run import RunRecord, TestRecord
from pytest_llmprof.records.stage import StageRecords
from pytest_llmprof.records.timeline import SCHEMA, TIMELINE, Timeline
from pytest_llmprof.report.environment_table import environment_rows
from pytest_llmprof.report.findings import warnings
from pytest_llmprof.report.page.answers import Answer, read_answers
from pytest_llmprof.report.page.data import (
    Column,
    EnvironmentOf,
    GateRow,
    MetricRow,
    Note,
    Overview,
    PageData,
    PhaseRow,
    Row,
    Samples,
    TestData,
)
from pytest_llmprof.report.page.repeat import repeat_command
from pytest_llmprof.report.page.safe_html import to_html
from pytest_llmprof.report.page.stage_files import ReportParts, csv_tables, read_report
from pytest_llmprof.report.sections import phase_share
from pytest_llmprof.report.stage_report import figures_note, in_figures, over_pages, summary
from pytest_llmprof.text.escape import one_line, visible
from pytest_llmprof.text.numbers import count, significant

REPORTS = 400
"""Tests whose report.md is in the page: more would take too long to read. Failed tests come first."""
_ALSO_SHOWN = ("peak_memory_gib", "joules_per_page", "gpu_busy_share", "decode_mfu", "decode_mbu")
"""Columns that the overview has beside those of the terminal, where a test has a value."""
_TRACE = "trace.json.gz"
TIMELINE_BYTES = 40_000_000
"""Timelines that the page holds, before they are packed to about a sixth; of later tests the reader opens the file."""
_PARTS = ("sam", "clip", "projector")
_NUMBER = re.compile(r"<code>.*?</code>|<[^>]*>|&#?\w+;|(?<![\w.])(\d+(?:,\d{3})*(?:\.\d+)?)(?![\w.]*\d)")
"""A number in HTML is its group 1. Those in code, tags, names and versions are none."""


def collect(
    run_dir: Path, comparison: Comparison | None = None, base: str = "", before: Path | None = None
) -> PageData:
    """Read the run in *run_dir*; *comparison* is its comparison with a baseline.

    *base* is how the page links to the run directory; *before* is the baseline's run directory, for the answers that
    differ. Raises `ArtifactError` where run.json cannot be read; a test whose files cannot be read says so.
    """
    run = RunRecord.read(run_dir)
    columns = [_column(metric) for metric in run.metrics]
    with_report = _with_report(run.tests)
    rows: list[Row] = []
    tests: list[TestData] = []
    answers: dict[int, list[Answer]] = {}
    timelines = _Timelines()
    doubts: list[tuple[str, int]] = []
    for index, record in enumerate(run.tests):
        data = TestData(repeat=repeat_command(run.argv, visible(record.id)))
        row = Row(visible(record.id), record.stage, record.outcome, [], record.dir, record.kind)
        row.error = record.error and visible(record.error)
        row.seconds = significant(record.seconds)
        try:
            records = _records(run_dir, record)
            report = _report(run_dir, record) if index in with_report else ReportParts()
        except ArtifactError as error:
            records, report = None, ReportParts()
            data.problem = visible(str(error))
        if records is not None:
            _fill_row(row, records.metrics, columns)
            _fill(data, records, run.metrics)
        _fill_report(data, report)
        brief = _brief(records) if report.warnings_html else {}
        doubts += [(brief.get(text, text), index) for text in report.warnings_html]
        if record.dir:
            data.tables = csv_tables(run_dir / record.dir)
            data.trace = _TRACE if (run_dir / record.dir / _TRACE).is_file() else None
            try:
                data.timeline = timelines.add(index, run_dir / record.dir / TIMELINE)
                if found := read_answers(run_dir, record.dir):
                    answers[index], row.gallery = found, len(found)
            except ArtifactError as error:
                data.problem = data.problem or visible(str(error))
        rows.append(row)
        tests.append(data)
    with_values = [at for at in range(len(columns)) if any(row.values and row.values[at] is not None for row in rows)]
    for row in rows:
        row.values = [row.values[at] for at in with_values] if row.values else []
    kinds = {row.kind for row in rows if row.values}
    old_answers = _changed(run, answers, before)
    for index, changed in old_answers.items():
        rows[index].changed = len(changed)
    overview = Overview(
        name=visible(run_dir.resolve().name),
        status=run.status,
        started=run.started,
        command=visible(shlex.join(["pytest", *run.argv])),
        versions=run.versions,
        columns=[_headed(columns[at], kinds) for at in with_values],
        rows=rows,
        findings=_findings(tests),
        warnings=_grouped(doubts),
        environments=_environments(tests),
        base=base,
        compared=comparison is not None,
    )
    return PageData(
        overview=overview,
        tests=tests,
        comparison=comparison,
        answers=answers,
        before=old_answers,
        timelines=timelines.blocks,
    )


class _Timelines:
    """The timelines that the page holds."""

    def __init__(self) -> None:
        self.blocks: dict[int, Raw] = {}
        self._bytes = 0

    def add(self, index: int, path: Path) -> str | None:
        """Take the timeline at *path*, where there is one: "here"; "file" where the page would become too large."""
        if not path.is_file():
            return None
        if self._bytes + path.stat().st_size > TIMELINE_BYTES:
            return "file"
        data = read_bytes(path)
        decode_record(data, Timeline, SCHEMA, path)
        self._bytes += len(data)
        self.blocks[index] = Raw(data)
        return "here"


def _changed(run: RunRecord, answers: Mapping[int, Sequence[Answer]], before: Path | None) -> dict[int, list[Answer]]:
    """The answers of the run in *before* to pages whose answer is another in this run."""
    if before is None:
        return {}
    places = {(test.id, test.stage): test.dir for test in RunRecord.read(before).tests}
    found: dict[int, list[Answer]] = {}
    for index, new in answers.items():
        record = run.tests[index]
        directory = places.get((record.id, record.stage))
        now = {answer.page: answer.raw for answer in new}
        changed = [
            answer
            for answer in (read_answers(before, directory) if directory else ())
            if now.get(answer.page, answer.raw) != answer.raw
        ]
        if changed:
            found[index] = changed
    return found


def _column(metric: Declaration) -> Column:
    return Column(
        metric.name,
        metric.title,
        metric.title_for(CALLABLE),
        metric.column if metric.heading else metric.title,
        metric.unit,
        metric.better,
        metric.section == "quality",
        "terminal" in metric.shown or metric.name in _ALSO_SHOWN,
        metric.description,
    )


def _headed(column: Column, kinds: Collection[str | None]) -> Column:
    """*column* with the word for what the run's tests measure."""
    return replace(column, short=of_calls(column.short, kinds))


def _with_report(tests: Sequence[TestRecord]) -> set[int]:
    order = sorted(range(len(tests)), key=lambda index: (tests[index].outcome == "passed", index))
    return set(order[:REPORTS])


def _records(run_dir: Path, test: TestRecord) -> StageRecords | None:
    if not test.dir or not (run_dir / test.dir / "metrics.json").exists():
        return None
    return StageRecords.read(run_dir / test.dir)


def _report(run_dir: Path, test: TestRecord) -> ReportParts:
    return read_report(run_dir / test.dir, test.dir) if test.dir else ReportParts()


def _fill_row(row: Row, metrics: Metrics, columns: Sequence[Column]) -> None:
    values = {**metrics.figures, **(metrics.quality or {})}
    row.values = [significant(values.get(column.name)) for column in columns]
    row.kind = row.kind or metrics.kind
    row.failed_gates = [gate.name for gate in metrics.gates if gate.outcome == "failed"]
    row.engine = metrics.model.engine if metrics.model else None
    row.device = metrics.fingerprint.card or metrics.device or None
    row.pages = metrics.pages


def _fill(data: TestData, records: StageRecords, catalogue: Sequence[Declaration]) -> None:
    metrics = records.metrics
    data.summary_html = to_html(summary(metrics), "", inline=True)
    data.errors = [(visible(one.page or ""), one_line(one.error, 600)) for one in metrics.errors]
    data.metrics = [
        _metric_row(metric, metrics.figures.get(metric.name), metrics)
        for metric in catalogue
        if metrics.figures.get(metric.name) is not None and in_figures(metric, metrics)
    ]
    phases = list(_phases(metrics, catalogue))
    data.phases = phases if any(phase.name != "other" for phase in phases) else []
    data.metrics_note = figures_note(metrics)
    quality = metrics.quality or {}
    data.quality = [
        _metric_row(metric, quality.get(metric.name), metrics)
        for metric in catalogue
        if "quality" in metric.shown and quality.get(metric.name) is not None
    ]
    data.quality_note = _quality_note(metrics)
    data.gates = [
        GateRow(outcome, visible(text))
        for outcome in dict.fromkeys(gate.outcome for gate in metrics.gates)
        for text in gate_texts(gate for gate in metrics.gates if gate.outcome == outcome)
    ]
    data.round_seconds = [significant(one) or 0.0 for one in metrics.round_seconds]
    data.contended = [host.contended for host in metrics.round_host]
    data.environment = [(name, visible(value)) for name, value in environment_rows(records.environment)]
    data.batch = metrics.batch_size > 1
    if metrics.samples:
        data.pages, data.samples = _samples(metrics.samples)


def _metric_row(metric: Declaration, value: float | None, metrics: Metrics) -> MetricRow:
    spread = metrics.spread.get(metric.name)
    if spread is None:
        return MetricRow(metric.title_for(metrics.kind), significant(value))
    p99 = spread.p99 if isinstance(spread.p99, float) else None
    ends = (spread.min, spread.max, spread.p90, p99) if over_pages(metrics, metric.name) else ()
    return MetricRow(metric.title_for(metrics.kind), *map(significant, (value, spread.iqr, *ends)))


def _phases(metrics: Metrics, catalogue: Sequence[Declaration]) -> Iterator[PhaseRow]:
    for metric in catalogue:
        value = metrics.figures.get(metric.name)
        if "phases" not in metric.shown or value is None:
            continue
        name = metric.name.removesuffix("_ms")
        spread = metrics.spread.get(metric.name)
        peak = (metrics.phase_peaks or {}).get(name)
        yield PhaseRow(
            name,
            name in _PARTS,
            value,
            significant(spread.iqr) if spread else None,
            significant(phase_share(metrics, name)),
            significant(peak.allocated_bytes / 2**30) if peak else None,
        )


def _quality_note(metrics: Metrics) -> str:
    quality = metrics.quality or {}
    parts = []
    if (scored := quality.get("pages")) is not None and (truth := quality.get("truth_pages")) is not None:
        parts.append(f"{count(int(scored), 'page')} scored, {int(truth)} of them against a true text.")
    if metrics.quality_reason:
        parts.append(f"Not applicable: {visible(metrics.quality_reason)}." if not quality else metrics.quality_reason)
    return visible(" ".join(parts))


def _samples(samples: Sequence[Sample]) -> tuple[list[str], Samples]:
    """The names of the pages, and the samples as columns."""
    numbers = {page: index for index, page in enumerate(dict.fromkeys(sample.page for sample in samples))}
    phases = dict.fromkeys(name for sample in samples for name in sample.phases)
    columns = Samples(
        page=[numbers[sample.page] for sample in samples],
        round=[sample.round for sample in samples],
        total=[significant(sample.total_ms) for sample in samples],
        ttft=[significant(sample.ttft_ms) for sample in samples],
        tpot=[significant(sample.tpot_ms) for sample in samples],
        tokens=[sample.tokens for sample in samples],
        other=[significant(sample.other_ms) for sample in samples],
        phases={name: [significant(sample.phases.get(name)) for sample in samples] for name in phases},
    )
    return [one_line(page) for page in numbers], columns


def _fill_report(data: TestData, report: ReportParts) -> None:
    data.facts_html = report.facts_html
    data.warnings_html = report.warnings_html
    data.findings_html = report.findings_html
    data.sections = report.sections
    data.files_html = report.files_html


def _findings(tests: Sequence[TestData]) -> list[Note]:
    """The first finding of each test, those that differ only in numbers together; tests with more follow in their own
    view."""
    return _grouped(_with_ranges([(test.findings_html[0], at) for at, test in enumerate(tests) if test.findings_html]))


def _with_ranges(texts: Sequence[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """The *texts*; those that differ only in numbers are equal, with the range of each number: "15.1 to 40.2 %"."""
    alike: dict[str, list[list[str]]] = {}
    words = []
    for html, _ in texts:
        numbers = [match[1] for match in _NUMBER.finditer(html) if match[1]]
        words.append(_NUMBER.sub(lambda match: "\0" if match[1] else match[0], html))
        alike.setdefault(words[-1], []).append(numbers)
    shown = {key: _filled(key, list(zip(*found, strict=True))) for key, found in alike.items()}
    return ((shown[key], index) for key, (_, index) in zip(words, texts, strict=True))


def _filled(words: str, numbers: Sequence[Sequence[str]]) -> str:
    """*words* with the range of *numbers* in the place of each NUL."""
    first, *others = words.split("\0")
    for column, rest in zip(numbers, others, strict=True):
        rising = sorted(column, key=lambda one: float(one.replace(",", "")))
        first += (rising[0] if rising[0] == rising[-1] else f"{rising[0]} to {rising[-1]}") + rest
    return first


def _brief(records: StageRecords | None) -> Mapping[str, str]:
    """A test's notes as the report has them, and as they are where equal ones of many tests stand together."""
    if records is None:
        return {}
    both = (warnings(records.metrics, records.environment, brief=brief) for brief in (False, True))
    return {to_html(full, "", inline=True): to_html(brief, "", inline=True) for full, brief in zip(*both, strict=True)}


def _grouped(texts: Iterable[tuple[str, int]]) -> list[Note]:
    found: dict[str, list[int]] = {}
    for text, index in texts:
        found.setdefault(text, []).append(index)
    return [Note(text, indexes) for text, indexes in found.items()]


def _environments(tests: Sequence[TestData]) -> list[EnvironmentOf]:
    """Where the tests ran, without what changes from test to test (clocks, heat)."""
    found: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for index, test in enumerate(tests):
        steady = tuple(row for row in test.environment if not _changes(row[0]))
        if steady:
            found.setdefault(steady, []).append(index)
    return [EnvironmentOf(list(rows), indexes) for rows, indexes in found.items()]


def _changes(name: str) -> bool:
    return name.startswith(("GPU state", "Throttled"))
