"""Datasets: pages with their truth.

Third parties register theirs through the hook ``pytest_llmprof_datasets``. Importing this package loads neither Pillow
nor numpy.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llmprof.datasets.base import DatasetPlugin, Page, Pages
from pytest_llmprof.datasets.embedded import embedded_dataset
from pytest_llmprof.datasets.image_folder import image_folder_dataset
from pytest_llmprof.errors import DatasetError
from pytest_llmprof.records.files import encode_json

if TYPE_CHECKING:
    from pytest_llmprof.config.schema import DatasetSettings

__all__ = ["DatasetPlugin", "Page", "Pages", "builtin", "dataset_digest", "image_digest", "load_pages"]


def builtin() -> list[DatasetPlugin]:
    """The datasets of this package: sample_pages, documents, image_folder."""
    return [embedded_dataset("sample_pages"), embedded_dataset("documents"), image_folder_dataset()]


def load_pages(plugin: DatasetPlugin, settings: DatasetSettings) -> Pages:
    """The pages of *plugin* that *settings* choose, at least one, with distinct names.

    Images are not decoded yet (`Page.load` does that, page by page). Raises `DatasetError` with one line.
    """
    pages = plugin.load(settings)
    pages = pages if isinstance(pages, Pages) else Pages(pages)
    if not pages:
        raise DatasetError(f"the dataset {plugin.name!r} gave no page")
    twice = [name for name, count in Counter(page.name for page in pages).items() if count > 1]
    if twice:
        raise DatasetError(f"the dataset {plugin.name!r} gave two pages named {twice[0]!r}: names must differ")
    return pages


def image_digest(page: Page) -> str | None:
    """Hexadecimal sha256 of the image file's bytes; None where it cannot be opened."""
    try:
        status = page.path.stat()
        return _file_digest(page.path, status.st_mtime_ns, status.st_size)
    except OSError:
        return None


@lru_cache(maxsize=4096)  # the pages of a PDF share its file
def _file_digest(path: Path, mtime_ns: int, size: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def dataset_digest(pages: Sequence[Page]) -> str:
    """``"sha256:..."`` over the names, image bytes and truths of *pages*, in their order: equal for equal pages.

    An image that cannot be opened counts as "unreadable"; its page fails when it is loaded.
    """
    whole = hashlib.sha256()
    for page in pages:
        image = image_digest(page) or "unreadable"
        facts: tuple[object, ...] = (page.name, image, page.truth_free, page.truth_markdown, page.truth_boxes)
        if page.frame is not None or page.dpi is not None:
            facts += (page.frame, page.dpi)
        # One JSON line a page: no two different lists of pages give the same bytes.
        whole.update(encode_json(facts) + b"\n")
    return f"sha256:{whole.hexdigest()}"
