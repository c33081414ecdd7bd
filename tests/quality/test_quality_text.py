from __future__ import annotations

import unicodedata

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
