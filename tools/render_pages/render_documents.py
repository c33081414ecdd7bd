"""Render the dataset `documents` (typst pages, one scan) into pytest_llmprof/datasets/documents.

    python -m pip install typst pypdfium2
    python -m pip download --no-deps --no-binary ocrmypdf ocrmypdf==17.13.0      # for the scan
    python tools/render_pages/render_documents.py --scan .../tests/resources/c03-29.pdf

typst brings its fonts (Libertinus Serif, New Computer Modern, DejaVu Sans Mono), so the pages do not depend
on the machine. Without --scan the scan and its entry stay as they are. No part of this is needed at run time.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from document_blocks import Document  # noqa: E402
from document_source import DOCUMENTS  # noqa: E402
from scan_source import SCAN  # noqa: E402

OUT = HERE.parents[1] / "pytest_llmprof" / "datasets" / "documents"
PPI = 144
LICENSE = "Apache-2.0"
PAD = 2
"""Pixels between the ink of a block and its box."""


def render(document: Document) -> tuple[Image.Image, list[list[int]]]:
    """The image of *document* (RGB, 1191x1684) and a pixel box [x1, y1, x2, y2] a block."""
    import typst

    source = document.typst().encode()
    options = {"ignore_system_fonts": True}
    png = typst.compile(source, format="png", ppi=PPI, **options)
    if not isinstance(png, bytes):
        raise SystemExit(f"{document.name} does not fit on one page")
    places = json.loads(typst.query(source, "<place>", field="value", **options))
    image = Image.open(io.BytesIO(png)).convert("RGB")
    ink = ImageChops.invert(image.convert("L")).point(lambda level: 255 if level > 8 else 0)
    boxes = []
    for index, page, *place in sorted(places):
        assert page == 1, document.blocks[index]
        x, y, width, height = (value * PPI / 72 for value in place)
        area = (round(x) - 2, round(y) - 6, round(x + width) + 3, round(y + height) + 6)
        tight = ink.crop(area).getbbox()
        assert tight, document.blocks[index]
        boxes.append(
            [
                area[0] + tight[0] - PAD,
                area[1] + tight[1] - PAD,
                area[0] + tight[2] + PAD,
                area[1] + tight[3] + PAD,
            ]
        )
    return image, boxes


def truth(document: Document, boxes: list[list[int]] | None = None) -> dict[str, Any]:
    """The entry of *document* in pages.json; without *boxes* (which need typst) the boxes are null."""
    return {
        "name": document.name,
        "file": f"{document.name}.png",
        "size": [1191, 1684],
        "license": LICENSE,
        "free": document.free(),
        "markdown": document.markdown(),
        "blocks": [
            {"label": block.label, "box": boxes[index] if boxes else None, "text": block.markdown()}
            for index, block in enumerate(document.blocks)
        ],
    }


def render_scan(path: Path) -> Image.Image:
    """The scanned page of *path*, as large as SCAN says."""
    import pypdfium2

    page = pypdfium2.PdfDocument(path)[0]
    width, height = SCAN["size"]
    image = page.render(scale=width / page.get_width()).to_pil().convert("RGB")
    assert image.size == (width, height), image.size
    return image


def main() -> None:
    """Write one PNG a page, the scan as JPEG, and pages.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--scan", type=Path, help="c03-29.pdf of ocrmypdf's tests")
    parser.add_argument("--out", type=Path, default=OUT, help="default: the package's documents")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    entries = []
    for document in DOCUMENTS:
        image, boxes = render(document)
        # 32 colours hold the grey of the text and the few colours of the drawings; a third of the size.
        small = image.quantize(32, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        small.save(options.out / f"{document.name}.png", optimize=True)
        entries.append(truth(document, boxes))
    if options.scan is not None:
        render_scan(options.scan).save(options.out / SCAN["file"], quality=85, optimize=True)
    entries.append(SCAN)
    text = json.dumps({"schema": 1, "pages": entries}, indent=1, ensure_ascii=True)
    (options.out / "pages.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
