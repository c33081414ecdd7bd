"""Small files written by hand, byte by byte: TIFFs of any sample type, PDFs."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import numpy as np

FORMATS = {"u": 1, "i": 2, "f": 3}
"""NumPy's kind -> SampleFormat."""


def tiff(*pages: np.ndarray, order: str = "<", photometric: int | None = None, packed: bytes | None = None,
         bits: int | None = None, tags: Mapping[int, Sequence[float]] | None = None,
         subfiles: Sequence[int] = ()) -> bytes:
    """An uncompressed TIFF: *pages* are height x width (grey) or height x width x samples, of any dtype.

    *packed* replaces the samples' bytes, *bits* their declared size; *tags* adds tags, *subfiles* is NewSubfileType
    of each page.
    """
    whole = bytearray((b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 0))
    link = 4
    for number, page in enumerate(pages):
        height, width = page.shape[:2]
        depth = 1 if page.ndim == 2 else page.shape[2]
        data = packed if packed is not None else page.astype(page.dtype.newbyteorder(order)).tobytes()
        place = len(whole)
        whole += data + bytes(len(data) % 2)
        shape = photometric if photometric is not None else 1 if page.ndim == 2 else 2
        entries: dict[int, tuple[str, Sequence[float]]] = {
            254: ("I", [subfiles[number] if subfiles else 0]),
            256: ("I", [width]),
            257: ("I", [height]),
            258: ("H", [bits or page.dtype.itemsize * 8] * depth),
            259: ("H", [1]),
            262: ("H", [shape]),
            273: ("I", [place]),
            277: ("H", [depth]),
            278: ("I", [height]),
            279: ("I", [len(data)]),
            339: ("H", [FORMATS[page.dtype.kind]] * depth),
        }
        entries |= {tag: ("f" if any(isinstance(one, float) for one in values) else "H", values)
                    for tag, values in (tags or {}).items()}
        rows = b""
        for tag, (kind, values) in sorted(entries.items()):
            value = struct.pack(order + kind * len(values), *values)
            if len(value) > 4:
                at = len(whole)
                whole += value + bytes(len(value) % 2)
                value = struct.pack(order + "I", at)
            rows += struct.pack(order + "HHI", tag, {"H": 3, "I": 4, "f": 11}[kind], len(values))
            rows += value.ljust(4, b"\0")
        struct.pack_into(order + "I", whole, link, len(whole))
        whole += struct.pack(order + "H", len(entries)) + rows
        link = len(whole)
        whole += bytes(4)
    return bytes(whole)


def pdf(*pages: str, size: tuple[float, float] = (72, 36), encrypted: bool = False) -> bytes:
    """A PDF with a page for each content stream ("" = empty), *size* in points."""
    kids = " ".join(f"{3 + 2 * number} 0 R" for number in range(len(pages)))
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", f"<< /Type /Pages /Count {len(pages)} /Kids [{kids}] >>"]
    for number, content in enumerate(pages):
        box = f"[0 0 {size[0]} {size[1]}]"
        objects.append(f"<< /Type /Page /Parent 2 0 R /MediaBox {box} /Contents {4 + 2 * number} 0 R >>")
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    locked = ""
    if encrypted:  # nobody knows the password of these keys
        key = "<" + "5a" * 32 + ">"
        objects.append(f"<< /Filter /Standard /V 1 /R 2 /O {key} /U {key} /P -4 >>")
        locked = f"/Encrypt {len(objects)} 0 R /ID [{key} {key}]"
    whole, places = "%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(whole))
        whole += f"{number} 0 obj\n{body}\nendobj\n"
    start = len(whole)
    whole += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n"
    whole += "".join(f"{place:010} 00000 n \n" for place in places)
    whole += f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R {locked} >>\nstartxref\n{start}\n%%EOF\n"
    return whole.encode("latin-1")


def black_left(width: float = 36, height: float = 36) -> str:
    """A content stream that fills the left part of the page with black."""
    return f"0 0 0 rg 0 0 {width} {height} re f"
