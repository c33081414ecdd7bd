from __future__ import annotations

import random
import time

from pytest_llmprof.outputs.differences import MAX_ROWS, differences
from pytest_llmprof.quality.text import character_edits


def test_equal_texts_have_no_line() -> None:
    found = differences("# Title\n\nOne  line\n", "Title One\nline")
    assert found.lines == ()
    assert found.differing == 0


def test_a_wrong_character_is_marked() -> None:
    truth = "Total due by 12 March\nAmount: 12.30 EUR\nThank you\nBye\nEnd"
    answer = "Total due by 12 March\nAmount: 72.3 EURO\nThank you\nBye\nEnd"
    found = differences(truth, answer)
    assert found.differing == 1
    assert found.lines == (
        "  Total due by 12 March",
        "- Amount: 12.30 EUR",
        "?         ^   -",
        "+ Amount: 72.3 EURO",
        "?         ^       +",
        "  Thank you",
        "  … 2 equal rows …",
    )


def test_missing_and_extra_lines() -> None:
    found = differences("one\ntwo words\nthree", "one\nthree\nand more")
    assert found.lines == ("  one", "- two words", "  three", "+ and more")


def test_line_breaks_of_the_answer_do_not_count() -> None:
    truth = "First line of it\nsecond line of it\nthird"
    found = differences(truth, truth.replace("\n", " ").replace("second", "sec0nd"))
    assert found.lines[:3] == ("  First line of it", "- second line of it", "?    ^")


def test_nothing_answered() -> None:
    assert differences("a b\nc", "").lines == ("- a b", "- c")
    assert differences("", "a b").lines == ("+ a b",)


def test_wide_characters_keep_the_marks_below() -> None:
    assert differences("日本語", "日木語").lines == ("- 日本語", "?   ^^", "+ 日木語", "?   ^^")


def test_marks_agree_with_the_error_rate() -> None:
    """What is marked or listed alone is never less than what the error rate counts within words."""
    rng = random.Random(7)
    truth = "\n".join(" ".join("abcdefgh"[rng.randrange(8)] * 3 for _ in range(8)) for _ in range(20))
    answer = "".join(letter if rng.random() > 0.05 else "x" for letter in truth.replace("\n", " "))
    found = differences(truth, answer)
    marks = sum(line.count("^") for line in found.lines if line.startswith("? ")) / 2
    assert character_edits(truth, answer).rate > 0
    assert marks >= character_edits(truth, answer).rate * len(truth) * 0.5


def test_hidden_characters_and_long_words_stay_bounded() -> None:
    found = differences("a\x1b[31m" + "x" * 5000, "a\u202e" + "y" * 5000)
    assert "␛" in found.lines[0]
    assert "<U+202E>" in "".join(found.lines)
    assert max(map(len, found.lines)) < 500


def test_many_differences_are_counted_not_shown() -> None:
    start = time.perf_counter()
    truth = "\n".join(f"row {number} of a long page" for number in range(3000))
    found = differences(truth, truth.replace("long", "wrong"))
    assert found.differing == 3000
    assert sum(line.startswith("- ") for line in found.lines) == MAX_ROWS
    assert found.lines[-1] == f"  … {3000 - MAX_ROWS:,} more rows with differences …"
    # A runaway answer of a megabyte.
    assert differences("a few words", "loop and " * 100_000).lines
    assert time.perf_counter() - start < 5.0
