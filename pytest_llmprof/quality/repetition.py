"""Does an answer repeat itself, and did it end in a loop?

Repetition is seq-rep-n of Welleck et al., "Neural Text Generation with Unlikelihood Training" (2019):
1 - (distinct n-grams / n-grams), with n = 4; the share of distinct n-grams goes back to distinct-n of Li et
al., "A Diversity-Promoting Objective Function for Neural Conversation Models" (2016). Ordinary prose is near
0, a loop near 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmprof.quality.text import words

__all__ = ["repetition", "runaway"]

# The rules of `runaway`: a table that is cut off repeats a few times, a loop fills the token budget.
_LOOP_REPEATS = 6
_LOOP_CHARACTERS = 200
_LOOP_TAIL = 16_384
_NEAR_TAIL = 4_096
_NEAR_WORDS = 64
_NEAR_REPETITION = 0.9
_NEAR_END = 24


def repetition(text: str) -> float:
    """Share of repeated 4-grams, 0.0 to 1.0; 0.0 for a text shorter than four words.

    The 4-grams are over words (`quality.text.words`), over characters in a text without spaces.
    """
    units: Sequence[str] = words(text)
    if len(units) <= 1:
        units = text.strip()
    grams = _grams(units)
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def runaway(text: str, finish_reason: str | None) -> bool:
    """Whether the answer reached its token limit (finish_reason "length") in a loop. Linear in the text's length.

    The end of the text must be

    - one unit repeated six times or more over at least 200 characters (the last one may be cut), or
    - nearly the same text again and again ("Figure 7: ...", "Figure 8: ..."), which a ban on repeated n-grams lets
      through: with numbers left out, nine of ten 4-grams near the end are repeats. Most of the end must be words, so
      that a table of numbers doesn't count.
    """
    if finish_reason != "length":
        return False
    tail = text.rstrip()[-_LOOP_TAIL:]
    return _ends_in_cycle(tail) or _ends_in_near_cycle(tail[-_NEAR_TAIL:])


def _grams(units: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(units[start : start + 4]) for start in range(len(units) - 3)]


def _ends_in_cycle(tail: str) -> bool:
    """Whether *tail* ends in a unit that is repeated often enough.

    The Z function of the reversed text (Gusfield, "Algorithms on Strings, Trees and Sequences", 1997) gives for
    each period `p` how far back it holds: `z[p] + p` characters.
    """
    backwards = tail[::-1]
    size = len(backwards)
    z = [0] * size
    left = right = 0
    for start in range(1, size):
        length = min(right - start, z[start - left]) if start < right else 0
        while start + length < size and backwards[length] == backwards[start + length]:
            length += 1
        z[start] = length
        if start + length > right:
            left, right = start, start + length
        covered = start + length
        if covered >= _LOOP_CHARACTERS and covered >= _LOOP_REPEATS * start:
            return True
    return False


def _ends_in_near_cycle(tail: str) -> bool:
    named = [word for word in words(tail) if not any(character.isdigit() for character in word)]
    spoken = [word for word in named if any(character.isalpha() for character in word)]
    letters = sum(map(len, spoken))
    solid = sum(not character.isspace() for character in tail)
    if len(spoken) < _NEAR_WORDS or 2 * letters < solid:
        return False
    grams = _grams(spoken)
    # The last 4-grams are also checked alone: an answer that left its loop goes on with new words.
    earlier, last = set(grams[:-_NEAR_END]), grams[-_NEAR_END:]
    repeats = len(grams) - len(set(grams)), sum(gram in earlier for gram in last)
    return repeats[0] >= _NEAR_REPETITION * len(grams) and repeats[1] >= _NEAR_REPETITION * len(last)
