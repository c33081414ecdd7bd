"""Safe file names made of test ids and page names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

_MOST_BYTES = 200
"""Longest name made here. File systems take 255 bytes; the rest is for temporary names and suffixes."""
_UNSAFE = re.compile(r"[^\w.\-+=@,\[\]]+")
# Device names of Windows, where a run directory may be copied to.
_RESERVED = re.compile(r"(?i)^(con|prn|aux|nul|com\d|lpt\d)(\..*)?$")


def unique_names(names: Sequence[str]) -> dict[str, str]:
    """A safe and distinct file name for each of *names*: no separators, no control characters, at most 200 bytes.

    Names that had to be cut end in a digest of the whole name, and so do names that would clash (also by case alone).
    """
    safe = {name: _safe_name(name, _MOST_BYTES) for name in names}
    folded: dict[str, list[str]] = {}
    for name, value in safe.items():
        folded.setdefault(value.casefold(), []).append(name)
    for clash in folded.values():
        if len(clash) > 1:
            for name in clash:
                tail = _tail(name)
                safe[name] = _safe_name(name, _MOST_BYTES - len(tail)) + tail
    return safe


def _safe_name(name: str, limit: int) -> str:
    safe = _UNSAFE.sub("_", name).strip("._ ") or "_"
    if _RESERVED.match(safe) or safe.startswith("-"):
        safe = f"_{safe}"
    if len(safe.encode("utf-8")) > limit:
        tail = _tail(name)
        safe = safe.encode("utf-8")[: limit - len(tail)].decode("utf-8", "ignore") + tail
    return safe


def _tail(name: str) -> str:
    return "-" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:10]
