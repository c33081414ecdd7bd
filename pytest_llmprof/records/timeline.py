"""timeline.json: a profiled window as lanes of events, small enough for the run's page."""

from __future__ import annotations

from msgspec import Struct

SCHEMA = 1
"""Version of timeline.json."""
TIMELINE = "timeline.json"
"""Its file in the stage directory."""


class Lane(Struct):
    """Events that do not overlap, in the order of their start, as columns."""

    name: str
    """"Phases", "Host", "GPU stream 1" ..."""
    kind: str
    """phases | host | gpu | idle"""
    start: list[int]
    """Nanoseconds from the beginning of the window."""
    dur: list[int]
    """Nanoseconds."""
    label: list[int]
    """Index of `Timeline.names`; of the lane "idle" the cause."""


class Timeline(Struct, kw_only=True):
    """All of timeline.json."""

    schema: int = SCHEMA
    names: list[str]
    """Kernels' names are shortened as in kernels.md."""
    lanes: list[Lane]
    window_ns: int
    """From the first event to the end of the last."""
    left_out: int = 0
    """The shortest events on the host, left out of a very long window; those of the GPU are all there."""
