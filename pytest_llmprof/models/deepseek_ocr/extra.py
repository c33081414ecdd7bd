"""DeepSeek-OCR's own output options: `pipeline.<stage>.output.extra.deepseek_ocr.*`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["DeepSeekOcrExtra", "PredictionExtra", "VisualizationExtra", "check_extra"]


@dataclass(frozen=True)
class PredictionExtra:
    """`extra.deepseek_ocr.prediction.*`"""

    strip_special_tokens: bool = False
    """`text_clean` is without the end token and without whole grounding spans; off, it is `text_raw`."""


@dataclass(frozen=True)
class VisualizationExtra:
    """`extra.deepseek_ocr.visualization.*`"""

    max_images: int | None = 16
    """Pages with pictures in the gallery (>= 0); None = all."""
    thumbnail_width: int = 480
    """Width of the thumbnails in pixels (>= 1); a picture is never enlarged."""


@dataclass(frozen=True)
class DeepSeekOcrExtra:
    """`extra.deepseek_ocr.*`"""

    prediction: PredictionExtra = PredictionExtra()
    visualization: VisualizationExtra = VisualizationExtra()


def check_extra(extra: DeepSeekOcrExtra) -> Iterator[tuple[str, object, str]]:
    """Yield (key below the block, value, what is allowed) for each value out of range."""
    images = extra.visualization.max_images
    if images is not None and images < 0:
        yield "visualization.max_images", images, "an integer >= 0, or null for all pages"
    width = extra.visualization.thumbnail_width
    if width < 1:
        yield "visualization.thumbnail_width", width, "an integer >= 1"
