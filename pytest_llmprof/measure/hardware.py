"""What a card can do at most, from a table that names its sources (`hardware.yaml`).

Peaks are dense: the numbers "with sparsity" that vendors advertise are kept beside them, never used. A card that
is not in the table has no peaks; a guess would make a wrong MFU look right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pytest_llmprof.errors import LlmprofError

__all__ = ["DTYPES", "CardPeaks", "Peaks", "cards", "find_card", "peaks_of", "read_cards"]

DTYPES = ("float32", "tf32", "bfloat16", "float16", "fp8")
"""Kinds of arithmetic in the table. float32 runs without tensor cores, tf32 is float32 data on them."""

_TABLE = Path(__file__).with_name("hardware.yaml")


@dataclass(frozen=True)
class CardPeaks:
    """One row of the table."""

    name: str
    aliases: tuple[str, ...]
    """Other names that a driver gives the same card."""
    bandwidth_gbs: float
    """Memory bandwidth, 1e9 bytes a second."""
    peak_tflops: Mapping[str, float | None]
    """Dense 1e12 FLOP a second of each of `DTYPES`; None where there is none."""
    sparse_tflops: Mapping[str, float]
    """The vendor's numbers with sparsity, for comparison only."""
    halved: tuple[str, ...]
    """Kinds whose dense number is half of the printed sparse one."""
    source: str
    note: str | None


@dataclass(frozen=True)
class Peaks:
    """What a run is held against; a part that is not known is None, and `reason` says why."""

    flops: float | None
    """Dense FLOP a second in the run's dtype."""
    bandwidth: float | None
    """Bytes a second."""
    kind: str
    """One of `DTYPES`, or the dtype's own name where the table has no such kind."""
    source: str | None
    reason: str | None


def read_cards(path: Path) -> tuple[CardPeaks, ...]:
    """Read a table. Raises `LlmprofError` naming the card and the field that is missing or makes no sense."""
    import yaml  # type: ignore[import-untyped]

    rows = yaml.safe_load(path.read_text(encoding="utf-8"))["cards"]
    found = tuple(_card(row, path.name) for row in rows)
    names = [name for card in found for name in (card.name, *card.aliases)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise LlmprofError(f"{path.name}: {', '.join(twice)} stands there twice")
    return found


def _card(row: Mapping[str, Any], where: str) -> CardPeaks:
    name = row.get("name") or "a card without a name"

    def refuse(what: str) -> LlmprofError:
        return LlmprofError(f"{where}: {name}: {what}")

    def positive(field: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise refuse(f"{field} is {value!r}, not a positive number")
        return float(value)

    wanted = set(CardPeaks.__dataclass_fields__)
    if set(row) != wanted:
        raise refuse(f"its fields differ from {', '.join(sorted(wanted))}: {', '.join(sorted(set(row) ^ wanted))}")
    if tuple(row["peak_tflops"]) != DTYPES:
        raise refuse(f"peak_tflops must have {', '.join(DTYPES)}, in this order")
    dense = {
        kind: None if value is None else positive(f"peak_tflops.{kind}", value)
        for kind, value in row["peak_tflops"].items()
    }
    sparse = {kind: positive(f"sparse_tflops.{kind}", value) for kind, value in row["sparse_tflops"].items()}
    for kind, value in sparse.items():
        known = dense.get(kind)
        if known is None or known > 1.005 * value / 2:  # the vendors round
            raise refuse(f"peak_tflops.{kind} is {known}, over half of {value} with sparsity: a dense peak is not")
        if kind in row["halved"] and known != value / 2:
            raise refuse(f"peak_tflops.{kind} is {known}, not half of {value}")
    if not set(row["halved"]) <= set(sparse):
        raise refuse("halved names a kind that sparse_tflops lacks")
    if not row["source"]:
        raise refuse("source is missing")
    return CardPeaks(
        name=name,
        aliases=tuple(row["aliases"]),
        bandwidth_gbs=positive("bandwidth_gbs", row["bandwidth_gbs"]),
        peak_tflops=MappingProxyType(dense),
        sparse_tflops=MappingProxyType(sparse),
        halved=tuple(row["halved"]),
        source=row["source"],
        note=row["note"],
    )


@cache
def cards() -> tuple[CardPeaks, ...]:
    """The packaged table."""
    return read_cards(_TABLE)


def find_card(name: str) -> CardPeaks | None:
    """The card of exactly this name or alias: "NVIDIA H100 PCIe" is no "NVIDIA H100 80GB HBM3"."""
    return next((card for card in cards() if name in (card.name, *card.aliases)), None)


def peaks_of(
    card: str | None,
    dtype: str,
    *,
    tf32: bool = False,
    peak_tflops: float | None = None,
    bandwidth_gbs: float | None = None,
) -> Peaks:
    """What *card* (its name; None on a CPU) can do in *dtype* ("bfloat16", ...).

    *tf32* says that float32 products may run on the tensor cores. *peak_tflops* and *bandwidth_gbs* are the
    user's own numbers, which go before the table's.
    """
    kind = "tf32" if dtype == "float32" and tf32 else dtype
    row = find_card(card) if card is not None else None
    flops = bandwidth = reason = None
    sources = []
    if row is not None:
        table_flops = row.peak_tflops.get(kind)
        flops = None if table_flops is None else table_flops * 1e12
        bandwidth = row.bandwidth_gbs * 1e9
        if peak_tflops is None or bandwidth_gbs is None:
            sources.append(row.source)
    if peak_tflops is not None:
        flops = peak_tflops * 1e12
        sources.append(f"pipeline.static_analysis.peak_tflops={peak_tflops:g}")
    if bandwidth_gbs is not None:
        bandwidth = bandwidth_gbs * 1e9
        sources.append(f"pipeline.static_analysis.bandwidth_gbs={bandwidth_gbs:g}")
    if flops is None or bandwidth is None:
        keys = "pipeline.static_analysis.peak_tflops and .bandwidth_gbs"
        if card is None:
            reason = f"it ran on a CPU, and the table has cards alone; {keys} set a peak of your own"
        elif row is None:
            reason = f"card {card!r} is not in the table; {keys} set its peaks"
        else:
            reason = f"the table has no {kind} peak of {row.name}; {keys} set one"
    return Peaks(flops, bandwidth, kind, "; ".join(sources) or None, reason)
