"""What a GPU can do at most, from a table that names its sources (`hardware.yaml`).

Peaks are dense: the numbers "with sparsity" that vendors advertise are kept beside them, never used. A GPU that
is not in the table has no peaks; a guess would make a wrong MFU look right.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from pytest_llmprof.errors import LlmprofError
from pytest_llmprof.stages.static_analysis.records import PeakTable

DTYPES = ("float32", "tf32", "bfloat16", "float16", "fp8")
"""Kinds of arithmetic in the table. float32 runs without tensor cores, tf32 is float32 data on them."""

_TABLE = Path(__file__).with_name("hardware.yaml")
_Positive = Annotated[float, Meta(gt=0)]


class GpuPeaks(Struct, frozen=True, forbid_unknown_fields=True):
    """One row of the table."""

    name: str
    aliases: tuple[str, ...]
    """Other names that a driver gives the same GPU."""
    bandwidth_gbs: _Positive
    """Memory bandwidth, 1e9 bytes a second."""
    peak_tflops: dict[str, _Positive | None]
    """Dense 1e12 FLOP a second of each of `DTYPES`; None where there is none."""
    sparse_tflops: dict[str, _Positive]
    """The vendor's numbers with sparsity, for comparison only."""
    halved: tuple[str, ...]
    """Kinds whose dense number is half of the printed sparse one."""
    source: Annotated[str, Meta(min_length=1)]
    note: str | None

    def __post_init__(self) -> None:
        if tuple(self.peak_tflops) != DTYPES:
            raise ValueError(f"{self.name}: peak_tflops must have {', '.join(DTYPES)}, in this order")
        for kind, sparse in self.sparse_tflops.items():
            dense = self.peak_tflops.get(kind)
            if dense is None or dense > 1.005 * sparse / 2:  # the vendors round
                raise ValueError(f"{self.name}: peak_tflops.{kind} is {dense}, over half of {sparse} with sparsity")
            if kind in self.halved and dense != sparse / 2:
                raise ValueError(f"{self.name}: peak_tflops.{kind} is {dense}, not half of {sparse}")
        if not set(self.halved) <= set(self.sparse_tflops):
            raise ValueError(f"{self.name}: halved names a kind that sparse_tflops lacks")


def read_gpus(path: Path) -> tuple[GpuPeaks, ...]:
    """Read a table. Raises `LlmprofError` naming the field that is missing or makes no sense."""
    try:
        found = msgspec.yaml.decode(path.read_bytes(), type=dict[str, tuple[GpuPeaks, ...]])["gpus"]
    except msgspec.ValidationError as error:
        raise LlmprofError(f"{path.name}: {error}") from error
    names = [name for gpu in found for name in (gpu.name, *gpu.aliases)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise LlmprofError(f"{path.name}: {', '.join(twice)} is listed twice")
    return found


@cache
def gpus() -> tuple[GpuPeaks, ...]:
    """The packaged table."""
    return read_gpus(_TABLE)


def find_gpu(name: str) -> GpuPeaks | None:
    """The GPU of exactly this name or alias: "NVIDIA H100 PCIe" is not "NVIDIA H100 80GB HBM3"."""
    return next((gpu for gpu in gpus() if name in (gpu.name, *gpu.aliases)), None)


def peaks_of(
    gpu: str | None,
    dtype: str,
    *,
    tf32: bool = False,
    peak_tflops: float | None = None,
    bandwidth_gbs: float | None = None,
) -> PeakTable:
    """What *gpu* (its name; None on a CPU) can do in *dtype* ("bfloat16", ...).

    *tf32* says that float32 products may run on the tensor cores. *peak_tflops* and *bandwidth_gbs* are the
    user's own numbers, which go before the table's.
    """
    kind = "tf32" if dtype == "float32" and tf32 else dtype
    row = find_gpu(gpu) if gpu is not None else None
    own = {"peak_tflops": peak_tflops, "bandwidth_gbs": bandwidth_gbs}
    sources = [row.source] if row is not None and None in own.values() else []
    sources += [f"pipeline.static_analysis.{key}={value:g}" for key, value in own.items() if value is not None]
    if row is not None:
        peak_tflops = row.peak_tflops.get(kind) if peak_tflops is None else peak_tflops
        bandwidth_gbs = row.bandwidth_gbs if bandwidth_gbs is None else bandwidth_gbs
    flops, bandwidth = (
        None if value is None else value * size for value, size in ((peak_tflops, 1e12), (bandwidth_gbs, 1e9))
    )
    reason = None
    if flops is None or bandwidth is None:
        keys = "pipeline.static_analysis.peak_tflops and .bandwidth_gbs"
        if gpu is None:
            reason = f"it ran on a CPU, and the table of peaks has GPUs alone; {keys} set your own"
        elif row is None:
            reason = f"GPU {gpu!r} is not in the table; {keys} set its peaks"
        else:
            reason = f"the table has no {kind} peak of {row.name}; {keys} set one"
    return PeakTable(flops, bandwidth, kind, "; ".join(sources) or None, reason)
