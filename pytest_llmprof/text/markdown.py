"""Pieces of Markdown that tables and reports share."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from typing import TypeVar

from pytest_llmprof.text.escape import one_line

_Value = TypeVar("_Value")


def code(text: str, limit: int = 120, *, cell: bool = True) -> str:
    """*text* as a code span that it cannot leave, in a table cell or (not *cell*) elsewhere. Empty text is a dash."""
    shown = one_line(text, limit).replace("`", "'")
    if cell:
        shown = shown.replace("|", "\\|")
    return f"`{shown}`" if shown else "–"


def percent(share: float) -> str:
    """A share of 0..1 as "12.3 %"."""
    return f"{100 * share:.1f} %"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int | Container[int] = 1) -> str:
    """A table, or nothing without *rows*. Cells must be safe already.

    The first *left* columns (or those whose indexes it holds) are aligned left, the others right.
    """
    if not rows:
        return ""
    texts = range(left) if isinstance(left, int) else left
    lines = [head, ["---" if index in texts else "---:" for index in range(len(head))], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def known(rows: Iterable[tuple[str, _Value | None]], show: Callable[[_Value], str]) -> list[list[str]]:
    """Rows of (label, shown value) for a table, without those whose value is None."""
    return [[label, show(value)] for label, value in rows if value is not None]
