"""Where a result was measured: GPU, processor, versions, commit. Everything that can explain another number.

Light on purpose (well under 0.2 s on a CPU machine): versions come from package metadata, and torch is asked
only where the program has imported it or a CUDA device is named. The host's name and its users stay out.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

from pytest_llmprof.measure.gpu import read_gpu, throttled_between
from pytest_llmprof.measure.host import usable_processors
from pytest_llmprof.measure.workers import this_worker
from pytest_llmprof.records.environment import Environment, Git, Gpu, Host
from pytest_llmprof.records.run import Process

PACKAGES = (
    "pytest-llmprof",
    "torch",
    "transformers",
    "triton",
    "pytest",
    "pytest-benchmark",
    "pytest-xdist",
    "hydra-core",
    "nvtx",
    "nvidia-ml-py",
)
"""Packages whose versions are recorded; null where one is not installed."""
_OPENMP = ("OMP_", "GOMP_", "KMP_", "MKL_")


def environment(
    device: str | None = None,
    rootdir: Path | None = None,
    *,
    before: Gpu | None = None,
    after: Gpu | None = None,
    reason: str | None = None,
    duet: bool = False,
) -> Environment:
    """Describe this process and machine for environment.json.

    *device* is the device that the model runs on ("cuda:0", "cpu"); None leaves the GPU out. *rootdir* is the
    directory whose git commit is recorded (default: the current one). *before* and *after* are the GPU around
    the measured rounds, *reason* why a part of it is missing; without *before* it is read now. *duet*: whether another
    process measured beside this one.
    """
    gpu = before
    if device is None:
        reason = "no device was named"
    elif not device.startswith("cuda"):
        reason = f"the device is {device}"
    elif before is None:
        gpu, reason = read_gpu(device)
    return Environment(
        python=f"{platform.python_implementation()} {platform.python_version()}",
        versions=versions(),
        cuda=_cuda_of_torch(),
        host=_host(),
        git=_git(rootdir or Path.cwd()),
        gpu=gpu,
        gpu_reason=reason,
        gpu_after=after,
        gpu_throttled_ms=throttled_between(before, after),
        workers=this_worker(os.environ),
        duet=duet,
    )


def versions() -> dict[str, str | None]:
    """The installed version of each of `PACKAGES`."""
    return {name: _version(name) for name in PACKAGES}


@cache
def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cuda_of_torch() -> str | None:
    torch = sys.modules.get("torch")
    version = getattr(torch, "version", None)
    return getattr(version, "cuda", None) or getattr(version, "hip", None)


def _host() -> Host:
    torch = sys.modules.get("torch")
    threads = getattr(torch, "get_num_threads", None)
    this = Process.this()
    return Host(
        cpu=_cpu_model(),
        cores=os.cpu_count(),
        affinity=usable_processors(),
        ram_gib=_ram_gib(),
        os=_os_name(),
        container=_container(),
        torch_threads=threads() if threads else None,
        boot_id=this.boot_id if this else None,
        openmp={name: os.environ[name] for name in sorted(os.environ) if name.startswith(_OPENMP)},
    )


def _ram_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None  # not a POSIX system


def _cpu_model() -> str | None:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
            for line in stream:
                if line.lower().startswith(("model name", "hardware", "cpu model")):
                    return line.partition(":")[2].strip() or None
    except OSError:
        pass  # not Linux: the platform module knows less, but something
    return platform.processor() or platform.machine() or None


def _os_name() -> str:
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        name = None
    kernel = f"{platform.system()} {platform.release()}"
    return f"{name} ({kernel})" if name else kernel


def _container() -> str | None:
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes"
    if Path("/.dockerenv").exists():
        return "docker"
    if Path("/run/.containerenv").exists():
        return "podman"
    return os.environ.get("container") or None  # noqa: SIM112 - systemd and podman write it so


def _git(directory: Path) -> Git | None:
    """Commit and state of the work tree that holds *directory*; None outside one or without git."""
    commit = _run_git(directory, "rev-parse", "HEAD")
    if commit is None:
        return None
    status = _run_git(directory, "status", "--porcelain", "--untracked-files=no")
    return Git(commit=commit, dirty=None if status is None else bool(status))


def _run_git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), "--no-optional-locks", *arguments],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
