"""A page with its truth, and a dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llmprof.records.predictions import Box

if TYPE_CHECKING:
    from PIL.Image import Image

    from pytest_llmprof.config.schema import DatasetSettings

__all__ = ["DatasetPlugin", "Page"]


@dataclass(frozen=True)
class Page:
    """One page's image and its truth."""

    name: str
    """Unique in its dataset; a relative POSIX path without suffix ("letters/a"), not safe as a file name."""
    source: str
    """The image's path as the user gave it; `image` in predictions.jsonl."""
    path: Path
    """The image's file."""
    truth_free: str | None = None
    """Plain text in reading order (for the free prompt)."""
    truth_markdown: str | None = None
    """Markdown without grounding tags (for the markdown prompt)."""
    truth_boxes: tuple[Box, ...] | None = None
    """Grounded blocks in pixels of the image; None where unknown."""
    license: str | None = None

    def load(self) -> Image:
        """Decode the image: RGB, EXIF orientation applied, transparency over white.

        Raises `PageError` naming the page and the cause where Pillow cannot read it.
        """
        from pytest_llmprof.datasets.images import load_image

        return load_image(self.path, self.name)

    def truth(self, prompt_kind: str) -> str | None:
        """The text that an answer is compared with: the prompt kind's own truth, else the other one."""
        first, other = self.truth_markdown, self.truth_free
        if prompt_kind == "free":
            first, other = other, first
        return other if first is None else first


@dataclass(frozen=True)
class DatasetPlugin:
    """A registered dataset."""

    name: str
    load: Callable[[DatasetSettings], Sequence[Page]]
    """All pages after pattern, subset, shuffle and limit. Raises `DatasetError` with one line."""
    config_dir: Path | None = None
    """A directory with its own Hydra groups (`dataset/<preset>.yaml`), laid over the packaged ones."""
