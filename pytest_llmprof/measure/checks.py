"""Checks of a machine for `llmprof doctor`: GPU, driver, torch, processors, disk.

Each gives one or more `Check`s and raises nothing. *root* is the file system's root (for tests).
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pytest_llmprof.measure.gpu import SLOWING, read_gpu
from pytest_llmprof.measure.host import usable_processors
from pytest_llmprof.records.checks import Check, not_checked, ok, problem, warning
from pytest_llmprof.records.environment import Gpu

ROOT = Path("/")
COUNTERS_ADVICE = "run as root or with CAP_SYS_ADMIN, or load the driver with NVreg_RestrictProfilingToAdminUsers=0"
"""What helps where the GPU's performance counters may not be read."""
_CUDA_WHEELS = "pip install torch --index-url https://download.pytorch.org/whl/cu126 (or another CUDA of your driver's)"
_LITTLE_SPACE, _NO_SPACE = 2 * 2**30, 100 * 2**20
"""Bytes free. A page's profile takes some 10 MB, its raw trace some 100 MB in the temporary directory; an nsys report
of a run on a GPU some 100 MB."""
_CAP_SYS_ADMIN = 21
_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)")
"""A name in torch's list of what its kernels are built for."""


def gpu_checks(device: str, wanted: str, root: Path = ROOT) -> Iterator[Check]:
    """The GPU, its driver and torch. *device* is where the model runs, *wanted* the value of `model.device`."""
    import torch

    if not torch.cuda.is_available():
        yield from missing_gpu_checks(wanted, root)
        return
    if not device.startswith("cuda"):
        yield ok("GPU", f"one is here, but the model runs on the CPU (model.device={wanted})")
        return
    build = _build(torch)
    gpu, reason = read_gpu(device)
    name = gpu.name if gpu is not None else torch.cuda.get_device_name(device)
    visible = torch.cuda.device_count()
    memory = f", {gpu.memory_gib:g} GiB" if gpu is not None and gpu.memory_gib is not None else ""
    yield ok("GPU", f"{name}{memory} as {device}, of {visible} that torch sees")
    if torch.version.hip:
        yield not_checked("Driver", f"{build} for HIP {torch.version.hip}: only NVIDIA's GPUs are looked at")
        return
    yield _driver(build, torch.version.cuda, root)
    yield _kernels(torch, device, build)
    if gpu is None or reason is not None:
        why = reason or "the driver does not tell"
        yield not_checked("GPU state", f"{why}: clocks, power cap and other processes", "pip install nvidia-ml-py")
    if gpu is not None:
        yield from gpu_state(gpu)
    yield counters(root)


def _build(torch: Any) -> str:
    return f"torch {torch.__version__}" + (f" for CUDA {torch.version.cuda}" if torch.version.cuda else "")


def missing_gpu_checks(wanted: str, root: Path = ROOT) -> Iterator[Check]:
    """Why torch has no GPU, and whether that matters; nothing where it has one."""
    import torch

    if torch.cuda.is_available():
        return
    build = _build(torch)
    bad = problem if wanted.startswith("cuda") else warning
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not has_gpu(root):
        found = f"none in this machine ({build})"
        if bad is problem:
            yield bad("GPU", f"{found}, but model.device={wanted}", "use model.device=auto or cpu")
        else:
            yield ok("GPU", f"{found}: the model runs on the CPU")
    elif torch.version.cuda is None:
        yield bad("GPU", f"there is one, but {build} is built without CUDA", _CUDA_WHEELS)
    elif visible is not None and visible.strip() in ("", "-1", "none", "void", "NoDevFiles"):
        yield bad("GPU", f"there is one, but CUDA_VISIBLE_DEVICES={visible!r} hides it", "unset CUDA_VISIBLE_DEVICES")
    elif not any((root / "dev").glob("nvidia[0-9]*")) or _driver_cuda() is None:
        mend = "install NVIDIA's driver; in a container, start it with --gpus all"
        yield bad("GPU", "there is one, but this system has no driver for it (/dev/nvidia0, libcuda.so.1)", mend)
    else:
        check = _driver(build, torch.version.cuda, root)
        mend = check.mend or "see what `nvidia-smi` and `python -c 'import torch; torch.cuda.init()'` print"
        yield bad("GPU", f"there is one, but torch cannot start it ({check.found})", mend)


def has_gpu(root: Path = ROOT) -> bool:
    """Whether the machine has an NVIDIA GPU, with or without a driver (Linux)."""
    if any((root / "dev").glob("nvidia[0-9]*")):  # nvidiactl may be there without one
        return True
    for vendor in (root / "sys" / "bus" / "pci" / "devices").glob("*/vendor"):
        kind = _read(vendor.with_name("class")) or ""
        if _read(vendor) == "0x10de" and kind.startswith("0x03"):
            return True
    return False


def _driver_version(root: Path) -> str | None:
    return _read(root / "sys" / "module" / "nvidia" / "version")


def _driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the driver runs; None without a driver. Starts nothing."""
    version = ctypes.c_int(0)
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) or not version.value:
            return None
    except (OSError, AttributeError):
        return None
    return version.value // 1000, version.value % 1000 // 10


def _driver(build: str, cuda: str | None, root: Path) -> Check:
    """Whether the driver runs what torch was built for: any CUDA of the same major version, or an older one."""
    number, newest = _driver_version(root), _driver_cuda()
    if newest is None or cuda is None:
        return not_checked("Driver", f"{build}; the driver's version is not known")
    shown = f"driver {number or '(of unknown number)'} for CUDA {newest[0]}.{newest[1]}, {build}"
    wanted = tuple(int(part) for part in cuda.split(".")[:2])
    mend = f"update NVIDIA's driver, or install a torch that is built for CUDA {newest[0]}.{newest[1]} or older"
    if wanted[0] > newest[0]:
        return problem("Driver", f"{shown}: too old for this torch", mend)
    if wanted > newest:
        return warning("Driver", f"{shown}: older than torch's CUDA; what is compiled at run time may fail", mend)
    return ok("Driver", shown)


def _kernels(torch: Any, device: str, build: str) -> Check:
    """Whether torch's kernels are for this GPU."""
    major, minor = torch.cuda.get_device_capability(device)
    known = torch.cuda.get_arch_list()
    numbers = [(match[1], int(match[2])) for name in known if (match := _ARCHITECTURE.match(name))]
    own = 10 * major + minor
    fits = any(kind == "sm" and number // 10 == major and number <= own for kind, number in numbers)
    compiled = any(kind == "compute" and number <= own for kind, number in numbers)
    shown = f"compute capability {major}.{minor}; {build} has {', '.join(known) or 'no kernels'}"
    if fits or not known:
        return ok("Kernels", shown)
    mend = "install a torch that is built for this GPU (https://pytorch.org/get-started/previous-versions)"
    return (warning if compiled else problem)("Kernels", shown, mend)


def gpu_state(gpu: Gpu) -> Iterator[Check]:
    """Clocks, power cap, other processes and MIG, as far as the driver gave them."""
    reasons = gpu.throttle_reasons or ()
    if gpu.sm_clock_mhz is not None:
        clocks = f"SM at {gpu.sm_clock_mhz} MHz of {gpu.sm_clock_max_mhz or '?'} MHz"
        slowing = [reason for reason in reasons if reason in SLOWING]
        if slowing:
            yield warning(
                "GPU clocks",
                f"{clocks}, held down now by {', '.join(slowing)}",
                "let the GPU cool, or raise its power cap: times are longer than they need be",
            )
        elif "applications_clocks_setting" in reasons:
            yield ok("GPU clocks", f"{clocks}, set by applications clocks: the same in each run, below what it can do")
        else:
            yield ok("GPU clocks", f"{clocks}; `nvidia-smi -lgc MHZ` (root) locks them for the least noise")
    if gpu.power_limit_w is not None:
        cap = f"{gpu.power_limit_w:.0f} W"
        if gpu.power_default_w is not None and gpu.power_limit_w < 0.99 * gpu.power_default_w:
            yield warning(
                "Power cap",
                f"{cap}, below the default of {gpu.power_default_w:.0f} W",
                f"nvidia-smi -pl {gpu.power_default_w:.0f} (root), or compare only with runs under this cap",
            )
        else:
            yield ok("Power cap", f"{cap}, the default" if gpu.power_default_w is not None else cap)
    if gpu.other_processes:
        yield warning(
            "Other processes",
            f"{gpu.other_processes} on this GPU: times and memory are not yours alone",
            "end them (nvidia-smi lists them), or choose another GPU with CUDA_VISIBLE_DEVICES",
        )
    elif gpu.other_processes == 0:
        yield ok("Other processes", "none on this GPU")
    if gpu.mig:
        yield ok("MIG", "on: the model has one instance, and others may use the GPU's other ones")
    elif gpu.mig is False:
        yield ok("MIG", "off")


def counters(root: Path = ROOT) -> Check:
    """Whether this user may read the GPU's performance counters."""
    name = "GPU counters"
    text = _read(root / "proc" / "driver" / "nvidia" / "params")
    if text is None:
        return not_checked(name, "the driver's settings are not visible here (/proc/driver/nvidia/params)")
    values = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    if values.get("RmProfilingAdminOnly", "0").strip() == "0":
        return ok(name, "for all users")
    if _may_administer(root):
        return ok(name, "for administrators, as this user is")
    return warning(
        name,
        "for administrators only: Nsight Compute cannot read them as this user",
        COUNTERS_ADVICE,
    )


def _may_administer(root: Path) -> bool:
    for line in (_read(root / "proc" / "self" / "status") or "").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    return os.geteuid() == 0


def host_checks(root: Path = ROOT) -> Iterator[Check]:
    """Processors, load, threads and frequency governor."""
    usable, total = usable_processors(), os.cpu_count() or 1
    yield ok("Processors", f"{usable} of {total}" if usable != total else f"{usable}")
    yield _load(usable)
    yield _threads(usable)
    yield _governor(root)


def _load(usable: int) -> Check:
    try:
        load = os.getloadavg()[0]
    except OSError:
        return not_checked("Load", "the system does not tell it")
    shown = f"{load:.1f} processes ran or waited in the last minute"
    if load > 0.5 * usable:
        return warning("Load", f"{shown}, on {usable} processors", "end other work before you measure")
    return ok("Load", shown)


def _threads(usable: int) -> Check:
    import torch

    threads = torch.get_num_threads()
    given = os.environ.get("OMP_NUM_THREADS")
    shown = f"torch uses {threads}" + (f" (OMP_NUM_THREADS={given})" if given else "")
    if threads > usable:
        return warning("Threads", f"{shown}, on {usable} processors", f"OMP_NUM_THREADS={usable}")
    return ok("Threads", shown)


def _governor(root: Path) -> Check:
    name = "Frequency governor"
    found = {_read(path) for path in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")}
    governors = sorted(one for one in found if one)
    if not governors:
        return not_checked(name, "the system does not show it, as usual in virtual machines and containers")
    if governors == ["performance"]:
        return ok(name, "performance")
    return warning(
        name, f"{', '.join(governors)}: clocks follow the load", "cpupower frequency-set -g performance (root)"
    )


def disk_check(name: str, directory: Path, mend: str) -> Check:
    """Whether *directory*, which may not exist yet, can be written, and the space there."""
    place, here = directory, Path.cwd()
    title = directory.relative_to(here) if directory.is_relative_to(here) else directory
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
        free = shutil.disk_usage(place).free
    except OSError as error:
        return problem(name, f"{title} cannot be written: {error.strerror}", mend)
    shown = f"{title}, {free / 2**30:,.1f} GiB free"
    if free < _NO_SPACE:
        return problem(name, f"{shown}: too little for a run", mend)
    if free < _LITTLE_SPACE:
        return warning(name, f"{shown}: traces may not fit", mend)
    return ok(name, shown)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
