"""A page with its truth, and a dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llmprof.records.predictions import Box

if TYPE_CHECKING:
    from PIL.Image import Image

    from pytest_llmprof.config.schema import DatasetSettings


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
    frame: int | None = None
    """Its position in a file of several pages, from 0; None where the file is one image."""
    dpi: int | None = None
    """The resolution that a page of a PDF is drawn at; None where the file is an image."""

    def load(self) -> Image:
        """Decode the image: RGB, EXIF orientation applied, transparency over white; a page of a PDF is drawn.

        Raises `PageError` naming the page and the cause where it cannot be read.
        """
        if self.dpi is not None:
            from pytest_llmprof.datasets.pdf import load_page

            return load_page(self.path, self.name, self.frame, self.dpi)
        from pytest_llmprof.datasets.images import load_image

        return load_image(self.path, self.name, self.frame)

    def truth(self, prompt_kind: str) -> str | None:
        """The text that an answer is compared with: the prompt kind's own truth, else the other one."""
        first, other = self.truth_markdown, self.truth_free
        if prompt_kind == "free":
            first, other = other, first
        return other if first is None else first


class Pages(tuple[Page, ...]):
    """A dataset's pages, with the files that were left out."""

    left_out: Mapping[str, Sequence[str]]
    """Files by the reason why no page was made of them."""

    def __new__(cls, pages: Iterable[Page], left_out: Mapping[str, Sequence[str]] | None = None) -> Pages:
        self = super().__new__(cls, pages)
        self.left_out = left_out or {}
        return self


@dataclass(frozen=True)
class DatasetPlugin:
    """A registered dataset."""

    name: str
    load: Callable[[DatasetSettings], Sequence[Page]]
    """All pages after pattern, exclude, subset, shuffle and limit; a `Pages` where files were left out. Raises
    `DatasetError` with one line."""
    config_dir: Path | None = None
    """A directory with its own Hydra groups (`dataset/<preset>.yaml`), laid over the packaged ones."""
