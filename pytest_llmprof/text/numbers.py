"""Numbers and counts as a reader sees them."""

from __future__ import annotations

import signal

NOT_APPLICABLE = "n/a"


def number(value: float | None) -> str:
    """A number with about three digits ("0.0123", "1.23", "45.6", "1,234"); "n/a" for None, "0" for zero."""
    if value is None:
        return NOT_APPLICABLE
    size = abs(value)
    if size >= 99.95 or not size:
        return f"{value:,.0f}"
    digits = 1
    while digits < 9 and size < 9.995 * 10 ** (1 - digits):
        digits += 1
    return f"{value:.{digits}f}"


def significant(value: float | None) -> float | None:
    """*value* with seven digits, so that about three of them are the same as those of `number`; None for None."""
    return None if value is None else float(f"{value:.7g}")


def change(ratio: float, unit: str = " %") -> str:
    """A ratio as a change: "+2.1 %"."""
    return "over 100 x" if ratio >= 100 else f"{100 * (ratio - 1):+.1f}{unit}"


def change_range(low: float, high: float) -> str:
    """Two ratios as a range of changes: "+1.2 to +3.0 %", "-40.0 % to over 100 x"."""
    last = change(high)
    return f"{change(low, '' if last.endswith('%') else ' %')} to {last}"


def fixed(value: float | None, form: str = ".1f") -> str:
    """*value* in the format *form*; empty for None."""
    return "" if value is None else format(value, form)


def duration(seconds: float) -> str:
    """"45 s", "3 min 20 s", "1 h 5 min"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def millions(amount: float) -> str:
    """"9.71 M", "3.34 B"."""
    return f"{amount / 1e9:.2f} B" if amount >= 1e9 else f"{amount / 1e6:.2f} M"


def count(amount: int, thing: str, plural: str | None = None) -> str:
    """"1 page", "2 pages"."""
    return f"{amount:,} {thing if amount == 1 else plural or thing + 's'}"


def exit_code(code: int) -> str:
    """The exit code of a process as words; a negative one is that of a signal. Real-time signals have no name."""
    if code >= 0:
        return f"exit code {code}"
    return f"signal {signal.Signals(-code).name if -code in set(signal.Signals) else -code}"
