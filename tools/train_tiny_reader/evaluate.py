"""The figures on held-out pages, made here from a seed: words, sentences and two font families never trained on.

    python evaluate.py (--run DIR | --model DIR) --data DIR [--pages 200] [--json FILE]

Groups: prose6, prose10 (1-6 and 7-10 lines of whole sentences, trained fonts), unseen (1-10 lines, unseen fonts) and
layouts (anything, trained fonts). Each page is read twice, with the free and with the grounding prompt.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from augment import normalise, photograph, turn
from export import averaged, load
from fonts import BUILTIN, HELD_OUT, TRAINED
from pages import SIZE, Page, Painter
from rapidfuzz.distance import Levenshtein
from text import Source
from tokens import BOS, EOS, FREE, GROUNDED, IMAGE, IMAGE_TOKENS, PAD, decode, encode
from torch import Tensor

__all__ = ["GROUPS", "Sample", "character_errors", "evaluate", "samples"]

GROUPS = {"prose6": 0.3, "prose10": 0.3, "unseen": 0.2, "layouts": 0.2}
"""Share of the pages."""
SPAN = re.compile(r"<\|ref\|>(.*?)<\|/ref\|><\|det\|>(.*?)<\|/det\|>")


@dataclass
class Sample:
    """A held-out page: its group, its truth and its picture (0..255, uint8 [3, 512, 512])."""

    group: str
    page: Page
    pixels: Tensor


def samples(data: Path | None, count: int = 200, seed: int = 2024) -> list[Sample]:
    """The held-out pages; equal seeds and fonts give equal pages."""
    text, fonts = (data / "text", data / "fonts") if data else (None, None)
    trained, unseen = (TRAINED, HELD_OUT) if data else (BUILTIN, BUILTIN)
    plain = Source.load(text, held=True, plain=True)
    painters = {
        "prose6": Painter(plain, trained, fonts),
        "prose10": Painter(plain, trained, fonts),
        "unseen": Painter(plain, unseen, fonts),
        "layouts": Painter(Source.load(text, held=True), trained, fonts),
    }
    out = []
    for group, share in GROUPS.items():
        low, high = {"prose6": (1, 6), "prose10": (7, 10)}.get(group, (1, 10))
        for index in range(max(1, round(count * share))):
            rng = random.Random(f"held out {seed} {group} {index}")
            page = painters[group].compose(rng, rng.randint(low, high), prose=group != "layouts")
            while not low <= page.line_count <= high or len(encode(page.grounded)) > 440:
                page = painters[group].compose(rng, rng.randint(low, high), prose=group != "layouts")
            painters[group].finish(page)
            ink = torch.from_numpy(painters[group].draw(page))[None]
            pixels = photograph(turn(ink, torch.tensor([page.angle])), rng.getrandbits(31))[0].to(torch.uint8)
            out.append(Sample(group, page, pixels))
    return out


def plain_text(text: str) -> str:
    """Without special tokens, grounding spans and heading marks; NFC, whitespace collapsed."""
    text = SPAN.sub("", text)
    text = re.sub(r"<\|?/?\w+\|?>|<｜[^｜]*｜>", "", text)
    text = re.sub(r"^#+ ", "", text, flags=re.MULTILINE)
    return " ".join(unicodedata.normalize("NFC", text).split())


def character_errors(answer: str, truth: str) -> tuple[int, int]:
    """Edit distance and length of the truth, both on plain text."""
    a, b = plain_text(answer), plain_text(truth)
    return Levenshtein.distance(a, b), len(b)


def boxes(answer: str) -> list[tuple[str, tuple[float, ...]]]:
    """Label and box in pixels of every well-formed span."""
    found = []
    for label, numbers in SPAN.findall(answer):
        for box in re.findall(r"\[(\d+), ?(\d+), ?(\d+), ?(\d+)\]", numbers):
            found.append((label, tuple(int(value) * SIZE / 999 for value in box)))
    return found


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


@torch.no_grad()
def answers(model: Any, pictures: Sequence[Tensor], prompt: str, *, most: int = 560, batch: int = 128) -> Iterator[list[int]]:
    """Greedy token ids of each picture, EOS included where it came."""
    device, dtype = model.device, model.dtype
    model.set_experts_implementation("eager")
    ids = torch.tensor([[BOS, *[IMAGE] * IMAGE_TOKENS, *encode(prompt)[1:]]], device=device)
    for start in range(0, len(pictures), batch):
        pixels = torch.stack(list(pictures[start : start + batch])).to(device)
        given = ids.expand(len(pixels), -1)
        out = model.generate(
            input_ids=given, pixel_values=normalise(pixels.float()).to(dtype), attention_mask=torch.ones_like(given),
            max_new_tokens=most, do_sample=False, no_repeat_ngram_size=35, eos_token_id=EOS, pad_token_id=PAD,
        )
        for row in out[:, ids.shape[1] :].tolist():
            yield row[: row.index(EOS) + 1] if EOS in row else row


def evaluate(model: Any, pages: Sequence[Sample], **options: Any) -> dict[str, Any]:
    """All figures: character error rates, share of title and text blocks found (IoU >= 0.7), runaways."""
    started = time.monotonic()
    figures: dict[str, Any] = {"pages": len(pages)}
    pictures = [sample.pixels for sample in pages]
    worst = []
    for kind, prompt in (("free", FREE), ("grounded", GROUNDED)):
        errors: dict[str, list[int]] = {group: [0, 0] for group in GROUPS}
        blocks: dict[str, list[int]] = {group: [0, 0] for group in GROUPS}
        runaway = 0
        for sample, ids in zip(pages, answers(model, pictures, prompt, **options), strict=True):
            answer = decode(ids)
            truth = sample.page.free if kind == "free" else sample.page.grounded
            wrong, length = character_errors(answer, truth)
            errors[sample.group][0] += wrong
            errors[sample.group][1] += length
            runaway += ids[-1:] != [EOS]
            if kind == "free":
                worst.append((wrong / max(1, length), sample.group, plain_text(truth), plain_text(answer)))
                continue
            found = boxes(answer)
            for block in sample.page.blocks:
                if block.label != "image":
                    near = [overlap(box, block.box) for label, box in found if label == block.label]
                    blocks[sample.group][0] += max(near, default=0.0) >= 0.7
                    blocks[sample.group][1] += 1
        figures[kind] = {
            "cer": {group: round(a / max(1, b), 4) for group, (a, b) in errors.items()}, "runaway": runaway
        }
        if kind == "grounded":
            figures[kind]["found"] = {group: round(a / max(1, b), 4) for group, (a, b) in blocks.items()}
            hits, all_blocks = (sum(pair[k] for pair in blocks.values()) for k in (0, 1))
            figures[kind]["found"]["all"] = round(hits / max(1, all_blocks), 4)
    worst.sort(reverse=True)
    figures["worst"] = [{"cer": round(w[0], 3), "group": w[1], "truth": w[2], "answer": w[3]} for w in worst[:6]]
    figures["median_cer"] = round(worst[len(worst) // 2][0], 4)
    figures["seconds"] = round(time.monotonic() - started, 1)
    return figures


def table(figures: dict[str, Any]) -> str:
    """The figures in Markdown."""
    free, grounded = figures["free"], figures["grounded"]
    rows = ["| held-out pages | CER, free | CER, grounded | blocks found (IoU ≥ 0.7) |", "|---|---|---|---|"]
    for group in GROUPS:
        rows.append(
            f"| {group} | {free['cer'][group]:.4f} | {grounded['cer'][group]:.4f} | {grounded['found'][group]:.3f} |"
        )
    rows.append(
        f"\n{figures['pages']} pages; all blocks found: {grounded['found']['all']:.3f}; "
        f"runaway: {free['runaway']} free, {grounded['runaway']} grounded"
    )
    return "\n".join(rows)


def main() -> None:
    """Print the table, and write everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--run", type=Path, help="a checkpoint of training")
    parser.add_argument("--model", type=Path, help="an exported folder")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--pages", type=int, default=200)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = load(options.model) if options.model else averaged(options.run)[0].eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    figures = evaluate(model, samples(options.data, options.pages), batch=options.batch)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    print(table(figures))


if __name__ == "__main__":
    main()
