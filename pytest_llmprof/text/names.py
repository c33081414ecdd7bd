"""Safe file names made of test ids and pages."""

from __future__ import annotations

import hashlib
import re

__all__ = ["MAX_NAME_BYTES", "safe_name", "unique_names"]

MAX_NAME_BYTES = 255
"""Longest file name of the usual file systems, in bytes."""

_UNSAFE = re.compile(r"[^\w.\-+=@,\[\]]+")
# Names that mean something to a file system or a shell, or to Windows where a run directory may be copied.
_RESERVED = re.compile(r"(?i)^(con|prn|aux|nul|com\d|lpt\d)(\..*)?$")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:10]


def safe_name(name: str, limit: int = 200) -> str:
    """Make one file-name part of *name*: no separators, no control characters, at most *limit* bytes.

    Equal names give equal results. A name that had to be cut or is reserved ends in a digest of the whole.
    """
    safe = _UNSAFE.sub("_", name).strip("._ ") or "_"
    if _RESERVED.match(safe) or safe.startswith("-"):
        safe = f"_{safe}"
    if len(safe.encode("utf-8")) > limit:
        tail = f"-{_digest(name)}"
        safe = safe.encode("utf-8")[: limit - len(tail)].decode("utf-8", "ignore") + tail
    return safe


def unique_names(names: list[str], limit: int = 200) -> dict[str, str]:
    """Safe names for *names*, kept apart: where two would clash (also by case alone) both carry a digest."""
    safe = {name: safe_name(name, limit) for name in names}
    folded: dict[str, list[str]] = {}
    for name, value in safe.items():
        folded.setdefault(value.casefold(), []).append(name)
    for clash in folded.values():
        if len(clash) > 1:
            for name in clash:
                safe[name] = f"{safe_name(name, limit - 11)}-{_digest(name)}"
    return safe
