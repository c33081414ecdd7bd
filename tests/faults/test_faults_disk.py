"""A full disk costs a line that names the file and the test or the exit code, never a traceback."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_bench import check_run, options, some

FULL = os.strerror(errno.ENOSPC)


def check(ended, where):
    """One line for each failure, with the file; exit code 4 before the first test, 1 after."""
    check_run(ended, killed=False, full=True)
    assert ended.code in (0, 1, 4), (where, ended.text)
    told = [line for line in ended.text.splitlines() if FULL in line]
    assert told if ended.code else True, (where, ended.text)
    assert all("/" in line.partition(FULL)[0] or "TMPDIR" in line for line in told), told


@pytest.mark.parametrize("moments", [1, 10**6], ids=["for a moment", "for good"])
def test_at_any_operation_on_files(faults, moments):
    whole = faults.run({})
    assert whole.code == 0, whole.text
    for at in some(whole.moments, 5):
        ended = faults.run({"errno": errno.ENOSPC, "at": at, "for": moments})
        check(ended, at)
        # What fails for a moment may succeed later: run.json is written again, a directory is there already. The last
        # operation removes a temporary name, for which a full disk has room.
        assert ended.code or moments == 1 or at == whole.moments


@pytest.fixture
def small_disk(faults) -> Iterator[Path]:
    """The bench on a file system of 2 MiB; skipped where this user cannot make one."""
    with tempfile.TemporaryDirectory() as name:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", name], capture_output=True).returncode:
            pytest.skip("this user cannot mount a tmpfs")
        try:
            for part in ("conftest.py", "pytest.ini", "echo_conf", "test_it.py"):
                subprocess.run(["cp", "-r", faults.root / part, name], check=True)
            (Path(name) / ".benchmarks").mkdir()
            yield Path(name)
        finally:
            subprocess.run(["umount", "-l", name], check=True)


@pytest.mark.parametrize("stage", ["direct_inference", "torch_profiler"])
def test_with_any_space_left(faults, small_disk, stage):
    """Real writes that do not fit, in the run directory and in TMPDIR."""
    full = small_disk / "full"
    args = options(stage=stage)
    faults.run({}, args, small_disk)  # makes the images
    failed = set()
    for pages in some(60, 8):
        full.unlink(missing_ok=True)
        shutil.rmtree(small_disk / "llmprof-runs")
        free = os.statvfs(small_disk).f_bavail
        with full.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, (free - pages) * os.statvfs(small_disk).f_bsize)
        ended = faults.run({"tmpdir": str(small_disk)}, args, small_disk)
        check(ended, pages)
        failed.add(ended.code)
    assert failed >= {1, 4}
