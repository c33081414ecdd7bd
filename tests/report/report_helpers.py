"""Makes reports as a run does: of a stage's records, by its own plugin."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pytest_llmprof.records.catalogue import BUILTIN, Catalogue
from pytest_llmprof.records.stage import StageRecords
from pytest_llmprof.report.sections import Section
from pytest_llmprof.report.stage_report import render
from pytest_llmprof.stages import packaged_stages

STAGES = {stage.name: stage for stage in packaged_stages()}
CATALOGUE = Catalogue((*BUILTIN, *(metric for stage in STAGES.values() for metric in stage.metrics)))


def section(records: StageRecords) -> Section:
    """What the stage adds to the report; empty where that is nothing."""
    return STAGES[records.metrics.stage].section(records) or Section("")


def report(records: StageRecords, files: Sequence[str] = ()) -> str:
    """The whole report."""
    return render(records, section(records), CATALOGUE, files)


def to_look_at(records: StageRecords) -> list[str]:
    """The findings of the report, in their order."""
    text = report(records)
    if "## What to look at" not in text:
        return []
    part = text[text.index("## What to look at") :].split("\n## ")[0]
    return re.findall(r"^\d+\. (.*)$", part, re.MULTILINE)


def notes(records: StageRecords) -> list[str]:
    """The warnings of the report."""
    return re.findall(r"^> \*\*Note:\*\* (.*)$", report(records), re.MULTILINE)
