"""Views made on the device are Pillow's to the bit: in torch on a CPU, in Triton's interpreter, and on a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from pytest_llmprof.models.deepseek_ocr import resize as arithmetic
from pytest_llmprof.models.deepseek_ocr import views
from pytest_llmprof.models.deepseek_ocr.preprocessing import MODES, Mode
from pytest_llmprof.models.deepseek_ocr.resize import find_order, resize
from pytest_llmprof.models.deepseek_ocr.views import (
    DeviceViews,
    OtherBytes,
    PillowViews,
    Upload,
    copy_stored,
    make_views,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LONG = os.environ.get("LLMPROF_FUZZ") == "long"
AREA = 250_000
"""Pixels of a tried image at most: Pillow and torch take as long as its views need."""


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Bytes at random: of all images the one with the most that are clipped, and rounded either way."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@cache
def makers(mode: str, device: torch.device = CPU) -> tuple[DeviceViews, PillowViews]:
    return DeviceViews(MODES[mode], device, torch.bfloat16), PillowViews(device, torch.bfloat16)


def check(mode: str, images: list[Image.Image], device: torch.device = CPU) -> None:
    ours, theirs = (make(images, MODES[mode]) for make in makers(mode, device))
    assert ours.grids == theirs.grids
    assert ours.overviews.dtype == theirs.overviews.dtype
    assert torch.equal(ours.overviews, theirs.overviews)
    assert (ours.crops is None) == (theirs.crops is None)
    assert ours.crops is None or (theirs.crops is not None and torch.equal(ours.crops, theirs.crops))


sizes = st.integers(1, 8000).flatmap(
    lambda long: st.tuples(st.just(long), st.integers(1, min(8000, AREA // long))).flatmap(st.permutations).map(tuple)
)


@settings(max_examples=60 if LONG else 15, deadline=None)
@given(st.sampled_from(sorted(MODES)), sizes)
@example("base", (1, 1))
@example("gundam", (8000, 1))
@example("base", (1, 8000))
@example("gundam", (641, 320))
@example("large", (1280, 100))
@example("tiny", (512, 30))
def test_views_are_pillows(mode: str, size: tuple[int, int]) -> None:
    check(mode, [noise(*size)])


@settings(max_examples=300 if LONG else 100, deadline=None)
@given(*[st.tuples(st.integers(1, 300), st.integers(1, 300))] * 2)
@example((30, 299), (20, 3))
@example((2, 300), (2, 1))
@example((300, 2), (1, 2))
def test_the_resize_is_pillows(before: tuple[int, int], after: tuple[int, int]) -> None:
    """Also at sizes that no view has: whichever pass Pillow runs first."""
    order = find_order()
    assert order is not None
    image = noise(*before)
    found = resize(torch.from_numpy(np.array(image)), after, order)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(image.resize(after)))


@pytest.mark.parametrize("mode", ["base", "gundam"])
def test_a_batch_has_the_views_of_its_pages(mode: str) -> None:
    check(mode, [noise(60, 80, 1), noise(700, 500, 2), noise(30, 20, 3), noise(500, 700, 4)])


def test_images_of_other_kinds() -> None:
    check("base", [noise(60, 80).convert(kind) for kind in ("L", "RGBA", "CMYK", "P")])


@pytest.mark.slow
def test_the_triton_kernel_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="Triton is not installed: its interpreter runs the kernel on a CPU")
    folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(folder / "views_in_interpreter.py")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found.pop("how") == "Triton"
    assert len(found) == 12
    assert set(found.values()) == {"equal"}, found


# -- the image's bytes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("band", [1, 4 * 97 * 5, 1 << 30])
def test_pillows_memory_is_copied_whole_or_in_bands(monkeypatch: pytest.MonkeyPatch, band: int) -> None:
    if not hasattr(Image.Image, "__arrow_c_array__"):
        pytest.skip("this Pillow does not show its memory")
    monkeypatch.setattr(views, "_BAND", band)
    image, target = noise(97, 61), torch.zeros((61, 97, 4), dtype=torch.uint8)
    assert copy_stored(image, target)
    assert np.array_equal(target[..., :3].numpy(), np.asarray(image))


def test_an_image_of_several_blocks_is_copied_in_bands() -> None:
    image = noise(3000, 2000)  # 24 MB as Pillow stores it
    assert np.array_equal(Upload(CPU)(image)[..., :3].numpy(), np.asarray(image))


def test_a_pillow_that_does_not_show_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Image.Image, "__arrow_c_array__", raising=False)
    image, upload = noise(97, 61), Upload(CPU)
    found = upload(image)
    assert found.shape == (61, 97, 3)
    assert np.array_equal(found.numpy(), np.asarray(image))
    check("base", [image])


def test_a_larger_image_gets_a_larger_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "_ROOM", 100)
    upload = Upload(CPU)
    for size in ((3, 4), (50, 40), (7, 7)):
        assert np.array_equal(upload(noise(*size))[..., :3].numpy(), np.asarray(noise(*size)))


class SecondGpu(str):
    """A device that is taken for a GPU, and whose tensors are on the CPU."""

    type = "cuda"


def test_all_work_is_on_the_models_gpu_also_where_another_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Triton kernel runs on the current GPU, and an event records the current GPU's stream."""
    device: Any = SecondGpu("cpu")
    current: list[object] = []

    @contextmanager
    def choose(chosen: object) -> Iterator[None]:
        current.append(chosen)
        yield
        current.pop()

    class Watched(DeviceViews):
        def _resize(self, *arguments: Any) -> None:
            assert current == [device]
            super()._resize(*arguments)

    monkeypatch.setattr(torch.cuda, "device", choose)
    monkeypatch.setattr(views, "Upload", lambda _: Upload(CPU))
    Watched(MODES["tiny"], device, torch.float32, kernel=False)([noise(97, 61)], MODES["tiny"])


# -- a Pillow that computes otherwise ------------------------------------------------------------------------------


def test_an_unknown_order_of_passes_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "ORDERS", {"never so": lambda before, after: True})
    assert find_order() is None
    with pytest.raises(OtherBytes, match=r"Pillow [\d.]+ resizes in an order of passes that is not known"):
        DeviceViews(MODES["tiny"], CPU, torch.float32)


@pytest.mark.parametrize("broken", ["taps", "overview_placement", "normalize"])
def test_one_other_byte_is_found_out(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    right: Callable[..., Any] = getattr(views if broken != "taps" else arithmetic, broken)

    def taps(before: int, after: int) -> Any:
        table = right(before, after).copy()
        table[1:, after // 2] += np.roll(table[1:, after // 2], 1) // 8
        return table

    def placement(size: tuple[int, int], mode: Mode) -> Any:
        found = right(size, mode)
        return type(found)(found.size, found.side, corner=(found.corner[0], max(found.corner[1] - 1, 0)))

    def normalize(pixels: Any, dtype: torch.dtype) -> Any:
        return right(pixels, dtype) * (1 if len(pixels[0].shape) > 1 else 1.01)

    wrong = {"taps": taps, "overview_placement": placement, "normalize": normalize}[broken]
    order = find_order()
    monkeypatch.setattr(views, "find_order", lambda: order)
    monkeypatch.setattr(views, broken, wrong)
    if broken == "taps":
        monkeypatch.setattr(arithmetic, broken, wrong)
    with pytest.raises(OtherBytes, match=r"for an image of \d+x\d+ torch on cpu gives other bytes than Pillow \d"):
        DeviceViews(MODES["base"], CPU, torch.float32, kernel=False)


def test_then_it_is_pillows_and_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> None:
        raise OtherBytes("for an image of 97x61 Triton on cuda gives other bytes than Pillow 99")

    monkeypatch.setattr(views, "DeviceViews", refuses)
    found = make_views("fast", MODES["base"], CUDA, torch.bfloat16)
    assert found.how == "Pillow"
    assert found.note == (
        "preprocessing ran on the CPU: for an image of 97x61 Triton on cuda gives other bytes than Pillow 99"
    )


@pytest.mark.parametrize(("engine", "device"), [("reference", CUDA), ("compiled", CPU), ("fast", CPU)])
def test_reference_and_cpus_keep_pillow(engine: str, device: torch.device) -> None:
    found = make_views(engine, MODES["base"], device, torch.bfloat16)
    assert (type(found), found.how, found.note) == (PillowViews, "Pillow", None)


def test_the_model_says_by_what_it_was_done(tiny: Any) -> None:
    assert tiny.info.details["preprocess"] == "Pillow"
    assert tiny.info.note is None


# -- on a GPU ------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
def test_views_on_a_gpu_are_pillows_at_200_sizes(mode: str) -> None:
    """40 sizes a mode, some of them pages in usual resolutions."""
    random = np.random.default_rng(sorted(MODES).index(mode))
    pages = [(1240, 1754), (1654, 2339), (2480, 3508), (1275, 1650), (8000, 1), (1, 8000), (1, 1), (1024, 1024)]
    drawn = np.exp(random.uniform(0, np.log(8000), (40 - len(pages), 2))).astype(int)
    for number, (width, height) in enumerate([*pages, *map(tuple, drawn)]):
        check(mode, [noise(int(width), min(int(height), 12_000_000 // int(width)), number)], CUDA)
    assert makers(mode, CUDA)[0].how == "Triton"


@pytest.mark.gpu
def test_torch_on_a_gpu_gives_the_same_views() -> None:
    ours = DeviceViews(MODES["gundam"], CUDA, torch.float16, kernel=False)
    theirs = PillowViews(CUDA, torch.float16)
    assert ours.how == "torch"
    images, mode = [noise(900, 1200)], MODES["gundam"]
    for found, wanted in zip(ours(images, mode), theirs(images, mode), strict=True):
        assert torch.equal(found, wanted) if isinstance(found, torch.Tensor) else found == wanted


@pytest.mark.gpu
def test_new_sizes_compile_nothing() -> None:
    from pytest_llmprof.models.deepseek_ocr import resize_kernel

    make, _ = makers("gundam", CUDA)
    make([noise(700, 990)], MODES["gundam"])

    def variants() -> int:
        return sum(len(cache[0]) for cache in resize_kernel.resample.device_caches.values())

    before = variants()
    for size in ((704, 992), (512, 2048), (1600, 16), (1, 1), (1280, 1920), (1024, 1024), (17, 4000)):
        make([noise(*size)], MODES["gundam"])
    assert variants() == before > 0
