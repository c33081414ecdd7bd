"""Pages of PDF files, drawn by PDFium: the package pypdfium2, which the extra `pdf` installs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmprof.datasets.images import check_size, naming_page
from pytest_llmprof.errors import PageError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIX = ".pdf"
_POINTS = 72
"""Points an inch: the unit of a PDF's sizes."""


def can_read() -> bool:
    """Whether pypdfium2 is installed."""
    return find_spec("pypdfium2") is not None


def page_count(path: Path) -> int:
    """The number of pages; 0 where the file cannot be read."""
    try:
        with _document(path) as document:
            return len(document)
    except Exception:  # noqa: BLE001 - `load_page` says why
        return 0


def load_page(path: Path, name: str, index: int | None, dpi: int) -> Image:
    """Draw page *index* (from 0; None where the pages could not be counted) as RGB on white, with form fields.

    Raises `PageError` with one line that names the page, the file and the cause.
    """
    with naming_page(path, name), _document(path) as document:
        if not len(document):
            raise PageError("the PDF has no pages")
        document.init_forms()
        with closing(document[index or 0]) as page:
            scale = dpi / _POINTS
            width, height = page.get_size()
            try:
                check_size((round(width * scale), round(height * scale)))
            except PageError as error:
                raise PageError(f"{error}, or set a lower dataset.dpi") from None
            image: Image = page.render(scale=scale).to_pil()
            return image.convert("RGB").copy()  # out of PDFium's memory


@contextmanager
def _document(path: Path) -> Iterator[Any]:
    import pypdfium2

    if path.stat().st_size == 0:
        raise PageError("the file is empty (zero bytes)")
    # A stream, because PDFium takes no file name that is not UTF-8.
    with path.open("rb") as stream:
        try:
            document = pypdfium2.PdfDocument(stream)
        except pypdfium2.PdfiumError as error:
            if "password" in str(error).lower():
                raise PageError("the PDF is encrypted: save it without a password") from error
            raise PageError(f"PDFium cannot read it as a PDF ({error})") from error
        with closing(document):
            yield document
