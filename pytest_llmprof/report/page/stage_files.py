"""What the page takes of a stage directory beside its records: the parts of report.md, and CSV files."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from pytest_llmprof.compare.kernels import normalised
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.records.files import read_bytes
from pytest_llmprof.report.page.data import SectionOf, Table
from pytest_llmprof.report.page.safe_html import to_html
from pytest_llmprof.text.escape import visible

ROWS = 200
"""Rows of a CSV file that the page has."""
_MOST_BYTES = 8 << 20
"""A larger CSV file is only linked."""
_CELL = 300
_OWN = frozenset(
    ("Errors", "Metrics", "What to look at", "Phases", "Quality", "Gates", "Slowest pages", "Environment", "Files")
)
"""Headings of report.md that every stage has (`stage_report.md.j2`): the page makes these of records."""
_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?")
_NOTE = "> **Note:** "


class ReportParts(Struct):
    """report.md in parts, as HTML."""

    facts_html: list[str] = []
    warnings_html: list[str] = []
    findings_html: list[str] = []
    sections: list[SectionOf] = []
    files_html: str = ""


def report_parts(text: str, base: str) -> ReportParts:
    """The parts of report.md (*text*) of the stage directory *base*, relative to the run directory."""
    head, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    parts = ReportParts()
    for line in head.splitlines()[1:]:
        if line.startswith("- "):
            parts.facts_html.append(to_html(line[2:], base, inline=True))
        elif line.startswith(_NOTE):
            parts.warnings_html.append(to_html(line[len(_NOTE) :], base, inline=True))
    for section in sections:
        title, _, body = section.partition("\n")
        title = title.strip()
        if title == "What to look at":
            items = re.split(r"^\d+\. ", body.strip(), flags=re.MULTILINE)[1:]
            parts.findings_html += [to_html(item.strip(), base, inline=True) for item in items]
        elif title == "Files":
            parts.files_html = to_html(body, base)
        elif title not in _OWN:
            parts.sections.append(SectionOf(title.replace("\\", ""), to_html(body, base)))
    return parts


def read_report(stage_dir: Path, base: str) -> ReportParts:
    """The parts of a stage's report.md; empty where there is none."""
    path = stage_dir / "report.md"
    if not path.is_file():
        return ReportParts()
    return report_parts(read_bytes(path).decode("utf-8", "replace"), base)


def csv_tables(stage_dir: Path) -> list[Table]:
    """The CSV files of a stage directory, each with its first rows; one that is no table is left out."""
    return [table for path in sorted(stage_dir.glob("*.csv")) if (table := _table(path)) is not None]


def _table(path: Path) -> Table | None:
    try:
        if path.stat().st_size > _MOST_BYTES:
            return None
        text = read_bytes(path).decode("utf-8", "replace")
        lines = csv.reader(io.StringIO(text))
        head = next(lines, [])
        rows = list(_rows(lines, len(head)))
    except (ArtifactError, OSError, csv.Error):
        return None  # it is among the files of the test all the same
    if not rows or len(head) < 2:
        return None
    shown = rows[:ROWS]
    numeric = [all(not row[at] or _NUMBER.fullmatch(row[at]) for row in shown) for at in range(len(head))]
    cells = [list(map(_cell, row)) for row in shown]
    signatures = any("::" in row[0] and "<" in row[0] for row in shown)
    short = [_cell(normalised(row[0])) for row in shown] if signatures else []
    return Table(path.name, list(map(_cell, head)), numeric, cells, len(rows), short)


def _rows(lines: Iterator[list[str]], width: int) -> Iterator[list[str]]:
    return (row for row in lines if len(row) == width)


def _cell(text: str) -> str:
    if _NUMBER.fullmatch(text) and len(text) > 8 and "." in text:
        return f"{float(text):.6g}"
    return visible(text[:_CELL])
