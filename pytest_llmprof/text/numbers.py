"""Reading and showing values of metrics.json, any of which may be missing or null."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["NOT_APPLICABLE", "at", "count", "fixed", "number", "numeric", "share"]

NOT_APPLICABLE = "n/a"


def at(value: Any, *keys: str) -> Any:
    """`value[keys[0]][keys[1]]...`; None where a key is missing or something on the way is no mapping."""
    for key in keys:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def numeric(value: Any) -> float | None:
    """*value* as a float where it is a number (no bool), else None."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def share(part: Any, whole: Any) -> float | None:
    """part / whole; None where either is no number or the whole is zero."""
    one, all_of_it = numeric(part), numeric(whole)
    return one / all_of_it if one is not None and all_of_it else None


def number(value: Any) -> str:
    """A number with about three digits ("0.0123", "1.23", "45.6", "1,234"); "n/a" for None, "0" for zero."""
    found = numeric(value)
    if found is None:
        return NOT_APPLICABLE
    size = abs(found)
    if size >= 99.95 or not size:
        return f"{found:,.0f}"
    digits = 1
    while digits < 9 and size < 9.995 * 10 ** (1 - digits):
        digits += 1
    return f"{found:.{digits}f}"


def fixed(value: float | None, form: str = ".1f", missing: str = "") -> str:
    """*value* in the format *form*; *missing* for None."""
    return missing if value is None else format(value, form)


def count(amount: int, thing: str, plural: str | None = None) -> str:
    """"1 page", "2 pages"."""
    return f"{amount:,} {thing if amount == 1 else plural or thing + 's'}"
