"""The keys of `pipeline.static_analysis`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

_Peak = Annotated[
    Annotated[float, Meta(gt=0)] | None,
    Meta(description="a number > 0, or null for the table's"),
]


@dataclass(frozen=True)
class StaticAnalysisOptions:
    """`pipeline.static_analysis.*` beside `enable`."""

    peak_tflops: _Peak = None
    """This GPU's dense peak for the run's dtype in 10¹² FLOP/s, for example measured by you. Null: [from the
    table](measures.md#roofline)."""
    bandwidth_gbs: _Peak = None
    """This GPU's memory bandwidth in 10⁹ bytes/s, likewise."""
