"""The default suite on a CPU with `-n 2` against one process, in turns: seconds of each run, and the ratio.

    python benchmarks/gpus/cpu_workers.py OUT [--pairs 3]

Wall time of the whole of pytest, imports and loading included. Exit code 1 where the workers are slower by the medians.
Run it on a quiet machine: `load` is the mean over the last minute before each run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]


def run(out: Path, name: str, workers: int) -> float:
    """One run; gives its seconds. Ends the program where a test fails."""
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", "-p", "no:cacheprovider", "-n", str(workers)]
    command += [f"--llmprof-run-dir={out / name}", "--llmprof-override=model.device=cpu"]
    load, begin = os.getloadavg()[0], time.perf_counter()
    with (out / f"{name}.log").open("wb") as log:
        code = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT).returncode
    seconds = time.perf_counter() - begin
    print(f"{name}: {seconds:.1f} s, load {load:.2f}", flush=True)
    if code:
        sys.exit(f"exit code {code}: see {out / name}.log")
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="a directory that does not exist yet")
    parser.add_argument("--pairs", type=int, default=3)
    args = parser.parse_args()
    out: Path = args.out.resolve()
    out.mkdir(parents=True)
    run(out, "warm-up", 0)  # fills the file cache
    found: dict[int, list[float]] = {0: [], 2: []}
    for pair in range(args.pairs):
        for workers in (0, 2) if pair % 2 == 0 else (2, 0):
            found[workers].append(run(out, f"{pair}-n{workers}", workers))
    alone, beside = median(found[0]), median(found[2])
    print(f"-n 0: {alone:.1f} s, -n 2: {beside:.1f} s (medians of {args.pairs}); {alone / beside:.2f} times as fast")
    return int(beside > alone)


if __name__ == "__main__":
    sys.exit(main())
