"""What a stage gives to the report, and the helpers that findings share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_llmprof.records.metrics import Metrics
from pytest_llmprof.text.escape import inline

_BEFORE = ("preprocess", "vision", "prefill")
"""Phases that end before the first token."""


@dataclass(frozen=True)
class Finding:
    """One thing that a reader should look at: a sentence or two in Markdown."""

    weight: float
    """The share of a page's time that it is about (0..1), as far as the metrics tell; the largest comes first."""
    text: str


@dataclass(frozen=True)
class Section:
    """A stage's part of the report. Every value from outside must be escaped already (`pytest_llmprof.text`)."""

    title: str
    parts: Sequence[str] = ()
    """Paragraphs and tables in Markdown. Empty ones are left out; without any no heading is shown."""
    findings: Sequence[Finding] = ()
    """Added to "What to look at"."""
    warnings: Sequence[str] = ()
    """What makes the numbers doubtful; added to the notes at the top."""


def listed(*parts: object) -> str:
    """The parts that are not empty, with commas between them."""
    return ", ".join(str(part) for part in parts if part)


def phase_label(name: str, parent: str | None) -> str:
    """A phase's name in a table; one that is part of another is set in."""
    return f"– {inline(name)}" if parent else inline(name)


def share(part: float | None, whole: float | None) -> float | None:
    """part / whole; None where either is unknown or the whole is zero."""
    return part / whole if part is not None and whole else None


def phase_share(metrics: Metrics, phase: str) -> float | None:
    """A phase's share of a page (0..1); in a batch, whose phases are shared, of the batch."""
    figures = metrics.figures
    return share(figures.get(f"{phase}_ms"), figures.get("batch_total_ms") or figures.get("total_ms"))


def phase_weight(metrics: Metrics, phase: str) -> float:
    """A finding's weight for *phase*: its share of a page; before the first token at least a third of its share of
    TTFT, which users wait for."""
    first = share(metrics.figures.get(f"{phase}_ms"), metrics.figures.get("ttft_ms"))
    of_first = first / 3 if first is not None and phase in _BEFORE else 0.0
    return max(phase_share(metrics, phase) or 0.0, of_first)


def share_of_first(metrics: Metrics, phase: str) -> float | None:
    """A phase's share of TTFT; None for phases that end after the first token."""
    return share(metrics.figures.get(f"{phase}_ms"), metrics.figures.get("ttft_ms")) if phase in _BEFORE else None
