"""The result of a comparison, as it is shown and as JSON."""

from __future__ import annotations

from msgspec import Struct

from pytest_llmprof.compare.kernels import KernelChange
from pytest_llmprof.compare.verdicts import Verdict
from pytest_llmprof.text.numbers import count, number

SCHEMA = 1
"""Version of the JSON of a comparison."""
COMPARISON = "comparison.json"
"""Its file in a run directory."""


class Side(Struct, frozen=True):
    """One side of a comparison."""

    name: str
    runs: int
    keys: tuple[str, ...]
    machine: str
    commit: str | None
    dirty: bool | None
    """Whether tracked files differed from the commit; null where git did not say."""

    @property
    def commit_text(self) -> str:
        """ "commit 0123456789ab with changes"; empty without one."""
        changes = {None: ", local changes not known", True: " with changes", False: ""}
        return f"commit {self.commit[:12]}{changes[self.dirty]}" if self.commit else ""


class Row(Struct, kw_only=True):
    """One metric of one test."""

    test: str
    stage: str
    metric: str
    title: str
    """Label and unit."""
    shown: bool
    """Whether it is among the metrics that a table shows by default."""
    before: float | None
    """The median over processes; of times over those that can be trusted, where there are any."""
    after: float | None
    ratio: float | None = None
    """After / before, of the robust centres; null where it has no meaning."""
    low: float | None = None
    """Confidence interval of the ratio; null for exact values."""
    high: float | None = None
    level: float | None = None
    """Its confidence (0..1)."""
    control: float | None = None
    """What the machine can see, from the A/A control of an A/B job (of a duet: from the ratios): 0.008 for 0.8 %; null
    without one."""
    verdict: Verdict
    limit: str | None = None
    """What a gate allows, as it was written; null without one."""
    failed: bool = False
    """Whether the gate is broken."""
    not_worse: bool = False
    """Whether it is shown not to be worse by the margin, be it the same or better."""
    how: str = ""
    """Processes on both sides, and what was assumed."""
    note: str = ""
    """Why it was not measured or is unclear; how answers changed."""


class TextChange(Struct, frozen=True):
    """Answers of one test that changed."""

    test: str
    differ: int
    """Pages whose answer differs."""
    pages: int
    """Pages on both sides."""
    exact: bool
    """Whether texts were compared; else only token counts."""
    cer_before: float | None
    cer_after: float | None

    @property
    def text(self) -> str:
        """ "text of 2 of 8 pages differs, CER 0.031 → 0.042"."""
        what = f"text of {self.differ} of {count(self.pages, 'page')} differs"
        if self.cer_before is None and self.cer_after is None:
            return what
        return f"{what}, CER {number(self.cer_before)} → {number(self.cer_after)}"


class Job(Struct, kw_only=True):
    """How the processes of an A/B job ran."""

    pairs: int
    """Whole pairs, the last ones after the last look included."""
    most: int
    """Pairs of the last planned look."""
    contended: int
    """Pairs in which other work kept the processors from a process. They count: what that does, the control shows."""
    duet: bool = False
    """Whether the processes of a pair measured beside each other: on a CPU at once, on a GPU round by round."""
    order: str
    """The sides of the processes in their order, "ABBABAAB". In a duet the first of a pair begins on the first half of
    the processors, or on a GPU with the first round."""
    seconds: float
    stopped: str
    """Why it stopped."""


class Comparison(Struct, kw_only=True):
    """Everything that two sides' records say of their difference."""

    schema: int = SCHEMA
    before: Side
    after: Side
    margin: float
    alpha: float
    """Error of one row's change; of gated rows that of all together."""
    gated: int
    """Rows that a gate holds."""
    notices: list[str]
    """What else differs: configuration, versions, kept answers."""
    reasons: dict[str, str] = {}
    """Why a test was not compared, or its times not; of the tests that have one. It is the note of their rows, too."""
    only_before: list[str]
    only_after: list[str]
    rows: list[Row]
    texts: list[TextChange]
    kernels: list[KernelChange]
    job: Job | None = None
    """Of `llmprof ab`."""

    @property
    def exit_code(self) -> int:
        """0, or with gates 1 where one is broken, 3 where one is unclear or not measured."""
        gated = [row for row in self.rows if row.limit is not None]
        if any(row.failed for row in gated):
            return 1
        unsure = {Verdict.UNCLEAR, Verdict.NOT_MEASURED}
        return 3 if any(row.verdict in unsure for row in gated) or (self.gated and self.only_before) else 0
