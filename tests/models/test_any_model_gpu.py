"""Document models of transformers on a GPU: tokens, engines, memory. Tiny weights in float32."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
import zoo
from ocr_helpers import Record
from test_any_model import ALONE, BANNED, BOXES, CLASSES, check_compiled, images, ours, preset, theirs
from test_any_model_quantized import BITSANDBYTES, METHODS, network_of, quantized

from pytest_llmprof.models.from_transformers.loader import load

pytestmark = pytest.mark.gpu


def loaded(make: Callable[[], Any], path: Path) -> Any:
    zoo.build(make, path)
    return load(preset(make.__name__, path, "cuda"), ALONE, BOXES)


@pytest.mark.parametrize("make", CLASSES)
def test_tokens_are_those_of_generate(make, tmp_path, monkeypatch):
    model = loaded(make, tmp_path)
    expected = theirs(model, images(2), BANNED)
    assert ours(model, images(2), BANNED) == expected
    monkeypatch.setattr(model, "_compiled", True)
    monkeypatch.setattr(model, "_forward", lambda: model.network)
    assert ours(model, images(2), BANNED) == expected, "with a static cache"


@pytest.mark.parametrize("make", [zoo.paddleocr_vl, zoo.lighton_ocr, zoo.got_ocr2], ids=lambda make: make.__name__)
def test_compiled_gives_the_tokens_of_the_reference(make, tmp_path):
    reference = loaded(make, tmp_path)
    compiled = load(preset(make.__name__, tmp_path, "cuda"), replace(ALONE, engine="compiled"), BOXES)
    check_compiled(compiled, reference)


@BITSANDBYTES
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [zoo.paddleocr_vl, zoo.got_ocr2], ids=lambda make: make.__name__)
def test_bitsandbytes(make, method, tmp_path):
    base, path = zoo.build(make, tmp_path / "base"), tmp_path / "checkpoint"
    config = hf.BitsAndBytesConfig(**METHODS[method])
    quantized(base, path, network_of(base, quantization_config=config, device_map={"": "cuda"}))
    model = load(preset(make.__name__, path, "cuda"), ALONE, BOXES)
    assert ours(model, images(2), BANNED) == theirs(model, images(2), BANNED)
    model.costs(images(1), ALONE, [4])


@pytest.fixture
def emptied():
    """Nothing of earlier tests is on the device."""
    gc.collect()
    torch.cuda.empty_cache()


def test_closing_gives_the_memory_back(tmp_path, emptied):
    left = []
    for place in ("first", "second"):
        before = torch.cuda.memory_allocated()
        model = loaded(zoo.paddleocr_vl, tmp_path / place)
        list(model.generate(images(1), ALONE, Record()))
        assert torch.cuda.memory_allocated() > before
        model.close()
        left.append(torch.cuda.memory_allocated())
    assert left[1] == left[0]  # the first leaves cuBLAS's workspace, which the process keeps


def test_too_little_memory(tmp_path, emptied):
    zoo.build(zoo.paddleocr_vl, tmp_path)
    torch.cuda.set_per_process_memory_fraction(1e-6)
    taken = []
    try:
        for size in (1 << 20, 1 << 16, 1 << 9):  # what torch holds and has not given out has room for a tiny model
            with suppress(torch.OutOfMemoryError):
                while True:
                    taken.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        with pytest.raises(torch.OutOfMemoryError):  # run.model_cache makes one line of it
            load(preset("paddleocr_vl", tmp_path, "cuda"), ALONE, BOXES)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
