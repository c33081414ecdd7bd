"""Measure a reader on held-out pages, made from a seed: words, sentences and two font families never trained on.

    python evaluate.py --model DIR --data DIR [--pages 200] [--json FILE]

Groups: prose6, prose10 (1-6 and 7-10 lines of whole sentences, trained fonts), unseen (1-10 lines, unseen fonts) and
layouts (lists, columns, symbols, ..., trained fonts). Half as many more pages each, framed (such layouts with frames,
panels and lines) and tables, are reported separately. Each page is read twice, with the free and the grounding prompt,
by this project's own loader and generation, and scored by its own rules. Tags of tables don't count as characters.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import torch
from augment import photograph, turn
from fonts import BUILTIN, HELD_OUT, TRAINED
from pages import SIZE, Page, Painter
from PIL import Image
from text import Source
from tokens import EOS, encode

from pytest_llmprof.config.schema import InferSettings, ModelSettings
from pytest_llmprof.measure.phases import PhaseRecorder
from pytest_llmprof.models.deepseek_ocr.loader import load
from pytest_llmprof.quality.boxes import iou
from pytest_llmprof.quality.text import EditCount, character_edits

__all__ = ["APART", "GROUPS", "Sample", "answers", "evaluate", "samples", "table"]

GROUPS = {"prose6": 0.3, "prose10": 0.3, "unseen": 0.2, "layouts": 0.2}
"""Share of the pages."""
APART = {"framed": 0.5, "tables": 0.5}
"""More pages, as a share of the others; not part of the totals."""


TABLE = re.compile("<table>.*?</table>", re.DOTALL)


@dataclass
class Sample:
    """A held-out page: its group, its truth and its image."""

    group: str
    page: Page
    image: Image.Image


def samples(data: Path | None, count: int = 200, seed: int = 2024) -> list[Sample]:
    """The held-out pages; equal seeds and fonts give equal pages."""
    text, fonts = (data / "text", data / "fonts") if data else (None, None)
    trained, unseen = (TRAINED, HELD_OUT) if data else (BUILTIN, BUILTIN)
    plain, every = Source.load(text, held=True, plain=True), Source.load(text, held=True)
    painters = {
        "prose6": Painter(plain, trained, fonts),
        "prose10": Painter(plain, trained, fonts),
        "unseen": Painter(plain, unseen, fonts),
        "layouts": Painter(every, trained, fonts, frames=0, tables=0),
        "framed": Painter(every, trained, fonts, frames=1, tables=0),
        "tables": Painter(every, trained, fonts, tables=1),
    }
    out = []
    for group, share in (GROUPS | APART).items():
        low, high = {"prose6": (1, 6), "prose10": (7, 10)}.get(group, (1, 10))
        for index in range(max(1, round(count * share))):
            rng = random.Random(f"held out {seed} {group} {index}")
            prose = group not in ("layouts", *APART)
            page = painters[group].compose(rng, rng.randint(low, high), prose=prose)
            while (
                not low <= page.line_count <= high
                or len(encode(page.grounded)) > 440
                or (group == "tables" and not any(block.rows for block in page.blocks))
            ):
                page = painters[group].compose(rng, rng.randint(low, high), prose=prose)
            painters[group].finish(page)
            ink = torch.from_numpy(painters[group].draw(page))[None]
            pixels = photograph(turn(ink, torch.tensor([page.angle])), rng.getrandbits(31))[0].to(torch.uint8)
            out.append(Sample(group, page, Image.fromarray(pixels.permute(1, 2, 0).numpy())))
    return out


def answers(
    model: Any, images: Sequence[Image.Image], prompt: str, *, most: int = 560, batch: int = 64
) -> Iterator[tuple[str, bool]]:
    """The answer to each image, and whether it ended by itself."""
    infer = InferSettings(prompt=prompt, max_new_tokens=most)
    phases = PhaseRecorder(model.info.device)
    for start in range(0, len(images), batch):
        rows: list[list[int]] = [[] for _ in images[start : start + batch]]
        for token in model.generate(images[start : start + batch], infer, phases):
            rows[token.row].append(token.id)
        phases.take()
        yield from ((model.text(row), row[-1] == EOS) for row in rows)


def without_tags(text: str) -> str:
    """*text* with the rows of its tables as lines of text, as the free prompt gives them."""
    text = re.sub("</tr>", "\n", text)
    return unescape(re.sub("</?(table|tr|td)>", " ", text))


def shape(table: str) -> list[int]:
    """The number of cells in each row of a table."""
    return [len(re.findall("<td>", row)) for row in table.split("</tr>")[:-1]]


def evaluate(model: Any, pages: Sequence[Sample], **options: Any) -> dict[str, Any]:
    """All metrics: character error rates, the share of blocks found (IoU >= 0.7) and of tables with the right number of
    cells in each row, answers without an end.
    """
    started = time.monotonic()
    metrics: dict[str, Any] = {"pages": sum(sample.group in GROUPS for sample in pages)}
    groups = GROUPS | APART
    worst = []
    built: list[bool] = []
    for prompt in ("free", "markdown"):
        edits = {group: EditCount(0, 0) for group in groups}
        found: dict[str, list[bool]] = {group: [] for group in groups}
        runaway = 0
        for sample, (answer, ended) in zip(
            pages, answers(model, [sample.image for sample in pages], prompt, **options), strict=True
        ):
            parsed = model.parse(answer, (SIZE, SIZE))
            count = character_edits(sample.page.free, without_tags(parsed.plain))
            edits[sample.group] += count
            runaway += not ended and sample.group in GROUPS
            if sample.group in GROUPS:
                worst.append((count.rate, prompt, sample.group, sample.page.free, parsed.plain))
            for block in sample.page.blocks if prompt == "markdown" else ():
                if block.label != "image":
                    same = [box.box for box in parsed.boxes if box.label == block.label]
                    found[sample.group].append(max((iou(box, block.box) for box in same), default=0.0) >= 0.7)
                if block.rows:
                    built.append(shape(block.markdown) in map(shape, TABLE.findall(parsed.plain)))
        metrics[prompt] = {"cer": {group: round(count.rate, 4) for group, count in edits.items()}, "runaway": runaway}
        if prompt == "markdown":
            metrics["structure"] = round(sum(built) / max(1, len(built)), 4)
            found["all"] = [hit for group in GROUPS for hit in found[group]]
            metrics["found"] = {group: round(sum(hits) / max(1, len(hits)), 4) for group, hits in found.items()}
    worst.sort(reverse=True)
    keys = ("cer", "prompt", "group", "truth", "answer")
    metrics["worst"] = [dict(zip(keys, row, strict=True)) for row in worst[:8]]
    metrics["median_cer"] = round(worst[len(worst) // 2][0], 4)
    metrics["seconds"] = round(time.monotonic() - started, 1)
    return metrics


def table(metrics: dict[str, Any]) -> str:
    """The metrics in Markdown."""
    rows = ["| held-out pages | CER, free | CER, markdown | blocks found (IoU ≥ 0.7) |", "|---|---|---|---|"]
    rows += [
        f"| {group} | {metrics['free']['cer'][group]:.4f} | {metrics['markdown']['cer'][group]:.4f} "
        f"| {metrics['found'][group]:.3f} |"
        for group in GROUPS | APART
    ]
    return "\n".join(rows) + (
        f"\n\n{metrics['pages']} pages, {' and '.join(APART)} apart; all blocks found: {metrics['found']['all']:.3f}; "
        f"answers that did not end: {metrics['free']['runaway']} free, {metrics['markdown']['runaway']} markdown; "
        f"tables with the right rows and cells: {metrics['structure']:.3f}; "
        f"median CER of a page: {metrics['median_cer']:.4f}; {metrics['seconds']:.0f} s"
    )


def main() -> None:
    """Print the table, and write everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", type=Path, required=True, help="an exported folder")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pages", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = load(ModelSettings(path=str(options.model), mode="tiny"), InferSettings(engine="reference"))
    metrics = evaluate(model, samples(options.data, options.pages), batch=options.batch)
    if options.json:
        options.json.write_text(json.dumps(metrics, indent=1, ensure_ascii=False), encoding="utf-8")
    print(table(metrics))


if __name__ == "__main__":
    main()
