"""Kernels that differ between two windows, from a recording of an H100."""

import gzip
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from saved_runs import read_runs, write_run

from pytest_llmprof.analysis.rows import KernelRow
from pytest_llmprof.analysis.tables import csv_text
from pytest_llmprof.compare.compare import compare
from pytest_llmprof.compare.kernels import kernel_changes, normalised, read_kernels
from pytest_llmprof.compare.table import render
from pytest_llmprof.records.baseline import SavedKernel

DATA = Path(__file__).resolve().parents[1] / "data"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> list[KernelRow]:
    """The kernels of the engine `fast`, as the stage nsys wrote them."""
    from pytest_llmprof.stages.nsys.export import read_reports

    path = tmp_path_factory.mktemp("nsys") / "export.sqlite"
    with gzip.open(DATA / "nsys-2025.3-h100-fast.sqlite.gz") as packed, path.open("wb") as file:
        shutil.copyfileobj(packed, file)
    return read_reports([path], "llmprof").trace.kernels()


def changes(tmp_path, before, after):
    tables = []
    for name, rows in (("before", before), ("after", after)):
        path = tmp_path / f"{name}.csv"
        path.write_text(csv_text(KernelRow, rows), encoding="utf-8")
        tables.append(read_kernels(path))
    return kernel_changes("test", "nsys", *tables)


def slower(row: KernelRow, factor: float) -> KernelRow:
    return replace(row, total_ms=row.total_ms * factor, busy_ms=row.busy_ms * factor, mean_us=row.mean_us * factor)


def test_the_same_window_has_no_changes(tmp_path, recorded):
    assert len(recorded) > 10
    assert changes(tmp_path, recorded, recorded) == []
    assert changes(tmp_path, recorded, [slower(row, 1.05) for row in recorded]) == []


def test_a_kernel_twice_as_slow_is_named(tmp_path, recorded):
    (found,) = changes(tmp_path, recorded, [slower(recorded[0], 2), *recorded[1:]])
    assert (found.change, found.name) == ("slower", normalised(recorded[0].name))
    assert 1.3 < found.ratio <= 2.01


def test_changes_of_one_size_keep_their_order():
    before, after = ([SavedKernel(f"kernel_{chr(97 + n)}", "decode", 10, busy, 100 * busy) for n in range(26)]
                     for busy in (5.0, 10.0))
    assert [one.name for one in kernel_changes("test", "nsys", before, after)] == [one.name for one in before]


def test_a_kernel_that_is_new_gone_or_renamed_is_named(tmp_path, recorded):
    busiest = recorded[0]
    same = [row for row in recorded if normalised(row.name) == normalised(busiest.name) and row.phase == busiest.phase]
    rest = [row for row in recorded if row not in same]
    (gone,) = changes(tmp_path, recorded, rest)
    assert (gone.change, gone.after_us) == ("vanished", None)
    (new,) = changes(tmp_path, rest, recorded)
    assert (new.change, new.before_us) == ("appeared", None)
    renamed = [replace(row, name="my_new_kernel") for row in same]
    (moved,) = changes(tmp_path, recorded, [*renamed, *rest])
    assert (moved.change, moved.name, moved.new_name) == ("renamed", normalised(busiest.name), "my_new_kernel")


def test_more_launches_are_named(tmp_path, recorded):
    one = recorded[0]
    twice = replace(one, count=one.count * 2, total_ms=one.total_ms * 2, busy_ms=one.busy_ms * 2)
    (found,) = changes(tmp_path, [one], [twice])
    assert (found.change, found.after_count) == ("more launches", 2 * one.count)


def test_names_do_not_depend_on_the_build():
    assert normalised("triton_poi_fused_add_3") == normalised("triton_poi_fused_add_12") == "triton_poi_fused_add"
    one = "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>(int, float)"
    assert normalised(one) == normalised(one.replace("<4,", "<8,")) == "vectorized_elementwise_kernel<CUDAFunctor_add>"
    assert normalised("nvjet_tst_64x8_64x16_4x1_v_bz_TNT") == "nvjet_tst_64x8_64x16_4x1_v_bz_TNT"


def test_other_tables_have_no_kernels(tmp_path):
    assert read_kernels(tmp_path / "kernels.csv") is None
    (tmp_path / "kernels.csv").write_text("function,duration\n")
    assert read_kernels(tmp_path / "kernels.csv") is None


def test_the_comparison_names_them(tmp_path, recorded):
    old = write_run(tmp_path / "old", kernels=csv_text(KernelRow, recorded))
    new = write_run(
        tmp_path / "new", tpot=0.6, kernels=csv_text(KernelRow, [slower(recorded[0], 2), *recorded[1:]])
    )
    comparison = compare(read_runs(old), read_runs(new))
    assert f"slower: {normalised(recorded[0].name)} in {recorded[0].phase}" in render(comparison)
    assert "## Kernels under the profiler" in render(comparison, "markdown")
