"""Images to the tensors that the model reads: with Pillow on the CPU as released, or on the GPU with the same bytes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from pytest_llmprof.models.deepseek_ocr.preprocessing import (
    GREY,
    CropGrid,
    Mode,
    Placement,
    crop_grid,
    crop_placement,
    normalize,
    overview_placement,
    page_views,
)
from pytest_llmprof.models.deepseek_ocr.resize import (
    BITS,
    Order,
    find_order,
    horizontal_first,
    resize,
    taps,
    vertical_first,
)

if TYPE_CHECKING:
    from PIL.Image import Image

_ROOM = 40 << 20
"""Bytes of the buffers for an image, at first: a page of 10 megapixels as Pillow stores it."""
_BAND = 12 << 20
"""Bytes of the parts in which a large image is read, less than Pillow's blocks of memory (16 MiB)."""
_TABLES = 256
"""Tables of weights that stay on the GPU."""
_TRIED = ((97, 61), (61, 97), (700, 990))
"""Sizes of the images that are tried before the GPU's views are used."""


class Views(NamedTuple):
    """A batch's images on the model's device, in its dtype."""

    overviews: Tensor
    """[pages, 3, size, size]"""
    crops: Tensor | None
    """[all pages' crops, 3, 640, 640], page by page; None where no page has any."""
    grids: tuple[CropGrid, ...]


class MakeViews(Protocol):
    """Makes the views of RGB images."""

    how: str
    """By what, for the report's details: "Pillow", "Triton" or "torch"."""
    note: str | None
    """Why it is not the way that the engine asks for, for the report."""

    def __call__(self, images: Sequence[Image], mode: Mode) -> Views: ...


def make_views(engine: str, mode: Mode, device: torch.device, dtype: torch.dtype) -> MakeViews:
    """The preprocessing of *engine*: on a GPU and with another engine than `reference` it is the GPU's.

    The GPU's is tried first, in *mode*. Where one byte differs from Pillow's, it is Pillow's after all, with a note.
    """
    pillow = PillowViews(device, dtype)
    if engine == "reference" or device.type != "cuda":
        return pillow
    try:
        return DeviceViews(mode, device, dtype)
    except OtherBytes as error:
        pillow.note = f"preprocessing ran on the CPU: {error}"
        return pillow


class OtherBytes(Exception):
    """The device's resize does not give the bytes of this Pillow."""


class PillowViews:
    """Views by Pillow, as released; they are uploaded as bytes and in memory order, and normalised on the device."""

    how = "Pillow"

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.note: str | None = None
        self._device, self._dtype = device, dtype

    def __call__(self, images: Sequence[Image], mode: Mode) -> Views:
        pages = [page_views(image, mode) for image in images]
        crops = [crop for page in pages if page.crops is not None for crop in page.crops]
        overviews = self._normalized([page.overview for page in pages])
        return Views(overviews, self._normalized(crops) if crops else None, tuple(page.grid for page in pages))

    def _normalized(self, pixels: Sequence[Tensor]) -> Tensor:
        return normalize([view.to(self._device) for view in pixels], self._dtype)


class DeviceViews:
    """The same views made on the device: the image's bytes are uploaded once, and resized, padded, cut and normalised
    there, by one Triton kernel for each pass, or by torch where there is no Triton."""

    def __init__(self, mode: Mode, device: torch.device, dtype: torch.dtype, *, kernel: bool | None = None) -> None:
        """Try it out in *mode*; raises `OtherBytes`. *kernel*: whether to use Triton; None = on a GPU, and in its
        interpreter."""
        self.note: str | None = None
        self._device, self._dtype = device, dtype
        order = find_order()
        if order is None:
            raise OtherBytes(f"{_pillow_version()} resizes in an order of passes that is not known")
        self._order: Order = order
        if kernel is None:
            kernel = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
        self._kernel: Any = _triton_kernel() if kernel else None
        self.how = "torch" if self._kernel is None else "Triton"
        every = torch.arange(256, dtype=torch.uint8, device=device)
        self._values = normalize([every], dtype)[0]
        """[256]: each byte, normalised as `PillowViews` does it on this device."""
        self._grey = float(self._values[GREY])
        self._tables: dict[tuple[int, int], Tensor] = {}
        self._upload = Upload(device)
        self._between = Room(device)
        self._try_out(mode)

    def __call__(self, images: Sequence[Image], mode: Mode) -> Views:
        grids = tuple(crop_grid(image.size, mode) for image in images)
        places = [overview_placement(image.size, mode) for image in images]
        cuts = [None if grid == (1, 1) else crop_placement(grid) for grid in grids]
        padded = any(place.size != (place.side, place.side) for place in places)
        overviews = self._empty(len(images), places[0].side, padded)
        tiles = sum(cut.tiles for cut in cuts if cut is not None)
        crops = self._empty(tiles, next(cut.side for cut in cuts if cut is not None), False) if tiles else None
        begin = 0
        with self._on_device():
            for number, (image, place, cut) in enumerate(zip(images, places, cuts, strict=True)):
                for wanted in (place, cut):
                    if wanted is not None:  # a table's upload waits for the device, so while it has nothing to do
                        self._table(image.width, wanted.size[0])
                        self._table(image.height, wanted.size[1])
                source = self._upload(image if image.mode == "RGB" else image.convert("RGB"))
                self._resize(source, place, overviews[number : number + 1], self._order)
                if cut is not None and crops is not None:
                    self._resize(source, cut, crops[begin : begin + cut.tiles], self._order)
                    begin += cut.tiles
        return Views(overviews, crops, grids)

    def _on_device(self) -> AbstractContextManager[Any]:
        """Make it the current one, on which Triton's kernels run and whose stream an event records."""
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()

    def _empty(self, tiles: int, side: int, padded: bool) -> Tensor:
        found = torch.empty((tiles, 3, side, side), dtype=self._dtype, device=self._device)
        return found.fill_(self._grey) if padded else found

    def _resize(self, source: Tensor, place: Placement, result: Tensor, order: Order) -> None:
        """Resize *source*, uint8 [height, width, 3 or 4], onto *result*, [tiles, 3, side, side]."""
        (width, height), (left, top) = place.size, place.corner
        if self._kernel is None:
            values = self._values[resize(source, place.size, order).long()]
            for number, tile in enumerate(result):
                x, y = number % place.columns * place.side, number // place.columns * place.side
                begin_x, begin_y = max(left, x), max(top, y)
                end_x, end_y = min(left + width, x + place.side), min(top + height, y + place.side)
                tile[:, begin_y - y : end_y - y, begin_x - x : end_x - x] = values[
                    :, begin_y - top : end_y - top, begin_x - left : end_x - left
                ]
            return
        before = (source.shape[1], source.shape[0])
        downwards_first = order(before, place.size)
        middle = (before[0], height) if downwards_first else (width, before[1])
        between = self._between(3 * middle[0] * middle[1]).view(3, middle[1], middle[0])
        self._launch(source.permute(2, 0, 1), between, middle, not downwards_first)
        self._launch(between, result, place.size, downwards_first, place)

    def _launch(
        self, source: Tensor, result: Tensor, size: tuple[int, int], along_rows: bool, place: Placement | None = None
    ) -> None:
        """One pass of *source*, uint8 [3, height, width] with any strides, to *size*; the last one has its *place*."""
        width, height = size
        before, after = (source.shape[2], width) if along_rows else (source.shape[1], height)
        table = self._table(before, after)
        left, top, side, columns = (*place.corner, place.side, place.columns) if place is not None else (0, 0, 1, 1)
        block = self._kernel.BLOCK
        self._kernel.resample[(height, -(-width // block), 3)](
            source, table, result, self._values,
            *source.stride(), before - 1, len(table) - 1,
            width, height, left, top, side, columns,
            ALONG_ROWS=along_rows, FINAL=place is not None, BLOCK=block, BITS=BITS, HALF=1 << (BITS - 1),
            enable_fp_fusion=True,  # there is nothing to fuse; Triton 3.9 warns where it is not said
        )  # fmt: skip

    def _table(self, before: int, after: int) -> Tensor:
        """`taps`, on the device."""
        key = before, after
        if key not in self._tables:
            if len(self._tables) >= _TABLES:
                self._tables.clear()
            self._tables[key] = torch.from_numpy(taps(before, after)).to(self._device)
        return self._tables[key]

    def _try_out(self, mode: Mode) -> None:
        """Hold a few images' views against Pillow's, and compile the kernel for both orders of the passes."""
        from PIL import Image

        pillow, random = PillowViews(self._device, self._dtype), np.random.default_rng(0)
        for width, height in _TRIED:
            image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
            ours, theirs = self([image], mode), pillow([image], mode)
            for one, other in ((ours.overviews, theirs.overviews), (ours.crops, theirs.crops)):
                if one is not other and (one is None or other is None or not torch.equal(one, other)):
                    raise OtherBytes(
                        f"for an image of {width}x{height} {self.how} on {self._device} gives other bytes than "
                        f"{_pillow_version()}"
                    )
        # A page with the other order may come first in a measured round, where nothing may be compiled.
        place, result = Placement((24, 40), 40), self._empty(1, 40, True)
        with self._on_device():
            for order in (horizontal_first, vertical_first):
                self._resize(self._upload(image), place, result, order)


class Room:
    """A buffer on a device that is kept, and made anew where a larger one is needed."""

    def __init__(self, device: torch.device, *, pinned: bool = False) -> None:
        self._device, self._pinned = device, pinned
        self._buffer = self._made(_ROOM)

    def __call__(self, count: int) -> Tensor:
        """uint8 [count]"""
        if count > len(self._buffer):
            self._buffer = self._made(max(count, 2 * len(self._buffer)))
        return self._buffer[:count]

    def _made(self, count: int) -> Tensor:
        return torch.empty(count, dtype=torch.uint8, device=self._device, pin_memory=self._pinned)


class Upload:
    """Copies images to the device through one pinned buffer. The tensors are valid until the next one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._pinned = Room(torch.device("cpu"), pinned=self._on_gpu)
        self._there = Room(device)
        self._copied: Any = torch.cuda.Event() if self._on_gpu else None  # type: ignore[no-untyped-call]

    def __call__(self, image: Image) -> Tensor:
        """uint8 [height, width, 3 or 4] on the device, of an RGB image."""
        width, height = image.size
        if self._copied is not None:
            self._copied.synchronize()  # the buffer's last copy, which has long ended where an answer came between
        staging = self._pinned(4 * width * height).view(height, width, 4)
        if not copy_stored(image, staging):
            staging = staging.view(-1)[: 3 * width * height].view(height, width, 3)
            np.copyto(staging.numpy(), np.asarray(image))
        there = self._there(staging.numel()).view(staging.shape)
        there.copy_(staging, non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        return there


class _ArrowArray(ctypes.Structure):
    """`struct ArrowArray` of the Arrow C data interface, as far as it is read."""


_ArrowArray._fields_ = [
    *((name, ctypes.c_int64) for name in ("length", "null_count", "offset", "n_buffers", "n_children")),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
]


def copy_stored(image: Image, target: Tensor) -> bool:
    """Copy an RGB image as Pillow stores it, four bytes a pixel, to *target*, uint8 [height, width, 4].

    It is a plain copy of memory, where numpy's way packs three bytes a pixel into a new object and copies that. Returns
    False where this Pillow does not show its memory.
    """
    width, height = image.size
    rows = height if 4 * width * height <= _BAND else max(1, _BAND // (4 * width))
    for top in range(0, height, rows):
        end = min(top + rows, height)
        part = image if rows == height else image.crop((0, top, width, end))
        try:
            _, capsule = part.__arrow_c_array__()
        except (AttributeError, ValueError):  # older than Pillow 11.2; blocks of another size
            return False
        pixels = _memory(capsule, 4 * width * (end - top))
        if pixels is None:
            return False
        # In one thread: torch's copy waits for threads that went to sleep since the last page.
        np.copyto(target[top:end].numpy(), pixels.reshape(end - top, width, 4))
    return True


def _memory(capsule: Any, count: int) -> Any:
    """uint8 [count]: the memory of an Arrow array of pixels, as long as *capsule* lives; None for another count."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    array = _ArrowArray.from_address(pointer(capsule, b"arrow_array"))
    if array.n_children != 1 or array.children[0].contents.length != count:
        return None
    return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(array.children[0].contents.buffers[1]))


def _triton_kernel() -> Any:
    """The module of the Triton kernel; None where there is no Triton."""
    try:
        from pytest_llmprof.models.deepseek_ocr import resize_kernel
    except ImportError:
        return None
    return resize_kernel


def _pillow_version() -> str:
    import PIL

    return f"Pillow {PIL.__version__}"
