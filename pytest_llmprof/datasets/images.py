"""Decode one page image to RGB: any format that Pillow can read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pytest_llmprof.errors import PageError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 178_956_970
"""Largest image that is decoded, in pixels (width times height; about 13,377 squared, 512 MiB of RGB).

Pillow refuses larger images as decompression bombs (twice its `Image.MAX_IMAGE_PIXELS`). Where the process has set a
lower limit, that one applies.
"""

# EPS would start Ghostscript on an untrusted file; of the others Pillow knows the name but has no reader.
_NOT_READ = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
_ORIENTATION = 0x0112
# Tags of TIFF.
_NEW_SUBFILE, _SUBFILE, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 254, 255, 258, 262, 339
_DARKEST, _BRIGHTEST = 340, 341  # SMinSampleValue, SMaxSampleValue; MaxSampleValue is statistics, says the standard
_SIGNED = 2
_PAGED = frozenset({"DCX", "TIFF"})
_ALPHA_MODES = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})
_STRIP = 256
_CUT = "the file ends inside a TIFF directory, so it is cut short, and pages may be missing: copy it again"


def load_image(path: Path, name: str, frame: int | None = None) -> Image:
    """Decode the image at *path* as an RGB image of page *name*.

    EXIF orientation is applied. Transparency is laid over white. 16-bit, 32-bit and float samples are scaled to 8 bits,
    not clipped. *frame* is the position in a file of several images, from 0; None is the file's own image (of an
    animation the first one). Pillow's global state stays as it is, and its warnings are not shown.

    Raises `PageError` with one line that names the page, the file and the cause.
    """
    with warnings.catch_warnings(), naming_page(path, name):
        # Pillow warns of size, which is checked below, and of corrupt metadata, which doesn't matter here.
        warnings.simplefilter("ignore")
        return _decode(path, frame)


@contextmanager
def naming_page(path: Path, name: str) -> Iterator[None]:
    """Turn any error into a `PageError` of one line that names the page, the file and the cause."""
    try:
        yield
    except PageError as error:
        raise PageError(f"page {name!r}: cannot read {path}: {error}") from error.__cause__
    except Exception as error:
        raise PageError(f"page {name!r}: cannot read {path}: {_cause(error)}") from error


def page_frames(path: Path) -> list[int]:
    """The positions of the pages in a multi-page file, at least one.

    Thumbnails and masks are no pages. A frame that cannot be read counts: it fails by name when it is loaded.
    """
    from PIL import Image

    found = []
    index = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path, formats=tuple(_PAGED)) as image:
                while True:
                    try:
                        image.seek(index)
                        if not _is_reduced(image):
                            found.append(index)
                    except EOFError:
                        if _ends_inside(image) and index - 1 not in found:  # more pages may have followed
                            found.append(index - 1)
                        break
                    except Exception:  # noqa: BLE001 - it is raised again when the page is loaded
                        found.append(index)
                        if image.tell() != index:  # where the next frame is, is not known either
                            break
                    index += 1
        except Exception:  # noqa: BLE001 - likewise
            return [0]
    return found or [0]


def _is_reduced(image: Image) -> bool:
    tags = getattr(image, "tag_v2", {})
    return bool(tags.get(_NEW_SUBFILE, 0) & 5) or tags.get(_SUBFILE) == 2


def _ends_inside(image: Image) -> bool:
    """Whether the file ends inside the directory of a TIFF's frame, so that later frames are unknown. Pillow takes it
    for the last one, with the tags that are left; the link that led to it then stays in the place of its own."""
    directory = getattr(image, "tag_v2", None)
    return directory is not None and directory.next == directory.offset


@cache
def image_suffixes() -> frozenset[str]:
    """File name suffixes (lower case, with the dot) of the image formats that Pillow can read here."""
    return _suffixes(frozenset(_readable_formats()))


@cache
def paged_suffixes() -> frozenset[str]:
    """Those of the formats whose files may hold several pages."""
    return _suffixes(_PAGED)


def _suffixes(formats: frozenset[str]) -> frozenset[str]:
    from PIL import Image

    known = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in known.items() if kind in formats)


@cache
def _readable_formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    try:
        from pillow_heif import register_heif_opener
    except ImportError:  # the extra `heif`
        pass
    else:
        register_heif_opener()
    return tuple(kind for kind in Image.ID if kind not in _NOT_READ)


def _decode(path: Path, frame: int | None) -> Image:
    if path.stat().st_size == 0:
        raise PageError("the file is empty (zero bytes)")
    # A stream: given a path, Pillow maps uncompressed images into memory, and turned grey TIFFs come out garbled.
    with path.open("rb") as stream, _opened(stream, path) as image:
        _seek(image, frame)
        check_size(image.size)
        image.load()
        orientation = _orientation(image)
        page = _transpose(_to_rgb(image), orientation)
    page.info = {}  # it still holds the orientation: who saves the page and reads it would apply it again
    return page


def _seek(image: Image, frame: int | None) -> None:
    try:
        if frame is not None:
            image.seek(frame)
    except Exception:
        if not _ends_inside(image):
            raise
    if _ends_inside(image):
        raise PageError(_CUT)


def _opened(stream: BinaryIO, path: Path) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(stream, formats=_readable_formats())
    except UnidentifiedImageError as error:
        raise PageError(f"not an image in a format that Pillow reads{_hint(path)}") from error
    except Image.DecompressionBombError as error:
        size = _declared_size(path)
        if size is None or size[0] * size[1] <= MAX_PIXELS:  # the process has set a lower limit
            raise
        raise PageError(_too_large(size)) from error


def check_size(size: tuple[int, int]) -> None:
    """Raise `PageError` where an image of *size* (width, height) is over `MAX_PIXELS`."""
    if size[0] * size[1] > MAX_PIXELS:
        raise PageError(_too_large(size))


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
        return " (it is a PDF: give it the suffix .pdf)"
    if start.startswith(b"version https://"):
        return " (it is a Git LFS pointer: run git lfs pull)"
    if start.startswith((b"II", b"MM")):
        if _lacks_first_directory(path):
            return f": {_CUT}"
        return " (a TIFF with samples of a kind that Pillow does not know: convert it to 8 or 16 bits)"
    return ""


def _lacks_first_directory(path: Path) -> bool:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    with path.open("rb") as stream:
        try:
            header = stream.read(8)
            directory = ImageFileDirectory_v2(header + (stream.read(8) if header[2] == 43 else b""))  # 43: BigTIFF
            stream.seek(directory.next)
            directory.load(stream)
        except Exception:  # noqa: BLE001 - no TIFF, or one that is broken in another way
            return False
    return bool(directory.next == directory.offset)


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

    signed = _tag(image, _SAMPLE_FORMAT) == _SIGNED
    if image.mode in ("I", "F") or image.mode.startswith("I;") or (image.mode == "L" and signed):
        return _deep_to_rgb(image)
    deep = image.mode in ("RGB", "RGBA") and _tag(image, _BITS) == 16
    extrema: Any = image.getextrema() if deep else ()
    if deep and max(highest for _, highest in extrema) <= 15:
        # Pillow keeps the upper 8 of 16 bits: of 12 bits stored in 16 those are the upper 4.
        image = image.point([min(255, value * 17) for value in range(256)] * len(image.getbands()))
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:  # of a PNG with 16 bits, whose samples Pillow keeps 8 of
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if image.mode in _ALPHA_MODES or key is not None:
        # "La" (premultiplied grey) has no direct way to RGBA.
        layer = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    if image.mode == "RGB":
        return image.copy()  # out of the file object, which is closed after this
    return image.convert("RGB")


def _tag(image: Image, number: int) -> Any:
    """The value of a TIFF tag, of the first sample where each has one; None where there is none."""
    value = getattr(image, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) and value else value


def _deep_to_rgb(image: Image) -> Image:
    """Scale samples of more than 8 bits: `convert("RGB")` would clip them at 255."""
    import numpy as np
    from PIL import Image, __version__

    if image.format == "FITS" and int(__version__.partition(".")[0]) < 13:
        raise PageError(
            f"FITS with more than 8 bits needs Pillow 13, this is {__version__}, which mixes up their bytes: "
            "install a newer Pillow, or convert it to PNG"
        )
    samples: Any = np.asarray(image)
    if image.mode == "L":
        samples = samples.view(np.int8)
    elif image.mode == "I" and image.format == "TIFF" and _tag(image, _SAMPLE_FORMAT) in (None, 1, 4):
        samples = samples.view(np.uint32)  # Pillow has no mode for them
    elif image.format == "FITS" and image.mode.startswith("I;"):
        samples = samples.view(np.int16)  # FITS has no unsigned ones
    # Pillow inverts such TIFF files itself only up to 8 bits.
    white_is_zero = _tag(image, _PHOTOMETRIC) == 0
    black, white = _range(image, samples, guess=not white_is_zero)
    clear = image.info.get("transparency")
    grey = np.empty(samples.shape, np.uint8)
    for top in range(0, len(samples), _STRIP):  # in strips, so that a huge image needs no huge float copy
        strip = samples[top : top + _STRIP]
        levels = np.nan_to_num(strip.astype(np.float64), nan=black, posinf=white, neginf=black)
        part = np.clip(np.rint((levels - black) * (255.0 / (white - black))), 0, 255).astype(np.uint8)
        if white_is_zero:
            part = 255 - part
        if isinstance(clear, int):
            part[strip == clear] = 255
        grey[top : top + _STRIP] = part
    return Image.fromarray(grey).convert("RGB")


def _range(image: Image, samples: Any, *, guess: bool) -> tuple[float, float]:
    """The sample values that are black and white.

    They are the file's own: what SMinSampleValue and SMaxSampleValue say, else all that its bits can hold. Where that
    says little (floats, and integers stored in 16 or 32 bits whatever they need) the values decide, with *guess*:
    white is then the first of 255, 4095 (12 bits) and 65535 that holds them all. Below 0 is black, unless the values
    go so far below that they use the signed range.
    """
    import numpy as np

    finite = np.isfinite(samples)
    lowest, highest = (float(of(samples, initial=0, where=finite)) for of in (np.min, np.max))
    declared = _tag(image, _DARKEST), _tag(image, _BRIGHTEST)
    if None not in declared and np.isfinite(declared).all() and declared[0] < declared[1]:
        return float(declared[0]), float(declared[1])
    if samples.dtype.kind == "f":
        # Filters overshoot a little, so 1.02 is still white of 1.
        white = next((top for top in (1.0, 255.0, 65535.0) if highest <= 1.5 * top), highest)
        return (-white if -1.5 * white <= lowest < -white / 2 else 0.0), white
    if image.format in ("JPEG2000", "PNG", "PPM"):  # Pillow scales PGM and JPEG 2000 to 16 bits; PNG has no others
        return 0.0, 65535.0
    bits = _tag(image, _BITS) or (32 if image.mode == "I" else 16)
    signed = samples.dtype.kind == "i"
    limit = 2.0 ** (bits - signed) - 1
    reach = max(highest, -lowest - 1)
    tops = (255.0, 4095.0, 65535.0) if guess and bits in (16, 32) else ()
    white = next((top for top in tops if reach <= top < limit), limit)
    return (-white - 1 if signed and lowest < -white / 2 else 0.0), white
