"""The output options that any model may have, read from its own `output.extra.<model>` block.

A model's block is its own frozen dataclass. What it has under the names below is used; a model without them
gets the defaults here, the only place where they are written down for such models.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

import msgspec

__all__ = ["OutputOptions", "PredictionOptions", "VisualizationOptions", "output_options"]


@dataclass(frozen=True)
class PredictionOptions:
    """`extra.<model>.prediction.*`"""

    strip_special_tokens: bool = False
    """Whether `text_clean` is without EOS and without whole grounding spans."""


@dataclass(frozen=True)
class VisualizationOptions:
    """`extra.<model>.visualization.*`"""

    max_images: int | None = 16
    """At most this many pages get a section with images; None = all, 0 = the table alone."""
    thumbnail_width: int = 480
    """Width of the thumbnails in pixels; a narrower image is not enlarged."""


@dataclass(frozen=True)
class OutputOptions:
    """What writers and stages read of `pipeline.<stage>.output.extra.<model>`."""

    prediction: PredictionOptions = field(default_factory=PredictionOptions)
    visualization: VisualizationOptions = field(default_factory=VisualizationOptions)


def output_options(extra: Any) -> OutputOptions:
    """The options in *extra*: a model's own dataclass, a mapping of the same shape, or None for the defaults.

    Names that only the model knows are left to the model.
    """
    if extra is None:
        return OutputOptions()
    block = asdict(extra) if is_dataclass(extra) and not isinstance(extra, type) else extra
    return msgspec.convert(block, OutputOptions)
