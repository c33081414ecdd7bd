"""Read a stretch of Kineto's text in bulk: the places of all events at once, then each field as one array.

Making a Python object of every event is most of what a decoder's time goes to. Kineto (torch.profiler's tracer)
writes every complete event the same way: category, name, process and thread, which repeat and are looked up as one
text, then start, duration and arguments, which are found by going back from the arguments' brace. What stands
between is compared, and a stretch in which it differs is not read here (`Text.read` gives None) but by the general
decoder in `events`. A name may hold anything: within JSON's quotes there is neither a line break nor a bare quote.
"""

from __future__ import annotations

import re
from itertools import repeat
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from pytest_llmprof.analysis.columns import Columns, Ints, Labels, Table

__all__ = ["Text"]

_Words = npt.NDArray[Any]
"""Of uint64; by numpy's stubs such an array and a plain number give a signed one."""
_Mask = npt.NDArray[np.bool_]

_OPEN, _FIRST, _PHASE, _COMPLETE = b'\n    "', b'\n    "ph', b'": "', b'": "X",'
"""What follows an event's brace; what does where the phase comes first; and behind that, of a complete one too."""
_OVERHEAD = (b' "cat": "overhead"', b'\n    "cat": "overhead"')
"""The profiler's own work, which nobody reads here, stands without arguments; in both layouts, as below."""
_HEAD = re.compile(
    rb'\s*"cat": "([^"]*)",\s*"name": "(.*)",\s*"pid": (?:\d+|"[^"]*"),\s*"tid": (\d+),\s*"ts": ', re.DOTALL
)
_BEFORE_DUR = (b',\n    "dur": ', b', "dur": ')
_BEFORE_ARGS = (b'\n    ,\n    "args": {', b',\n    "args": {')
"""In Kineto since 2026-04, when each field got a line of its own, and before (torch 2.11)."""
_ARGS = b'"args": '
_EXTERNAL = b'\n      "External id": '
_CORRELATION = b'"correlation": '

_ONES, _HIGH, _LOW = 0x0101010101010101, 0x8080808080808080, 0x7F7F7F7F7F7F7F7F


class _OddError(Exception):
    """The text is not laid out as Kineto does."""


class _Heads(dict[bytes, int]):
    """Numbers for what stands between an event's phase and its start."""

    def __init__(self, labels: Labels, threads: Table) -> None:
        self._labels, self._threads = labels.numbers, threads
        self.facts: list[tuple[int, int, bool]] = []
        """Label, thread, and whether such an event may carry a correlation; of each number."""

    def __missing__(self, text: bytes) -> int:
        found = _HEAD.fullmatch(text)
        if found is None:
            raise _OddError
        category, name = found[1].decode(), msgspec.json.decode(b'"' + found[2] + b'"')
        linked = category not in ("cpu_op", "user_annotation")
        self.facts.append((self._labels[category, name], self._threads[int(found[3])], linked))
        number = self[text] = len(self)
        return number


class Text:
    """A trace's bytes. Names and threads get their numbers in *labels* and *threads*, which it adds to."""

    def __init__(self, data: bytes, labels: Labels, threads: Table) -> None:
        self._data = data
        self._bytes = np.frombuffer(data, np.uint8)
        # The eight bytes from each place on, the first one lowest, without a copy: the stride is one byte.
        self._words: _Words = np.ndarray((max(len(data) - 7, 0),), "<u8", data, strides=(1,))
        self._heads = _Heads(labels, threads)

    def read(self, begin: int, end: int) -> tuple[Columns, int] | None:
        """The complete events between two places, and the number of events of every kind; None where one is odd.

        The stretch begins before an event's brace and ends behind another's, some 20 bytes or more from the ends
        of the data.
        """
        try:
            return self._read(begin, end)
        except (_OddError, msgspec.DecodeError, UnicodeDecodeError):
            return None

    def _read(self, begin: int, end: int) -> tuple[Columns, int]:
        braces = begin + np.flatnonzero(self._bytes[begin:end] == ord("{"))
        first = self._words[braces + 1]
        opens = _equal(first, _OPEN)
        structure = opens.copy()
        structure[~opens] = self._is(braces[~opens] - len(_ARGS), _ARGS)
        events = braces[opens]
        phase = self._words[events + 1 + len(_FIRST)]
        _must(len(events) > 0 and _equal(first[opens], _FIRST).all() and _equal(phase, _PHASE).all())
        braces, opens = braces[structure], opens[structure]
        complete = np.flatnonzero(opens)[_equal(phase, _COMPLETE)]
        # An event's brace is followed by that of its arguments.
        bare = np.append(opens, True)[complete + 1]
        category = braces[complete[bare]] + 1 + len(_FIRST + _COMPLETE)
        _must((self._is(category, _OVERHEAD[0]) | self._is(category, _OVERHEAD[1])).all())
        complete = complete[~bare]
        if not len(complete):
            return Columns.joined([]), len(events)
        args, limits = braces[complete + 1], np.append(braces, end)[complete + 2]

        place = self._before(args + 1, _BEFORE_ARGS)
        dur, place = self._thousandths(place)
        start, place = self._thousandths(self._before(place, _BEFORE_DUR))
        label, thread, linked = self._known(braces[complete] + 1 + len(_FIRST + _COMPLETE), place)
        external, correlation = np.full((2, len(args)), -1, dtype=np.int64)
        # Kineto writes it first, where there is one.
        rows = np.flatnonzero(self._is(args + 1, _EXTERNAL))
        external[rows] = self._digits_after(args[rows] + 1 + len(_EXTERNAL))
        rows = np.flatnonzero(linked)
        places = self._find(_CORRELATION, args[rows], limits[rows])
        rows, places = rows[places >= 0], places[places >= 0]
        correlation[rows] = self._digits_after(places + len(_CORRELATION))
        return Columns(label, thread, start, dur, external, correlation), len(events)

    def _is(self, places: Ints, text: bytes) -> _Mask:
        """Where *text* stands at a place."""
        found = _equal(self._words[places], text[:8])
        for at in range(8, len(text), 8):
            found &= _equal(self._words[places + at], text[at : at + 8])
        return found

    def _before(self, places: Ints, texts: tuple[bytes, ...]) -> Ints:
        """Where one of *texts*, the same for all, begins that must stand before each place."""
        for text in texts:
            begin = places - len(text)
            if self._is(begin[:1], text).all() and self._is(begin, text).all():
                return begin
        raise _OddError

    def _find(self, text: bytes, begins: Ints, ends: Ints) -> Ints:
        """Where *text* first stands in each stretch; -1 where it does not."""
        found = map(self._data.find, repeat(text), begins.tolist(), ends.tolist())
        return np.fromiter(found, dtype=np.int64, count=len(begins))

    def _known(self, begins: Ints, ends: Ints) -> tuple[Ints, Ints, Ints]:
        """Labels and threads of the events whose heads lie there, and whether they may carry a correlation."""
        data, heads = self._data, self._heads
        numbers = [heads[data[begin:end]] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
        label, thread, linked = np.array(heads.facts, dtype=np.int64)[numbers].T
        return label, thread, linked

    def _thousandths(self, ends: Ints) -> tuple[Ints, Ints]:
        """The numbers with three decimals that end before each place, times 1,000; and where they begin."""
        decimals, count = self._digits_before(ends)
        _must((count == 3).all() and (self._bytes[ends - 4] == ord(".")).all())
        value, count = self._digits_before(ends - 4)
        if (more := count == 8).any():
            higher, others = self._digits_before(ends - 12)
            value = np.where(more, higher * 10**8 + value, value)
            count = np.where(more, 8 + others, count)
        _must((count > 0).all())
        return value * 1000 + decimals, ends - 4 - count

    def _digits_before(self, ends: Ints) -> tuple[Ints, Ints]:
        """The value of the digits, at most eight, that end before each place, and how many they are."""
        digits, other = _digits(self._words[ends - 8])
        for bits in (8, 16, 32):
            other |= other >> bits  # all that stands before the last other character
        return _value(digits & ~(other * 0xFF)), _count(other)

    def _digits_after(self, places: Ints) -> Ints:
        """The numbers, of at most seven digits, that begin at each place."""
        digits, other = _digits(self._words[places])
        for bits in (8, 16, 32):
            other |= other << bits  # all that stands behind the first other character
        count = _count(other)
        _must(((count > 0) & (count < 8)).all())
        return _value((digits & ~(other * 0xFF)) << (64 - 8 * count).astype(np.uint64))


def _must(fine: bool | np.bool_) -> None:
    if not fine:
        raise _OddError


def _equal(words: _Words, text: bytes) -> _Mask:
    """Which words begin with *text*, at most eight bytes."""
    if len(text) < 8:
        words = words & ((1 << 8 * len(text)) - 1)
    same: _Mask = words == int.from_bytes(text, "little")
    return same


def _digits(words: _Words) -> tuple[_Words, _Words]:
    """Each byte's value as a digit, and 1 in each byte that is none."""
    values = words ^ 0x3030303030303030
    other = ((values | ((values & _LOW) + 0x7676767676767676)) & _HIGH) >> 7
    return values, other


def _count(other: _Words) -> Ints:
    return 8 - (other * _ONES >> 56).astype(np.int64)


def _value(digits: _Words) -> Ints:
    """The number whose eight digits are the bytes, the highest digit in the lowest byte: two, four, all at a time."""
    digits = (digits * 10 + (digits >> 8)) & 0x00FF00FF00FF00FF
    digits = (digits * 100 + (digits >> 16)) & 0x0000FFFF0000FFFF
    value: Ints = ((digits * 10000 + (digits >> 32)) & 0xFFFFFFFF).astype(np.int64)
    return value
