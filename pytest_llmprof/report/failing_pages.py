"""The pages of a test that a reader should look at, with their images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.records.catalogue import Declaration
from pytest_llmprof.records.files import NOT_JSON, read_bytes
from pytest_llmprof.records.metrics import Metrics
from pytest_llmprof.records.predictions import gallery_infos
from pytest_llmprof.text.numbers import number

_WORST = 5
"""Pages that are shown for each limit on quality that is broken."""
_IMAGES = ("boxes.jpg", "thumbnail.jpg")


@dataclass(frozen=True)
class FailingPage:
    """A page that failed, or one of the worst of a test whose limit on quality is broken."""

    page: str
    why: str
    image: str | None = None
    """The gallery's, relative to the run directory; without one the dataset's; None where neither is known."""


def failing_pages(
    run_dir: Path, stage_dir: Path, metrics: Metrics, declared: Sequence[Declaration]
) -> Iterator[FailingPage]:
    """The pages that failed; then, for each metric of quality whose limit is broken, those with the worst values.

    A page that is better than its test's value is not among them. *declared* is the run's catalogue. Raises
    `ArtifactError` where inputs.jsonl cannot be read.
    """
    failed = {one.page: one.error for one in metrics.errors if one.page}
    quality = {metric.name: metric for metric in declared if metric.section == "quality"}
    broken = [gate for gate in metrics.gates if gate.outcome == "failed" and gate.name in quality]
    if not failed and not broken:
        return
    gallery = dict(_gallery(stage_dir))
    inputs = _inputs(stage_dir / "inputs.jsonl")

    def failing(page: str, why: str) -> FailingPage:
        directory = gallery[page].directory if page in gallery else None
        there = [directory / name for name in _IMAGES if (directory / name).is_file()] if directory else []
        return FailingPage(page, why, there[0].relative_to(run_dir).as_posix() if there else inputs.get(page))

    yield from (failing(page, why) for page, why in failed.items())
    for gate in broken:
        metric, sign = quality[gate.name], -1 if quality[gate.name].better == "higher" else 1
        values = {
            page: value
            for page, entry in gallery.items()
            if page not in failed
            and (value := entry.value(gate.name)) is not None
            and (gate.figure is None or sign * value >= sign * gate.figure)
        }
        worst = sorted(values, key=lambda page: -sign * values[page])
        yield from (failing(page, f"{metric.label or metric.name} {number(values[page])}") for page in worst[:_WORST])


@dataclass(frozen=True)
class _Entry:
    """A page of a gallery."""

    directory: Path
    info: Mapping[str, object]
    """Its info.json, which has all of the page's line of predictions.jsonl."""

    def value(self, name: str) -> float | None:
        scores = self.info.get("scores")
        value = self.info.get(name, scores.get(name) if isinstance(scores, dict) else None)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _gallery(stage_dir: Path) -> Iterator[tuple[str, _Entry]]:
    """The galleries' pages by name."""
    for path in gallery_infos(stage_dir):
        try:
            info = msgspec.json.decode(read_bytes(path), type=dict[str, object])
        except (ArtifactError, *NOT_JSON):
            continue  # not a gallery's; the page is shown with the dataset's image
        if isinstance(page := info.get("page"), str):
            yield page, _Entry(path.parent, info)


class _Input(msgspec.Struct):
    """What is read of a line of inputs.jsonl."""

    page: str | None = None
    image: str | None = None


def _inputs(path: Path) -> Mapping[str, str | None]:
    """The image of each page, as the dataset names it."""
    found = {}
    for line in read_bytes(path).splitlines() if path.exists() else ():
        try:
            entry = msgspec.json.decode(line, type=_Input)
        except NOT_JSON:
            continue
        if entry.page is not None:
            found[entry.page] = entry.image
    return found
