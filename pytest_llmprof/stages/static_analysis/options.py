"""The keys of `pipeline.static_analysis`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["StaticAnalysisOptions", "check_static_analysis"]


@dataclass(frozen=True)
class StaticAnalysisOptions:
    """`pipeline.static_analysis.*` beside `enable`."""

    peak_tflops: float | None = None
    """This card's dense peak for the run's dtype, 1e12 FLOP a second (> 0); None = the table's."""
    bandwidth_gbs: float | None = None
    """This card's memory bandwidth, 1e9 bytes a second (> 0); None = the table's."""


def check_static_analysis(options: StaticAnalysisOptions) -> Iterator[tuple[str, object, str]]:
    """Yield (key below the stage's block, value, what is allowed) for each value out of range."""
    for name in ("peak_tflops", "bandwidth_gbs"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            yield name, value, "a number > 0, or null for the table's"
