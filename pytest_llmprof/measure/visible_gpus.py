"""The GPUs that CUDA would give a process, found without starting CUDA: for the process that starts workers."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARIABLE = "CUDA_VISIBLE_DEVICES"
_NUMBER = re.compile(r"\+?[0-9]{1,18}")
_GPU_LINE = re.compile(r"^GPU \d+: .*\(UUID: (GPU-[^)\s]+)\)")
_MIG_LINE = re.compile(r"^\s+MIG .*\(UUID: (MIG-[^)\s]+)\)")
_SMI_SECONDS = 30.0


@dataclass(frozen=True)
class DriverGpu:
    """A GPU of this machine."""

    uuid: str
    instances: tuple[str, ...] = ()
    """The UUIDs of its MIG instances; CUDA cannot use a GPU as a whole that is divided into such."""
    capability: tuple[int, int] | None = None
    """Its compute capability; None where the driver does not say it."""


@dataclass(frozen=True)
class VisibleGpus:
    """The GPUs that are here to be used."""

    entries: tuple[str, ...]
    """One for each, as CUDA_VISIBLE_DEVICES names it: index, or UUID of a GPU or of a MIG instance."""
    source: str
    """Where the list comes from."""
    capability: tuple[int, int] | None = None
    """The lowest compute capability of the machine's GPUs; None where it is not known."""

    def __str__(self) -> str:
        named = ", ".join(self.entries) or "none"
        return f"{self.source}: {named}"


def visible_gpus(
    environ: Mapping[str, str], ask_driver: Callable[[], tuple[Sequence[DriverGpu], str]] | None = None
) -> VisibleGpus:
    """What `CUDA_VISIBLE_DEVICES` in *environ* names, as CUDA reads it; without it, all GPUs that the driver has.

    *ask_driver* gives the machine's GPUs, and by what they were found.
    """
    gpus, source = (ask_driver or driver_gpus)()
    capability = min((gpu.capability for gpu in gpus if gpu.capability is not None), default=None)
    if VARIABLE not in environ:
        return VisibleGpus(tuple(uuid for gpu in gpus for uuid in gpu.instances or (gpu.uuid,)), source, capability)
    return VisibleGpus(tuple(_listed(environ[VARIABLE], gpus)), VARIABLE, capability)


def on_gpu(device: str, gpus: VisibleGpus) -> bool:
    """Whether `model.device` = *device* is a GPU here. torch, which could start CUDA, is not asked."""
    return device.startswith("cuda") or (device == "auto" and bool(gpus.entries) and torch_has_cuda())


def _listed(value: str, gpus: Sequence[DriverGpu]) -> list[str]:
    """The entries of CUDA_VISIBLE_DEVICES that count: none after the first that is invalid, none at all where one
    GPU stands twice (as torch/cuda/__init__.py, `_parse_visible_devices` and `_transform_uuid_to_ordinals`, read it).

    A UUID may be cut short while it fits one GPU alone. Where the machine's *gpus* are not known, an entry that names
    no GPU cannot be told; of two where one begins with the other, both are one GPU, or the shorter fits two.
    """
    found: dict[str, str] = {}
    for entry in (part.strip() for part in value.split(",")):
        if entry.startswith(("GPU-", "MIG-")):
            named = [uuid for gpu in gpus for uuid in (gpu.uuid, *gpu.instances) if uuid.startswith(entry)]
            valid = not gpus or len(named) == 1
            same = [one for one in found if one.startswith(entry) or entry.startswith(one)] if not gpus else []
            key = next(iter(named or same), entry)
        else:
            number = _NUMBER.match(entry)
            valid = number is not None and (not gpus or int(number[0]) < len(gpus))
            key = str(int(number[0])) if number else ""
        kinds = {name[:4] if name.startswith(("GPU-", "MIG-")) else "" for name in (*found.values(), entry)}
        if not valid or len(kinds) > 1:
            break
        if key in found:
            return []
        found[key] = entry
    return list(found.values())


def driver_gpus() -> tuple[Sequence[DriverGpu], str]:
    """All GPUs of this machine by the driver's own list, and how it was asked; none where it cannot be asked."""
    try:
        import pynvml

        return _of_nvml(pynvml), "the driver (NVML)"
    except Exception:  # noqa: BLE001 - none, a broken or old one, or no driver; collecting tests must not fail by that
        return _of_smi(), "nvidia-smi -L"  # it asks the same library, but may find it elsewhere


def _of_nvml(nvml: Any) -> list[DriverGpu]:
    def text(value: str | bytes) -> str:
        return value.decode() if isinstance(value, bytes) else value

    def instances(handle: Any) -> tuple[str, ...]:
        found = []
        try:
            if nvml.nvmlDeviceGetMigMode(handle)[0]:
                for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
                    with suppress(nvml.NVMLError):  # fewer instances than there may be
                        instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
                        found.append(text(nvml.nvmlDeviceGetUUID(instance)))
        except nvml.NVMLError:
            return ()  # a GPU without MIG
        return tuple(found)

    def capability(handle: Any) -> tuple[int, int] | None:
        try:
            major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        except nvml.NVMLError:
            return None
        return major, minor

    nvml.nvmlInit()
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return [
            DriverGpu(text(nvml.nvmlDeviceGetUUID(handle)), instances(handle), capability(handle)) for handle in handles
        ]
    finally:
        nvml.nvmlShutdown()


def _of_smi() -> list[DriverGpu]:
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=_SMI_SECONDS, check=True, errors="replace"
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return read_smi_list(done.stdout)


def read_smi_list(text: str) -> list[DriverGpu]:
    """The GPUs that `nvidia-smi -L` has printed."""
    found: list[DriverGpu] = []
    for line in text.splitlines():
        if gpu := _GPU_LINE.match(line):
            found.append(DriverGpu(gpu[1]))
        elif found and (instance := _MIG_LINE.match(line)):
            found[-1] = DriverGpu(found[-1].uuid, (*found[-1].instances, instance[1]))
    return found


def torch_has_cuda() -> bool:
    """Whether the installed torch was built for CUDA. It is not imported for that."""
    if (version := sys.modules.get("torch.version")) is not None:
        return bool(version.cuda)
    file = package_file("torch")
    if file is None:
        return False
    try:
        text = file.with_name("version.py").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return True  # a torch of another make: the model finds out
    return re.search(r"^cuda\b[^=\n]*=\s*['\"]", text, re.MULTILINE) is not None


def package_file(name: str) -> Path | None:
    """The first file of the package *name*, which is not imported for that; None where it is not installed."""
    try:
        found = importlib.util.find_spec(name)
    except ValueError:  # a stand-in without a file is in its place
        return None
    return None if found is None or found.origin is None else Path(found.origin)
