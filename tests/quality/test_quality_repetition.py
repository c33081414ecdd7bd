from __future__ import annotations

import random
import time

import pytest
from answers import FEW_UNITS, LOOPS, PAGES, PROSE, Piece, answer

from pytest_llmprof.quality.repetition import repetition, runaway

OTHER = (
    " Dogs must be kept on a lead in the park from April to September, because ground birds nest in the long "
    "grass beside the lake. The gates are closed at dusk. Lost property is handed in at the town hall."
)


def test_repetition_by_hand() -> None:
    assert repetition("a b a b a b a") == pytest.approx(1 - 2 / 4)  # abab baba abab baba
    assert repetition("a b c d e") == 0.0
    assert repetition("a b c d a b c d") == pytest.approx(1 - 4 / 5)
    assert repetition("abababab") == pytest.approx(1 - 2 / 5)  # no spaces: characters
    assert repetition("") == 0.0
    assert repetition("one two") == 0.0


def test_repetition_of_prose_and_of_a_loop() -> None:
    assert repetition(PROSE) < 0.02
    assert repetition("the end of the page " * 100) > 0.97
    assert repetition("第一页的结尾" * 50) > 0.9


@pytest.mark.parametrize(
    "tail",
    [
        "and so on, " * 40,
        "0" * 400,
        "<td></td>" * 60,
        "\n\nThe same paragraph comes again and again, with all of its words, until the budget is spent."
        * 7,
        " ".join(f"Figure {number}: the left part of the bar is the larger one." for number in range(60)),
    ],
)
def test_loops(tail: str) -> None:
    assert runaway(PROSE + tail, "length")
    assert runaway(PROSE + tail + tail[:5], "length")  # cut inside the unit
    assert not runaway(PROSE + tail, "eos")
    assert not runaway(PROSE + tail, None)
    assert not runaway(PROSE + tail + OTHER, "length")  # it came out of the loop


def test_not_loops() -> None:
    rng = random.Random(3)
    table = "\n".join(" | ".join(f"{rng.random() * 100:.2f}" for _ in range(6)) for _ in range(200))
    assert not runaway(PROSE, "length")
    assert not runaway("", "length")
    assert not runaway("ha " * 5, "length")
    assert not runaway(table, "length")
    assert not runaway(PROSE + "." * 30, "length")  # a leader of dots


def missed(length: int) -> list[str]:
    return [name for name, loop in LOOPS.items() if not all(runaway(answer(loop, length, s), "length") for s in (0, 1))]


@pytest.mark.parametrize("length", [6_000, 20_000])
def test_loops_of_every_form_are_found(length: int) -> None:
    """One unit, growing units, up to four units in any order, a counter; tables, lists, LaTeX, code, Chinese."""
    assert missed(length) == []


def test_a_short_loop_needs_some_tokens() -> None:
    assert missed(3_000) == ["four words", "cells with text"]


@pytest.mark.parametrize(
    "text",
    [
        " ".join("-" + "3" * number for number in range(1, 90)),
        "0 00 - 00 0 - - 0 00 00 - 0 " * 60,
        PROSE + "".join(f"| {number} | | | |\n" for number in range(1, 300)),
        "<table>" + "".join(f"<tr><td>{number}</td><td>x</td></tr>" for number in range(1, 200)) + "<tr><td",
    ],
    ids=range(4),
)
def test_literal_loops(text: str) -> None:
    assert runaway(text, "length")
    assert not runaway(text + OTHER, "length")  # it came out of the loop


@pytest.mark.parametrize("length", [*range(400, 4_000, 700), 9_000, 20_000])
def test_real_pages_are_no_loops(length: int) -> None:
    """Figures with many units, items, prices, contents, forms with equal headers, code: cut anywhere."""
    assert [name for name, page in PAGES.items() if runaway(answer(page, length, seed=length), "length")] == []


def test_a_page_given_twice_is_no_loop() -> None:
    page = answer(PAGES["price list"], 3_000)
    assert not runaway(page * 2, "length")


@pytest.mark.parametrize("page", FEW_UNITS.values(), ids=FEW_UNITS)
def test_a_page_of_few_units_counts_as_a_loop(page: Piece) -> None:
    """As docs/measures.md says: nothing tells them apart."""
    assert runaway(answer(page, 6_000), "length")


@pytest.mark.parametrize(
    "text",
    [
        *(answer(PAGES[name], 400_000) for name in ("table of digits", "Chinese")),
        *("<a " * 130_000, "<" * 400_000, "ab" * 199_999 + "c", "7" * 400_000 + "c", "-.,; " * 80_000 + "="),
    ],
    ids=range(7),
)
def test_400_000_characters_take_well_under_a_second(text: str) -> None:
    start = time.process_time()
    runaway(text, "length")
    assert time.process_time() - start < 0.7


def test_linear_in_the_length() -> None:
    """A megabyte that defeats naive search takes well under a second."""
    start = time.perf_counter()
    assert not runaway("a" * 500_000 + "b" + "a" * 150 + "c", "length")
    assert runaway(("a" * 50 + "b") * 20_000, "length")
    assert time.perf_counter() - start < 2.0
