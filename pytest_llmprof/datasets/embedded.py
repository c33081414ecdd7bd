"""The datasets that come with the package: `sample_pages` (the default) and `documents`.

Each is a directory of images with a `pages.json`, made by the scripts in tools/render_pages::

    {"schema": 1, "pages": [{"name", "file", "size": [w, h], "license", "free", "markdown",
                             "blocks": [{"label", "box": [x1, y1, x2, y2], "text"}] or null}]}
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmprof.datasets.base import DatasetPlugin, Page
from pytest_llmprof.datasets.select import Entry, select
from pytest_llmprof.errors import DatasetError
from pytest_llmprof.models.base import Box
from pytest_llmprof.records.files import read_json

if TYPE_CHECKING:
    from pytest_llmprof.config.schema import DatasetSettings

__all__ = ["embedded_dataset"]


def embedded_dataset(name: str) -> DatasetPlugin:
    """The plugin of the dataset whose files lie in the directory *name* beside this module."""
    return DatasetPlugin(name=name, load=partial(_load, name))


def _load(name: str, settings: DatasetSettings) -> Sequence[Page]:
    if settings.root is not None:
        raise DatasetError(
            f"dataset.root={settings.root} has no meaning for the embedded dataset {name!r}: "
            "choose dataset=image_folder for images of your own"
        )
    directory = Path(__file__).resolve().parent / name
    facts = {entry["name"]: entry for entry in read_json(directory / "pages.json")["pages"]}
    entries = [Entry(page, entry["file"]) for page, entry in facts.items()]
    chosen = select(entries, settings, f"the dataset {name!r}", f"its pages are {', '.join(facts)}")
    return [_page(name, directory, facts[entry.name]) for entry in chosen]


def _page(dataset: str, directory: Path, facts: dict[str, Any]) -> Page:
    blocks = facts["blocks"]
    boxes = None
    if blocks is not None:
        boxes = tuple(Box(block["label"], _corners(block["box"]), block["text"]) for block in blocks)
    return Page(
        name=facts["name"],
        source=f"{dataset}/{facts['file']}",
        path=directory / facts["file"],
        truth_free=facts["free"],
        truth_markdown=facts["markdown"],
        truth_boxes=boxes,
        license=facts["license"],
    )


def _corners(box: Sequence[int]) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = box
    return (x1, y1, x2, y2)
