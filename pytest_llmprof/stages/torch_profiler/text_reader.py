"""Read a slice of a kineto trace without a JSON decoder: find all events at once, then each field as one array.

A decoder spends most of its time on making a Python object of every event. kineto (torch.profiler's tracer) writes
every complete event the same way. Category, name, process and thread repeat: they are looked up as one text. Start,
duration and arguments are found by going back from the brace of the arguments. The text between is compared, and a
slice in which it differs is left to `json_reader` (`TextReader.read` returns None). A name may hold anything: within
JSON's quotes there is neither a line break nor a bare quote.
"""

from __future__ import annotations

import re
from itertools import repeat
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from pytest_llmprof.analysis.events import Ints, Mask
from pytest_llmprof.stages.torch_profiler.columns import Columns, Heads

__all__ = ["TextReader"]

_Words = npt.NDArray[Any]
"""uint64; numpy's stubs make a signed array of such an array and a plain number."""

_FIELD, _PHASE, _PHASE_VALUE, _COMPLETE = b'\n    "', b'\n    "ph', b'": "', b'": "X",'
"""After an event's brace: any field, and the field "ph"; after `_PHASE`: a value, and that of a complete event."""
_OVERHEAD = (b' "cat": "overhead"', b'\n    "cat": "overhead"')
"""The profiler's own work has no arguments; in both layouts (see `_BEFORE_ARGS`)."""
_HEAD = re.compile(
    rb'\s*"cat": "([^"]*)",\s*"name": "(.*)",\s*"pid": (?:\d+|"[^"]*"),\s*"tid": (\d+),\s*"ts": ', re.DOTALL
)
_BEFORE_DUR = (b',\n    "dur": ', b', "dur": ')
_BEFORE_ARGS = (b'\n    ,\n    "args": {', b',\n    "args": {')
"""In kineto since 2026-04, when each field got a line of its own, and before (torch 2.11)."""
_ARGS = b'"args": '
_EXTERNAL = b'\n      "External id": '
_CORRELATION = b'"correlation": '

_ONES, _HIGH, _LOW = 0x0101010101010101, 0x8080808080808080, 0x7F7F7F7F7F7F7F7F


class _LayoutError(Exception):
    """The text is not laid out as kineto's."""


class _HeadTexts(dict[bytes, int]):
    """Numbers the texts between an event's phase and its start."""

    def __init__(self, heads: Heads) -> None:
        self._heads = heads
        self.parsed: list[tuple[int, bool]] = []
        """For each number: that in `Heads`, and whether such an event may have a correlation id."""

    def __missing__(self, text: bytes) -> int:
        found = _HEAD.fullmatch(text)
        if found is None:
            raise _LayoutError
        category, name = found[1].decode(), msgspec.json.decode(b'"' + found[2] + b'"')
        may_correlate = category not in ("cpu_op", "user_annotation")
        self.parsed.append((self._heads[category, name, int(found[3])], may_correlate))
        number = self[text] = len(self)
        return number


class TextReader:
    """Reads slices of *data*. *heads* numbers their categories, names and threads."""

    slice_bytes = 1 << 21
    """How much to read at a time, so that the arrays made of it stay in the processor's cache."""

    def __init__(self, data: bytes, heads: Heads) -> None:
        self._data = data
        self._bytes = np.frombuffer(data, np.uint8)
        # The eight bytes from each place on, the first one lowest, without a copy: the stride is one byte.
        self._words: _Words = np.ndarray((max(len(data) - 7, 0),), "<u8", data, strides=(1,))
        self._head_texts = _HeadTexts(heads)

    def read(self, begin: int, end: int) -> tuple[Columns, int] | None:
        """The complete events between two places, and the number of events of every kind.

        None where an event is laid out otherwise. The slice begins before an event's brace and ends behind another's,
        some 20 bytes or more from the ends of the data.
        """
        try:
            return self._read(begin, end)
        except (_LayoutError, msgspec.DecodeError, UnicodeDecodeError):
            return None

    def _read(self, begin: int, end: int) -> tuple[Columns, int]:
        braces = begin + np.flatnonzero(self._bytes[begin:end] == ord("{"))
        first = self._words[braces + 1]
        opens_event = _equal(first, _FIELD)
        is_structure = opens_event.copy()
        is_structure[~opens_event] = self._is(braces[~opens_event] - len(_ARGS), _ARGS)
        events = braces[opens_event]
        phase = self._words[events + 1 + len(_PHASE)]
        _require(
            len(events) > 0 and _equal(first[opens_event], _PHASE).all() and _equal(phase, _PHASE_VALUE).all()
        )
        braces, opens_event = braces[is_structure], opens_event[is_structure]
        complete = np.flatnonzero(opens_event)[_equal(phase, _COMPLETE)]
        # An event's brace is followed by that of its arguments.
        bare = np.append(opens_event, True)[complete + 1]
        category = braces[complete[bare]] + 1 + len(_PHASE + _COMPLETE)
        _require((self._is(category, _OVERHEAD[0]) | self._is(category, _OVERHEAD[1])).all())
        complete = complete[~bare]
        if not len(complete):
            return Columns.joined([]), len(events)
        args, limits = braces[complete + 1], np.append(braces, end)[complete + 2]

        place = self._before(args + 1, _BEFORE_ARGS)
        dur, place = self._thousandths(place)
        start, place = self._thousandths(self._before(place, _BEFORE_DUR))
        head, may_correlate = self._parse_heads(braces[complete] + 1 + len(_PHASE + _COMPLETE), place)
        external, correlation = np.full((2, len(args)), -1, dtype=np.int64)
        # kineto writes the external id first, where there is one.
        rows = np.flatnonzero(self._is(args + 1, _EXTERNAL))
        external[rows] = self._digits_after(args[rows] + 1 + len(_EXTERNAL))
        rows = np.flatnonzero(may_correlate)
        places = self._find(_CORRELATION, args[rows], limits[rows])
        rows, places = rows[places >= 0], places[places >= 0]
        correlation[rows] = self._digits_after(places + len(_CORRELATION))
        return Columns(head, start, dur, external, correlation), len(events)

    def _is(self, places: Ints, text: bytes) -> Mask:
        """At which places *text* stands."""
        found = _equal(self._words[places], text[:8])
        for at in range(8, len(text), 8):
            found &= _equal(self._words[places + at], text[at : at + 8])
        return found

    def _before(self, places: Ints, texts: tuple[bytes, ...]) -> Ints:
        """The begins of the one of *texts* that stands before every place."""
        for text in texts:
            begin = places - len(text)
            if self._is(begin[:1], text).all() and self._is(begin, text).all():
                return begin
        raise _LayoutError

    def _find(self, text: bytes, begins: Ints, ends: Ints) -> Ints:
        """The first place of *text* in each interval; -1 where it is not in it."""
        found = map(self._data.find, repeat(text), begins.tolist(), ends.tolist())
        return np.fromiter(found, dtype=np.int64, count=len(begins))

    def _parse_heads(self, begins: Ints, ends: Ints) -> tuple[Ints, Ints]:
        """The columns of `_HeadTexts.parsed` for the texts between *begins* and *ends*."""
        data, texts = self._data, self._head_texts
        numbers = [texts[data[begin:end]] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
        head, may_correlate = np.array(texts.parsed, dtype=np.int64)[numbers].T
        return head, may_correlate

    def _thousandths(self, ends: Ints) -> tuple[Ints, Ints]:
        """The numbers with three decimals that end before each place, times 1,000; and their begins."""
        decimals, count = self._digits_before(ends)
        _require((count == 3).all() and (self._bytes[ends - 4] == ord(".")).all())
        value, count = self._digits_before(ends - 4)
        if (more := count == 8).any():
            higher, others = self._digits_before(ends - 12)
            value = np.where(more, higher * 10**8 + value, value)
            count = np.where(more, 8 + others, count)
        _require((count > 0).all())
        return value * 1000 + decimals, ends - 4 - count

    def _digits_before(self, ends: Ints) -> tuple[Ints, Ints]:
        """The value and the number of the digits, at most eight, that end before each place."""
        digits, other = _digits(self._words[ends - 8])
        for bits in (8, 16, 32):
            other |= other >> bits  # everything before the last character that is no digit
        return _value(digits & ~(other * 0xFF)), _count(other)

    def _digits_after(self, places: Ints) -> Ints:
        """The numbers, of at most seven digits, that begin at each place."""
        digits, other = _digits(self._words[places])
        for bits in (8, 16, 32):
            other |= other << bits  # everything after the first character that is no digit
        count = _count(other)
        _require(((count > 0) & (count < 8)).all())
        return _value((digits & ~(other * 0xFF)) << (64 - 8 * count).astype(np.uint64))


def _require(holds: bool | np.bool_) -> None:
    if not holds:
        raise _LayoutError


def _equal(words: _Words, text: bytes) -> Mask:
    """Which words begin with *text*, at most eight bytes."""
    if len(text) < 8:
        words = words & ((1 << 8 * len(text)) - 1)
    same: Mask = words == int.from_bytes(text, "little")
    return same


def _digits(words: _Words) -> tuple[_Words, _Words]:
    """Each byte's value as a digit, and 1 in each byte that is no digit."""
    values = words ^ 0x3030303030303030
    other = ((values | ((values & _LOW) + 0x7676767676767676)) & _HIGH) >> 7
    return values, other


def _count(other: _Words) -> Ints:
    return 8 - (other * _ONES >> 56).astype(np.int64)


def _value(digits: _Words) -> Ints:
    """The number whose eight digits are the bytes, the highest in the lowest byte: joined in pairs three times."""
    digits = (digits * 10 + (digits >> 8)) & 0x00FF00FF00FF00FF
    digits = (digits * 100 + (digits >> 16)) & 0x0000FFFF0000FFFF
    value: Ints = ((digits * 10000 + (digits >> 32)) & 0xFFFFFFFF).astype(np.int64)
    return value
