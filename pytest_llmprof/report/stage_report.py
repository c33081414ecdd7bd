"""report.md of one test in one stage, made only of the files in its directory."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from pytest_llmprof.errors import StageError, error_line
from pytest_llmprof.records.catalogue import CALLABLE, Catalogue, Declaration
from pytest_llmprof.records.files import write_text
from pytest_llmprof.records.metrics import GateResult, Metrics, Sample
from pytest_llmprof.records.stage import StageRecords
from pytest_llmprof.report.environment_table import environment_table
from pytest_llmprof.report.findings import findings, warnings
from pytest_llmprof.report.sections import Section, listed, phase_share
from pytest_llmprof.text.escape import inline
from pytest_llmprof.text.markdown import code, percent, table
from pytest_llmprof.text.numbers import NOT_APPLICABLE, count, millions, number
from pytest_llmprof.text.templates import render_template

_FILES = {
    "metrics.json": "all metrics and samples",
    "config.yaml": "the resolved configuration",
    "environment.json": "GPU, host, versions, commit",
    "inputs.jsonl": "the pages that were given",
}
_OUTPUTS = {
    "pred/predictions.jsonl": "answers, one line a page",
    "viz/predictions.md": "gallery of pages and answers",
}
_SUB_PHASES = ("sam", "clip", "projector")
_SLOWEST = 5
_SLOWEST_COLUMNS = ("total_ms", "ttft_ms", "tpot_ms")
_ERRORS = 20


class Reported(Protocol):
    """What the report needs of a stage."""

    @property
    def files(self) -> Mapping[str, str]:
        """Files of its own in the stage directory and what each holds, in their order."""

    def section(self, records: StageRecords) -> Section | None:
        """Its part of the report; None where it has nothing to show."""


def write_report(stage_dir: Path, stage: Reported, catalogue: Catalogue) -> None:
    """Write `report.md` into *stage_dir* from the metrics.json and environment.json there.

    Raises `ArtifactError` where metrics.json is missing, broken or newer, and `StageError` where the stage cannot make
    its section: the report is then written without it.
    """
    records = StageRecords.read(stage_dir)
    known = {**_FILES, **stage.files, **_OUTPUTS}
    there = [name for name in known if (stage_dir / name).is_file()]
    others = sorted(
        path.name
        for path in stage_dir.iterdir()
        if path.is_file() and path.name not in (*known, "report.md") and not path.name.startswith(".")
    )
    links = [_link(name, known.get(name)) for name in (*there, *others)]
    section, failure = None, None
    try:
        section = stage.section(records)
    except Exception as error:  # noqa: BLE001 - a plugin's own code: raised again once the report is there
        failure = error
    write_text(stage_dir / "report.md", render(records, section, catalogue, links))
    if failure is not None:
        text = f"the stage {records.metrics.stage} cannot make its section of the report"
        raise StageError(f"{text}: {error_line(failure)}") from failure


def render(records: StageRecords, section: Section | None, catalogue: Catalogue, files: Sequence[str] = ()) -> str:
    """The report as Markdown; *files* are links in Markdown."""
    metrics, section = records.metrics, section or Section("")
    found = sorted((*findings(metrics), *section.findings), key=lambda finding: -finding.weight)
    text = render_template(
        Path(__file__).parent / "stage_report.md.j2",
        title=f"{inline(metrics.test)} · {inline(metrics.stage)}",
        verdict=f"{_verdict(metrics)} {summary(metrics)}",
        facts=list(_facts(metrics)),
        warnings=[*warnings(metrics, records.environment), *section.warnings],
        errors=_errors(metrics),
        figures=_figures(metrics, catalogue),
        figures_note=figures_note(metrics),
        findings=[finding.text for finding in found],
        phases=_phases(metrics, catalogue),
        quality=_quality(metrics, catalogue),
        gates=_gates(metrics),
        slowest=_slowest(metrics),
        section_title=section.title,
        section=[part for part in section.parts if part],
        environment=environment_table(records.environment),
        files=files,
    )
    return text.rstrip() + "\n"


def _link(name: str, meaning: str | None) -> str:
    return f"[{inline(name)}]({quote(name)})" + (f": {meaning}" if meaning else "")


def _verdict(metrics: Metrics) -> str:
    failed = [gate.name for gate in metrics.gates if gate.outcome == "failed"]
    if metrics.status == "error":
        return f"**Failed:** {count(len(metrics.errors), 'error')}, see below."
    return f"**Failed:** outside the limit of {inline(', '.join(failed))}." if failed else "**OK.**"


def summary(metrics: Metrics) -> str:
    """What was measured and how it came out, in one line of Markdown."""
    parts = []
    rounds = count(metrics.rounds, "round")
    if metrics.kind == CALLABLE:
        parts.append(f"A callable, {rounds}{f' of {metrics.iterations:,} calls' if metrics.iterations > 1 else ''}.")
    else:
        warmup = f" after {count(metrics.warmup, 'warm-up pass', 'warm-up passes')}" if metrics.warmup else ""
        batch = f", {metrics.batch_size} pages a batch" if metrics.batch_size > 1 else ""
        parts.append(f"{count(metrics.pages, 'page')} in {rounds}{warmup}{batch}.")
    if metrics.deterministic is not None:
        same = "gave equal tokens" if metrics.deterministic else "did **not** give equal tokens"
        parts.append(f"All rounds {same}.")
    cer = (metrics.quality or {}).get("cer")
    if cer is not None:
        parts.append(f"CER {number(cer)}.")
    if metrics.gates:
        outcomes = Counter(gate.outcome for gate in metrics.gates)
        parts.append(f"Gates: {listed(*(f'{number} {outcome}' for outcome, number in outcomes.items()))}.")
    return " ".join(parts)


def _facts(metrics: Metrics) -> Iterator[str]:
    if model := metrics.model:
        size = model.parameters
        parts = listed(
            inline(model.name),
            size and f"{millions(size)} parameters",
            model.weights and f"{inline(model.weights)} weights",
            model.mode and f"mode {inline(model.mode)}",
            model.engine and f"engine {inline(model.engine)}{_why_engine(metrics)}",
            inline(model.dtype),
            model.device and f"on {inline(model.device)}",
        )
        yield f"Model: {parts}"
    if metrics.dataset:
        yield f"Dataset: {inline(metrics.dataset.name)}, {count(metrics.dataset.pages, 'page')}"
    if metrics.prompt:
        yield f"Prompt: {code(metrics.prompt, 200, cell=False)}"
    yield f"Test: {code(metrics.id, 200, cell=False)}"


def _why_engine(metrics: Metrics) -> str:
    reason = metrics.fingerprint.engine_reason
    return f" (auto: {inline(reason)})" if reason else ""


def _errors(metrics: Metrics) -> str:
    lines = [
        "- " + (f"**{inline(one.page)}**: " if one.page else "") + inline(one.error or "unknown", 600)
        for one in metrics.errors[:_ERRORS]
    ]
    if len(metrics.errors) > _ERRORS:
        lines.append(f"- and {len(metrics.errors) - _ERRORS} more, in metrics.json")
    return "\n".join(lines) + "\n" if lines else ""


def _why_null(metrics: Metrics, name: str) -> str:
    """Why a metric of pages is null, where a reader would ask."""
    on_cpu = metrics.device.startswith("cpu")
    if name == "peak_memory_gib" and on_cpu:
        return "not recorded on a CPU"
    if name == "joules_per_page" and not on_cpu and metrics.energy:
        reasons = [metrics.energy.reason, *(one.reason for one in metrics.energy.rounds)]
        return next((inline(reason, 200) for reason in reasons if reason), "")
    if name in ("tpot_ms", "tokens_per_s"):
        return "needs answers whose tokens come at two times or more"
    return ""


def _measured(metrics: Metrics) -> bool:
    """Whether the stage measured times: one whose test ran under a tool did not."""
    return metrics.energy is not None


def _figures(metrics: Metrics, catalogue: Catalogue) -> str:
    """Metrics with their spread. Of a callable only those that exist, of pages all, with why one is null."""
    rows = []
    for metric in catalogue:
        if not in_figures(metric, metrics):
            continue
        value = metrics.figures.get(metric.name)
        if value is None:
            reason = "" if metrics.kind == CALLABLE or not _measured(metrics) else _why_null(metrics, metric.name)
            rows += [[metric.title, f"{NOT_APPLICABLE} ({reason})", "", "", "", ""]] if reason else []
        elif _measured(metrics) or metric.reduce == "given" or metric.score is not None:
            rows.append([metric.title_for(metrics.kind), number(value), *_spread_cells(metrics, metric.name)])
    return table(["Metric", "Median", "IQR", "Min", "Max", "p90"], rows)


def in_figures(metric: Declaration, metrics: Metrics) -> bool:
    """Whether the table of metrics has *metric*: those of a batch only where a batch is more than a page."""
    return "report" in metric.shown and (metrics.batch_size > 1 or not metric.name.startswith("batch_"))


def _spread_cells(metrics: Metrics, name: str) -> list[str]:
    spread = metrics.spread.get(name)
    if spread is None:
        return [""] * 4
    noise = "" if spread.iqr is None else number(spread.iqr)
    return [noise, *(map(number, (spread.min, spread.max, spread.p90)) if over_pages(metrics, name) else [""] * 3)]


def over_pages(metrics: Metrics, name: str) -> bool:
    """Whether a metric has pages to take a minimum over: of rounds and of calls there is one number a round."""
    return name != "round_s" and metrics.kind != CALLABLE


def figures_note(metrics: Metrics) -> str:
    """What the columns of the table of metrics are."""
    if not _measured(metrics):
        return ""
    if metrics.kind == CALLABLE:
        return "Medians over rounds. IQR is the noise: the spread over rounds." if metrics.rounds > 1 else ""
    batch = " Metrics of a batch, and the phases below, are over batches in the same way."
    return (
        "Medians over pages of each page's median over rounds; min, max and p90 over pages. IQR is the noise: "
        f"a page's spread over its rounds, the median page.{batch if metrics.batch_size > 1 else ''}"
    )


def _phases(metrics: Metrics, catalogue: Catalogue) -> str:
    rows: list[list[str]] = []
    peaks = metrics.phase_peaks
    for metric in catalogue.shown_in("phases"):
        name = metric.name.removesuffix("_ms")
        value = metrics.figures.get(metric.name)
        if value is None or (name == "other" and not rows):
            continue
        part = phase_share(metrics, name)
        noise = _spread_cells(metrics, metric.name)[0]
        shown = f"– {name}" if name in _SUB_PHASES else name
        rows.append([shown, number(value), noise, "" if part is None else percent(part)])
        if peaks:
            rows[-1].append(number(peaks[name].allocated_bytes / 2**30) if name in peaks else "")
    heads = ["Phase", "Median ms", "IQR ms", f"Share of a {'batch' if metrics.batch_size > 1 else 'page'}"]
    return table([*heads, "Peak GiB"] if peaks else heads, rows)


def _quality(metrics: Metrics, catalogue: Catalogue) -> str:
    quality, reason = metrics.quality or {}, metrics.quality_reason
    rows = [
        [metric.title, number(value)]
        for metric in catalogue.shown_in("quality")
        if (value := quality.get(metric.name)) is not None
    ]
    if not rows:
        return f"{NOT_APPLICABLE}: {inline(reason)}\n" if reason else ""
    note = ""
    scored, truth = quality.get("pages"), quality.get("truth_pages")
    if scored is not None and truth is not None:
        note = f"\n{count(int(scored), 'page')} scored, {int(truth)} of them against a true text.\n"
    return table(["Metric", "Value"], rows) + note + (f"\n{inline(reason)}\n" if reason else "")


def _gates(metrics: Metrics) -> str:
    rows = [[inline(gate.name), code(gate.limit), number(gate.figure), _outcome(gate)] for gate in metrics.gates]
    return table(["Metric", "Limit", "Measured", "Outcome"], rows, 2)


def _outcome(gate: GateResult) -> str:
    outcome = f"**{gate.outcome}**" if gate.outcome == "failed" else inline(gate.outcome)
    if gate.verdict not in (None, gate.outcome):
        outcome += f", {inline(str(gate.verdict))}"
    change = gate.change if gate.verdict is not None and gate.baseline is not None else None
    details = [inline(text) for text in (change, gate.reason) if text]
    return outcome + (f": {'; '.join(details)}" if details else "")


def _slowest(metrics: Metrics) -> str:
    pages: dict[str, list[Sample]] = {}
    for sample in metrics.samples:
        pages.setdefault(sample.page, []).append(sample)
    if len(pages) < 2:
        return ""

    def median(page: str, name: str) -> float | None:
        values = [value for sample in pages[page] if (value := getattr(sample, name)) is not None]
        return statistics.median(values) if values else None

    rows = [
        [inline(page, 120), *(number(median(page, name)) for name in _SLOWEST_COLUMNS), f"{median(page, 'tokens'):.0f}"]
        for page in sorted(pages, key=lambda page: -(median(page, "total_ms") or 0.0))[:_SLOWEST]
    ]
    return table(["Page", "Total ms", "TTFT ms", "TPOT ms", "Tokens"], rows)
