"""`image_folder`: the images below a directory, with their truth beside them.

The image `letters/a.png` is the page `letters/a`. Its truth is `letters/a.md` (for the markdown prompt) and
`letters/a.txt` (for free OCR), both optional, UTF-8. Two images that differ only in the suffix (`a.png`, `a.jpg`) are
the pages `a.png` and `a.jpg`; the truth of the first is `a.png.md`, else the shared `a.md`.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pytest_llmprof.datasets.base import DatasetPlugin, Page
from pytest_llmprof.datasets.select import Entry, read_text, select
from pytest_llmprof.errors import DatasetError

if TYPE_CHECKING:
    from pytest_llmprof.config.schema import DatasetSettings

__all__ = ["image_folder_dataset"]


def image_folder_dataset() -> DatasetPlugin:
    """The dataset `image_folder`."""
    return DatasetPlugin(name="image_folder", load=_load)


def _load(settings: DatasetSettings) -> Sequence[Page]:
    from pytest_llmprof.datasets.images import image_suffixes

    root = _root(settings.root)
    files = _walk(root)
    known = image_suffixes()
    images = [file for file in files if _suffix(file) in known]
    names = _page_names(images)
    paths = {names[file]: file for file in images}
    entries = [Entry(names[file], _printable(file)) for file in images]
    chosen = select(entries, settings, str(root), _seen(files, images))
    # A truth file's suffix may be in any case (a.MD). Where there are two, the lower case, which sorts later, wins.
    truths = {_stem(file) + _suffix(file): file for file in sorted(files)}
    return [_page(root, paths[entry.name], entry.name, truths) for entry in chosen]


def _root(root: str | None) -> Path:
    if not root:
        raise DatasetError("dataset.root is not set: image_folder needs dataset.root=DIR")
    path = Path(root)
    if not path.exists():
        raise DatasetError(f"dataset.root={root}: no such directory")
    if not path.is_dir():
        raise DatasetError(f"dataset.root={root} is not a directory: give the one that holds the images")
    return path


def _walk(root: Path) -> list[str]:
    """All files below *root* as relative POSIX paths.

    Links to directories are followed. A directory that is reached twice (by a loop or an alias) is read once, at its
    real path where that lies below *root*.
    """
    files: list[str] = []
    visited: set[tuple[int, int]] = set()
    own, linked = deque([""]), deque[str]()
    while own or linked:
        directory = (own or linked).popleft()
        path = root / directory
        try:
            status = path.stat()
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(path) as scan:
                found = sorted(scan, key=lambda item: item.name)
        except OSError as error:
            raise DatasetError(f"cannot read the directory {path}: {error.strerror}") from error
        for item in found:
            relative = f"{directory}/{item.name}" if directory else item.name
            if os.path.isdir(item.path):
                (linked if item.is_symlink() else own).append(relative)
            elif os.path.isfile(item.path) or item.is_symlink():
                # A broken link counts too: its page fails by name, and is not silently left out.
                files.append(relative)
    return files


def _suffix(file: str) -> str:
    return PurePosixPath(file).suffix.lower()


def _stem(file: str) -> str:
    return file.removesuffix(PurePosixPath(file).suffix)


def _printable(text: str) -> str:
    """*text* without bytes that are not UTF-8 and without control characters (both as escapes)."""
    readable = os.fsencode(text).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in readable)


def _page_names(images: list[str]) -> dict[str, str]:
    """The page name of each image: its path without suffix; with suffix where two images would share a name."""
    names = {file: _printable(_stem(file)) for file in images}
    while True:
        counts = Counter(names.values())
        clashing = [file for file in images if counts[names[file]] > 1 and names[file] != _printable(file)]
        if not clashing:
            return names
        names.update({file: _printable(file) for file in clashing})


def _seen(files: list[str], images: list[str]) -> str:
    """What was found, for the message when nothing matches."""
    text = f"files seen: {len(files)}, images among them: {len(images)}"
    documents = sum(_suffix(file) == ".pdf" for file in files)
    if documents:
        text += f"; PDF files are not images ({documents} seen): render their pages to PNG first"
    return text


def _page(root: Path, file: str, name: str, truths: dict[str, str]) -> Page:
    path = root / file

    def truth(suffix: str) -> str | None:
        found = truths.get(file + suffix) or truths.get(_stem(file) + suffix)
        return None if found is None else read_text(root / found, f"the truth of page {name!r},").strip("\n")

    return Page(
        name=name,
        source=_printable(str(path)),
        path=path,
        truth_free=truth(".txt"),
        truth_markdown=truth(".md"),
    )
