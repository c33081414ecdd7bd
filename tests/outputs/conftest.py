from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from pytest_llmprof.datasets.base import Page
from pytest_llmprof.records.predictions import Prediction

MakeRecord = Callable[..., Prediction]
MakePage = Callable[..., Page]


@pytest.fixture
def make_record() -> MakeRecord:
    """A record with round figures; `text` is both texts."""

    def make(page: str, text: str = "Hello", **changes: Any) -> Prediction:
        values: dict[str, Any] = {
            "page": page,
            "image": f"pages/{page}.png",
            "stage": "torch_profiler",
            "prompt": "<image>\nFree OCR.",
            "status": "ok",
            "error": None,
            "batch_id": 0,
            "batch_size": 1,
            "round": 0,
            "text_raw": text,
            "text_clean": text,
            "boxes": (),
            "bad_boxes": 0,
            "tokens": 12,
            "finish_reason": "eos",
            "preprocess_ms": 1.5,
            "vision_ms": 20.0,
            "prefill_ms": 10.0,
            "decode_ms": 60.0,
            "other_ms": 0.5,
            "total_ms": 92.0,
            "ttft_ms": 31.5,
            "tokens_per_s": 183.3,
            "cer": None,
        }
        return Prediction(**(values | changes))

    return make


@pytest.fixture
def make_page(tmp_path: Path) -> MakePage:
    """A page with a drawn image on disk."""

    def make(name: str, size: tuple[int, int] = (120, 80), **changes: Any) -> Page:
        image = Image.new("RGB", size, "white")
        ImageDraw.Draw(image).rectangle((10, 10, 39, 29), fill="red")
        path = tmp_path / "source" / f"{len(name)}-{abs(hash(name))}.png"
        path.parent.mkdir(exist_ok=True)
        image.save(path)
        return Page(name, f"pages/{name}.png", path, **changes)

    return make
