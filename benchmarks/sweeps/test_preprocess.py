"""Preprocessing of one A4 page in each mode: Pillow on the CPU, and the same bytes on the GPU, in turn.

It prints a table and writes preprocess.json and preprocess.md to the stage directory. Times are from the image in
memory to the tensors on the device: by the GPU's own clock, between an event before and one behind; on a CPU by the
host's. No model is loaded.
"""

import time
from statistics import median

import pytest
from sweep import markdown, publish

from pytest_llmprof.models.deepseek_ocr.preprocessing import MODES
from pytest_llmprof.models.device import pick_device, pick_dtype

pytestmark = pytest.mark.llmprof(overrides=["dataset=documents", "dataset.limit=1"])
ROUNDS, FIRST = 15, 3
"""Rounds of a mode, and how many of them are warm-up."""


def test_preprocess(llmprof_config, llmprof_dataset, llmprof_artifacts, llmprof_stage, capsys):
    import torch

    from pytest_llmprof.models.deepseek_ocr.views import DeviceViews, PillowViews

    device = pick_device(llmprof_config.model.device)
    dtype = pick_dtype(llmprof_config.model.dtype, device)
    page = llmprof_dataset[0].load()
    rows = []
    for name, mode in MODES.items():
        makers = [PillowViews(device, dtype)]
        if device.type == "cuda":
            makers.append(DeviceViews(mode, device, dtype))
        times = {make.how: [] for make in makers}
        for _ in range(ROUNDS):
            for make in makers:
                times[make.how].append(milliseconds(make, page, mode, device))
        first, *others = (make([page], mode) for make in makers)
        equal = all(
            torch.equal(first.overviews, other.overviews)
            and (first.crops is None or torch.equal(first.crops, other.crops))
            for other in others
        )
        row = {"mode": name, **{how: median(found[FIRST:]) for how, found in times.items()}}
        rows.append({**row, "equal": equal if others else None})
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    found = {"device": str(device), "card": card, "dtype": str(dtype), "size": page.size, "rows": rows}
    publish(llmprof_artifacts.begin(llmprof_stage), "preprocess", found, text(found), capsys)
    assert all(row["equal"] is not False for row in rows)


def milliseconds(make, page, mode, device):
    if device.type != "cuda":
        begin = time.perf_counter()
        make([page], mode)
        return 1e3 * (time.perf_counter() - begin)
    import torch

    torch.cuda.synchronize(device)
    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        make([page], mode)
        end.record()
        end.synchronize()
    return begin.elapsed_time(end)


def text(found):
    ways = [name for name in found["rows"][0] if name not in ("mode", "equal")]
    rows = [
        [row["mode"], *(f"{row[way]:.2f}" for way in ways), {True: "yes", False: "NO", None: "-"}[row["equal"]]]
        for row in found["rows"]
    ]
    width, height = found["size"]
    head = f"{found['card']}, {found['dtype'].removeprefix('torch.')}, a page of {width} x {height} pixels.\n\n"
    return head + markdown(["mode", *(f"{way} ms" for way in ways), "equal bytes"], rows)
