"""report.md of one test in one stage, made only of the files in its directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pytest_llmprof.records.files import read_json, write_text
from pytest_llmprof.report.environment_table import environment_table
from pytest_llmprof.report.findings import findings, warnings
from pytest_llmprof.stages.nsight_section import TOOLS, nsight_section
from pytest_llmprof.stages.static_analysis.section import roofline_section
from pytest_llmprof.stages.torch_profiler.section import profile_section
from pytest_llmprof.text.escape import inline
from pytest_llmprof.text.markdown import code, percent, table
from pytest_llmprof.text.numbers import NOT_APPLICABLE, at, count, number, numeric, share

__all__ = ["render", "write_report"]

_FIGURES = (
    ("ttft_ms", "Time to first token (ms)"),
    ("tpot_ms", "Time per output token (ms)"),
    ("tokens_per_s", "Decode (tokens/s)"),
    ("batch_tokens_per_s", "Decode of a batch (tokens/s)"),
    ("tokens", "Tokens a page"),
    ("total_ms", "Total a page (ms)"),
    ("batch_total_ms", "Total a batch (ms)"),
    ("pages_per_s", "Pages/s"),
    ("round_s", "Round (s)"),
    ("peak_memory_gib", "Peak device memory (GiB)"),
    ("peak_reserved_gib", "Peak device memory, reserved (GiB)"),
    ("joules_per_page", "Energy a page (J)"),
    ("joules_per_token", "Energy a token (J)"),
)
_PHASES = (
    ("preprocess", ""),
    ("vision", ""),
    ("sam", "vision"),
    ("clip", "vision"),
    ("projector", "vision"),
    ("prefill", ""),
    ("decode", ""),
    ("other", ""),
)
_QUALITY = (
    ("cer", "Character error rate"),
    ("wer", "Word error rate"),
    ("box_iou", "Box IoU"),
    ("repetition", "Repeated 4-grams"),
    ("runaway_pages", "Pages that ended in a loop"),
)
_FILES = {
    "metrics.json": "all figures and samples",
    "config.yaml": "the resolved configuration",
    "environment.json": "card, host, versions, commit",
    "inputs.jsonl": "the pages that were given",
    "trace.json.gz": "the profiled window, for ui.perfetto.dev",
    "operators.md": "operators, the longest",
    "operators.csv": "operators, all",
    "kernels.md": "kernels, the longest",
    "kernels.csv": "kernels, all",
    "roofline.md": "FLOPs, bytes and floors of each phase",
    "roofline.csv": "the same as numbers",
    "roofline.svg": "the same as a picture",
    "phases.md": "phases under the tool",
    "phases.csv": "the same in full precision",
    "launches.csv": "profiled launches, one a row",
    "raw.csv": "every metric of every profiled launch, as ncu printed it",
    "nsys.nsys-rep": "the report, for nsys-ui",
    "nsys.sqlite": "the same as a database",
    "ncu.ncu-rep": "the report, for ncu-ui",
    "command.txt": "the command that ran",
    "output.log": "what the tool and the child wrote",
    "pred/predictions.jsonl": "answers, one line a page",
    "viz/predictions.md": "gallery of pages and answers",
}
_SLOWEST = 5
_ERRORS = 20


def write_report(stage_dir: Path) -> None:
    """Write `report.md` into *stage_dir* from the metrics.json and environment.json there.

    Raises `ArtifactError` where metrics.json is missing or no JSON.
    """
    metrics = read_json(stage_dir / "metrics.json")
    place = stage_dir / "environment.json"
    environment = read_json(place) if place.exists() else {}
    write_text(stage_dir / "report.md", render(metrics, environment, _files(stage_dir)))


def render(metrics: Mapping[str, Any], environment: Mapping[str, Any], files: list[str]) -> str:
    """The report as Markdown; *files* are paths below the stage directory."""
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    # Every value is made safe where it enters (inline, code): the template only puts parts in order.
    templates = jinja2.Environment(
        loader=loader, autoescape=False, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    text = templates.get_template("stage_report.md.j2").render(
        title=f"{inline(str(at(metrics, 'test') or 'test'))} · {inline(str(at(metrics, 'stage') or 'stage'))}",
        verdict=_verdict(metrics),
        facts=list(_facts(metrics)),
        warnings=warnings(metrics, environment),
        errors=_errors(metrics),
        figures=_figures(metrics),
        figures_note=_figures_note(metrics),
        findings=[finding.text for finding in findings(metrics)],
        phases=_phases(metrics),
        quality=_quality(metrics),
        gates=_gates(metrics),
        slowest=_slowest(metrics),
        roofline=roofline_section(metrics),
        profile=profile_section(metrics),
        tool=TOOLS.get(str(at(metrics, "stage"))),
        nsight=nsight_section(metrics),
        environment=environment_table(environment),
        files=[_link(name) for name in files],
    )
    return text.rstrip() + "\n"


def _files(stage_dir: Path) -> list[str]:
    known = [name for name in _FILES if (stage_dir / name).is_file()]
    others = sorted(
        path.name
        for path in stage_dir.iterdir()
        if path.is_file() and path.name not in (*_FILES, "report.md") and not path.name.startswith(".")
    )
    return known + others


def _link(name: str) -> str:
    meaning = _FILES.get(name)
    return f"[{inline(name)}]({quote(name)})" + (f": {meaning}" if meaning else "")


def _verdict(metrics: Mapping[str, Any]) -> str:
    gates = at(metrics, "gates") or []
    outcomes = [at(gate, "outcome") for gate in gates]
    failed = [str(at(gate, "name")) for gate in gates if at(gate, "outcome") == "failed"]
    if at(metrics, "status") == "error":
        parts = [f"**Failed:** {count(len(at(metrics, 'errors') or []), 'error')}, see below."]
    elif failed:
        parts = [f"**Failed:** outside the limit of {inline(', '.join(failed))}."]
    else:
        parts = ["**OK.**"]
    rounds, pages = numeric(at(metrics, "rounds")), numeric(at(metrics, "pages"))
    if rounds is not None and pages is not None and at(metrics, "kind") != "callable":
        batch = numeric(at(metrics, "batch_size"))
        warmup = numeric(at(metrics, "warmup"))
        parts.append(
            f"{count(int(pages), 'page')} in {count(int(rounds), 'round')}"
            + (f" after {count(int(warmup), 'warm-up pass', 'warm-up passes')}" if warmup else "")
            + (f", {int(batch)} pages a batch" if batch and batch > 1 else "")
            + "."
        )
    elif rounds is not None:
        parts.append(f"A callable, {count(int(rounds), 'round')}.")
    if at(metrics, "deterministic") is not None:
        same = "gave equal tokens" if at(metrics, "deterministic") else "did **not** give equal tokens"
        parts.append(f"All rounds {same}.")
    cer = numeric(at(metrics, "quality", "cer"))
    if cer is not None:
        parts.append(f"CER {percent(cer)}.")
    if gates:
        parts.append(
            "Gates: "
            + ", ".join(
                f"{outcomes.count(outcome)} {outcome}"
                for outcome in ("passed", "failed", "not applicable")
                if outcome in outcomes
            )
            + "."
        )
    return " ".join(parts)


def _facts(metrics: Mapping[str, Any]) -> Iterator[str]:
    model = at(metrics, "model")
    if isinstance(model, Mapping):
        parts = [inline(str(model.get("name", "")))]
        parameters = numeric(model.get("parameters"))
        if parameters:
            parts.append(f"{_millions(parameters)} parameters")
        if model.get("weights"):
            parts.append(f"{inline(str(model['weights']))} weights")
        parts += [
            f"{label}{inline(str(model[key]))}"
            for key, label in (("mode", "mode "), ("engine", "engine "), ("dtype", ""), ("device", "on "))
            if model.get(key)
        ]
        yield f"Model: {', '.join(part for part in parts if part)}"
    if at(metrics, "dataset", "name"):
        pages = numeric(at(metrics, "dataset", "pages"))
        yield f"Dataset: {inline(str(at(metrics, 'dataset', 'name')))}" + (
            f", {count(int(pages), 'page')}" if pages is not None else ""
        )
    if at(metrics, "prompt"):
        yield f"Prompt: {code(str(at(metrics, 'prompt')), 200, cell=False)}"
    if at(metrics, "id"):
        yield f"Test: {code(str(at(metrics, 'id')), 200, cell=False)}"


def _millions(parameters: float) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.2f} M"


def _errors(metrics: Mapping[str, Any]) -> str:
    errors = at(metrics, "errors") or []
    lines = []
    for error in errors[:_ERRORS]:
        page = at(error, "page")
        where = f"**{inline(str(page))}**: " if page else ""
        lines.append(f"- {where}{inline(str(at(error, 'error') or 'unknown'), 600)}")
    if len(errors) > _ERRORS:
        lines.append(f"- and {len(errors) - _ERRORS} more, in metrics.json")
    return "\n".join(lines) + "\n" if lines else ""


def _why_none(metrics: Mapping[str, Any], name: str) -> str:
    device = str(at(metrics, "model", "device") or at(metrics, "fingerprint", "device") or "")
    if name == "peak_memory_gib" and device.startswith("cpu"):
        return "not recorded on a CPU"
    if name == "joules_per_page" and not device.startswith("cpu"):
        return _why_no_energy(metrics)
    if name in ("tpot_ms", "tokens_per_s"):
        return "needs answers whose tokens come at two times or more"
    return ""


def _why_no_energy(metrics: Mapping[str, Any]) -> str:
    reasons = [at(metrics, "energy", "reason"), *(at(taken, "reason") for taken in _energy_rounds(metrics))]
    return next((inline(str(reason), 200) for reason in reasons if reason), "")


def _energy_rounds(metrics: Mapping[str, Any]) -> list[Any]:
    rounds = at(metrics, "energy", "rounds")
    return rounds if isinstance(rounds, list) else []


def _figures(metrics: Mapping[str, Any]) -> str:
    """Figures with their spread. Of a callable only those that exist, of pages all, with why one is missing."""
    if not isinstance(at(metrics, "figures"), Mapping) or at(metrics, "stage") in TOOLS:
        return ""
    callable_only = at(metrics, "kind") == "callable"
    alone = (numeric(at(metrics, "batch_size")) or 1) <= 1
    rows = []
    for name, label in _FIGURES:
        if alone and name.startswith("batch_"):
            continue  # a page is its batch
        value = at(metrics, "figures", name)
        if numeric(value) is None:
            reason = _why_none(metrics, name)
            if callable_only or not reason:
                continue
            rows.append([label, f"{NOT_APPLICABLE} ({reason})", "", "", "", ""])
            continue
        if callable_only:
            label = "Calls/s" if name == "pages_per_s" else label.replace(" a page", "")
        spread = at(metrics, "spread", name)
        # Of rounds there is one number a round, no page to take a minimum over.
        keys = ("iqr",) if name == "round_s" else ("iqr", "min", "max", "p90")
        cells = ["" if at(spread, key) is None else number(at(spread, key)) for key in keys]
        cells += [""] * (4 - len(cells))
        rows.append([label, number(value), *cells])
    if not rows:
        return ""
    return table(["Figure", "Median", "IQR", "Min", "Max", "p90"], rows)


def _figures_note(metrics: Mapping[str, Any]) -> str:
    if at(metrics, "kind") == "callable" or not at(metrics, "figures") or at(metrics, "stage") in TOOLS:
        return ""
    batch = (numeric(at(metrics, "batch_size")) or 1) > 1
    return (
        "Medians over pages of each page's median over rounds; min, max and p90 over pages. IQR is the noise: "
        "a page's spread over its rounds, the median page."
        + (" Figures of a batch, and the phases below, are over batches in the same way." if batch else "")
    )


def _phases(metrics: Mapping[str, Any]) -> str:
    figures = at(metrics, "figures")
    rows: list[list[str]] = []
    peaks = at(metrics, "phase_peaks")
    whole = "batch_total_ms" if numeric(at(figures, "batch_total_ms")) is not None else "total_ms"
    batch = (numeric(at(metrics, "batch_size")) or 1) > 1
    for name, parent in _PHASES:
        value = at(figures, f"{name}_ms")
        if numeric(value) is None or (name == "other" and not rows):
            continue
        part = share(value, at(figures, whole))
        noise = at(metrics, "spread", f"{name}_ms", "iqr")
        rows.append(
            [
                f"– {name}" if parent else name,
                number(value),
                "" if noise is None else number(noise),
                "" if part is None else percent(part),
            ]
        )
        if peaks:
            used = share(at(peaks, name, "allocated_bytes"), 2**30)
            rows[-1].append("" if used is None else number(used))
    heads = ["Phase", "Median ms", "IQR", f"Share of a {'batch' if batch else 'page'}"]
    return table([*heads, "Peak GiB"] if peaks else heads, rows) if rows else ""


def _quality(metrics: Mapping[str, Any]) -> str:
    quality, reason = at(metrics, "quality"), at(metrics, "quality_reason")
    rows = [
        [label, number(at(quality, name))]
        for name, label in _QUALITY
        if numeric(at(quality, name)) is not None
    ]
    if not rows:
        return f"{NOT_APPLICABLE}: {inline(str(reason))}\n" if reason else ""
    scored, truth = numeric(at(quality, "pages")), numeric(at(quality, "truth_pages"))
    note = ""
    if scored is not None and truth is not None:
        note = f"\n{count(int(scored), 'page')} scored, {int(truth)} of them against a true text.\n"
    if reason:
        note += f"\n{inline(str(reason))}\n"
    return table(["Figure", "Value"], rows) + note


def _gates(metrics: Mapping[str, Any]) -> str:
    rows = []
    for gate in at(metrics, "gates") or []:
        outcome = str(at(gate, "outcome"))
        rows.append(
            [
                inline(str(at(gate, "name"))),
                code(str(at(gate, "limit"))),
                number(at(gate, "figure")),
                f"**{inline(outcome)}**" if outcome == "failed" else inline(outcome),
            ]
        )
    return table(["Figure", "Limit", "Measured", "Outcome"], rows, 2) if rows else ""


def _slowest(metrics: Mapping[str, Any]) -> str:
    pages: dict[str, list[Mapping[str, Any]]] = {}
    for sample in at(metrics, "samples") or []:
        if numeric(at(sample, "total_ms")) is not None:
            pages.setdefault(str(at(sample, "page")), []).append(sample)
    if len(pages) < 2:
        return ""

    def median(page: str, key: str) -> float | None:
        values = sorted(found for each in pages[page] if (found := numeric(at(each, key))) is not None)
        if not values:
            return None
        half = len(values) // 2
        return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2

    order = sorted(pages, key=lambda page: -(median(page, "total_ms") or 0.0))[:_SLOWEST]
    rows = [
        [
            inline(page, 120),
            number(median(page, "total_ms")),
            number(median(page, "ttft_ms")),
            number(median(page, "tpot_ms")),
            str(int(median(page, "tokens") or 0)),
        ]
        for page in order
    ]
    return table(["Page", "Total ms", "TTFT ms", "TPOT ms", "Tokens"], rows)
