"""The ranges of DeepSeek-OCR's output options, `pipeline.<stage>.output.extra.deepseek_ocr.*`."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_llmprof.config.schema import OutputExtra

__all__ = ["check_extra"]


def check_extra(extra: OutputExtra) -> Iterator[tuple[str, object, str]]:
    """Yield (key below the block, value, what is allowed) for each value out of range."""
    images = extra.visualization.max_images
    if images is not None and images < 0:
        yield "visualization.max_images", images, "an integer >= 0, or null for all pages"
    width = extra.visualization.thumbnail_width
    if width < 1:
        yield "visualization.thumbnail_width", width, "an integer >= 1"
