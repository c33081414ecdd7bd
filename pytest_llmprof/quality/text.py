"""Character and word error rates.

The answer comes from its parser (`ParsedOutput.plain`: no special tokens, no grounding spans). Both texts are
normalised first, so that layout doesn't count: NFC, heading marks removed, white space collapsed.

The character (word) error rate is the Levenshtein distance in characters (words) over the truth's length
(V. I. Levenshtein, "Binary codes capable of correcting deletions, insertions, and reversals", 1966; used for OCR by
S. V. Rice, "Measuring the accuracy of page-reading systems", UNLV 1996). Both rates can exceed 1: a long answer
can have more edits than the truth has characters.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

# A heading as CommonMark defines it: at most three spaces, one to six marks, then white space or the line's
# end. "#1" and "#tag" are text.
_HEADING = re.compile(r"^ {0,3}#{1,6}(?=[ \t]|$)", re.MULTILINE)
# Scripts written without spaces: Thai, Lao, Burmese, Khmer, kana, CJK ideographs.
SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_WORD = re.compile(f"[{SPACELESS}]|[^\\s{SPACELESS}]+")


_CELLS = 2**33
"""Pairs of units that are compared at most, in about half a second: two texts of 92,000 characters."""
_ANCHORS = 500
_ANCHOR_CHARACTERS = 24
_ANCHOR_WORDS = 6


def normalise(text: str) -> str:
    """Bring *text* to the form that is scored: NFC, no heading marks, white space collapsed."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return " ".join(unicodedata.normalize("NFC", _HEADING.sub("", lines)).split())


def words(text: str) -> list[str]:
    """The words of *text*: runs between white space.

    A character of a script that is written without spaces (Chinese, Japanese, Thai, ...) is a word by itself.
    """
    return _WORD.findall(text)


@dataclass(frozen=True)
class EditCount:
    """Edits between a truth and an answer, and the truth's length, in the same unit (characters or words)."""

    edits: int
    length: int
    by_block: bool = False
    """Whether the texts were too long to be compared as a whole: `edits` may be a little too high, never too low."""

    @property
    def rate(self) -> float:
        """edits / length. With an empty truth: 0.0 where the answer is empty too, else 1.0."""
        if self.length == 0:
            return 0.0 if self.edits == 0 else 1.0
        return self.edits / self.length

    def __add__(self, other: EditCount) -> EditCount:
        return EditCount(self.edits + other.edits, self.length + other.length, self.by_block or other.by_block)


def character_edits(truth: str, answer: str) -> EditCount:
    """Levenshtein distance in code points of the normalised texts; each edit of one counts 1."""
    return _edits(normalise(truth), normalise(answer), _ANCHOR_CHARACTERS)


def word_edits(truth: str, answer: str) -> EditCount:
    """Levenshtein distance in words of the normalised texts."""
    truth_words, answer_words = words(normalise(truth)), words(normalise(answer))
    # One code point a distinct word. Beyond the million that there are, words share them.
    codes = {word: chr(number % 0x110000) for number, word in enumerate(dict.fromkeys(truth_words + answer_words))}
    return _edits(
        "".join(map(codes.__getitem__, truth_words)), "".join(map(codes.__getitem__, answer_words)), _ANCHOR_WORDS
    )


def _edits(truth: str, answer: str, anchor: int) -> EditCount:
    """The distance of two strings, exact where that is cheap, else by block.

    Its time grows with the product of both lengths. Beyond `_CELLS` the distance is exact up to a cutoff that keeps the
    time; else it is the sum over blocks between anchors.
    """
    from rapidfuzz.distance import Levenshtein

    longest = max(len(truth), len(answer))
    if len(truth) * len(answer) <= _CELLS:
        return EditCount(Levenshtein.distance(truth, answer), len(truth))
    cutoff = _CELLS // longest
    edits = Levenshtein.distance(truth, answer, score_cutoff=cutoff)
    if edits <= cutoff:
        return EditCount(edits, len(truth))
    edits = 0
    for start, end, answer_start, answer_end in _blocks(truth, answer, anchor):
        rows, columns = end - start, answer_end - answer_start
        # Pieces of equal shares, so that all blocks together stay near the limit.
        pieces = rows * columns * 2 * longest // (_CELLS * max(rows, columns, 1)) + 1
        for piece in range(pieces):
            edits += Levenshtein.distance(
                truth[start + rows * piece // pieces : start + rows * (piece + 1) // pieces],
                answer[answer_start + columns * piece // pieces : answer_start + columns * (piece + 1) // pieces],
            )
    return EditCount(min(edits, longest), len(truth), by_block=True)


def _blocks(truth: str, answer: str, anchor: int) -> Iterator[tuple[int, int, int, int]]:
    """Start and end in *truth*, then in *answer*, of blocks that belong together and follow one another.

    They begin at anchors, passages of *anchor* units that both texts have once, as many as keep their order in both
    (patience diff, B. Cohen).
    """
    places: list[tuple[int, int]] = []
    for number in range(_ANCHORS):
        at = len(truth) * number // _ANCHORS
        passage = truth[at : at + anchor]
        found = answer.find(passage)
        if found >= 0 and found == answer.rfind(passage) and truth.find(passage) == at == truth.rfind(passage):
            places.append((at, found))
    # The longest run of rising answer places: `ends[n]` is the lowest end of a run of n + 1, `last[n]` its index.
    ends: list[int] = []
    last: list[int] = []
    before: list[int] = []
    for index, (_, found) in enumerate(places):
        length = bisect_left(ends, found)
        before.append(last[length - 1] if length else -1)
        ends[length : length + 1], last[length : length + 1] = [found], [index]
    chain = [(len(truth), len(answer))]
    index = last[-1] if last else -1
    while index >= 0:
        chain.append(places[index])
        index = before[index]
    chain.append((0, 0))
    for (end, answer_end), (start, answer_start) in pairwise(chain):
        yield start, end, answer_start, answer_end
