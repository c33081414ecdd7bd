"""Small CUDA traces in the very text form that kineto writes, for tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

MAIN, WORKER, STREAM, OTHER_STREAM = 4301, 4377, 7, 20
BASE = 4624416800000.0
"""Kineto's times are large (microseconds from the machine's start); here they are written from this one on."""


class Kineto:
    """Collects events; times in microseconds from `BASE`."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self._external = 0
        self._add("M", "process_name", 0.0, 4301, '"args": {\n      "name": "python"\n    }')

    def _add(self, phase: str, name: str, start: float, thread: int | str, rest: str) -> None:
        pid = 0 if thread in (STREAM, OTHER_STREAM) else 4301
        self.events.append(
            f'  {{\n    "ph": "{phase}", "name": "{name}", "pid": {pid}, "tid": {thread},\n'
            f'    "ts": {BASE + start:.3f}, {rest}\n  }}'
        )

    def complete(
        self, category: str, name: str, start: float, end: float, thread: int | str, args: str
    ) -> None:
        pid = 0 if thread in (STREAM, OTHER_STREAM) else 4301
        self.events.append(
            f'  {{\n    "ph": "X", "cat": "{category}", "name": "{name}", "pid": {pid}, "tid": {thread},\n'
            f'    "ts": {BASE + start:.3f}, "dur": {end - start:.3f},\n    "args": {{\n      {args}\n    }}\n  }}'
        )

    def host(self, name: str, start: float, end: float, thread: int = MAIN, kind: str = "cpu_op") -> None:
        self._external += 1
        number = self._external
        args = f'"External id": {number},"Record function id": 0, "Ev Idx": {number}'
        self.complete(kind, name, start, end, thread, args)

    def phase(self, name: str, start: float, end: float) -> None:
        self.host(f"llmprof/{name}", start, end, kind="user_annotation")
        self.complete("gpu_user_annotation", f"llmprof/{name}", start + 5, end + 5, STREAM, '"External id": 1')

    def call(self, name: str, start: float, end: float, correlation: int) -> None:
        args = f'"External id": {self._external}, "cbid": 211, "correlation": {correlation}'
        self.complete("cuda_runtime", name, start, end, MAIN, args)
        self._add("s", "ac2g", start, MAIN, f'"id": {correlation}, "cat": "ac2g"')

    def device(
        self, name: str, start: float, end: float, correlation: int, kind: str = "kernel", stream: int = STREAM
    ) -> None:
        args = (
            f'"External id": {self._external}, "queued": 0, "device": 0, "context": 1,\n'
            f'      "stream": {stream}, "correlation": {correlation}, "grid": [4, 1, 1], "block": [128, 1, 1]'
        )
        self.complete(kind, name, start, end, stream, args)
        self._add("f", "ac2g", start, stream, f'"id": {correlation}, "cat": "ac2g", "bp": "e"')

    def text(self, events: Iterable[str] | None = None) -> str:
        body = ",\n".join(self.events if events is None else events)
        return (
            '{\n  "schemaVersion": 1,\n  "deviceProperties": [\n'
            '    {\n      "id": 0, "name": "NVIDIA H100 80GB HBM3"\n    }\n  ],\n'
            '  "displayTimeUnit": "ms",\n  "baseTimeNanoseconds": 1790857026000000000,\n'
            f'  "traceEvents": [\n{body}\n  ],\n  "traceName": "window.json"\n}}\n'
        )

    def write(self, path: Path) -> Path:
        path.write_text(self.text(), encoding="utf-8")
        return path


SCALE = "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_mul<float>, std::array<char*, 3ul> >(int, at::native::CUDAFunctor_mul<float>, std::array<char*, 3ul>)"  # noqa: E501
GEMM = "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize64x64x64_warpgroupsize1x1x1_execute_segment_k_off_kernel__5x_cublas"  # noqa: E501
TO_HOST = "Memcpy DtoH (Device -> Pageable)"


def one_page() -> Kineto:
    """One page: upload, vision on two streams, prefill, and two decode steps of one CUDA graph each.

    After each step's range `.item()` copies the token to the host and waits for it.
    """
    trace = Kineto()
    trace.phase("preprocess", 0, 100)
    trace.host("aten::copy_", 20, 60)
    trace.call("cudaMemcpyAsync", 30, 50, 1)
    trace.device("Memcpy HtoD (Pageable -> Device)", 40, 48, 1, "gpu_memcpy")
    trace.phase("vision", 110, 300)
    trace.phase("sam", 120, 200)
    trace.host("aten::conv2d", 130, 160)
    trace.host("aten::convolution", 135, 155)
    trace.call("cudaLaunchKernel", 140, 145, 2)
    trace.device(GEMM, 150, 180, 2)
    trace.phase("clip", 205, 250)
    trace.host("aten::mm", 210, 222)
    trace.call("cudaLaunchKernelExC", 215, 220, 3)
    trace.device(GEMM, 225, 245, 3)
    trace.host("aten::mul", 226, 236)
    trace.call("cudaLaunchKernel", 228, 232, 4)
    trace.device(SCALE, 235, 255, 4, stream=OTHER_STREAM)
    trace.phase("prefill", 310, 400)
    trace.host("aten::to", 322, 328, thread=WORKER)
    trace.host("aten::addmm", 315, 330)
    trace.call("cuLaunchKernelEx", 320, 325, 5)
    trace.device(GEMM, 330, 390, 5)
    trace.phase("decode", 410, 700)
    for step, begin in enumerate((420, 540)):
        trace.phase("step", begin, begin + 80)
        trace.call("cudaGraphLaunch", begin + 5, begin + 20, 6 + 3 * step)
        trace.device(GEMM, begin + 25, begin + 35, 6 + 3 * step)
        trace.device(SCALE, begin + 36, begin + 50, 6 + 3 * step)
        trace.device(GEMM, begin + 50, begin + 60, 6 + 3 * step)
        trace.host("aten::item", begin + 85, begin + 110)
        trace.host("aten::_local_scalar_dense", begin + 86, begin + 108)
        trace.call("cudaMemcpyAsync", begin + 88, begin + 92, 7 + 3 * step)
        trace.device(TO_HOST, begin + 94, begin + 96, 7 + 3 * step, "gpu_memcpy")
        trace.call("cudaStreamSynchronize", begin + 92.5, begin + 100, 8 + 3 * step)
    return trace
