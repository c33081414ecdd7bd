"""Decode one page image to RGB: any format that Pillow can read."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmprof.errors import PageError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["MAX_PIXELS", "image_suffixes", "load_image"]

MAX_PIXELS = 178_956_970
"""Largest image that is decoded, in pixels (width times height; about 13,377 squared, 512 MiB of RGB).

Pillow refuses larger images as decompression bombs (twice its `Image.MAX_IMAGE_PIXELS`). Where the process has set a
lower limit, that one applies.
"""

# EPS would start Ghostscript on an untrusted file; of the others Pillow knows the name but has no reader.
_NOT_READ = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
_ORIENTATION = 0x0112
_PHOTOMETRIC = 262
_ALPHA_MODES = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})
_STRIP = 256


def load_image(path: Path, name: str) -> Image:
    """Decode the image at *path* as an RGB image of page *name*.

    EXIF orientation is applied. Transparency is laid over white. 16-bit, 32-bit and float samples are scaled to 8 bits,
    not clipped. Of an animation or a multi-page file the first frame is taken. Pillow's global state stays as
    it is, and its warnings are not shown.

    Raises `PageError` with one line that names the page, the file and the cause.
    """
    with warnings.catch_warnings():
        # Pillow warns of size, which is checked below, and of corrupt metadata, which doesn't matter here.
        warnings.simplefilter("ignore")
        try:
            return _decode(path)
        except PageError as error:
            raise PageError(f"page {name!r}: cannot read {path}: {error}") from error.__cause__
        except Exception as error:
            raise PageError(f"page {name!r}: cannot read {path}: {_cause(error)}") from error


@cache
def image_suffixes() -> frozenset[str]:
    """File name suffixes (lower case, with the dot) of the image formats that Pillow can read here."""
    from PIL import Image

    known = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in known.items() if kind in _readable_formats())


def _readable_formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(kind for kind in Image.ID if kind not in _NOT_READ)


def _decode(path: Path) -> Image:
    from PIL import Image, UnidentifiedImageError

    if path.stat().st_size == 0:
        raise PageError("the file is empty (zero bytes)")
    try:
        opened = Image.open(path, formats=_readable_formats())
    except UnidentifiedImageError as error:
        raise PageError(f"not an image in a format that Pillow reads{_hint(path)}") from error
    except Image.DecompressionBombError as error:
        size = _declared_size(path)
        if size is None or size[0] * size[1] <= MAX_PIXELS:  # the process has set a lower limit
            raise
        raise PageError(_too_large(size)) from error
    with opened as image:
        if image.width * image.height > MAX_PIXELS:
            raise PageError(_too_large(image.size))
        image.load()
        orientation = _orientation(image)
        page = _transpose(_to_rgb(image), orientation)
    page.info = {}  # it still holds the orientation: who saves the page and reads it would apply it again
    return page


def _too_large(size: tuple[int, int]) -> str:
    width, height = size
    return (
        f"{width}x{height} = {width * height:,} pixels is over the limit of {MAX_PIXELS:,}: "
        "scale the image down or cut it up"
    )


def _hint(path: Path) -> str:
    with path.open("rb") as stream:
        start = stream.read(16)
    if start.startswith(b"%PDF"):
        return " (it is a PDF: render its pages to PNG first)"
    if start.startswith(b"version https://"):
        return " (it is a Git LFS pointer: run git lfs pull)"
    return ""


def _declared_size(path: Path) -> tuple[int, int] | None:
    """(width, height) in the header of a refused image; None where no reader finds it."""
    from PIL import Image

    with path.open("rb") as stream:
        prefix = stream.read(16)
        for kind in _readable_formats():
            reader, accept = Image.OPEN[kind]
            if accept is not None and accept(prefix) is not True:
                continue
            stream.seek(0)
            try:
                return reader(stream, str(path)).size
            except (Image.DecompressionBombError, SyntaxError, OSError, ValueError, LookupError, TypeError):
                continue
    return None


def _cause(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _orientation(image: Image) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none or the EXIF block is broken."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - a broken EXIF block fails in many ways and says nothing about the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _transpose(image: Image, orientation: int) -> Image:
    from PIL.Image import Transpose

    method = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(orientation)
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image) -> Image:
    from PIL import Image

    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return _deep_to_rgb(image)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        # "La" (premultiplied grey) has no direct way to RGBA.
        layer = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    if image.mode == "RGB":
        return image.copy()  # out of the file object, which is closed after this
    return image.convert("RGB")


def _deep_to_rgb(image: Image) -> Image:
    """Scale samples of more than 8 bits: `convert("RGB")` would clip them at 255."""
    import numpy as np
    from PIL import Image

    samples: Any = np.asarray(image)
    # Floats have no fixed range, and "I" is 16 bits in older Pillow, else 32 signed: the brightest sample decides.
    highest = float(np.max(samples, initial=0.0, where=np.isfinite(samples)))
    if image.mode.startswith("I;"):
        white = 65535.0
    elif image.mode == "I":
        white = 65535.0 if highest <= 65535 else 2.0**31 - 1
    else:
        white = next((top for top in (1.0, 255.0, 65535.0) if highest <= top), highest)
    # Pillow inverts such TIFF files itself only up to 8 bits.
    white_is_zero = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0
    clear = image.info.get("transparency")
    grey = np.empty(samples.shape, np.uint8)
    for top in range(0, len(samples), _STRIP):  # in strips, so that a huge image needs no huge float copy
        strip = samples[top : top + _STRIP]
        scaled = np.nan_to_num(strip.astype(np.float64), posinf=0.0, neginf=0.0) * (255.0 / white)
        part = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
        if white_is_zero:
            part = 255 - part
        if isinstance(clear, int):
            part[strip == clear] = 255
        grey[top : top + _STRIP] = part
    return Image.fromarray(grey).convert("RGB")
