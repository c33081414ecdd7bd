from __future__ import annotations

import random
import time
import unicodedata
from collections.abc import Callable

import pytest

from pytest_llmprof.quality.text import EditCount, character_edits, normalise, word_edits, words


def cer(truth: str, answer: str) -> float:
    return character_edits(truth, answer).rate


def wer(truth: str, answer: str) -> float:
    return word_edits(truth, answer).rate


def test_normalise_collapses_white_space_and_drops_heading_marks() -> None:
    assert (
        normalise("# Title\r\n\r\n###  Part\t one \n   ## three spaces\n") == "Title Part one three spaces"
    )
    # Text, not headings: no space behind, too many marks, inside a line, four spaces (a code block).
    assert normalise("#1 and ####### 7\na # b\n    # code") == "#1 and ####### 7 a # b # code"
    assert normalise("#\n##") == ""


def test_normalise_composes() -> None:
    assert normalise(unicodedata.normalize("NFD", "Café")) == "Café"
    # NFC keeps compatibility characters apart: a ligature in the answer is an error, as it is on the page.
    assert normalise("\ufb01n") == "\ufb01n"


@pytest.mark.parametrize(
    ("truth", "answer", "edits", "length"),
    [
        ("kitten", "sitting", 3, 6),
        ("flaw", "lawn", 2, 4),
        ("abc", "abc", 0, 3),
        ("abc", "", 3, 3),
        ("Total: 12.30 EUR", "Total: 72.3 EUR", 2, 16),
        ("# A\n\nb", "A b", 0, 3),
        ("日本語", "日木語", 1, 3),
    ],
)
def test_character_edits(truth: str, answer: str, edits: int, length: int) -> None:
    assert character_edits(truth, answer) == EditCount(edits, length)
    assert cer(truth, answer) == pytest.approx(edits / length)


def test_cer_can_be_over_one_and_takes_any_text() -> None:
    assert cer("ab", "abababab") == 3.0
    assert cer("a", "\ud800\x00") == 2.0


def test_empty_truth() -> None:
    assert cer("", "") == 0.0
    assert cer(" \n", "anything") == 1.0
    assert wer("", "") == 0.0
    assert wer("", "anything at all") == 1.0


def test_wer() -> None:
    assert wer("the cat sat on the mat", "the cat sit on mat") == pytest.approx(2 / 6)
    # One wrong character of three is one wrong word of three, not one of one.
    assert wer("日本語", "日木語") == pytest.approx(1 / 3)


def test_words_of_scripts_without_spaces() -> None:
    assert words("第3章 Tokyo タワー, ok") == ["第", "3", "章", "Tokyo", "タ", "ワ", "ー", ",", "ok"]


def test_added_up_a_long_text_weighs_more() -> None:
    # 1 of 2 and 1 of 8 characters: 2 of 10, not the mean of 0.5 and 0.125.
    assert (character_edits("ab", "xb") + character_edits("abcdefgh", "abcdefg")).rate == pytest.approx(0.2)
    assert (character_edits("", "x") + character_edits("abcd", "abcd")).rate == pytest.approx(0.25)


LETTERS = "abcdefghijklmnopqrstuvwxyz      "


def noisy(text: str, share: float, rng: random.Random) -> str:
    return "".join(rng.choice(LETTERS.strip()) if rng.random() < share else letter for letter in text)


def test_400_000_characters_are_compared_in_a_second() -> None:
    """Unrelated texts, for which no cutoff helps. The whole comparison gives 337,295 edits, and 5 s."""
    rng = random.Random(1)
    truth, answer = ("".join(rng.choices(LETTERS, k=400_000)) for _ in range(2))
    start = time.process_time()
    count = character_edits(truth, answer)
    word_edits(truth, answer)
    assert time.process_time() - start < 2.0
    assert count.by_block
    assert 0.84 < count.rate < 0.86


@pytest.mark.parametrize(
    ("change", "rate", "by_block"),
    [
        (lambda text, rng: text, 0.0, False),
        (lambda text, rng: noisy(text, 0.03, rng), 0.029, False),
        (lambda text, rng: noisy(text, 0.15, rng), 0.146, True),
        (lambda text, rng: text[:100_000] + noisy(text[150_000:], 0.02, rng), 1 / 6 + 0.01, True),
        (lambda text, rng: text[-60_000:] + noisy(text, 0.02, rng), 0.2 + 0.019, True),
        (lambda text, rng: text[:9_000], 0.97, False),
    ],
    ids=["equal", "noise", "much noise", "a part is missing", "a part is put in front", "cut"],
)
def test_long_texts_by_block(change: Callable[[str, random.Random], str], rate: float, by_block: bool) -> None:
    rng = random.Random(2)
    truth = "".join(rng.choices(LETTERS.strip(), k=300_000))
    count = character_edits(truth, change(truth, rng))
    assert count.rate == pytest.approx(rate, abs=0.006)
    assert count.by_block == by_block


def test_by_block_is_never_too_low_and_seldom_too_high(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(3)
    cases = []
    for length in (3_000, 8_000):
        truth = "".join(rng.choices(LETTERS, k=length))
        cases += [(truth, noisy(truth, 0.1, rng)), (truth, truth[length // 3 :] + truth), (truth, "a" * length)]
        cases += [("ab" * length, "ba" * length + "c"), ("x", truth), (truth, ""), (truth, truth[::-1])]
    exact = [(character_edits(*case), word_edits(*case)) for case in cases]
    monkeypatch.setattr("pytest_llmprof.quality.text._CELLS", 1_000_000)
    for case, (characters, words_) in zip(cases, exact, strict=True):
        for found, true in ((character_edits(*case), characters), (word_edits(*case), words_)):
            assert found.length == true.length
            assert true.edits <= found.edits <= true.edits * 1.25 + 40
            assert found.by_block or found.edits == true.edits


def test_counts_remember_that_they_are_by_block() -> None:
    assert (EditCount(1, 2) + EditCount(1, 2, by_block=True)).by_block
