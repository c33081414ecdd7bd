from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from traces import GEMM, SCALE, Kineto

from pytest_llmprof.analysis.kernel_names import function_name, short_name
from pytest_llmprof.analysis.trace import Trace
from pytest_llmprof.stages.torch_profiler.kineto import read_trace
from pytest_llmprof.stages.torch_profiler.summary import write_tables

MANGLED = "_ZN7cutlass13device_kernelIN2at4cuda6detail25enable_3x_kernel_for_sm9xINS_4gemm6kernel13GemmUniversalI"
"""How torch 2.11 names CUTLASS's grouped GEMM (its first letters of 1,270)."""
GEMV = (
    "std::enable_if<!T7, void>::type internal::gemvx::kernel<int, int, __nv_bfloat16, __nv_bfloat16, float, (bool)0, "
    "(bool)1, cublasGemvParamsEx<int, cublasGemvTensorStridedBatched<const __nv_bfloat16>>>(T13)"
)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_csv_files_hold_every_row_in_full(tmp_path: Path, page: Trace) -> None:
    write_tables(tmp_path, page)
    kernels = _rows(tmp_path / "kernels.csv")
    assert [row["name"] for row in kernels] == [row.name for row in page.kernels()]
    assert {row["name"] for row in kernels} >= {GEMM, SCALE}
    assert float(kernels[0]["total_ms"]) == pytest.approx(0.060)
    operators = _rows(tmp_path / "operators.csv")
    assert list(operators[0]) == [
        "name",
        "kind",
        "phase",
        "count",
        "total_ms",
        "self_ms",
        "mean_ms",
        "share",
        "phase_share",
        "device_ms",
    ]
    totals = [float(row["total_ms"]) for row in operators]
    assert totals == sorted(totals, reverse=True)


def test_markdown_files_hold_the_top_and_say_what_is_left(tmp_path: Path, page: Trace) -> None:
    write_tables(tmp_path, page, top=2)
    text = (tmp_path / "kernels.md").read_text(encoding="utf-8")
    assert "| `vectorized_elementwise_kernel<CUDAFunctor_mul>` |" not in text  # the third
    assert text.count("\n| `") == 2
    assert "| **all** |  |  | 13 | 0.210 |" in text
    # 60 (prefill) and 40 (graphs) of the 200 microseconds in which the card was busy are shown
    assert "6 more rows hold 50.0 %: see [kernels.csv](kernels.csv)." in text
    operators = (tmp_path / "operators.md").read_text(encoding="utf-8")
    assert "| GPU ms |" in operators
    assert "more rows hold" in operators


def test_without_kernels_no_kernel_file_is_written(tmp_path: Path, page: Trace) -> None:
    write_tables(tmp_path, page, with_kernels=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["operators.csv", "operators.md"]


def test_odd_names_cannot_break_a_table(tmp_path: Path) -> None:
    trace = Kineto()
    trace.host("a|b`c`</td>\\u202e", 0, 10)
    found = read_trace(trace.text().encode())
    write_tables(tmp_path, found, with_kernels=False)
    line = next(
        line for line in (tmp_path / "operators.md").read_text(encoding="utf-8").splitlines() if "a\\|b" in line
    )
    assert line.startswith("| `a\\|b'c'</td><U+202E>` | op | – |")
    assert _rows(tmp_path / "operators.csv")[0]["name"] == "a|b`c`</td>\u202e"


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (SCALE, "vectorized_elementwise_kernel<CUDAFunctor_mul>"),
        (
            "void at::native::(anonymous namespace)::cunn_SoftMaxForward<4, float, float, float>(float*, int)",
            "cunn_SoftMaxForward<…>",
        ),
        (
            "void at::native::elementwise_kernel<128, 4, at::native::gpu_kernel_impl_nocast<"
            "at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)::{lambda()#3}> >(int)",
            "elementwise_kernel<direct_copy_kernel_cuda>",
        ),
        ("triton_poi_fused_add_cos_sin_0", "triton_poi_fused_add_cos_sin_0"),
        ("Memcpy DtoH (Device -> Pageable)", "Memcpy DtoH (Device -> Pageable)"),
        ("", ""),
        (MANGLED, "device_kernel<…>"),
        ("_Z5scalePfi", "scale"),
        (GEMV, "internal::gemvx::kernel<…>"),
        ("_ZN2at6native12_GLOBAL__N_14copyEPf", "copy"),
    ],
)
def test_short_names(name: str, short: str) -> None:
    assert short_name(name) == short


def test_a_very_long_name_loses_its_middle() -> None:
    short = short_name(GEMM, 60)
    assert len(short) == 60
    assert short.startswith("sm90_xmma_gemm")
    assert short.endswith("5x_cublas")


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("void at::native::vectorized_elementwise_kernel<4, F<float>, std::array<char*, 3ul> >(int, F)", None),
        ("void at::native::(anonymous namespace)::vectorized_elementwise_kernel<int>(int)", None),
        ("vectorized_elementwise_kernel", None),
        ("sm90_xmma_gemm_bf16", "sm90_xmma_gemm_bf16"),
        (MANGLED, "device_kernel"),
        (GEMV, "kernel"),
        ("_ZN12_GLOBAL__N_129vectorized_elementwise_kernelIfEEvPT_", None),
        ("void flash::flash_fwd_kernel<Traits<128>, false>(Params)", "flash_fwd_kernel"),
    ],
)
def test_function_names(name: str, function: str | None) -> None:
    assert function_name(name) == (function or "vectorized_elementwise_kernel")
    assert re.fullmatch(r"\w+", function_name(name))
