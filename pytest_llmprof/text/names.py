"""Names of files: safe ones made of test ids and page names, and numbered ones."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path

_MOST_BYTES = 200
"""Longest name made here. File systems take 255 bytes; the rest is for temporary names and suffixes."""
_UNSAFE = re.compile(r"[^\w.\-+=@,\[\]]+")
# Device names of Windows, where a run directory may be copied to.
_RESERVED = re.compile(r"(?i)^(con|prn|aux|nul|com\d|lpt\d)(\..*)?$")


def numbered(path: Path) -> Iterator[Path]:
    """*path*, then the names to try where it is taken: "path-2", "path-3", ..."""
    yield path
    yield from (path.with_name(f"{path.name}-{number}") for number in count(2))


def unique_names(names: Iterable[str] | Mapping[str, str], taken: Iterable[str] = ()) -> dict[str, str]:
    """A safe file name for each of *names*: no separators, no control characters, at most 200 bytes.

    A mapping gives for each name the text that its file name is made of. No two file names are one file where case or
    Unicode forms do not count, and none is in *taken*: names that would clash end in a digest of the whole name each,
    and so does a name that had to be cut.
    """
    texts = dict(names) if isinstance(names, Mapping) else {name: name for name in names}
    safe = {name: _safe_name(text) for name, text in texts.items()}
    with_digest = {name for name, value in safe.items() if len(value.encode()) > _MOST_BYTES}
    while True:
        for name in with_digest:
            tail = "-" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:10]
            cut = _safe_name(texts[name]).encode()[: _MOST_BYTES - len(tail)]
            safe[name] = cut.decode("utf-8", "ignore") + tail
        users: dict[str, list[str]] = {_folded(name): [""] for name in taken}
        for name, value in safe.items():
            users.setdefault(_folded(value), []).append(name)
        clashing = {name for clash in users.values() if len(clash) > 1 for name in clash if name in safe}
        if clashing <= with_digest:
            return safe
        with_digest |= clashing


def _safe_name(text: str) -> str:
    safe = _UNSAFE.sub("_", unicodedata.normalize("NFC", text)).strip("._ ") or "_"
    return f"_{safe}" if _RESERVED.match(safe) or safe.startswith("-") else safe


def _folded(name: str) -> str:
    """What a file system without case and Unicode forms sees of *name*."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", name).casefold())
