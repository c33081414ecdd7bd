"""A comparison as text for a terminal, as Markdown for a pull request, or as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import msgspec

from pytest_llmprof.compare.headline import headline
from pytest_llmprof.compare.kernels import KernelChange
from pytest_llmprof.compare.result import Comparison, Row, Side
from pytest_llmprof.compare.verdicts import Verdict
from pytest_llmprof.text import numbers
from pytest_llmprof.text.escape import inline, one_line
from pytest_llmprof.text.markdown import code, table
from pytest_llmprof.text.numbers import count, duration, number

FORMATS = ("text", "markdown", "json")
_KERNELS = 20
"""Kernels that are listed; JSON has all."""
_TESTS = 50
"""Tests of a section in another document."""
_HEAD = ("Metric", "Before", "After", "Change", "Interval", "Can see", "Verdict", "Note")
_LEFT = (0, 6, 7)
"""Columns of text."""
_CAN_SEE = 5
"""The A/A control, a column of an A/B job alone."""
_QUIET = frozenset((Verdict.SAME, Verdict.UNCLEAR, Verdict.NOT_MEASURED))


def render(comparison: Comparison, form: str = "text", *, everything: bool = False) -> str:
    """*comparison* in one of `FORMATS`; text and Markdown begin with its headline.

    Without *everything* the metrics of the report, and what else changed.
    """
    if form == "json":
        return msgspec.json.format(msgspec.json.encode(comparison), indent=2).decode() + "\n"
    rows = [row for row in comparison.rows if everything or _told(row)]
    if form == "markdown":
        return "\n".join([f"**{inline(headline(comparison), 1000)}**\n", *_markdown(comparison, _tests(rows), 2)])
    return _text(comparison, rows)


def comparison_section(comparison: Comparison) -> str:
    """*comparison* as a section of another document in Markdown: tests that changed first, at most 50."""
    tests = _tests([row for row in comparison.rows if _told(row)])
    order = sorted(tests, key=lambda test: all(row.verdict is Verdict.SAME for row in tests[test]))
    parts = _markdown(comparison, {test: tests[test] for test in order[:_TESTS]}, 3)
    if len(order) > _TESTS:
        parts.append(f"{count(len(order) - _TESTS, 'more test')}: see comparison.json\n")
    return "\n".join([f"## Compared with {inline(comparison.before.name)}\n", *parts])


def change(row: Row) -> str:
    """ "+2.1 %"; empty where it has no ratio."""
    return "" if row.ratio is None else numbers.change(row.ratio)


def interval(row: Row) -> str:
    """ "+1.2 to +3.0 %"; empty for exact values."""
    if row.low is None or row.high is None:
        return ""
    return numbers.change_range(row.low, row.high)


def _told(row: Row) -> bool:
    """Whether a table shows *row* where not all are asked for."""
    return row.shown or row.verdict not in _QUIET


def _notes(comparison: Comparison, tests: Collection[str]) -> list[str]:
    """What concerns all of it; the reasons of tests without a table, too."""
    hidden = [f"{test}: {reason}" for test, reason in comparison.reasons.items() if test not in tests]
    return [*comparison.notices, *hidden, *_missing(comparison)]


def _cells(row: Row, reason: str | None) -> tuple[str, ...]:
    """*reason* stands above the table, so not in each row of it."""
    note = "" if row.note == reason else row.note
    if row.limit is not None:
        note = "; ".join(filter(None, (f"{'FAILED, ' if row.failed else ''}limit {row.limit}", note)))
    before, after = number(row.before), number(row.after)
    can_see = "" if row.control is None else numbers.change(1 + row.control).lstrip("+")
    return one_line(row.title), before, after, change(row), interval(row), can_see, row.verdict.value, one_line(note)


def _grid(
    comparison: Comparison, members: Sequence[Row], reason: str | None
) -> tuple[list[tuple[str, ...]], tuple[int, ...]]:
    """The heading with the cells of a test's rows, and which columns hold text."""
    cells = [_HEAD, *(_cells(row, reason) for row in members)]
    if comparison.job is not None:
        return cells, _LEFT
    left = tuple(column - (column > _CAN_SEE) for column in _LEFT)
    return [(*row[:_CAN_SEE], *row[_CAN_SEE + 1 :]) for row in cells], left


def _tests(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.test, []).append(row)
    return found


def _text(comparison: Comparison, rows: Sequence[Row]) -> str:
    lines = [headline(comparison), *(f"{place}: {_side(side)}" for place, side in _sides(comparison))]
    tests = _tests(rows)
    lines += [f"note: {one_line(note)}" for note in _notes(comparison, tests)]
    for test, members in tests.items():
        reason = comparison.reasons.get(test)
        cells, left = _grid(comparison, members, reason)
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        how = dict.fromkeys(row.how for row in members if row.how and row.how != "exact")
        lines += ["", f"{one_line(test)}  ({'; '.join(how)})" if how else one_line(test)]
        if reason is not None:
            lines.append(f"  not measured: {one_line(reason)}")
        for row in cells:
            padded = [
                cell.ljust(width) if column in left else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append(f"  {'  '.join(padded)}".rstrip())
    if comparison.kernels:
        lines += ["", "kernels under the profiler"]
        lines += [f"  {one_line(_kernel(one, plain=True))}" for one in comparison.kernels[:_KERNELS]]
        lines += _more_kernels(comparison)
    return "\n".join([*lines, "", *_job_lines(comparison), _verdict_line(comparison, len(rows))]) + "\n"


def _markdown(comparison: Comparison, tests: Mapping[str, Sequence[Row]], level: int) -> list[str]:
    """All but the headline, with headings of *level*."""
    mark = "#" * level
    parts = ["".join(f"- {place}: {inline(_side(side))}\n" for place, side in _sides(comparison))]
    if notes := _notes(comparison, tests):
        parts.append(">\n".join(f"> **Note:** {inline(note)}\n" for note in notes))
    for test, members in tests.items():
        reason = comparison.reasons.get(test)
        (head, *cells), left = _grid(comparison, members, reason)
        shown = [[inline(cell) for cell in row] for row in cells]
        why = f"Not measured: {inline(reason)}\n\n" if reason is not None else ""
        parts.append(f"{mark} {inline(test)}\n\n{why}{table(head, shown, left)}")
    if comparison.kernels:
        lines = [f"- {_kernel(one, plain=False)}\n" for one in comparison.kernels[:_KERNELS]]
        lines += [f"- {line.strip()}\n" for line in _more_kernels(comparison)]
        parts.append(f"{mark} Kernels under the profiler\n\n{''.join(lines)}")
    shown_rows = sum(map(len, tests.values()))
    parts += [f"{inline(line)}\n" for line in (*_job_lines(comparison), _verdict_line(comparison, shown_rows))]
    return parts


def _sides(comparison: Comparison) -> tuple[tuple[str, Side], tuple[str, Side]]:
    return ("before", comparison.before), ("after", comparison.after)


def _side(side: Side) -> str:
    about = filter(None, (count(side.runs, "run"), one_line(side.machine), one_line(side.commit_text)))
    return f"{one_line(side.name)} ({', '.join(about)})"


def _missing(comparison: Comparison) -> list[str]:
    found = []
    for place, names in (("before", comparison.only_before), ("after", comparison.only_after)):
        if names:
            shown = ", ".join(one_line(name, 120) for name in names[:3])
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            found.append(f"only {place}: {shown}{more}")
    return found


def _kernel(one: KernelChange, *, plain: bool) -> str:
    name = one.name if plain else code(one.name, cell=False)
    where = f" in {one.phase}" if one.phase else ""
    if one.new_name is not None:
        name += f" → {one.new_name if plain else code(one.new_name, cell=False)}"
    times = " → ".join(f"{time:.2f} µs" for time in (one.before_us, one.after_us) if time is not None)
    ratio = f" ({one.ratio:.2f} x)" if one.ratio is not None else ""
    launches = " → ".join(str(number) for number in dict.fromkeys((one.before_count, one.after_count)) if number)
    return f"{one.change}: {name}{where}, {times}{ratio}, {launches} launches"


def _more_kernels(comparison: Comparison) -> list[str]:
    more = len(comparison.kernels) - _KERNELS
    return [f"  and {count(more, 'more kernel')}: --format json lists all"] if more > 0 else []


def _job_lines(comparison: Comparison) -> list[str]:
    job = comparison.job
    if job is None:
        return []
    blocks = " ".join(job.order[start : start + 4] for start in range(0, min(len(job.order), 8), 4))
    more = " ..." if len(job.order) > 8 else ""
    gated = Counter(row.verdict for row in comparison.rows if row.limit is not None)
    verdicts = ", ".join(f"{gated[verdict]} {verdict}" for verdict in Verdict if verdict in gated)
    how = f"{count(job.pairs, 'pair')}{' side by side (duet)' if job.duet else ''} ({blocks}{more})"
    line = f"{how} in {duration(job.seconds)}; stopped: {one_line(job.stopped)}"
    if job.contended:
        line += f"; the host was contended in {count(job.contended, 'pair')}"
    return [line, f"gated: {verdicts or 'nothing'}; exit code {comparison.exit_code}"]


def _verdict_line(comparison: Comparison, shown: int) -> str:
    """All rows by their verdicts, also those beyond the *shown* ones."""
    found: dict[Verdict, int] = {}
    for row in comparison.rows:
        found[row.verdict] = found.get(row.verdict, 0) + 1
    counts = ", ".join(f"{found[verdict]} {verdict}" for verdict in Verdict if verdict in found)
    total = len(comparison.rows)
    rows = f"{count(total, 'row')}, {shown} of them shown" if shown < total else count(total, "row")
    text = f"{rows}: {counts}; margin {100 * comparison.margin:g} %, "
    if comparison.gated:
        failed = sum(row.failed for row in comparison.rows)
        return text + f"{count(comparison.gated, 'gated row')}, {failed} failed"
    return text + f"a row is wrongly called different in {100 * comparison.alpha:g} % of cases"
