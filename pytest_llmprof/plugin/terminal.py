"""What the user sees: the header line, progress while a test works, the summary table."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pytest_llmprof.errors import ConfigError
from pytest_llmprof.text.escape import one_line, visible
from pytest_llmprof.text.numbers import change, change_range, duration, number

if TYPE_CHECKING:
    import pytest

    from pytest_llmprof.config.schema import Settings
    from pytest_llmprof.plugin.rows import Row
    from pytest_llmprof.records.catalogue import Catalogue, Declaration
    from pytest_llmprof.records.metrics import GateResult

LINE_EVERY_S = 10.0
"""Least time between two lines of progress where they stay (a log)."""
_LEAST_COLUMNS = 20
_GATE_WIDTHS = {False: (18, 12, 14, 0), True: (12, 9, 8, 8, 6, 8, 0)}
"""Least widths of the columns of gates, without and with a baseline."""
# Terminal escape sequences: the text is drawn behind the cursor, which stays where pytest left it.
_SAVE, _RESTORE, _ERASE = "\x1b7", "\x1b8", "\x1b[K"

_TRACED = re.compile(r"^(\x1b\[[\d;]*m)*DEBUG *(\x1b\[[\d;]*m)* +torch\.__trace:\S* *(\n|\Z)", re.MULTILINE)


class Progress:
    """One line of progress: live on a terminal, at most one in ten seconds elsewhere, none in a worker.

    A live text stands behind what pytest has written on its line; it is removed before pytest writes on.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._last_line: float | None = None
        self._shown = False
        self._clock = Clock()

    def show(self, text: str, test: str, done: float | None = None) -> None:
        """Show what *test* does, and how long it has run; *done*, 0 to 1: how much of its rounds is behind."""
        reporter = self._config.pluginmanager.getplugin("terminalreporter")
        if reporter is None or hasattr(self._config, "workerinput"):
            return
        now = time.monotonic()
        text = one_line(text) + self._clock.times(test, done, now)
        verbosity = self._config.get_verbosity()
        if self._live(reporter):
            if verbosity >= -1:
                self._draw(text)
            return
        self._last_line = now if self._last_line is None else self._last_line
        if verbosity >= 0 and now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            with self._uncaptured():
                reporter.ensure_newline()
                reporter.write_line(f"llmprof: {one_line(test)}: {text}")

    def clear(self) -> None:
        """Remove a live text."""
        if self._shown:
            self._shown = False
            with self._uncaptured():
                _write_raw(self._config.get_terminal_writer(), _ERASE)

    def _live(self, reporter: Any) -> bool:
        captures = self._config.getoption("capture", "fd") != "no"
        return bool(reporter.isatty) and captures and os.environ.get("TERM", "dumb") != "dumb"

    def _draw(self, text: str) -> None:
        writer = self._config.get_terminal_writer()
        with self._uncaptured():  # the terminal's width, too, is only seen from here
            room = writer.fullwidth - writer.width_of_current_line - 2
            if room < _LEAST_COLUMNS:
                return
            text = " " + (text if len(text) < room else text[: room - 2] + "…")
            _write_raw(writer, f"{_SAVE}{writer.markup(text, light=True)}{_ERASE}{_RESTORE}")
        self._shown = True

    def _uncaptured(self) -> AbstractContextManager[None]:
        capture = self._config.pluginmanager.getplugin("capturemanager")
        return nullcontext() if capture is None else capture.global_and_fixture_disabled()


def _write_raw(writer: Any, text: str) -> None:
    """Write *text* so that pytest does not count it as a part of its line."""
    if hasattr(writer, "write_raw"):
        writer.write_raw(text, flush=True)
    else:  # older than pytest 8.4
        writer._file.write(text)
        writer.flush()


class Clock:
    """How long a test has run, and how long its rounds will go on."""

    def __init__(self) -> None:
        self._test: str | None = None
        self._begin = 0.0
        self._rounds = (0.0, 0.0)
        """When its rounds began, and what was done of them then."""

    def times(self, test: str, done: float | None, now: float) -> str:
        """"; 40 s, about 3 min left" at the time *now* (s); empty in the first second."""
        if test != self._test:
            self._test, self._begin, self._rounds = test, now, (now, 1.0)
        began, before = self._rounds
        if done is not None and done < before:
            self._rounds = began, before = now, done
        if now - self._begin < 1:
            return ""
        passed = f"; {duration(now - self._begin)}"
        if done is None or not before < done < 1:
            return passed
        return f"{passed}, about {duration((now - began) / (done - before) * (1 - done))} left"


def header(settings: Settings, run_dir: Path, start: Path) -> str:
    """The session in one line: stages, model, device, engine and run directory."""
    model = settings.choices.get("model", settings.model.name)
    return one_line(
        f"llmprof: stages {', '.join(settings.stages)}; model {model} (mode {settings.model.mode}, device "
        f"{settings.model.device}); engine {settings.infer.engine_shown}; run directory {relative(run_dir, start)}",
        2000,
    )


def columns(catalogue: Catalogue, chosen: Sequence[str] | None, where: str) -> list[Declaration]:
    """The metrics of the summary's table: those *chosen* by *where*, else the catalogue's. Raises `ConfigError`."""
    for name in chosen or ():
        if name not in catalogue:
            raise ConfigError(f"{where}: {catalogue.unknown(name)}")
    if chosen is not None:
        return [catalogue[name].declaration for name in chosen]
    return [metric.declaration for metric in catalogue.shown_in("terminal")]


def summary(
    rows: Sequence[Row],
    metrics: Sequence[Declaration],
    width: int,
    unavailable: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[str]:
    """A line for each test in each stage, then what to know of them; *unavailable* are skipped tests by reason."""
    with_module = len({row.id.partition("::")[0] for row in rows}) > 1
    noted: dict[str, list[str]] = {f"skipped: {why}": list(names) for why, names in unavailable.items()}
    for row in rows:
        for text in (*row.gate_notes, *row.machine_warnings, *row.page_notes):
            noted.setdefault(text, []).append(f"{_name(row, with_module=with_module)} ({row.stage})")
    lines = _table(rows, metrics, width, with_module=with_module) if rows else []
    for text, names in noted.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(f"{names[0]}{more}: {text}")
    reasons = dict.fromkeys(row.quality_reason for row in rows if row.quality_reason)
    return lines + [f"CER is not applicable: {reason}" for reason in reasons]


def _table(rows: Sequence[Row], metrics: Sequence[Declaration], width: int, *, with_module: bool) -> list[str]:
    """Where a line is wider than *width*, the files go on a line below."""
    from pytest_llmprof.records.catalogue import of_calls

    kinds = {row.kind for row in rows}
    heads = (of_calls(metric.column, kinds) for metric in metrics)
    cells = [("test", "stage", *heads, "files")]
    for row in rows:
        values = [_number(row.values.get(metric.name), metric.digits) for metric in metrics]
        cells.append((_name(row, with_module=with_module), row.stage, *values, row.dir))
    widths = [max(len(cell[column]) for cell in cells) for column in range(len(cells[0]))]
    wide = sum(widths) + 2 * (len(widths) - 1) > width
    lines = []
    for at, cell in enumerate(cells):
        texts = [
            text.rjust(wanted) if 2 <= column < len(cell) - 1 else text.ljust(wanted)
            for column, (text, wanted) in enumerate(zip(cell, widths, strict=True))
        ]
        if wide:
            lines.append("  ".join(texts[:-1]).rstrip())
            lines += [f"    {cell[-1]}"] if at else []
        else:
            lines.append("  ".join(texts).rstrip())
    return lines


def gate_lines(results: Iterable[GateResult]) -> str:
    """The section of a test that has gates: each limit beside its value and, against a baseline, the change."""
    gates = list(results)
    against = any(gate.verdict is not None for gate in gates)
    head = ("metric", "limit", "measured", *(("baseline", "change", "interval") if against else ()), "outcome")
    cells = [head]
    for gate in gates:
        measured, baseline = ("n/a" if value is None else f"{value:.6g}" for value in (gate.figure, gate.baseline))
        changes = (
            baseline if gate.verdict is not None else "",
            "" if gate.ratio is None else change(gate.ratio),
            "" if gate.low is None or gate.high is None else change_range(gate.low, gate.high),
        )
        outcome = gate.outcome
        if gate.verdict is not None and gate.verdict != outcome:
            outcome += f", {gate.verdict}"
        outcome += f": {gate.reason}" if gate.reason else ""
        cells.append((gate.name, gate.limit, measured, *(changes if against else ()), outcome))
    how = dict.fromkeys(gate.how for gate in gates if gate.how and gate.how != "exact")
    widths = [max(least, *(len(cell[column]) for cell in cells)) for column, least in enumerate(_GATE_WIDTHS[against])]
    lines = []
    for cell in cells:
        middle = [text.rjust(width) for text, width in zip(cell[1:-1], widths[1:-1], strict=True)]
        lines.append("  ".join([cell[0].ljust(widths[0]), *middle, cell[-1]]))
    return "\n".join([*lines, *(f"compared: {text}" for text in how)])


def clean(shown: Any) -> Any:
    """What pytest shows of an exception, with the control characters of its texts made visible, in place."""
    if isinstance(shown, str):
        return visible(shown)
    if isinstance(shown, (list, tuple)):
        return type(shown)(map(clean, shown))
    if hasattr(shown, "toterminal"):
        for name, value in getattr(shown, "__dict__", {}).items():
            object.__setattr__(shown, name, clean(value))
    return shown


def untraced(sections: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """A report's sections without the empty lines of torch's trace of its compiler. Newer pytests capture it, and a
    test that fails after it compiled would show hundreds of them."""
    kept = ((name, _TRACED.sub("", text)) for name, text in sections)
    return [(name, text) for name, text in kept if text]


def relative(path: Path, start: Path) -> str:
    """*path* as one would type it in the directory *start*."""
    text = os.path.relpath(path, start)
    return str(path) if text.startswith("..") else text


def _name(row: Row, *, with_module: bool) -> str:
    """A test's name; the stage has a column of its own."""
    return row.name if with_module else row.name.partition("::")[2]


def _number(value: float | None, digits: int | None) -> str:
    """As in the reports; with so many decimal places where a metric's author wants them, but with three digits where
    these would leave less than two of a small number."""
    if value is None:
        return "-"
    if digits is None:
        return number(value)
    return f"{value:.3g}" if 0 < abs(value) < 10 ** (1 - digits) else f"{value:.{digits}f}"
