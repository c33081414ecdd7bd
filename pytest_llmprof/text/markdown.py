"""Small pieces of Markdown that tables and reports share."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmprof.text.escape import one_line

__all__ = ["code", "percent", "table"]


def code(text: str, limit: int = 120, *, cell: bool = True) -> str:
    """*text* as a code span that it cannot leave, for a table cell or (not *cell*) elsewhere.

    An empty text is a dash.
    """
    shown = one_line(text, limit).replace("`", "'")
    if cell:
        shown = shown.replace("|", "\\|")
    return f"`{shown}`" if shown else "–"


def percent(share: float) -> str:
    """A share of 0..1 as "12.3 %"."""
    return f"{100 * share:.1f} %"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table whose first *left* columns are texts and the others numbers. Cells must be safe already."""
    lines = [" | ".join(head), " | ".join("---" if index < left else "---:" for index in range(len(head)))]
    lines += [" | ".join(row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines) + "\n"
