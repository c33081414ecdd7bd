"""How fast a device's memory is: bytes a second of reading alone, and of copying (bytes read and written).

    python benchmarks/sweeps/rates.py [--cpu]

Reading is a sum over a buffer of 8 GiB on a GPU (256 MiB on a CPU), by torch and by a Triton kernel. The better one
counts, since neither can read faster than the memory. Copies take a smaller buffer. torch is imported where it is
needed, since tests import this module.
"""

import argparse
import time
from itertools import pairwise
from statistics import median

TIMES = 20
COPIED = {"cuda": 1 << 30, "cpu": 1 << 28}
"""Bytes of the copied buffer: many times what any cache holds."""
READ = {"cuda": 1 << 33, "cpu": 1 << 28}
BLOCK, PROGRAMS = 4096, 16
"""The Triton kernel's numbers at a time, and its programs for each multiprocessor."""


def copy_rate(name):
    """Bytes a second, read and written, of copies on the device *name*; the median. The buffers are freed."""
    import torch

    device = torch.device(name)
    size = COPIED[device.type]
    source = torch.ones(size, dtype=torch.uint8, device=device)
    return 2 * size / _seconds(torch.zeros_like(source).copy_, source)


def read_rates(name):
    """Bytes a second of reading alone on the device *name*, by what read; the medians. The buffer is freed."""
    import torch

    device = torch.device(name)
    size = READ[device.type]
    values = torch.zeros(size // 4, device=device)
    found = {"torch": size / _seconds(lambda values: values.view(-1, 1 << 16).sum(1), values)}
    if device.type == "cuda":
        found["triton"] = size / _seconds(_triton_sum(), values)
    return found


def _triton_sum():
    """Sums up a buffer whose length is a multiple of four blocks."""
    import torch
    import triton
    import triton.language as tl

    @triton.jit
    def add(values, out, blocks, BLOCK: tl.constexpr):
        at = tl.arange(0, BLOCK)
        total = tl.zeros([BLOCK], tl.float32)
        for number in range(tl.program_id(0) * 4, blocks, tl.num_programs(0) * 4):
            for part in tl.static_range(4):  # on their way together
                total += tl.load(values + (number + part).to(tl.int64) * BLOCK + at)
        tl.store(out + tl.program_id(0), tl.sum(total, 0))

    def run(values):
        programs = torch.cuda.get_device_properties(values.device).multi_processor_count * PROGRAMS
        add[programs,](values, values.new_empty(programs), len(values) // BLOCK, BLOCK=BLOCK, num_warps=8)

    return run


def _seconds(work, source):
    """How long *work* takes with *source*, by the device's own clock: the median. Then the device's memory is freed."""
    import torch

    seconds = []
    if source.device.type == "cuda":
        with torch.cuda.device(source.device):
            events = [torch.cuda.Event(enable_timing=True) for _ in range(TIMES + 1)]
            events[0].record()
            for event in events[1:]:
                work(source)
                event.record()
            torch.cuda.synchronize()
            seconds = [before.elapsed_time(after) / 1e3 for before, after in pairwise(events)]
        del work
        torch.cuda.empty_cache()
    else:
        for _ in range(TIMES):
            begin = time.perf_counter()
            work(source)
            seconds.append(time.perf_counter() - begin)
    return median(seconds[TIMES // 4 :])  # the first ones are warm-up


def main():
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cpu", action="store_true")
    name = "cpu" if parser.parse_args().cpu else "cuda"
    print("CPU" if name == "cpu" else torch.cuda.get_device_name())
    for reader, rate in read_rates(name).items():
        print(f"read, {reader}: {rate / 1e9:,.0f} GB/s")
    print(f"copy, read and written: {copy_rate(name) / 1e9:,.0f} GB/s")


if __name__ == "__main__":
    main()
