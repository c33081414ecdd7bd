"""The gallery: predictions.md with a table of all pages and a section a page, and the files under pages/.

::

    predictions.md
    pages/<page>/thumbnail.jpg boxes.jpg result.md info.json crops/<number>.jpg

Links are relative, so the directory can be moved. `pages/` is built under a temporary name and renamed when it is
complete. It replaces an earlier gallery's; any other `pages` directory is refused. One image at a time is in memory.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_llmprof.datasets.base import Page
from pytest_llmprof.errors import ArtifactError, LlmprofError, PageError
from pytest_llmprof.outputs.images import boxes_image, crop, place_boxes, thumbnail
from pytest_llmprof.outputs.markdown import PageFiles, document, result
from pytest_llmprof.records.files import write_json, write_text
from pytest_llmprof.records.predictions import Prediction
from pytest_llmprof.text.names import unique_names

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_CROPS = 100
"""At most this many crops a page are written."""
_TEMPORARY = ".tmp-pages-"
_CROPPED = "image"


def check_gallery(directory: Path, key: str = "save_dir") -> None:
    """Raise `ArtifactError` where *directory* has a `pages` that no gallery wrote: writing one would replace it.

    *key* is the setting that names the directory, for the message.
    """
    pages = directory / "pages"
    if pages.is_symlink() or (pages.exists() and not pages.is_dir()):
        raise ArtifactError(f"{pages} is not a directory: move it away or set another {key}")
    if not pages.exists():
        return
    try:
        foreign = [child.name for child in pages.iterdir() if not (child / "info.json").is_file()]
    except OSError as error:
        raise ArtifactError(f"cannot read {pages}: {error.strerror}") from error
    if foreign:
        raise ArtifactError(
            f"{pages} is not a gallery of pytest-llmprof (it holds {min(foreign)!r}) and is not replaced: "
            f"move it away or set another {key}"
        )


def write_gallery(
    directory: Path,
    *,
    title: str,
    records: Sequence[Prediction],
    pages: Mapping[str, Page],
    prompt_kind: str,
    max_images: int | None,
    thumbnail_width: int,
    plain: Mapping[str, str],
    facts: Mapping[str, str],
) -> None:
    """Write the gallery of *records* into *directory*, which is made where it is missing.

    *records* holds one record a page (the last counts where there are more), in the order of the table; *pages* the
    pages by name. *prompt_kind* ("markdown", "free" or "other") chooses the truth. The first *max_images* pages get a
    section (None = all, 0 = the table alone), with thumbnails *thumbnail_width* pixels wide. *plain* holds the texts of
    these pages as they were scored (`ParsedOutput.plain`), to show and compare. *facts* is shown below the title.
    Raises `ArtifactError` where the directory cannot be written.
    """
    records = list({record.page: record for record in records}.values())
    shown = records if max_images is None else records[:max_images]
    names = unique_names(record.page for record in shown)
    check_gallery(directory)
    temporary = directory / f"{_TEMPORARY}{secrets.token_hex(4)}"
    written: list[PageFiles] = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for stale in directory.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(stale)
        temporary.mkdir()
        for record in shown:
            name = names[record.page]
            page = pages.get(record.page)
            files = _write_images(temporary / name, record, page, thumbnail_width)
            files.truth = None if page is None else page.truth(prompt_kind)
            files.answer = plain[record.page]
            write_text(temporary / name / "result.md", result(files))
            write_json(temporary / name / "info.json", _info(files))
            written.append(files)
        _replace(directory / "pages", temporary if shown else None)
        write_text(directory / "predictions.md", document(title, facts, records, written))
    except (OSError, ArtifactError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        raise ArtifactError(f"cannot write the gallery in {directory}: {getattr(cause, 'strerror', cause)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_images(directory: Path, record: Prediction, page: Page | None, thumbnail_width: int) -> PageFiles:
    """Write thumbnail, boxes and crops of one page, or note why its image cannot be read."""
    directory.mkdir()
    files = PageFiles(name=directory.name, record=record, skipped_boxes=record.bad_boxes)
    if page is None:
        files.image_error = "the dataset has no such page"
        return files
    try:
        image = page.load()
    except (LlmprofError, OSError, ValueError, MemoryError) as error:
        text = error.beside(page.name) if isinstance(error, PageError) else str(error)
        files.image_error = text or type(error).__name__
        return files
    with image:
        _save_images(directory, image, files, thumbnail_width)
    return files


def _save_images(directory: Path, image: Image, files: PageFiles, thumbnail_width: int) -> None:
    files.size = image.size
    files.boxes, skipped = place_boxes(files.record.boxes, image.size)
    files.skipped_boxes += skipped
    _save(thumbnail(image, thumbnail_width), directory / "thumbnail.jpg")
    if files.boxes:
        _save(boxes_image(image, files.boxes), directory / "boxes.jpg")
    files.crops = [box for box in files.boxes if box.label.strip().casefold() == _CROPPED]
    files.left_out_crops = max(0, len(files.crops) - MAX_CROPS)
    del files.crops[MAX_CROPS:]
    if files.crops:
        (directory / "crops").mkdir()
    for box in files.crops:
        _save(crop(image, box), directory / "crops" / f"{box.number}.jpg")


def _save(image: Image, path: Path) -> None:
    # No chroma subsampling: thin coloured lines and letters stay sharp.
    image.save(path, "JPEG", quality=88, subsampling=0)


def _info(files: PageFiles) -> dict[str, Any]:
    """The page's line of predictions.jsonl, its answer as it was scored, its truth, and facts of its image."""
    info: dict[str, Any] = msgspec.to_builtins(files.record)
    return info | {
        "text_scored": files.answer,
        "truth": files.truth,
        "picture": None if files.size is None else {"width": files.size[0], "height": files.size[1]},
        "picture_error": files.image_error,
        "drawn_boxes": len(files.boxes),
        "skipped_boxes": files.skipped_boxes,
        "crops": [{"file": f"crops/{box.number}.jpg", "box": list(box.corners)} for box in files.crops],
    }


def _replace(pages: Path, new: Path | None) -> None:
    """Put the directory *new* (None = nothing) in the place of *pages*."""
    old = pages.with_name(f"{_TEMPORARY}{secrets.token_hex(4)}")
    if pages.exists():
        pages.rename(old)
    if new is not None:
        new.rename(pages)
    if old.exists():
        shutil.rmtree(old)
