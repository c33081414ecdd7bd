"""Choose the pages of a dataset and their order: pattern, exclude, subset, natural order, seeded shuffle, limit.

A third party's dataset can call `select` too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from pytest_llmprof.errors import DatasetError, nearest

if TYPE_CHECKING:
    from pytest_llmprof.config.schema import DatasetSettings

_DIGITS = re.compile(r"([0-9]+)")


class Entry(NamedTuple):
    """A page that could be chosen."""

    name: str
    """The page's name, unique in its dataset."""
    file: str
    """Its image: a POSIX path relative to the dataset's root, with suffix. Pages of one PDF share it."""


def select(entries: Sequence[Entry], settings: DatasetSettings, place: str, seen: str) -> list[Entry]:
    """Choose from *entries* as `dataset.{pattern,exclude,subset,shuffle,seed,limit}` say.

    *place* names the dataset in messages, *seen* says what was found there when no page matches a pattern. Raises
    `DatasetError` with one line where nothing matches, a pattern or limit is not allowed, or the subset is missing,
    empty, not UTF-8, or names an unknown page.
    """
    chosen = matching(entries, settings)
    if not chosen:
        wanted = ", ".join(map(repr, settings.pattern))
        but = f" without dataset.exclude={', '.join(map(repr, settings.exclude))}" if settings.exclude else ""
        raise DatasetError(f"dataset.pattern={wanted}{but} matches no page of {place} ({seen})")
    if settings.subset is not None:
        chosen = _subset(chosen, settings.subset, place)
    chosen.sort(key=lambda entry: _natural_key(entry.file))
    if settings.shuffle:
        chosen.sort(key=lambda entry: _shuffle_key(entry.name, settings.seed))
    if settings.limit is not None:
        if settings.limit < 1:
            raise DatasetError(f"dataset.limit={settings.limit} is not allowed: give a number >= 1, or null for all")
        chosen = chosen[: settings.limit]
    return chosen


def matching(entries: Sequence[Entry], settings: DatasetSettings) -> list[Entry]:
    """Those of *entries* that match any `dataset.pattern` and no `dataset.exclude`. Raises `DatasetError`."""
    if not settings.pattern:
        raise DatasetError("dataset.pattern is empty: give a glob such as '**/*.png'")
    wanted = [_pattern_parts(pattern, "pattern") for pattern in settings.pattern]
    refused = [_pattern_parts(pattern, "exclude") for pattern in settings.exclude]
    return [
        entry
        for entry in entries
        if any(_matches_entry(entry, parts) for parts in wanted)
        and not any(_matches_entry(entry, parts) for parts in refused)
    ]


def _natural_key(path: str) -> tuple[list[list[str | int]], str]:
    """Sort key for relative POSIX paths: by directory, numbers by value, case only between paths else equal."""
    parts = [_DIGITS.split(part.casefold()) for part in PurePosixPath(path).parts]
    return [[int(piece) if index % 2 else piece for index, piece in enumerate(part)] for part in parts], path


def read_text(path: Path, what: str) -> str:
    """Read a UTF-8 text file (a byte order mark is dropped, line ends become newlines).

    *what* names the file's purpose in messages. Raises `DatasetError` where it cannot be read or decoded.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"cannot read {what} {path}: {error.strerror}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = f"byte 0x{data[error.start]:02x} at offset {error.start}"
        raise DatasetError(f"{what} {path} is not UTF-8 ({place}): save it as UTF-8") from error
    if "\0" in text:  # as plain letters have in UTF-16
        raise DatasetError(f"{what} {path} holds NUL characters, as UTF-16 does: save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _shuffle_key(name: str, seed: int) -> bytes:
    # A digest, not random.shuffle: the order is the same on every Python, and does not change when a page is added.
    return hashlib.sha256(f"{seed}\n{name}".encode("utf-8", "replace")).digest()


def _pattern_parts(pattern: str, key: str) -> tuple[str, ...]:
    parts = tuple(part for part in pattern.split("/") if part not in ("", "."))
    if not parts or pattern.startswith("/") or ".." in parts:
        raise DatasetError(
            f"dataset.{key}={pattern!r} is not allowed: give a glob below dataset.root, such as '**/*.png'"
        )
    return (*parts, "*") if parts[-1] == "**" else parts


def _matches_entry(entry: Entry, pattern: tuple[str, ...]) -> bool:
    return any(_matches(tuple(path.split("/")), pattern) for path in {entry.file, entry.name})


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Glob by path parts: ``**`` is any number of directories; a leading dot is not matched by ``*``.

    Takes time by the product of both lengths, however many ``**`` there are.
    """
    reached = _behind_stars({0}, pattern)  # how much of the pattern can match what is read of the path
    for part in parts:
        after = set()
        for place in reached:
            wanted = pattern[place] if place < len(pattern) else None
            if wanted is None or (part.startswith(".") and not wanted.startswith(".")):
                continue
            if wanted == "**":
                after.add(place)
            elif fnmatchcase(part, wanted):
                after.add(place + 1)
        reached = _behind_stars(after, pattern)
    return len(pattern) in reached


def _behind_stars(places: set[int], pattern: tuple[str, ...]) -> set[int]:
    """*places* in *pattern*, and those that are behind its ``**`` from there: these match nothing, too."""
    found = set(places)
    for place in places:
        while place < len(pattern) and pattern[place] == "**":
            place += 1
            found.add(place)
    return found


def _subset(entries: list[Entry], subset: str | tuple[str, ...], place: str) -> list[Entry]:
    if isinstance(subset, str):
        wanted = _subset_file(Path(subset))
    else:
        wanted = [(name.strip(), "dataset.subset") for name in subset]
    if not wanted:
        raise DatasetError("dataset.subset is an empty list: name at least one page, or null for all")
    by_name: dict[str, list[Entry]] = {}
    for entry in entries:
        for key in {entry.name, entry.file}:
            by_name.setdefault(key, []).append(entry)
        stem = entry.file.removesuffix(PurePosixPath(entry.file).suffix)
        if stem != entry.name:  # pages of one stem carry their suffix; the bare stem is ambiguous
            by_name.setdefault(stem, []).append(entry)
    chosen = set()
    for name, where in wanted:
        key = name.removeprefix("./")
        exact = [entry for entry in by_name.get(key, []) if key in (entry.name, entry.file)]
        found = exact or by_name.get(key, [])
        if not found:
            # The same name in another directory is a better hint than a similar spelling.
            same = [entry.name for entry in entries if PurePosixPath(entry.name).name == PurePosixPath(key).name]
            hint = f" (did you mean {same[0]!r}?)" if same else nearest(key, by_name)
            raise DatasetError(
                f"{where} names {name!r}, which is none of the {len(entries)} pages of {place} "
                f"that match dataset.pattern{hint}"
            )
        files = dict.fromkeys(entry.file for entry in found)
        if len(files) > 1:
            both = ", ".join(map(repr, files))
            raise DatasetError(f"{where} names {name!r}, which is more than one page of {place}: give one of {both}")
        chosen.update(found)  # of a PDF all pages, where it is named itself
    return [entry for entry in entries if entry in chosen]


def _subset_file(path: Path) -> list[tuple[str, str]]:
    if path.is_dir():
        raise DatasetError(f"dataset.subset={path} is a directory: give a file with one page name a line")
    if not path.exists():
        raise DatasetError(f"dataset.subset={path}: no such file (to give the names themselves: dataset.subset=[a,b])")
    wanted = []
    for number, line in enumerate(read_text(path, "the subset list").split("\n"), 1):
        name = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()
        if name:
            wanted.append((name, f"{path}:{number}"))
    if not wanted:
        raise DatasetError(f"dataset.subset={path} names no page: give one page name a line (# begins a comment)")
    return wanted
