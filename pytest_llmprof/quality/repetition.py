"""Does an answer repeat itself, and did it end in a loop?

Repetition is seq-rep-n of Welleck et al., "Neural Text Generation with Unlikelihood Training" (2019):
1 - (distinct n-grams / n-grams), with n = 4; the share of distinct n-grams goes back to distinct-n of Li et
al., "A Diversity-Promoting Objective Function for Neural Conversation Models" (2016). Ordinary prose is near
0, a loop near 1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from pytest_llmprof.quality.text import SPACELESS, words

_TAIL = 65_536
"""Characters of the end that are looked at."""
# One unit again and again: a table that is cut off repeats a few times, a loop fills the token budget.
_LOOP_REPEATS = 6
_LOOP_CHARACTERS = 200
# What can be foretold: the tokens in front, the ways to go on, the least tokens, and the shares.
_CONTEXT = 3
_ALTERNATIVES = 4
_FORETOLD_TOKENS = 64
_FORETOLD = 0.8
_FORETOLD_HALF = 0.95
_END = 24
# Which tokens count, by the last ones.
_RECENT = 1000
_FEW_NUMBERS = 0.1
_FEW_WORDS = 0.25

_NUMERALS = str.maketrans("〇零一二三四五六七八九", "00123456789")
_RUN = re.compile(r"(.{1,8}?)\1{2,}")
_LEADER = re.compile(r"([^\w\s<>])(?: ?\1){2,}")
_CUT_TAG = re.compile(r"<[^<>]{0,200}\Z")
_TOKEN = re.compile(
    r"(?P<row>\n|<tr\b[^<>]{0,200}>|\\\\)|(?P<tag></?[A-Za-z][^<>]{0,200}>)|(?P<number>\d+)"
    rf"|(?P<word>[{SPACELESS}]|[^\W\d_{SPACELESS}]+)|(?P<mark>\S)"
)


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
    - foretold (`_foretold`): what follows three tokens is nearly always what followed them elsewhere. So it is one
      unit with a counter, or up to four units in any order. A real page brings new words or figures.
    """
    if finish_reason != "length":
        return False
    tail = text.rstrip()[-_TAIL:]
    return _ends_in_cycle(tail) or any(map(_foretold, _views(tail)))


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


def _views(tail: str) -> Iterator[list[str]]:
    """The tokens of *tail*: numbers and words; words alone where numbers are few; all where both are few.

    A number that counts on, by one step over three numbers at the same place of their rows, after the same word or one
    after the other, becomes "+". A unit that is repeated inside a token counts once, so "-33" and "-333" are equal.
    """
    text = _LEADER.sub(r"\1", _CUT_TAG.sub("", tail).translate(_NUMERALS))
    tokens: list[tuple[str, str]] = []
    column, word = 0, ""
    last: dict[tuple[str, object], tuple[int, int]] = {}  # of each place the last number, and its step
    for match in _TOKEN.finditer(text):
        kind, token = match.lastgroup or "", match[0]
        if kind == "row":
            column, word = 0, ""
            continue
        if kind == "number" and len(token) < 16:
            value, counts = int(token), False
            for place in (("column", column), ("word", word), ("number", "")):
                number, step = last.get(place, (value, 0))
                counts = counts or value - number == step != 0
                last[place] = value, value - number
            column += 1
            token = "+" if counts else token
        elif kind == "word":
            word = token
        tokens.append((kind, _RUN.sub(r"\1", token)))
    found = Counter(kind for kind, _ in tokens[-_RECENT:])
    spoken = found["number"] + found["word"]
    yield [token for kind, token in tokens if kind in ("number", "word")]
    if found["number"] <= _FEW_NUMBERS * spoken:
        yield [token for kind, token in tokens if kind == "word"]
    if spoken <= _FEW_WORDS * found.total():
        yield [token for _, token in tokens]


def _foretold(tokens: Sequence[str]) -> bool:
    """Whether *tokens* end in a stretch in which nearly each one can be foretold.

    They are read backwards. A token is foretold where it is one of the four that mostly came with the three read
    before it, which four counters for each three find (Misra and Gries, "Finding repeated elements", 1982). That must
    hold for four fifths of the stretch, so that all in it comes five times or more; for 95 % of its far half; and the
    last tokens must come again, as an answer may have left its loop.
    """
    backwards = tokens[::-1]
    counters: dict[tuple[str, ...], dict[str, int]] = {}
    hits = [0]
    for index in range(_CONTEXT, len(backwards)):
        token = backwards[index]
        counter = counters.setdefault(tuple(backwards[index - _CONTEXT : index]), {})
        hits.append(hits[-1] + (token in counter))
        if token in counter or len(counter) < _ALTERNATIVES:
            counter[token] = counter.get(token, 0) + 1
        else:
            for other in list(counter):
                counter[other] -= 1
                if not counter[other]:
                    del counter[other]
    for size in range(len(hits) - 1, _FORETOLD_TOKENS - 1, -1):
        half = size // 2
        if hits[size] >= _FORETOLD * size and hits[size] - hits[half] >= _FORETOLD_HALF * (size - half):
            grams = _grams(backwards[: size + _CONTEXT])
            again = set(grams[_END:])
            return sum(gram in again for gram in grams[:_END]) >= _FORETOLD * _END
    return False
