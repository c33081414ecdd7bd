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
from dataclasses import dataclass

__all__ = ["SPACELESS", "EditCount", "character_edits", "normalise", "word_edits", "words"]

# A heading as CommonMark defines it: at most three spaces, one to six marks, then white space or the line's
# end. "#1" and "#tag" are text.
_HEADING = re.compile(r"^ {0,3}#{1,6}(?=[ \t]|$)", re.MULTILINE)
# Scripts written without spaces: Thai, Lao, Burmese, Khmer, kana, CJK ideographs.
SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_WORD = re.compile(f"[{SPACELESS}]|[^\\s{SPACELESS}]+")


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

    @property
    def rate(self) -> float:
        """edits / length. With an empty truth: 0.0 where the answer is empty too, else 1.0."""
        if self.length == 0:
            return 0.0 if self.edits == 0 else 1.0
        return self.edits / self.length

    def __add__(self, other: EditCount) -> EditCount:
        return EditCount(self.edits + other.edits, self.length + other.length)


def character_edits(truth: str, answer: str) -> EditCount:
    """Levenshtein distance in code points of the normalised texts; each edit of one counts 1."""
    from rapidfuzz.distance import Levenshtein

    truth, answer = normalise(truth), normalise(answer)
    return EditCount(Levenshtein.distance(truth, answer), len(truth))


def word_edits(truth: str, answer: str) -> EditCount:
    """Levenshtein distance in words of the normalised texts."""
    from rapidfuzz.distance import Levenshtein

    truth_words, answer_words = words(normalise(truth)), words(normalise(answer))
    return EditCount(Levenshtein.distance(truth_words, answer_words), len(truth_words))
