"""Pages: the same ones each time, and what is drawn is what the truth says."""

from __future__ import annotations

import random
import re
from html import unescape
from typing import Any

import numpy as np
import pytest
import torch
from augment import photograph, turn
from data import Batches, Requests
from evaluate import without_tags
from fonts import BUILTIN
from pages import SIZE, SLOT, Block, Line, Page, Painter
from text import ALPHABET, Source, held_out
from tokens import BUCKETS, EOS, FREE, GROUNDED, ID_OF, PAD, decode, encode


def drawn(painter: Painter, seed: int, lines: int = 8, **options: Any) -> tuple[Page, np.ndarray]:
    page = painter.finish(painter.compose(random.Random(seed), lines, **options))
    return page, painter.draw(page)


def test_equal_seeds_give_equal_pages(painter: Painter) -> None:
    for seed in range(5):
        page, ink = drawn(painter, seed)
        again, ink_again = drawn(painter, seed)
        assert page.grounded == again.grounded
        assert np.array_equal(ink, ink_again)
        assert np.array_equal(painter.slots(page), painter.slots(again))
    assert len({drawn(painter, seed)[0].grounded for seed in range(5)}) == 5


def test_boxes_hold_the_ink_and_little_more(painter: Painter) -> None:
    """All ink of an upright page is in the blocks' boxes; they end 2 px from it, and the characters' own margins."""
    painter = Painter(painter.source, BUILTIN, None, tables=0)
    for seed in range(40):
        page = painter.compose(random.Random(seed), 8)
        page.angle, page.plain, page.shapes = 0.0, True, []
        ink = painter.draw(painter.finish(page))
        outside = ink.copy()
        for block in page.blocks:
            x1, y1, x2, y2 = block.box
            outside[y1:y2, x1:x2] = 0
            if block.label != "image":
                rows, columns = np.nonzero(ink[y1:y2, x1:x2])
                assert rows.min() <= 2
                assert columns.min() <= 2 + 0.15 * block.face.size
                assert y2 - y1 - rows.max() <= 3
                assert x2 - x1 - columns.max() <= 3 + 0.2 * block.face.size
        assert not outside.any()


def test_pages_stay_in_their_limits(painter: Painter) -> None:
    for seed in range(60):
        page, _ = drawn(painter, seed, lines=6, prose=seed % 2 == 0)
        assert 1 <= page.line_count <= 6
        assert set(page.free) <= {*ALPHABET, "\n"}
        assert "\n\n\n" not in page.free
        assert all(block.text.strip() for block in page.blocks if block.label != "image")
        for block in page.blocks:
            x1, y1, x2, y2 = block.box
            assert 0 <= x1 < x2 <= SIZE
            assert 0 <= y1 < y2 <= SIZE


def test_both_truths_hold_the_same_text(painter: Painter) -> None:
    from pytest_llmprof.models.deepseek_ocr.parsing import parse
    from pytest_llmprof.quality.text import character_edits

    for seed in range(30):
        page, _ = drawn(painter, seed)
        parsed = parse(page.grounded, (SIZE, SIZE))
        assert character_edits(page.free, without_tags(parsed.plain)).rate == 0
        assert parsed.bad_boxes == 0
        assert [box.label for box in parsed.boxes] == [block.label for block in page.blocks]
        for box, block in zip(parsed.boxes, page.blocks, strict=True):
            assert max(abs(a - b) for a, b in zip(box.box, block.box, strict=True)) <= 1


@pytest.mark.parametrize("angle", [0.0, 1.5, -1.5])
def test_slots_are_where_the_characters_are(painter: Painter, angle: float) -> None:
    """Slots lie on the lines' wide black characters, turned or not; an empty slot's middle has no ink."""
    from fonts import face

    block = Block("text", face(None, "", 30), [Line(y, [(40, "MMMM MMMM WWWW MMMM")]) for y in (40, 240, 440)])
    page = painter.finish(Page([block], angle=angle))
    ink = turn(torch.from_numpy(painter.draw(page))[None], torch.tensor([angle]))[0].numpy()
    slots = painter.slots(page)
    assert (slots > 0).sum() > 50
    width, height = SLOT
    for row, column in np.argwhere(slots > 0):
        assert ink[max(0, row - 1) * height : (row + 2) * height, column * width : (column + 1) * width].any()
    for row, column in np.argwhere(slots == 0):
        assert not ink[row * height + height // 2, column * width + width // 2]


def test_what_is_drawn_keeps_off_the_text() -> None:
    """No line touches a character; a panel holds a block whole or not at all."""
    painter = Painter(Source.load(None), BUILTIN, None, frames=1, tables=0.5)
    kinds = {"frame": 0, "panel": 0, "line": 0, "broken": 0, "tint": 0, "round": 0, "table": 0}
    for seed in range(60):
        page = painter.compose(random.Random(seed), 6)
        page.angle = 0.0
        painter.finish(page)
        lines, plain = Page([], shapes=[shape for shape in page.shapes if shape.width]), Page(page.blocks)
        text = painter.draw(plain) > 80
        drawn_lines = painter.draw(lines)
        # An underline may cross the feet of letters, as in print; the lines of a table and all others touch nothing.
        under = sum(
            (text[max(0, y - 2) : y + 3, x1:x2] & (drawn_lines[max(0, y - 2) : y + 3, x1:x2] > 0)).sum()
            for (x1, y, x2, _), *_ in (shape for shape in page.shapes if shape.box[1] == shape.box[3])
            if x1 >= 0
        )
        assert (text & (drawn_lines > 0)).sum() <= under
        for (x1, y1, x2, y2), width, level, dash, radius in page.shapes:
            flat = x1 == x2 or y1 == y2
            kinds["panel" if not width else "line" if flat else "frame"] += 1
            kinds["broken"] += dash is not None
            kinds["tint"] += level == 0
            kinds["round"] += radius > 0
            for block in page.blocks if not flat else ():
                left, top, right, bottom = block.box
                inside = x1 <= left and y1 <= top and right <= x2 + 1 and bottom <= y2 + 1
                apart = bottom <= y1 or y2 <= top or right <= x1 or x2 <= left
                in_table = block.rows and left <= x1 and top <= y1 and x2 < right and y2 < bottom
                assert inside or apart or in_table
        kinds["table"] += any(block.rows for block in page.blocks)
        without = painter.finish(painter.compose(random.Random(seed), 6, prose=True))
        assert len(without.shapes) <= 1
    assert min(kinds.values()) >= 8, kinds


def test_tables() -> None:
    """A table is HTML for the grounding prompt and rows for the free one; its box holds its lines and its text."""
    painter = Painter(Source.load(None), BUILTIN, None, frames=0, tables=1)
    sizes = set()
    for seed in range(80):
        page, ink = drawn(painter, seed, lines=9)
        for block in page.blocks:
            if not block.rows:
                assert "<td>" not in page.free
                continue
            assert block.label == "table"
            found = re.findall("<tr>(.*?)</tr>", block.markdown)
            cells = [[unescape(cell) for cell in re.findall("<td>(.*?)</td>", row)] for row in found]
            assert cells == block.rows
            assert block.text.split("\n") == [" ".join(filter(None, row)) for row in block.rows]
            sizes.add((len(block.rows), len(block.rows[0])))
            assert encode(page.grounded).count(ID_OF["<td>"]) == sum(map(len, block.rows))
            x1, y1, x2, y2 = block.box
            assert 0 <= x1 < x2 <= SIZE
            assert 0 <= y1 < y2 <= SIZE
            if not page.angle:
                inside = ink[y1:y2, x1:x2]
                assert inside.any(1).sum() >= 12 * len(block.rows)
                others = [other.box for other in page.blocks if other is not block]
                assert all(bottom <= y1 or top >= y2 for _, top, _, bottom in others)
    assert {rows for rows, _ in sizes} == {2, 3, 4, 5, 6}
    assert {columns for _, columns in sizes} == {2, 3, 4}


def test_pages_without_tables_stay_the_same() -> None:
    """The held-out pages were composed before there were tables."""
    page = Painter(Source.load(None), BUILTIN, None, frames=0, tables=0).compose(random.Random(4), 5)
    assert page.free.startswith("More to\n\nChurch summer bridge they if we number\nat. Quick is table")


def test_blocks_without_ink_go(painter: Painter) -> None:
    from fonts import face

    letters = face(None, "", 20)
    blank, full = (Block(kind, letters, [Line(20, [(20, text)])]) for kind, text in (("title", ""), ("text", "ink")))
    assert [block.text for block in painter.finish(Page([blank, full])).blocks] == ["ink"]


def test_photographs(painter: Painter) -> None:
    """Equal seeds, equal images; some are dark; every page can still be told from its paper."""
    ink = torch.from_numpy(np.stack([drawn(painter, seed)[1] for seed in range(12)]))
    images = photograph(ink, 3)
    assert torch.equal(images, photograph(ink, 3))
    assert not torch.equal(images, photograph(ink, 4))
    assert images.min() >= 0
    assert images.max() <= 255
    assert torch.equal(images, images.round())
    for tint in (0, 1):  # text can be told from its ground everywhere
        flagged = ink | 1 if tint else ink & 254
        images = photograph(flagged, 3)
        contrast = torch.stack([image[:, page > 200].mean() - image[:, page < 2].mean()
                                for image, page in zip(images, flagged, strict=True)])  # fmt: skip
        assert (contrast.abs() > 25 if tint else contrast.abs() > 40).all()
    assert (contrast > 0).any()  # light ink on a dark page
    assert (contrast < 0).any()


def test_held_out_words(tmp_path: Any) -> None:
    """Neither words nor sentences of one split are in the other, and both have some."""
    import gzip

    words = [f"{a}{b}ing" for a in "bcdfglmprst" for b in ("all", "end", "ill", "old", "urn")]
    sentences = [f"the {one} and the {other} one" for one in words for other in words[::7]]
    for name, rows in (("words", words), ("sentences", sentences)):
        (tmp_path / f"{name}.txt.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    train, held = Source.load(tmp_path), Source.load(tmp_path, held=True)
    assert sorted(train.words + held.words) == sorted(words)
    assert held.words
    assert all(map(held_out, held.words))
    assert not set(train.words) & {word for text in held.sentences for word in text.split()} & set(held.words)
    assert not any(word in held.words for text in train.sentences for word in text.split())
    assert all(any(word in held.words for word in text.split()) for text in held.sentences)


def test_batches(painter: Painter) -> None:
    """A batch is known by its index and level, holds both prompts, and its labels are the answers."""
    batches = Batches(painter, 8, seed=3)
    batch, again = batches[(5, 6)], batches[(5, 6)]
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert batch["ids"].shape[1] in BUCKETS
    prompts = set()
    for ids, labels in zip(batch["ids"].tolist(), batch["labels"].tolist(), strict=True):
        start = next(place for place, label in enumerate(labels) if label != -100)
        end = ids.index(EOS) + 1
        assert set(ids[end:]) <= {PAD}
        assert labels[start:end] == ids[start:end]
        assert {*labels[:start], *labels[end:]} <= {-100}
        prompts.add("<image>" + decode(ids[:start]))
        assert ("<|ref|>" in decode(ids[start:end])) == ("<|grounding|>" in decode(ids[:start]))
    assert prompts == {FREE, GROUNDED}


def test_requests_come_back_after_a_stop() -> None:
    requests = Requests(level=2)
    stream = iter(requests)
    asked = [next(stream) for _ in range(3)]
    requests.used()
    requests.level = 4
    asked.append(next(stream))
    state = requests.state()
    again = Requests(state["next_index"], state["level"], state["pending"])
    resumed = iter(again)
    assert [next(resumed) for _ in range(3)] == asked[1:] == [(1, 2), (2, 2), (3, 4)]
    assert next(resumed) == (4, 4)


def test_builtin_font_is_the_only_one_here(painter: Painter) -> None:
    assert painter.families == BUILTIN
    assert encode(painter.compose(random.Random(1), 3).free)
