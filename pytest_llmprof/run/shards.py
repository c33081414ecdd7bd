"""`--llmprof-shard I/N`: which tests run in which of N jobs. Each job computes the same split on its own."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import median

import msgspec

from pytest_llmprof.errors import ArtifactError, ConfigError
from pytest_llmprof.records.files import decode, read_bytes
from pytest_llmprof.records.run import Shard
from pytest_llmprof.text.escape import shorten

OPTION = "--llmprof-shard"
MOST = 10_000
"""Shards that a suite may be split into."""
_FOREIGN_SECONDS = 0.01
"""Taken for a test that does not use llmprof: runs record no time of it."""


class Times(msgspec.Struct, frozen=True):
    """How long the tests of a suite took."""

    seconds: dict[str, float] = {}
    """Wall time by node id."""
    source: str = ""
    """Where it is from, for the summary."""


@dataclass(frozen=True)
class SuiteTest:
    """One test in one stage, before the suite is split."""

    id: str
    """pytest's node id."""
    unit: str
    """Tests of one unit stay in one shard: the stages of a test, a group of pytest-xdist."""
    ours: bool = True
    """Whether it uses llmprof."""


def parse_shard(text: str) -> Shard:
    """The shard that "2/4" names. Raises `ConfigError`."""
    found = re.fullmatch(r"\s*0*([0-9]+)\s*/\s*0*([0-9]+)\s*", text)
    # int() refuses thousands of digits.
    index, count = (int(digits[:9]) for digits in found.groups()) if found else (0, 0)
    if not 1 <= index <= count <= MOST:
        more = ""
        if count > MOST:
            more = f"; {MOST} shards are the most"
        elif count:
            more = f"; with {count} shards, 1/{count} to {count}/{count}"
        raise ConfigError(
            f"{OPTION}: {shorten(repr(text), 60)} is not allowed; give I/N, the shard and their number, such as "
            f"1/4{more}"
        )
    return Shard(index, count)


def split(tests: Sequence[SuiteTest], count: int, seconds: Mapping[str, float]) -> dict[str, int]:
    """The shard, from 1 to *count*, of each test, by its id. *seconds* holds the recorded times, by id.

    With recorded times of any test: the longest unit goes first, each to the shard with the least so far (Graham 1969,
    SIAM J. Appl. Math. 17:416). A test of ours without one counts as the median of the others.
    Without: all tests count the same, and neighbours stay together, modules and so models with them.
    The order of *tests* does not matter, as plugins may shuffle them.
    """
    units: dict[str, list[SuiteTest]] = {}
    for test in sorted(tests, key=lambda test: test.id):
        units.setdefault(test.unit, []).append(test)
    known = [seconds[test.id] for test in tests if test.ours and test.id in seconds]
    if known:
        usual = median(known)
        weights = {
            unit: sum(seconds.get(test.id, usual) if test.ours else _FOREIGN_SECONDS for test in members)
            for unit, members in units.items()
        }
        shards = _longest_first(weights, count)
    else:
        shards = _in_order({unit: len(members) for unit, members in units.items()}, count)
    return {test.id: shards[test.unit] for test in tests}


def _longest_first(weights: Mapping[str, float], count: int) -> dict[str, int]:
    loads = [0.0] * count
    found = {}
    for unit in sorted(weights, key=lambda unit: (-weights[unit], unit)):
        shard = min(range(count), key=loads.__getitem__)  # of equal ones the first
        loads[shard] += weights[unit]
        found[unit] = shard + 1
    return found


def _in_order(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Cut the row of units into *count* parts of about one size: each goes where its middle lies."""
    total = sum(sizes.values())
    ends = accumulate(sizes.values())
    return {
        unit: 1 + (2 * end - size) * count // (2 * total)
        for (unit, size), end in zip(sizes.items(), ends, strict=True)
    }


def agreed_times(path: Path, find: Callable[[], Times]) -> Times:
    """The times in the file *path*. Where it is not there, those of *find*: of all who ask, the first decides.

    Raises `ArtifactError` where it cannot be read or written.
    """
    if not path.exists():
        data = msgspec.json.encode(find())
        temporary = path.with_name(f".tmp-{secrets.token_hex(8)}.json")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(data)
                _place(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise ArtifactError(f"cannot write {path}: {error.strerror}") from error
    return decode(read_bytes(path), path, Times)


def _place(file: Path, path: Path) -> None:
    """Give *file* the name *path*, unless another was first."""
    try:
        os.link(file, path)
    except FileExistsError:
        pass
    except OSError:  # no hard links here
        if not path.exists():
            file.replace(path)


def digest(shards: Mapping[str, int]) -> str:
    """Tells two splits apart."""
    return hashlib.sha256(msgspec.json.encode(sorted(shards.items()))).hexdigest()[:16]
