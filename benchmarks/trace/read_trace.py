"""Compare the two readers of torch.profiler traces: `text_reader` against msgspec in slices (`json_reader`).

    python benchmarks/trace/read_trace.py [TRACE.json.gz] [--repeats N]

Without a file it records a CPU trace of its own. Both readers run in turn in one process (text, JSON, JSON, text, so
that a drift of the host's speed cancels out), from the file's unpacked bytes to a `Trace` ("read") and on to all its
tables ("read + tables"). Peak memory is that of a process of its own, beyond the bytes of the file.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from pytest_llmprof.analysis.events import RawTrace
from pytest_llmprof.stages.torch_profiler.kineto import decode, read_trace
from pytest_llmprof.stages.torch_profiler.text_reader import TextReader

STEPS = 3000
"""Steps of the trace that is recorded here: about 250,000 events."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", nargs="?", type=Path, help="a trace, .json or .json.gz (default: record one)")
    parser.add_argument("--repeats", type=int, default=10, help="groups text, JSON, JSON, text (default: %(default)s)")
    parser.add_argument("--record", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--peak", choices=("text", "json"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.record:
        record_cpu_trace(options.trace)
        return
    if options.peak:
        print(peak_growth(options.trace, text=options.peak == "text"))
        return
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / "trace.json"
        if options.trace is None:
            itself(raw, "--record")  # a process with torch in it would be larger
        else:
            raw.write_bytes(unpacked(options.trace))
        compare(raw, options.repeats)


def itself(*args: object) -> str:
    """Run this script in a process of its own. Returns what it prints."""
    command = [sys.executable, __file__, *map(str, args)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def record_cpu_trace(path: Path) -> None:
    """Profile small decode steps on the CPU."""
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    state = torch.rand(1, 4, 16)
    cpu = profile(activities=[ProfilerActivity.CPU])
    with torch.inference_mode(), cpu, record_function("llmprof/decode"):
        for _ in range(STEPS):
            with record_function("llmprof/step"):
                state = layer(state)
            state.argmax().item()
    cpu.export_chrome_trace(str(path))


def unpacked(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def compare(path: Path, repeats: int) -> None:
    data = path.read_bytes()
    bulk, slices = count_slices(data)
    one, other = decode(data, text=True), decode(data, text=False)
    check_equal(one, other)
    cores, load = os.cpu_count(), os.getloadavg()[0]
    print(f"{platform.machine()}, {cores} cores, load {load:.1f}, Python {platform.python_version()}")
    print(f"{len(data) / 1e6:.1f} MB, {one.events:,} events: {len(one.host):,} host, {len(one.device):,} device")
    print(f"{bulk} of {slices} slices are read as text; both readers give equal events")
    del one, other
    gc.collect()
    gc.freeze()
    for name, read in (("read", read_trace), ("read + tables", read_and_tables)):
        text, json, ratios = interleaved(read, data, repeats)
        print(f"{name}: text {spread(text, 1e3)} ms, msgspec {spread(json, 1e3)} ms; msgspec / text {spread(ratios)}")
    for reader in ("text", "json"):
        growth = int(itself(path, "--peak", reader))
        print(f"peak memory of {reader}: {growth / 1e6:.1f} MB beyond the file's {len(data) / 1e6:.1f} MB")


def read_and_tables(data: bytes, *, text: bool) -> None:
    trace = read_trace(data, text=text)
    trace.operators()
    trace.kernels()
    trace.phase_rows()


def interleaved(read: Callable[..., object], data: bytes, repeats: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds of a reading by each reader, and the ratio msgspec / text of each group text, JSON, JSON, text."""

    def seconds(text: bool) -> float:
        gc.collect()
        begin = time.perf_counter()
        read(data, text=text)
        return time.perf_counter() - begin

    seconds(True), seconds(False)  # warm-up
    groups = [[seconds(text) for text in (True, False, False, True)] for _ in range(repeats)]
    text = [value for first, _, _, last in groups for value in (first, last)]
    json = [value for _, first, last, _ in groups for value in (first, last)]
    return text, json, [(b + c) / (a + d) for a, b, c, d in groups]


def spread(values: list[float], factor: float = 1.0) -> str:
    low, middle, high = (factor * value for value in (min(values), median(values), max(values)))
    return f"{middle:.3g} (min {low:.3g}, max {high:.3g})"


def count_slices(data: bytes) -> tuple[int, int]:
    """How many slices `text_reader` reads, and how many there are."""
    results = []
    read = TextReader.read

    def counted(self: TextReader, begin: int, end: int) -> object:
        results.append(part := read(self, begin, end))
        return part

    TextReader.read = counted  # type: ignore[assignment, method-assign]
    try:
        decode(data)
    finally:
        TextReader.read = read  # type: ignore[method-assign]
    return sum(part is not None for part in results), len(results)


def check_equal(one: RawTrace, other: RawTrace) -> None:
    """Exit unless both are equal; times within a nanosecond, as msgspec's doubles hold them."""
    for mine, theirs in ((one.host, other.host), (one.device, other.device)):
        same = len(mine) == len(theirs) and all(
            (getattr(mine, column) == getattr(theirs, column)).all() for column in ("kind", "external", "correlation")
        )
        same = same and all(
            np.abs(getattr(mine, column) - getattr(theirs, column)).max(initial=0) <= 1 for column in ("start", "dur")
        )
        if not same or [one.names[name] for name in mine.name] != [other.names[name] for name in theirs.name]:
            sys.exit("the readers give different events")


def peak_growth(path: Path, *, text: bool) -> int:
    """Bytes by which reading raises this process's highest memory (Linux)."""
    read_trace(b'{"traceEvents": []}')
    data = path.read_bytes()
    before = highest()
    read_trace(data, text=text)
    return highest() - before


def highest() -> int:
    found = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    main()
