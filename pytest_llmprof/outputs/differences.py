"""Where an answer and its truth differ, for a reader who looks for the wrong character.

The texts are compared as for the character error rate: heading marks, white space and line breaks don't count. Words
are aligned first, as many equal ones as possible. The rows follow the truth's own lines. In a row that differs the
characters are aligned, with marks below them as `difflib.ndiff` (and so pytest) has them::

      Total due by 12 March
    - Amount: 12.30 EUR
    ?          ^
    + Amount: 72.30 EUR
    ?          ^

``^`` replaced, ``-`` only in the truth, ``+`` only in the answer.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_llmprof.quality.text import normalise
from pytest_llmprof.text.escape import shorten, visible
from pytest_llmprof.text.numbers import count

ROW_WIDTH = 88
"""A row ends after the word that reaches this many characters on either side."""
CONTEXT_ROWS = 1
"""Equal rows that are kept around a row that differs."""
MAX_ROWS = 80
"""Rows that differ beyond this number are counted, not shown."""
MAX_WORDS = 20_000
"""Longer texts are compared up to this many words."""
MAX_ROW_CHARACTERS = 400
"""A longer row (one endless word) is cut."""


@dataclass(frozen=True)
class Differences:
    """The rows to show (lines that begin with two spaces, ``- ``, ``+ `` or ``? ``) and how many differ."""

    lines: tuple[str, ...]
    differing: int
    """Rows that differ, shown or not."""


@dataclass
class _Row:
    truth: list[str]
    answer: list[str]

    @property
    def equal(self) -> bool:
        return self.truth == self.answer


def differences(truth: str, answer: str) -> Differences:
    """Compare *truth* and *answer*. No line where they are equal."""
    rows = list(_rows(truth, answer))
    differing = [index for index, row in enumerate(rows) if not row.equal]
    if not differing:
        return Differences((), 0)
    marked = set(differing[:MAX_ROWS])
    context = {near for index in marked for near in range(index - CONTEXT_ROWS, index + CONTEXT_ROWS + 1)}
    lines: list[str] = []
    equal = 0
    for index, row in enumerate(rows):
        if index in marked or (row.equal and index in context):
            if equal:
                lines.append(f"  … {count(equal, 'equal row')} …")
                equal = 0
            lines += [f"  {_cut(' '.join(row.truth))}"] if row.equal else _marked(row)
        elif row.equal:
            equal += 1
    hidden = len(differing) - len(marked)
    if hidden:
        lines.append(f"  … {count(hidden, 'more row')} with differences …")
    elif equal:
        lines.append(f"  … {count(equal, 'equal row')} …")
    return Differences(tuple(lines), len(differing))


def _rows(truth: str, answer: str) -> Iterator[_Row]:
    """Aligned rows: they end with the truth's lines, or where one gets too wide."""
    truth_words: list[str] = []
    line_ends: set[int] = set()
    for line in truth.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        truth_words += normalise(line).split()
        line_ends.add(len(truth_words))
    answer_words = normalise(answer).split()
    del truth_words[MAX_WORDS:], answer_words[MAX_WORDS:]
    row = _Row([], [])
    widths = [0, 0]
    for position, end, answer_position, answer_end in _blocks(truth_words, answer_words):
        while position < end or answer_position < answer_end:
            line_end = False
            if position < end:
                row.truth.append(truth_words[position])
                widths[0] += 1 + len(row.truth[-1])
                position += 1
                line_end = position in line_ends
            if answer_position < answer_end:
                row.answer.append(answer_words[answer_position])
                widths[1] += 1 + len(row.answer[-1])
                answer_position += 1
            if line_end or max(widths) >= ROW_WIDTH:
                yield row
                row, widths = _Row([], []), [0, 0]
    if row.truth or row.answer:
        yield row


def _blocks(truth: list[str], answer: list[str]) -> Iterator[tuple[int, int, int, int]]:
    """Ranges of words that belong together, equal or different: start and end in *truth*, then in *answer*.

    They follow the longest common subsequence. A Levenshtein alignment is worse here: where one word is missing, it may
    replace each later word by its neighbour.
    """
    from rapidfuzz.distance import Indel

    open_at: tuple[int, int] | None = None
    for part in Indel.opcodes(truth, answer):
        if part.tag != "equal":
            open_at = open_at or (part.src_start, part.dest_start)
            continue
        if open_at is not None:
            yield open_at[0], part.src_start, open_at[1], part.dest_start
            open_at = None
        yield part.src_start, part.src_end, part.dest_start, part.dest_end
    if open_at is not None:
        yield open_at[0], len(truth), open_at[1], len(answer)


def _marked(row: _Row) -> list[str]:
    """The lines of one row that differs."""
    from rapidfuzz.distance import Levenshtein

    truth, answer = _cut(" ".join(row.truth)), _cut(" ".join(row.answer))
    truth_marks, answer_marks = [" "] * len(truth), [" "] * len(answer)
    for part in Levenshtein.editops(truth, answer):
        if part.tag != "insert":
            truth_marks[part.src_pos] = "^" if part.tag == "replace" else "-"
        if part.tag != "delete":
            answer_marks[part.dest_pos] = "^" if part.tag == "replace" else "+"
    lines = []
    for sign, text, marks in (("-", truth, truth_marks), ("+", answer, answer_marks)):
        if text:
            lines.append(f"{sign} {text}")
            if truth and answer:
                below = "".join(mark * _columns(letter) for letter, mark in zip(text, marks, strict=True))
                lines.append(f"? {below.rstrip()}")
    return [line for line in lines if line != "? "]


def _cut(text: str) -> str:
    return shorten(visible(text), MAX_ROW_CHARACTERS)


def _columns(character: str) -> int:
    """Columns of a monospaced font that *character* takes."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
