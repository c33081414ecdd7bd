"""What the page shows. Each test's data is a block of its own, which the page parses when the test is opened.

Names ending in `_html` hold HTML from `safe_html`; everything else is plain text, which the page shows as text.
Lists of numbers that belong together are columns: the first entries of all are of one thing.
"""

from __future__ import annotations

from msgspec import Raw, Struct

from pytest_llmprof.compare.result import Comparison
from pytest_llmprof.report.page.answers import Answer


class Column(Struct, frozen=True):
    """A metric of the run, a column of the overview."""

    name: str
    title: str
    """Label and unit."""
    title_of_call: str
    """The same in a test of a callable."""
    short: str
    """Heading of its column."""
    unit: str
    better: str | None
    quality: bool
    shown: bool
    """Whether the overview shows it before the reader chooses columns."""
    description: str


class Row(Struct, omit_defaults=True):
    """One test in one stage."""

    id: str
    stage: str
    outcome: str
    values: list[float | None]
    """One for each of `Overview.columns`."""
    dir: str | None = None
    kind: str | None = None
    error: str | None = None
    seconds: float | None = None
    engine: str | None = None
    device: str | None = None
    failed_gates: list[str] = []
    pages: int = 0
    gallery: int = 0
    """Pages of its gallery."""
    changed: int = 0
    """Pages whose answer is another than the baseline's, where both are there."""


class Note(Struct, frozen=True):
    """What a reader should know of some tests."""

    html: str
    tests: list[int]
    """Indexes of `Overview.rows`."""


class EnvironmentOf(Struct, frozen=True):
    """Where some tests ran."""

    rows: list[tuple[str, str]]
    tests: list[int]


class Overview(Struct, kw_only=True):
    """The first view."""

    name: str
    """The run directory's name."""
    status: str
    started: str
    command: str
    versions: dict[str, str | None]
    columns: list[Column]
    rows: list[Row]
    findings: list[Note]
    """What stands out in each test, the weightiest first."""
    warnings: list[Note]
    environments: list[EnvironmentOf]
    base: str
    """The run directory as the page links to it; empty where they lie together."""
    compared: bool = False
    """Whether there is a comparison with a baseline."""


class MetricRow(Struct, frozen=True):
    """A metric with what its median hides."""

    title: str
    value: float | None
    iqr: float | None = None
    min: float | None = None
    max: float | None = None
    p90: float | None = None
    p99: float | None = None


class PhaseRow(Struct, frozen=True):
    """A phase of the median page."""

    name: str
    part: bool
    """Whether it is a part of the phase before it that is none."""
    ms: float
    iqr: float | None
    share: float | None
    peak_gib: float | None


class GateRow(Struct, frozen=True):
    """A gate with its outcome."""

    outcome: str
    text: str


class Samples(Struct):
    """All samples, as columns. Times in milliseconds."""

    page: list[int]
    """Index of `TestData.pages`."""
    round: list[int]
    total: list[float | None]
    ttft: list[float | None]
    tpot: list[float | None]
    tokens: list[int]
    other: list[float | None]
    phases: dict[str, list[float | None]]


class Table(Struct):
    """A CSV file of the stage, or its first rows."""

    file: str
    columns: list[str]
    numeric: list[bool]
    rows: list[list[str]]
    total: int
    """Rows of the file."""
    short: list[str] = []
    """The first column's texts as a reader tells them apart, where C++ signatures are too long; else empty."""


class SectionOf(Struct, frozen=True):
    """A part of report.md that the stage made."""

    title: str
    html: str


class TestData(Struct, kw_only=True, omit_defaults=True):
    """One test in one stage."""

    __test__ = False

    repeat: str
    """The command that runs this test alone."""
    problem: str | None = None
    """Why its files cannot be read."""
    summary_html: str = ""
    facts_html: list[str] = []
    warnings_html: list[str] = []
    findings_html: list[str] = []
    sections: list[SectionOf] = []
    files_html: str = ""
    errors: list[tuple[str, str]] = []
    """Page (empty: the whole stage) and error."""
    metrics: list[MetricRow] = []
    phases: list[PhaseRow] = []
    metrics_note: str = ""
    quality: list[MetricRow] = []
    quality_note: str = ""
    gates: list[GateRow] = []
    pages: list[str] = []
    samples: Samples | None = None
    round_seconds: list[float] = []
    contended: list[bool] = []
    tables: list[Table] = []
    environment: list[tuple[str, str]] = []
    trace: str | None = None
    """The trace file in the stage directory."""
    timeline: str | None = None
    """"here": a block of the page; "file": only timeline.json has it."""
    batch: bool = False
    """Whether phases are those of a batch of several pages."""


class PageData(Struct, kw_only=True):
    """Everything that the page shows."""

    overview: Overview
    tests: list[TestData]
    """One for each row."""
    comparison: Comparison | None = None
    answers: dict[int, list[Answer]] = {}
    """The pages of the test of an index, for its gallery."""
    before: dict[int, list[Answer]] = {}
    """The baseline's answers that differ, for the test of an index."""
    timelines: dict[int, Raw] = {}
    """timeline.json of the test of an index."""
