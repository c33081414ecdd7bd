"""The gallery's Markdown: predictions.md and each page's result.md."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

from pytest_llmprof.outputs.differences import differences
from pytest_llmprof.outputs.images import PlacedBox
from pytest_llmprof.records.predictions import Prediction
from pytest_llmprof.text.escape import fenced, inline, preformatted
from pytest_llmprof.text.markdown import table
from pytest_llmprof.text.numbers import count, number

MAX_TEXT = 40_000
"""A longer text is cut at this many characters in predictions.md, but not in result.md."""
_NONE = "–"
_ENDS = {"eos": "ended by itself", "length": "cut at max_new_tokens"}
"""What `finish_reason` means, as index.html says it."""
_FRAME = re.compile(r"\s*(?:<[|｜][^<>|｜]{1,60}[|｜]>\s*)*")


@dataclass
class PageFiles:
    """One page with a section of its own, and what was written for it under `pages/<name>/`."""

    name: str
    record: Prediction
    size: tuple[int, int] | None = None
    """Width and height of the source image; None where it could not be read."""
    image_error: str | None = None
    boxes: list[PlacedBox] = field(default_factory=list)
    skipped_boxes: int = 0
    crops: list[PlacedBox] = field(default_factory=list)
    left_out_crops: int = 0
    truth: str | None = None
    answer: str = ""
    """The answer as it was scored, without special tokens and grounding spans."""


def document(title: str, facts: Mapping[str, str], records: Sequence[Prediction], sections: Sequence[PageFiles]) -> str:
    """predictions.md: the table of all *records* and a section for each of *sections*."""
    parts = [f"# {inline(title)}\n"]
    if facts:
        parts.append("".join(f"- {inline(name)}: {inline(value)}\n" for name, value in facts.items()))
    anchors = {files.record.page: f"page-{place}" for place, files in enumerate(sections, 1)}
    parts.append(_count_line(records, len(sections)))
    if records:
        parts.append(_table(records, anchors))
    for files in sections:
        parts.append(f'<a id="{anchors[files.record.page]}"></a>\n')
        parts.append(f"## {inline(files.record.page)}\n")
        parts += _section(files, f"pages/{quote(files.name)}/", MAX_TEXT)
    return "\n".join(parts)


def result(files: PageFiles) -> str:
    """result.md of one page: its section, with whole texts."""
    return "\n".join([f"# {inline(files.record.page)}\n", *_section(files, "", None)])


def _count_line(records: Sequence[Prediction], sections: int) -> str:
    failed = sum(record.status != "ok" for record in records)
    line = count(len(records), "page") + (f", {failed} failed" if failed else "")
    if sections < len(records):
        line += f"; the first {sections} of them below" if sections else "; no images (`max_images` is 0)"
    times = " Times are of the first round; report.md has the medians of all."
    return f"{line}.{times if any(record.total_ms is not None for record in records) else ''}\n"


def _table(records: Sequence[Prediction], anchors: Mapping[str, str]) -> str:
    rows = []
    for record in records:
        name = inline(record.page)
        if record.page in anchors:
            name = f"[{name}](#{anchors[record.page]})"
        times = _shown(record.total_ms), str(record.tokens), _shown(record.tokens_per_s)
        rows.append((name, _status(record), *times, _shown(record.cer), _end(record)))
    return table(["Page", "Status", "Time (ms)", "Tokens", "Tokens/s", "CER", "End"], rows, left=(0, 1, 6))


def _shown(value: float | None) -> str:
    return _NONE if value is None else number(value)


def _section(files: PageFiles, base: str, limit: int | None) -> list[str]:
    """The parts of a page's section: *base* is the path to its files, *limit* the longest text (None = any)."""
    record = files.record
    parts = [_facts(files)]
    if record.error is not None:
        parts += ["**Error**\n", fenced(record.error[:limit])]
    alt = inline(record.page, 80)
    if files.image_error is not None:
        if files.image_error != record.error:
            parts += ["**The image could not be read**\n", fenced(files.image_error[:limit])]
    else:
        boxed = f" ![{alt}, boxes]({base}boxes.jpg)" if files.boxes else ""
        parts.append(f"![{alt}, thumbnail]({base}thumbnail.jpg){boxed}\n")
    if files.boxes or files.skipped_boxes:
        parts.append(_boxes(files))
    if files.crops:
        links = [
            f"[![{alt}, box {box.number}]({base}crops/{box.number}.jpg)]({base}crops/{box.number}.jpg)"
            for box in files.crops
        ]
        more = f" and {files.left_out_crops} more" if files.left_out_crops else ""
        parts.append(f"**Crops** of `image` boxes{more}\n\n{' '.join(links)}\n")
    if record.status == "ok":
        parts += ["**Clean text**\n", _text(files.answer, limit)]
    if _adds(record.text_raw, files.answer):
        parts.append(_folded("Raw text", record.text_raw, limit))
    if files.truth is not None:
        parts.append(_folded("Truth", files.truth, limit))
        parts += _differences(files)
    return parts


def _adds(raw: str, clean: str) -> bool:
    """Whether *raw* has more than *clean* with white space and begin and end tokens around it."""
    clean = clean.strip()
    before, found, after = raw.partition(clean) if clean else (raw, "", "")
    return found != clean or not (_FRAME.fullmatch(before) and _FRAME.fullmatch(after))


def _facts(files: PageFiles) -> str:
    record = files.record
    facts = [_status(record)]
    if files.size is not None:
        facts.append(f"{files.size[0]} × {files.size[1]} pixels")
    times = (
        (f"round {record.round + 1}: ", record.total_ms, " ms"),
        ("TTFT ", record.ttft_ms, " ms"),
        ("", record.tokens_per_s, " tokens/s"),
    )
    facts += [f"{before}{number(value)}{after}" for before, value, after in times if value is not None]
    rates = (
        ("CER", record.cer), ("WER", record.wer), ("box IoU", record.box_iou), ("repetition", record.repetition),
    )
    facts += [f"{name} {number(value)}" for name, value in rates if value is not None]
    if record.status == "ok":
        facts.insert(2, f"{count(record.tokens, 'token')} ({_end(record)})")
    facts.append(f"image {inline(record.image)}")
    return " · ".join(facts) + "\n"


def _boxes(files: PageFiles) -> str:
    labels = Counter(inline(box.label, 40) or "(no label)" for box in files.boxes)
    names = ", ".join(f"{label} {number}" for label, number in sorted(labels.items()))
    text = f"**Boxes**: {len(files.boxes)}" + (f" ({names})" if names else "")
    return text + (f"; {files.skipped_boxes} skipped" if files.skipped_boxes else "") + "\n"


def _differences(files: PageFiles) -> list[str]:
    if files.record.status != "ok":
        return []
    if files.record.cer is None:
        return ["**Differences**: not scored, so not compared.\n"]
    found = differences(files.truth or "", files.answer)
    if not found.lines:
        return ["**Differences**: none (white space and heading marks don't count).\n"]
    rows = count(found.differing, "row")
    return [
        f"**Differences** in {rows} (`-` truth, `+` answer; white space and heading marks don't count)\n",
        fenced("\n".join(found.lines), "diff"),
    ]


def _text(text: str, limit: int | None) -> str:
    return fenced(text[:limit], "markdown") + _note(text, limit)


def _folded(summary: str, text: str, limit: int | None) -> str:
    shown = preformatted(text[:limit])
    return f"<details>\n<summary>{summary}</summary>\n\n{shown}\n</details>\n{_note(text, limit)}"


def _note(text: str, limit: int | None) -> str:
    if limit is None or len(text) <= limit:
        return ""
    return f"\nThe first {limit:,} of {len(text):,} characters; result.md has them all.\n"


def _status(record: Prediction) -> str:
    return "ok" if record.status == "ok" else f"**{inline(record.status)}**"


def _end(record: Prediction) -> str:
    end = _ENDS.get(record.finish_reason or "", inline(record.finish_reason or _NONE))
    return f"{end}, in a loop" if record.runaway else end
