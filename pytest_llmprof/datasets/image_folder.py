"""`image_folder`: the images, PDFs and multi-page TIFFs below a directory, with their truth beside them.

The image `letters/a.png` is the page `letters/a`. Its truth is `letters/a.md` (for the markdown prompt) and
`letters/a.txt` (for free OCR), both optional, UTF-8. Two images that differ only in the suffix (`a.png`, `a.jpg`) are
the pages `a.png` and `a.jpg`; the truth of the first is `a.png.md`, else the shared `a.md`.

The third page of `a.pdf` is the page `a.pdf.0003`; its truth is `a.pdf.0003.md`, else `a/0003.md`.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from pytest_llmprof.datasets import pdf
from pytest_llmprof.datasets.base import DatasetPlugin, Page, Pages
from pytest_llmprof.datasets.select import Entry, matching, read_text, select
from pytest_llmprof.errors import DatasetError

if TYPE_CHECKING:
    from pytest_llmprof.config.schema import DatasetSettings

_TRUTHS = (".md", ".txt")
_EXTRAS = {pdf.SUFFIX: "pdf", **dict.fromkeys((".heic", ".heif", ".hif"), "heif")}
"""Suffix -> the extra of this package that reads such files."""

_NO_FILE = "no files but pipes, sockets or devices: none is read"

_LONGEST_SUFFIX = 9
"""What is longer is rather a part of the name: "Mr. Smith's letter"."""


class _Place(NamedTuple):
    """Where a page is."""

    file: str
    number: int | None = None
    """Counted from 1 in its file; None where the file is one image."""
    frame: int | None = None
    """Its position in the file, from 0."""
    only: bool = True
    """Whether the file has no other page."""

    @property
    def file_and_number(self) -> str:
        return self.file if self.number is None else f"{self.file}.{self.number:04d}"

    @property
    def short(self) -> str:
        """The page's name, if no other page has it."""
        image = self.number is None and _suffix(self.file) != pdf.SUFFIX
        return _printable(_stem(self.file) if image else self.file_and_number)


def image_folder_dataset() -> DatasetPlugin:
    """The dataset `image_folder`."""
    return DatasetPlugin(name="image_folder", load=_load)


def _load(settings: DatasetSettings) -> Sequence[Page]:
    root = _root(settings.root)
    files, odd, pipes = _walk(root)
    places = [place for file in files for place in _places(root, file)]
    names = _page_names(places)
    by_name = {names[place]: place for place in places}
    entries = [Entry(names[place], _printable(place.file)) for place in places]
    images = {place.file for place in places}
    # A truth file's suffix may be in any case (a.MD). Where there are two, the lower case, which sorts later, wins.
    truths = {_stem(file) + _suffix(file): file for file in sorted([*files, *odd, *pipes])}
    belonging = {truths.get(base + suffix) for place in places for base in _bases(place) for suffix in _TRUTHS}
    others = [file for file in files if file not in images and file not in belonging]
    left_out = matching([Entry(_printable(file), _printable(file)) for file in others], settings)
    seen = f"files seen: {len(files)}, images among them: {len(images)}"
    if extras := {_EXTRAS[suffix] for entry in left_out if (suffix := _suffix(entry.file)) in _EXTRAS}:
        seen += f"; {_install(','.join(sorted(extras)))} reads more of them"
    chosen = select(entries, settings, str(root), seen)
    pages = [_page(root, by_name[entry.name], entry.name, truths, settings) for entry in chosen]
    reasons: dict[str, list[str]] = {}
    if settings.subset is None:
        for entry in left_out:
            reasons.setdefault(_why_left_out(_suffix(entry.file)), []).append(_source(root, entry.file, settings))
        unread = [Entry(_printable(file), _printable(file)) for file in pipes if file not in belonging]
        for entry in matching(unread, settings):
            reasons.setdefault(_NO_FILE, []).append(_source(root, entry.file, settings))
    return Pages(pages, reasons)


def _places(root: Path, file: str) -> Iterator[_Place]:
    """The pages of a file; none where it cannot be one. A file that cannot be read is a page, which fails by name."""
    from pytest_llmprof.datasets.images import image_suffixes, page_frames, paged_suffixes

    suffix = _suffix(file)
    if suffix == pdf.SUFFIX and pdf.can_read():
        count = pdf.page_count(root / file)
        for index in range(count):
            yield _Place(file, index + 1, index, only=count == 1)
        if not count:
            yield _Place(file)
    elif suffix in paged_suffixes():
        frames = page_frames(root / file)
        for number, frame in enumerate(frames, 1):
            several = len(frames) > 1
            yield _Place(file, number if several else None, frame if several or frame else None, only=not several)
    elif suffix in image_suffixes():
        yield _Place(file)


def _why_left_out(suffix: str) -> str:
    if suffix in _TRUTHS:
        return f"{suffix}: the truth of no page"
    if extra := _EXTRAS.get(suffix):
        return f"{suffix}: {_install(extra)} reads them"
    kind = suffix if suffix[1:].isalnum() and len(suffix) <= _LONGEST_SUFFIX else "other files"
    return f"{kind}: no images that Pillow reads"


def _install(extras: str) -> str:
    return f"pip install 'pytest-llmprof[{extras}]'"


def _root(root: str | None) -> Path:
    if not root:
        raise DatasetError("dataset.root is not set: image_folder needs dataset.root=DIR")
    path = Path(root)
    if not path.exists():
        raise DatasetError(f"dataset.root={root}: no such directory")
    if not path.is_dir():
        raise DatasetError(f"dataset.root={root} is not a directory: give the one that holds the images")
    return path


def _walk(root: Path) -> tuple[list[str], list[str], list[str]]:
    """All files below *root* as relative POSIX paths; directories that are called as a truth; and what is neither, as a
    named pipe.

    Links to directories are followed. A directory that is reached twice (by a loop or an alias) is read once, at its
    real path where that lies below *root*.
    """
    files: list[str] = []
    odd: list[str] = []
    pipes: list[str] = []
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
                if _suffix(relative) in _TRUTHS:
                    odd.append(relative)
            elif os.path.isfile(item.path) or not os.path.exists(item.path):
                # A broken link counts too: its page fails by name, and is not silently left out. A pipe does not: who
                # opens one waits for its other end.
                files.append(relative)
            else:
                pipes.append(relative)
    return files, odd, pipes


def _suffix(file: str) -> str:
    return PurePosixPath(file).suffix.lower()


def _stem(file: str) -> str:
    return file.removesuffix(PurePosixPath(file).suffix)


def _printable(text: str) -> str:
    """*text* without bytes that are not UTF-8 and without control characters (both as escapes)."""
    readable = os.fsencode(text).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in readable)


def _page_names(places: list[_Place]) -> dict[_Place, str]:
    """The page name of each place: an image's path without suffix; with suffix where two would share a name."""
    names = {place: place.short for place in places}
    whole = {place: _printable(place.file_and_number) for place in places}
    while True:
        counts = Counter(names.values())
        clashing = [place for place in places if counts[names[place]] > 1 and names[place] != whole[place]]
        if not clashing:
            return names
        names.update({place: whole[place] for place in clashing})


def _source(root: Path, file: str, settings: DatasetSettings) -> str:
    """A file's path below the root as the user gave it."""
    return _printable(str(Path(settings.root_as_given or root) / file))


def _bases(place: _Place) -> list[str]:
    """The paths of the page's truth without `.md` or `.txt`, the first that exists counts."""
    stem = _stem(place.file)
    numbered = [] if place.number is None else [place.file_and_number, f"{stem}/{place.number:04d}"]
    return numbered + ([place.file, stem] if place.only else [])


def _page(root: Path, place: _Place, name: str, truths: dict[str, str], settings: DatasetSettings) -> Page:
    path = root / place.file
    bases = _bases(place)

    def truth(suffix: str) -> str | None:
        found = next((truths[base + suffix] for base in bases if base + suffix in truths), None)
        if found is None:
            return None
        if os.path.exists(root / found) and not os.path.isfile(root / found):  # a pipe would be waited for
            raise DatasetError(f"the truth of page {name!r}, {root / found} is no file: rename it, or give a text file")
        return read_text(root / found, f"the truth of page {name!r},").strip("\n")

    return Page(
        name=name,
        source=_source(root, place.file, settings),
        path=path,
        truth_free=truth(".txt"),
        truth_markdown=truth(".md"),
        frame=place.frame,
        dpi=settings.dpi if _suffix(place.file) == pdf.SUFFIX else None,
    )
