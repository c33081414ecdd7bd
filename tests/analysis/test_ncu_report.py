"""What ncu prints as CSV, with its row of units: converted, grouped, judged."""

from __future__ import annotations

import csv

import pytest

from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.stages.ncu.export import bound_of, kernel_rows, kernels_table, read_csv, write_ncu_tables

HEAD = [
    "ID",
    "Process ID",
    "Kernel Name",
    "Block Size",
    "Grid Size",
    "gpu__time_duration.sum",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "dram__bytes.sum.per_second",
    "launch__registers_per_thread",
]
GEMM = "void cutlass::Kernel2<cutlass_80_wmma>(Params)"


def table(*rows: tuple[str, ...], units: str = "us,%,%,%,%,Gbyte/s,register/thread", head: list[str] = HEAD) -> str:
    lines = ["==PROF== Connected to process 1", _line(head), _line(["", "", "", "block", "grid", *units.split(",")])]
    lines += [_line(["0", "42", *row]) for row in rows]
    return "\n".join([*lines, "==PROF== Disconnected"]) + "\n"


def _line(cells: list[str]) -> str:
    return ",".join(f'"{cell}"' for cell in cells)


ROW = (GEMM, "(128, 1, 1)", "(80, 1, 1)", "10.5", "20", "75", "40", "30.5", "2,400.5", "64")


def test_launches():
    (launch,) = read_csv(table(ROW))
    assert (launch.kernel, launch.grid, launch.block) == (GEMM, "(80, 1, 1)", "(128, 1, 1)")
    assert (launch.duration_us, launch.sm_percent, launch.dram_percent, launch.l2_percent) == (10.5, 20, 75, 40)
    assert (launch.occupancy_percent, launch.dram_gb_per_s, launch.registers) == (30.5, 2400.5, 64)


@pytest.mark.parametrize(
    ("units", "duration", "rate"),
    [
        ("ns,%,%,%,%,byte/s,register/thread", 0.0105, 2400.5e-9),
        ("nsecond,%,%,%,%,Kbyte/second,register/thread", 0.0105, 2400.5e-6),
        ("ms,%,%,%,%,Tbyte/s,register/thread", 10500.0, 2400500.0),
        ("second,%,%,%,%,Mbyte/s,", 10.5e6, 2.4005),
    ],
)
def test_units_are_converted(units, duration, rate):
    (launch,) = read_csv(table(ROW, units=units))
    assert launch.duration_us == pytest.approx(duration)
    assert launch.dram_gb_per_s == pytest.approx(rate)


def test_missing_figures_are_null():
    (launch,) = read_csv(table((*ROW[:4], "n/a", "", "nan", "30", "", "")))
    assert (launch.sm_percent, launch.dram_percent, launch.l2_percent, launch.registers) == (None, None, None, None)
    (row,) = kernel_rows([launch])
    assert (row.bound, row.occupancy_percent) == (None, 30)


def test_old_name_of_dram_throughput():
    head = [name.replace("gpu__dram_throughput", "dram__throughput") for name in HEAD]
    (launch,) = read_csv(table(ROW, head=head))
    assert launch.dram_percent == 75


@pytest.mark.parametrize(
    ("sm", "dram", "l2", "bound"),
    [
        (80, 70, 60, "compute"),
        (20, 75, 74, "DRAM"),
        (20, 61, 90, "L2"),
        (59.9, 20, 30, "latency"),
        (60, 20, 30, "compute"),
        (None, 90, 90, None),
    ],
)
def test_the_bound(sm, dram, l2, bound):
    assert bound_of(sm, dram, l2) == bound


def test_kernels_are_weighted_by_time(tmp_path):
    slow = (*ROW[:3], "30", "40", "95", "40", "30.5", "3000", "64")
    other = ("small", *ROW[1:3], "1", "5", "5", "5", "5", "5", "16")
    launches = read_csv(table(other, (*ROW[:3], "10", *ROW[4:]), slow))
    first, second = rows = kernel_rows(launches)
    assert (first.kernel, first.launches, first.total_us, first.duration_us) == (GEMM, 2, 40, 20)
    assert first.dram_percent == pytest.approx((10 * 75 + 30 * 95) / 40)
    assert (first.bound, second.bound) == ("DRAM", "latency")
    write_ncu_tables(tmp_path, rows, launches)
    with (tmp_path / "kernels.csv").open() as stream:
        assert [row["bound"] for row in csv.DictReader(stream)] == ["DRAM", "latency"]
    with (tmp_path / "launches.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 3
    assert "| `Kernel2<…>` | DRAM | 2 | 20.00 | 35.0 | 90.0 |" in (tmp_path / "kernels.md").read_text()
    assert kernels_table([second]).count("\n") == 3


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (table(ROW, units="fortnight,%,%,%,%,Gbyte/s,"), "the unknown unit 'fortnight'"),
        (table((*ROW[:3], "ten", *ROW[4:])), "no number"),
        (table((*ROW[:3], "", *ROW[4:])), "has no gpu__time_duration.sum"),
        (_line(HEAD) + "\n" + _line(["0", "42", *ROW]) + "\n", "no row of units"),
        (_line(HEAD) + "\n", "no row of units"),
        (table(ROW, head=[name.replace("gpu__time", "gpu__tim") for name in HEAD]), "no column gpu__time_duration.sum"),
    ],
)
def test_what_cannot_be_read(text, what):
    with pytest.raises(ArtifactError, match=what.replace("(", r"\(")):
        read_csv(text, "raw.csv")


def test_no_table():
    assert read_csv("==WARNING== No kernels were profiled.\n") == []


# Line 3 of issue 15: numbers as ncu prints them in other locales.


@pytest.mark.parametrize(
    ("text", "percent"),
    [("15,72", 15.72), ("0,123", 0.123), ("7,", 7.0), ("15.72", 15.72), ("0.123", 0.123), ("1,5e1", 15.0)],
)
def test_a_decimal_comma_is_one(text, percent):
    (launch,) = read_csv(table((*ROW[:3], "20", text, "75", "40", "30", "2400", "64")))
    assert launch.sm_percent == pytest.approx(percent)


@pytest.mark.parametrize(
    ("cells", "rate"),
    [
        (("4,35", "15,72", "75", "40", "30", "1.234,56", "64"), 1234.56),
        (("4,35", "15,72", "75", "40", "30", "1.234", "64"), 1234),
        (("4.35", "15.72", "75", "40", "30", "1,234.56", "64"), 1234.56),
        (("4.35", "15.72", "75", "40", "30", "1,234", "64"), 1234),
        (("4,35", "15,72", "75", "40", "30", "1.234.567,5", "64"), 1234567.5),
        (("4,35", "15,72", "75", "40", "30", "1\u202f234,56", "64"), 1234.56),
        (("4,35", "15,72", "75", "40", "30", "1\u00a0234", "64"), 1234),
        (("4.35", "15.72", "75", "40", "30", "1'234.56", "64"), 1234.56),
    ],
)
def test_the_whole_table_tells_the_decimal_mark(cells, rate):
    (launch,) = read_csv(table((*ROW[:3], *cells)))
    assert (launch.duration_us, launch.sm_percent) == (4.35, 15.72)
    assert launch.dram_gb_per_s == pytest.approx(rate)
    assert kernel_rows([launch])[0].bound == "DRAM"


@pytest.mark.parametrize("text", ["1,234", "1.234"])
def test_a_number_that_may_be_two_is_refused(text):
    with pytest.raises(ArtifactError, match=f"'{text}', which may be two numbers"):
        read_csv(table((*ROW[:3], "20", "20", "75", "40", "30", text, "64")), "raw.csv")


def test_points_and_commas_in_one_table_are_refused():
    with pytest.raises(ArtifactError, match="with a decimal point and with a decimal comma"):
        read_csv(table((*ROW[:3], "4,35", "15.72", "75", "40", "30", "2400", "64")), "raw.csv")


@pytest.mark.parametrize("text", ["1.234,5,6", "12,34.5", "1..2", "-5", "1e400", "9" * 400, "inf", "0x10", "१५"])
def test_what_is_no_number_of_its_kind_is_refused(text):
    with pytest.raises(ArtifactError, match="which is no number"):
        read_csv(table((*ROW[:3], text, "15.5", "75", "40", "30", "2400", "64")), "raw.csv")


def test_metrics_that_are_not_shown_tell_the_mark_too():
    """As in real reports: the clock rate has two groups of thousands."""
    row = (*ROW[:3], "1,274", "20", "75", "40", "30", "2400", "64", "1,980,000")
    head = [*HEAD, "device__attribute_clock_rate"]
    (launch,) = read_csv(table(row, head=head, units="us,%,%,%,%,Gbyte/s,register/thread,"))
    assert launch.duration_us == 1274


def test_a_field_that_is_too_long_is_refused():
    """Line 18: Python's CSV reader has a limit for them."""
    with pytest.raises(ArtifactError, match="is no CSV: field larger than field limit"):
        read_csv(table(("x" * 200_000, *ROW[1:])), "raw.csv")
