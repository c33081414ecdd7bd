"""Pages with their truth, and how a dataset is registered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llmprof.models.base import Box

if TYPE_CHECKING:
    from PIL.Image import Image

    from pytest_llmprof.config.schema import DatasetSettings

__all__ = ["DatasetPlugin", "Page"]


@dataclass(frozen=True)
class Page:
    """One page image and what is known of it."""

    name: str
    """Unique in its dataset; a relative POSIX path without suffix ("letters/a"), not safe as a file name."""
    source: str
    """Where the image came from, as the user gave it (written to predictions.jsonl as `image`)."""
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
        """The text an answer is held against: the kind's own truth, else whichever is there."""
        if prompt_kind == "free":
            return self.truth_free if self.truth_free is not None else self.truth_markdown
        return self.truth_markdown if self.truth_markdown is not None else self.truth_free


@dataclass(frozen=True)
class DatasetPlugin:
    """A registered dataset."""

    name: str
    load: Callable[[DatasetSettings], Sequence[Page]]
    """All pages after pattern, subset, shuffle and limit. Raises `DatasetError` with one line."""
    config_dir: Path | None = None
    """A directory with its own Hydra groups (`dataset/<preset>.yaml`), laid over the packaged ones."""
