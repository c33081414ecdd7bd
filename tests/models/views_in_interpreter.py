"""The Triton kernel of the views on a CPU, in Triton's interpreter. It is a program of its own, because the interpreter
must be chosen before Triton is imported. Prints "equal" or "differs" for each case as JSON, for `test_model_views.py`.
"""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
from PIL import Image

from pytest_llmprof.models.deepseek_ocr import resize_kernel, views
from pytest_llmprof.models.deepseek_ocr.preprocessing import Mode, Placement
from pytest_llmprof.models.deepseek_ocr.resize import horizontal_first, resize, vertical_first

CPU = torch.device("cpu")
resize_kernel.BLOCK = 8  # several programs a row
views._TRIED = ((5, 4), (4, 5))  # the interpreter is slow for each program


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def main() -> None:
    found = {}
    for mode in (Mode(12, pad=True), Mode(10, pad=False)):
        ours, theirs = views.DeviceViews(mode, CPU, torch.bfloat16), views.PillowViews(CPU, torch.bfloat16)
        found["how"] = ours.how
        for size in ((1, 1), (15, 1), (11, 16), (12, 4), (10, 10)):
            equal = torch.equal(ours([noise(*size)], mode).overviews, theirs([noise(*size)], mode).overviews)
            found[f"{size} {mode.size}"] = "equal" if equal else "differs"
    # Crops of 640 pixels would take minutes, so tiles of 4.
    source = torch.from_numpy(np.array(noise(13, 15)))
    place, tiles = Placement((12, 8), 4, 3, 2), torch.zeros((6, 3, 4, 4), dtype=torch.bfloat16)
    for order in (horizontal_first, vertical_first):
        ours._resize(source, place, tiles, order)
        whole = ours._values[resize(source, place.size, order).long()]
        wanted = whole.reshape(3, 2, 4, 3, 4).permute(1, 3, 0, 2, 4).reshape(6, 3, 4, 4)
        found[f"tiles, {order.__name__}"] = "equal" if torch.equal(tiles, wanted) else "differs"
    print(json.dumps(found))


main()
