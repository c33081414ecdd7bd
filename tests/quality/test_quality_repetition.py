from __future__ import annotations

import random
import time

import pytest

from pytest_llmprof.quality.repetition import repetition, runaway

PROSE = (
    "The ferry leaves the old harbour at seven in the morning and again at noon. Tickets are sold on board; "
    "children under six travel free. In winter the second crossing is dropped when the wind is strong, and a "
    "notice on the gate says so. Bicycles are carried on the lower deck, as many as twelve at a time. "
)
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


def test_linear_in_the_length() -> None:
    """A megabyte that defeats naive search takes well under a second."""
    start = time.perf_counter()
    assert not runaway("a" * 500_000 + "b" + "a" * 150 + "c", "length")
    assert runaway(("a" * 50 + "b") * 20_000, "length")
    assert time.perf_counter() - start < 2.0
