"""The GPU as its driver (NVML) sees it: name, clocks, power, throttling, who else is on it.

The GPU is found by the UUID that torch gives for the device, so CUDA_VISIBLE_DEVICES cannot mislead: NVML
counts all GPUs of the machine, CUDA only the visible ones. Of a MIG instance name, memory and processes are its own;
clocks, power and temperature are those of the whole GPU, whose energy says nothing of one instance.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from pytest_llmprof.errors import error_line
from pytest_llmprof.measure.visible_gpus import VARIABLE
from pytest_llmprof.records.environment import Gpu

THROTTLE_REASONS = {
    0x0000000000000001: "gpu_idle",
    0x0000000000000002: "applications_clocks_setting",
    0x0000000000000004: "sw_power_cap",
    0x0000000000000008: "hw_slowdown",
    0x0000000000000010: "sync_boost",
    0x0000000000000020: "sw_thermal_slowdown",
    0x0000000000000040: "hw_thermal_slowdown",
    0x0000000000000080: "hw_power_brake_slowdown",
    0x0000000000000100: "display_clock_setting",
}
"""Bits of nvmlDeviceGetCurrentClocksEventReasons (nvml.h). Idle is not throttling."""

SLOWING = frozenset(
    ("sw_power_cap", "hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown")
)
"""The reasons that make the same work slower."""


VIOLATIONS = {0: "power", 1: "thermal", 2: "sync_boost", 3: "board_limit", 5: "reliability"}
"""Policies of nvmlDeviceGetViolationStatus (nvmlPerfPolicyType_t) that hold clocks down against the load's wish."""


def read_gpu(device: str) -> tuple[Gpu | None, str | None]:
    """The GPU behind *device* ("cuda", "cuda:1"), and the reason where it or a part of it is missing."""
    with GpuReader(device) as reader:
        return reader.gpu(), reader.reason


class GpuReader:
    """One GPU, its driver kept at hand for several readings. On a CPU it reads nothing.

    *beside*: processes on the GPU that are known to be idle while this one measures, and so do not disturb it.
    """

    def __init__(self, device: str, *, beside: int = 0) -> None:
        self._beside = beside
        self.reason: str | None = None
        """Why the GPU or a part of it is missing."""
        self._name: str | None = None
        self._uuid: str | None = None
        self._nvml: Any = None
        self._handle: Any = None
        self._instance: Any = None
        """The handle of the MIG instance; None for a whole GPU."""
        if not device.startswith("cuda"):
            self.reason = f"the device is {device}"
            return
        self._name, self._uuid, self.reason = _torch_gpu(device)
        if self._name is not None:
            self.reason = self._open(device)

    def _open(self, device: str) -> str | None:
        try:
            import pynvml
        except ImportError:
            return "nvidia-ml-py is not installed (pip install 'pytest-llmprof[gpu]')"
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it
            return f"nvidia-ml-py cannot be imported: {error_line(error)}"
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            return f"the driver (NVML) cannot be asked: {error}"
        self._nvml = pynvml
        if self._uuid is None:
            return "this torch gives no UUID of the GPU"
        why: Exception | None = None
        for uuid in _names_of(device, self._uuid):
            try:
                handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
                if uuid.startswith("MIG-"):
                    self._handle = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
                    self._instance, self._uuid = handle, uuid
                    return "a MIG instance has no energy counter of its own"
                self._handle = handle
                return None
            except pynvml.NVMLError as error:
                why = error
        return f"the driver (NVML) does not find {self._uuid}: {why}"

    def gpu(self) -> Gpu | None:
        """The GPU as it is now; None where there is none."""
        if self._name is None:
            return None
        if self._handle is None:
            return Gpu(name=self._name, uuid=self._uuid)
        found = nvml_gpu(self._nvml, self._handle, self._name, self._uuid, self._instance)
        if self._beside and found.other_processes:
            return replace(found, other_processes=max(found.other_processes - self._beside, 0))
        return found

    def energy_mj(self) -> int | None:
        """The energy counter; None where the GPU or the driver has none."""
        if self._handle is None or self._instance is not None:
            return None
        try:
            counter: int = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except self._nvml.NVMLError:
            return None  # GPUs before Volta, and many virtual ones
        return counter

    def __enter__(self) -> GpuReader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = self._handle = self._instance = None


def _names_of(device: str, uuid: str) -> list[str]:
    """The names by which NVML may know *device*, whose UUID by torch is *uuid*: that of a MIG instance first, as torch
    may give its GPU's."""
    entries = [entry.strip() for entry in os.environ.get(VARIABLE, "").split(",")]
    number = int(device.partition(":")[2] or 0)
    listed = entries[number : number + 1]
    instances = [entry for entry in listed if entry.startswith("MIG-")]
    return [*instances, uuid, uuid.replace("GPU-", "MIG-", 1)]


def _torch_gpu(device: str) -> tuple[str | None, str | None, str | None]:
    """Name and UUID that torch gives for *device*, and the reason where it knows no such GPU."""
    import torch

    if not torch.cuda.is_available():
        return None, None, "torch sees no CUDA GPU"
    try:
        properties: Any = torch.cuda.get_device_properties(torch.device(device))
    except (AssertionError, RuntimeError) as error:
        return None, None, f"torch does not know {device}: {error}"
    uuid = getattr(properties, "uuid", None)
    bare = str(uuid).removeprefix("GPU-").removeprefix("MIG-")
    return properties.name, None if uuid is None else f"GPU-{bare}", None


def throttle_names(bits: int) -> tuple[str, ...]:
    """Names of the clock event reasons in *bits*; an unknown bit is shown in hexadecimal."""
    names = [name for bit, name in THROTTLE_REASONS.items() if bits & bit]
    unknown = bits & ~sum(THROTTLE_REASONS)
    return tuple(names + ([hex(unknown)] if unknown else []))


def nvml_gpu(nvml: Any, handle: Any, name: str, uuid: str | None, instance: Any = None) -> Gpu:
    """Read one GPU, or a MIG *instance* of it, through the module *nvml* (pynvml). A call that the GPU does not support
    gives None."""
    own = handle if instance is None else instance

    def ask(call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except nvml.NVMLError:
            return None  # many GPUs and virtual ones lack some of these

    def text(value: Any) -> str | None:
        return value.decode() if isinstance(value, bytes) else value

    def watts(value: int | None) -> float | None:
        return None if value is None else value / 1000

    # The call was renamed; old drivers' bindings have the old name only.
    reasons = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
    bits = ask(reasons or nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
    throttle = None if bits is None else throttle_names(bits)
    processes = ask(nvml.nvmlDeviceGetComputeRunningProcesses, own)
    memory = ask(nvml.nvmlDeviceGetMemoryInfo, own)
    mig = ask(nvml.nvmlDeviceGetMigMode, handle)
    return Gpu(
        name=text(ask(nvml.nvmlDeviceGetName, own)) or name,
        uuid=uuid,
        driver=text(ask(nvml.nvmlSystemGetDriverVersion)),
        memory_gib=None if memory is None else round(memory.total / 2**30, 1),
        power_limit_w=watts(ask(nvml.nvmlDeviceGetEnforcedPowerLimit, handle)),
        power_default_w=watts(ask(nvml.nvmlDeviceGetPowerManagementDefaultLimit, handle)),
        sm_clock_mhz=ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
        memory_clock_mhz=ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
        sm_clock_max_mhz=ask(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM),
        temperature_c=ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        throttle_reasons=throttle,
        throttled=None if throttle is None else bool(SLOWING.intersection(throttle)),
        other_processes=None if processes is None else others(process.pid for process in processes),
        mig=None if mig is None else bool(mig[0]),
        energy_mj=ask(nvml.nvmlDeviceGetTotalEnergyConsumption, handle) if instance is None else None,
        throttled_ms=_violations(nvml, handle),
    )


def _violations(nvml: Any, handle: Any) -> dict[str, float] | None:
    """Milliseconds of each policy's limit since the driver was loaded (the driver counts nanoseconds)."""
    status = getattr(nvml, "nvmlDeviceGetViolationStatus", None)
    found: dict[str, float] = {}
    if status is None:
        return None
    for policy, name in VIOLATIONS.items():
        try:
            found[name] = status(handle, policy).violationTime / 1e6
        except nvml.NVMLError:
            continue  # a policy that this GPU does not have
    return found or None


def throttled_between(before: Gpu | None, after: Gpu | None) -> dict[str, float] | None:
    """Milliseconds of throttling by cause between two readings; None where the driver does not count them."""
    if before is None or after is None or before.throttled_ms is None or after.throttled_ms is None:
        return None
    return {
        name: after.throttled_ms[name] - since
        for name, since in before.throttled_ms.items()
        if name in after.throttled_ms
    }


def others(pids: Any) -> int:
    """Number of processes that are neither this one nor one that it was started by: a test's parent holds the GPU
    too while its child runs under a tool, and only waits.

    In a container the driver shows the host's process ids (or none that exist here): then one of them is
    taken to be this process, as it holds the GPU too.
    """
    import psutil

    found = set(pids) - {one.pid for one in psutil.Process().parents()}
    mine = os.getpid() in found
    in_use = "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized()
    return len(found) - (1 if mine or (in_use and found) else 0)
