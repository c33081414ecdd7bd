"""The datasets that come with the package: `sample_pages` (the default) and `documents`.

Each is a directory of images with a `pages.json`, made by the scripts in tools/render_pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pytest_llmprof.datasets.base import DatasetPlugin, Page
from pytest_llmprof.datasets.select import Entry, select
from pytest_llmprof.errors import DatasetError
from pytest_llmprof.records.files import read_json
from pytest_llmprof.records.predictions import Box

if TYPE_CHECKING:
    from pytest_llmprof.config.schema import DatasetSettings


class _Facts(msgspec.Struct):
    """A page in pages.json."""

    name: str
    file: str
    license: str
    free: str
    markdown: str
    blocks: tuple[Box, ...] | None


def embedded_dataset(name: str) -> DatasetPlugin:
    """The dataset whose files lie in the directory *name* beside this module."""
    return DatasetPlugin(name=name, load=partial(_load, name))


def _load(name: str, settings: DatasetSettings) -> Sequence[Page]:
    if settings.root is not None:
        raise DatasetError(
            f"dataset.root={settings.root} has no meaning for the embedded dataset {name!r}: "
            "choose dataset=image_folder for images of your own"
        )
    directory = Path(__file__).resolve().parent / name
    pages = msgspec.convert(read_json(directory / "pages.json")["pages"], list[_Facts])
    facts = {page.name: page for page in pages}
    entries = [Entry(page.name, page.file) for page in pages]
    chosen = select(entries, settings, f"the dataset {name!r}", f"its pages are {', '.join(facts)}")
    return [_page(name, directory, facts[entry.name]) for entry in chosen]


def _page(dataset: str, directory: Path, facts: _Facts) -> Page:
    return Page(
        name=facts.name,
        source=f"{dataset}/{facts.file}",
        path=directory / facts.file,
        truth_free=facts.free,
        truth_markdown=facts.markdown,
        truth_boxes=facts.blocks,
        license=facts.license,
    )
