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
    """This GPU's dense peak for the run's dtype, 1e12 FLOP a second; None = the table's."""
    bandwidth_gbs: _Peak = None
    """This GPU's memory bandwidth, 1e9 bytes a second; None = the table's."""
