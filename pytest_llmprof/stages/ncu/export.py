"""Read what `ncu --csv --page raw` prints: one row for each profiled launch, below a row of units.

ncu chooses the unit of each column by the size of its values ("us" in one report, "ms" in the next), so every value is
converted by its unit, and an unknown unit is an error.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_llmprof.analysis.kernel_names import short_name
from pytest_llmprof.analysis.tables import csv_text
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.records.files import write_text
from pytest_llmprof.stages.ncu.records import KernelProfile, NcuLaunch
from pytest_llmprof.text.markdown import code, table
from pytest_llmprof.text.numbers import fixed

LATENCY_BELOW = 60.0
"""Per cent of peak: where no unit reaches it, nothing is saturated."""

_DURATION = "gpu__time_duration.sum"
_SM = "sm__throughput.avg.pct_of_peak_sustained_elapsed"
_DRAM = "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed"
_DRAM_OLD = "dram__throughput.avg.pct_of_peak_sustained_elapsed"
_L2 = "lts__throughput.avg.pct_of_peak_sustained_elapsed"
_OCCUPANCY = "sm__warps_active.avg.pct_of_peak_sustained_active"
_DRAM_RATE = "dram__bytes.sum.per_second"
_REGISTERS = "launch__registers_per_thread"
METRICS = (_DURATION, _SM, _DRAM, _L2, _OCCUPANCY, _DRAM_RATE, _REGISTERS)
"""Collected besides the sections, so that the table is complete with any sections."""

_PER_CENT = {"%": 1.0}
_MICROSECONDS = {
    **dict.fromkeys(("ns", "nsecond", "nanosecond"), 1e-3),
    **dict.fromkeys(("us", "usecond", "microsecond", "µs"), 1.0),
    **dict.fromkeys(("ms", "msecond", "millisecond"), 1e3),
    **dict.fromkeys(("s", "second", "sec"), 1e6),
}
_GB_PER_S = {
    f"{prefix}{unit}/{second}": factor
    for prefix, factor in (("", 1e-9), ("k", 1e-6), ("m", 1e-3), ("g", 1.0), ("t", 1e3))
    for unit in ("byte", "b")
    for second in ("s", "second")
}
_MEANS = ("sm_percent", "dram_percent", "l2_percent", "occupancy_percent", "dram_gb_per_s", "registers")
_COUNT = {"": 1.0, "register/thread": 1.0}
_MOST = 1e15
"""No unit here has values so large."""
_SPACES = re.compile(r"(?<=\d)[\s'’](?=\d{3}(?!\d))")
"""What some locales put between thousands."""
_NUMBER = {
    mark: re.compile(rf"[-+]?(?:[0-9]+|[1-9][0-9]{{0,2}}(?:\{other}[0-9]{{3}})+)(?:\{mark}[0-9]*)?(?:[eE][-+]?[0-9]+)?")
    for mark, other in (".,", ",.")
}
"""A number by its decimal mark."""


def bound_of(sm: float | None, dram: float | None, l2: float | None) -> str | None:
    """What bounds a kernel: the unit nearest to its peak, "compute", "DRAM" or "L2", or "latency".

    That is where none reaches 60 % of its peak, the threshold of Nsight Compute's own speed-of-light rule. None where
    one is unknown.
    """
    if sm is None or dram is None or l2 is None:
        return None
    share, name = max((sm, "compute"), (dram, "DRAM"), (l2, "L2"), key=lambda pair: pair[0])
    return name if share >= LATENCY_BELOW else "latency"


def read_csv(text: str, where: str = "the report") -> list[NcuLaunch]:
    """The launches of *text* in their order; none where it has no table. Raises `ArtifactError`."""
    lines = text.splitlines(keepends=True)
    start = next((index for index, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    try:
        rows = list(csv.reader(io.StringIO("".join(lines[start:]))))
    except csv.Error as error:
        raise ArtifactError(f"{where} is no CSV: {error}") from error
    if len(rows) < 2:
        raise ArtifactError(f"{where} has no row of units below its heading")
    head, units, *cells = rows
    if len(units) != len(head) or units[0].strip():
        raise ArtifactError(f"{where} has no row of units below its heading: {','.join(units)[:80]!r}")
    unit = dict(zip(head, units, strict=True))
    if _DURATION not in unit or "Kernel Name" not in unit:
        raise ArtifactError(f"{where} has no column {_DURATION if 'Kernel Name' in unit else 'Kernel Name'}")
    # What is not as wide is a message of the tool after the table.
    found = [dict(zip(head, row, strict=True)) for row in cells if len(row) == len(head)]
    mark = _decimal_mark(found, where)
    return [_launch(row, unit, mark, where) for row in found]


def _decimal_mark(rows: Sequence[Mapping[str, str]], where: str) -> str | None:
    """The decimal mark of the table, which depends on ncu's locale; None where no number tells it."""
    cells = {text for row in rows for name, text in row.items() if "__" in name}
    certain = {marks for text in cells if len(marks := _possible_marks(text)) == 1}
    if len(certain) > 1:
        raise ArtifactError(f"{where} has numbers with a decimal point and with a decimal comma")
    return next(iter(certain), None)


def _possible_marks(text: str) -> str:
    """The decimal marks with which *text* is a number: ".," of a whole one, and of 1,234, which may be 1.234."""
    plain = _SPACES.sub("", text.strip())
    return "".join(mark for mark, pattern in _NUMBER.items() if pattern.fullmatch(plain))


def _number(text: str, mark: str | None) -> float:
    """The number, whose decimal mark is *mark* (None: the table does not tell). Raises `ValueError`."""
    marks = _possible_marks(text)
    if mark is None and len(marks) > 1 and re.search("[.,]", text):
        raise ValueError("may be two numbers: nothing in the table tells its decimal mark")
    mark = mark or "."
    plain = _SPACES.sub("", text).replace("," if mark == "." else ".", "").replace(mark, ".")
    if mark not in marks or not 0 <= (value := float(plain)) < _MOST:
        raise ValueError("is no number of this kind")
    return value


def _launch(row: Mapping[str, str], unit: Mapping[str, str], mark: str | None, where: str) -> NcuLaunch:
    def value(name: str, units: Mapping[str, float]) -> float | None:
        text = row.get(name, "").strip()
        if not text or text.lower() in ("n/a", "nan", "-nan"):
            return None
        factor = units.get(unit[name].strip().lower())
        if factor is None:
            raise ArtifactError(f"{where}: {name} is in the unknown unit {unit[name]!r}")
        try:
            return _number(text, mark) * factor
        except ValueError as error:
            raise ArtifactError(f"{where}: {name} is {text[:80]!r}, which {error}") from None

    duration = value(_DURATION, _MICROSECONDS)
    if duration is None:
        raise ArtifactError(f"{where}: {row['Kernel Name']} has no {_DURATION}")
    dram = value(_DRAM, _PER_CENT)
    return NcuLaunch(
        kernel=row["Kernel Name"],
        grid=row.get("Grid Size", ""),
        block=row.get("Block Size", ""),
        duration_us=duration,
        sm_percent=value(_SM, _PER_CENT),
        dram_percent=dram if dram is not None else value(_DRAM_OLD, _PER_CENT),
        l2_percent=value(_L2, _PER_CENT),
        occupancy_percent=value(_OCCUPANCY, _PER_CENT),
        dram_gb_per_s=value(_DRAM_RATE, _GB_PER_S),
        registers=value(_REGISTERS, _COUNT),
    )


def kernel_rows(launches: Sequence[NcuLaunch]) -> list[KernelProfile]:
    """Launches by kernel, longest total first."""
    by_kernel: dict[str, list[NcuLaunch]] = {}
    for launch in launches:
        by_kernel.setdefault(launch.kernel, []).append(launch)
    rows = []
    for kernel, group in by_kernel.items():
        means = {name: _mean(name, group) for name in _MEANS}
        total = sum(launch.duration_us for launch in group)
        rows.append(
            KernelProfile(
                kernel=kernel,
                launches=len(group),
                total_us=total,
                duration_us=total / len(group),
                **means,
                bound=bound_of(means["sm_percent"], means["dram_percent"], means["l2_percent"]),
            )
        )
    return sorted(rows, key=lambda row: (-row.total_us, row.kernel))


def _mean(name: str, launches: Sequence[NcuLaunch]) -> float | None:
    """The mean of a field, weighted by time, over the launches that have it."""
    known = [(getattr(launch, name), launch.duration_us) for launch in launches if getattr(launch, name) is not None]
    total = sum(duration for _, duration in known)
    return sum(value * duration for value, duration in known) / total if total else None


def kernels_table(rows: Sequence[KernelProfile]) -> str:
    """*rows* as a Markdown table."""
    head = ["Kernel", "Bound", "Launches", "Mean µs", "SM %", "DRAM %", "L2 %", "Occupancy %", "DRAM GB/s", "Registers"]
    cells = [
        [
            code(short_name(row.kernel)),
            row.bound or "",
            f"{row.launches}",
            fixed(row.duration_us, ".2f"),
            *map(fixed, (row.sm_percent, row.dram_percent, row.l2_percent, row.occupancy_percent)),
            fixed(row.dram_gb_per_s, ".0f"),
            fixed(row.registers, ".0f"),
        ]
        for row in rows
    ]
    return table(head, cells, 2)


def write_ncu_tables(out_dir: Path, rows: Sequence[KernelProfile], launches: Sequence[NcuLaunch]) -> None:
    """Write kernels.csv, kernels.md and launches.csv to *out_dir*."""
    write_text(out_dir / "launches.csv", csv_text(NcuLaunch, launches))
    write_text(out_dir / "kernels.csv", csv_text(KernelProfile, rows))
    text = (
        "# Kernels under Nsight Compute\n\nPer cent of peak, weighted by time; bound is the unit nearest to its peak, "
        f"or latency where none reaches {LATENCY_BELOW:g} %. Names are whole in [kernels.csv](kernels.csv).\n\n"
    )
    write_text(out_dir / "kernels.md", text + kernels_table(rows))
