"""Small exports of nsys with the tables and columns of the real ones, for tests."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

PROCESS = 0x1000000 * 4301 | 1 << 56
"""High bits of the ids of one process: machine, process."""
MAIN = PROCESS | 4301
GEMM = "void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm>(T1::Params)"
SCALE = (
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_mul<float>, std::array<char*, 3ul> >"
    "(int, at::native::CUDAFunctor_mul<float>, std::array<char*, 3ul>)"
)
_SCHEMA = """
CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE NVTX_EVENTS (start INTEGER, end INTEGER, eventType INTEGER NOT NULL, rangeId INTEGER, category INTEGER,
  color INTEGER, text TEXT, globalTid INTEGER, endGlobalTid INTEGER, textId INTEGER, domainId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER,
  contextId INTEGER, streamId INTEGER, correlationId INTEGER, globalPid INTEGER, demangledName INTEGER NOT NULL,
  shortName INTEGER NOT NULL, mangledName INTEGER, graphNodeId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INTEGER NOT NULL, end INTEGER NOT NULL, eventClass INTEGER,
  globalTid INTEGER, correlationId INTEGER, nameId INTEGER NOT NULL, returnValue INTEGER, callchainId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER,
  contextId INTEGER, streamId INTEGER, correlationId INTEGER, globalPid INTEGER, bytes INTEGER NOT NULL,
  copyKind INTEGER NOT NULL, srcKind INTEGER, dstKind INTEGER, graphNodeId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_MEMSET (start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER,
  contextId INTEGER, streamId INTEGER, correlationId INTEGER, globalPid INTEGER, value INTEGER, bytes INTEGER);
CREATE TABLE ENUM_CUDA_MEM_KIND (id INTEGER NOT NULL PRIMARY KEY, name TEXT, label TEXT);
INSERT INTO ENUM_CUDA_MEM_KIND VALUES (0, 'CUDA_MEMOPR_MEMORY_KIND_PAGEABLE', 'Pageable'),
  (1, 'CUDA_MEMOPR_MEMORY_KIND_PINNED', 'Pinned'), (2, 'CUDA_MEMOPR_MEMORY_KIND_DEVICE', 'Device');
"""


class Export:
    """Collects events, times in microseconds; `write` makes the file. Tables without rows are left out."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, tuple[object, ...]]] = []
        self._strings: dict[str, int] = {}
        self._correlation = 0
        self.domain("llmprof.warmup", 1)
        self.domain("llmprof", 2)

    def string(self, text: str) -> int:
        return self._strings.setdefault(text, len(self._strings) + 1)

    def domain(self, name: str, number: int) -> None:
        self._rows.append(("NVTX_EVENTS", (-5, None, 75, None, None, None, name, MAIN, None, None, number)))

    def range(self, name: str, start: float, end: float, *, domain: int = 2, by_id: bool = False) -> None:
        text, number = (None, self.string(name)) if by_id else (name, None)
        row = (_ns(start), _ns(end), 59, None, None, None, text, MAIN, None, number, domain)
        self._rows.append(("NVTX_EVENTS", row))

    def call(self, name: str, start: float, end: float) -> int:
        self._correlation += 1
        row = (_ns(start), _ns(end), 0, MAIN, self._correlation, self.string(name), 0, None)
        self._rows.append(("CUPTI_ACTIVITY_KIND_RUNTIME", row))
        return self._correlation

    def kernel(self, name: str, start: float, end: float, correlation: int, node: int | None = None) -> None:
        number = self.string(name)
        row = (_ns(start), _ns(end), 0, 1, 7, correlation, PROCESS, number, number, None, node)
        self._rows.append(("CUPTI_ACTIVITY_KIND_KERNEL", row))

    def copy(self, kind: int, size: int, start: float, end: float, correlation: int, memory: tuple[int, int]) -> None:
        row = (_ns(start), _ns(end), 0, 1, 7, correlation, PROCESS, size, kind, *memory, None)
        self._rows.append(("CUPTI_ACTIVITY_KIND_MEMCPY", row))

    def fill(self, start: float, end: float, correlation: int) -> None:
        row = (_ns(start), _ns(end), 0, 1, 7, correlation, PROCESS, 0, 64)
        self._rows.append(("CUPTI_ACTIVITY_KIND_MEMSET", row))

    def write(self, path: Path, schema: Callable[[str], str] = str) -> Path:
        """*schema* may change the tables' definitions."""
        with sqlite3.connect(path) as base:
            base.executescript(schema(_SCHEMA))
            for table, row in self._rows:
                base.execute(f"insert into {table} values ({','.join('?' * len(row))})", row)
            base.executemany("insert into StringIds values (?, ?)", [(n, text) for text, n in self._strings.items()])
            for (table,) in base.execute("select name from sqlite_master where type='table'").fetchall():
                if table != "StringIds" and not base.execute(f"select count(*) from {table}").fetchone()[0]:
                    base.execute(f"drop table {table}")
        return path


def _ns(microseconds: float) -> int:
    return round(microseconds * 1000)


def one_round() -> Export:
    """A round of one page: upload, prefill of two kernels, two decode steps of a CUDA graph of two nodes each.

    After each step the token is copied to pageable memory, and the host waits for it.
    """
    export = Export()
    export.range("round", 0, 700)
    export.range("prefill", -900, -800, domain=1)  # warm-up, of which a capture may hold the rest
    export.range("preprocess", 10, 100)
    export.copy(1, 4096, 40, 48, export.call("cudaMemcpyAsync_v3020", 30, 50), (0, 2))
    export.range("prefill", 110, 300)
    export.kernel(GEMM, 150, 180, export.call("cudaLaunchKernel_v7000", 140, 145))
    export.kernel(SCALE, 200, 210, export.call("cudaLaunchKernelExC_v11060", 190, 195))
    export.fill(215, 216, export.call("cudaMemsetAsync_v3020", 196, 198))
    export.range("decode", 310, 690)
    for begin in (320, 500):
        export.range("step", begin, begin + 80, by_id=True)
        launch = export.call("cudaGraphLaunch_v10000", begin + 5, begin + 15)
        export.kernel(GEMM, begin + 20, begin + 40, launch, node=11)
        export.kernel(SCALE, begin + 41, begin + 51, launch, node=12)
        copy = export.call("cudaMemcpyAsync_v3020", begin + 90, begin + 92)
        export.copy(2, 8, begin + 94, begin + 96, copy, (2, 0))
        export.call("cudaStreamSynchronize_v3020", begin + 93, begin + 99)
    return export
