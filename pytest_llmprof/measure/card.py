"""The card as its driver (NVML) sees it: name, clocks, power, throttling, who else is on it.

The card is found by the UUID that torch gives for the device, so CUDA_VISIBLE_DEVICES cannot mislead: NVML
counts all cards of the machine, CUDA only the visible ones.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["THROTTLE_REASONS", "Card", "read_card", "throttle_names"]

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


@dataclass(frozen=True)
class Card:
    """One card at the moment of reading. A part that the driver does not give is None."""

    name: str
    uuid: str | None
    driver: str | None = None
    memory_gib: float | None = None
    power_limit_w: float | None = None
    """The power cap in force."""
    power_default_w: float | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    sm_clock_max_mhz: int | None = None
    temperature_c: int | None = None
    throttle_reasons: tuple[str, ...] | None = None
    """Why the clocks are below their maximum now (names of nvml.h's clock event reasons)."""
    throttled: bool | None = None
    """Whether one of them makes work slower (power cap, heat); idle clocks do not count."""
    other_processes: int | None = None
    """Compute processes on the card besides this one, as far as the driver shows them."""
    mig: bool | None = None
    energy_mj: int | None = None
    """The card's energy counter in millijoules since the driver was loaded."""

    @property
    def shared(self) -> bool | None:
        """Whether another process used the card."""
        return None if self.other_processes is None else self.other_processes > 0


def read_card(device: str) -> tuple[Card | None, str | None]:
    """The card behind *device* ("cuda", "cuda:1"), and the reason where it or a part of it is missing."""
    name, uuid, reason = _torch_card(device)
    if name is None:
        return None, reason
    try:
        import pynvml
    except ImportError:
        return Card(name=name, uuid=uuid), "nvidia-ml-py is not installed (pip install 'pytest-llmprof[gpu]')"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Card(name=name, uuid=uuid), f"the driver (NVML) cannot be asked: {error}"
    try:
        if uuid is None:
            return Card(name=name, uuid=None), "this torch gives no UUID of the card"
        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        except pynvml.NVMLError as error:
            return Card(name=name, uuid=uuid), f"the driver (NVML) does not find {uuid}: {error}"
        return nvml_card(pynvml, handle, name, uuid), None
    finally:
        pynvml.nvmlShutdown()


def _torch_card(device: str) -> tuple[str | None, str | None, str | None]:
    """Name and UUID that torch gives for *device*, and the reason where it knows no such card."""
    import torch

    if not torch.cuda.is_available():
        return None, None, "torch sees no CUDA card"
    try:
        properties: Any = torch.cuda.get_device_properties(torch.device(device))
    except (AssertionError, RuntimeError) as error:
        return None, None, f"torch does not know {device}: {error}"
    uuid = getattr(properties, "uuid", None)
    return properties.name, None if uuid is None else f"GPU-{str(uuid).removeprefix('GPU-')}", None


def throttle_names(bits: int) -> tuple[str, ...]:
    """Names of the clock event reasons in *bits*; an unknown bit is shown in hexadecimal."""
    names = [name for bit, name in THROTTLE_REASONS.items() if bits & bit]
    unknown = bits & ~sum(THROTTLE_REASONS)
    return tuple(names + ([hex(unknown)] if unknown else []))


def nvml_card(nvml: Any, handle: Any, name: str, uuid: str | None) -> Card:
    """Read one card through the module *nvml* (pynvml). A call that the card does not support gives None."""

    def ask(call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except nvml.NVMLError:
            return None  # many cards and virtual ones lack some of these

    def text(value: Any) -> str | None:
        return value.decode() if isinstance(value, bytes) else value

    def watts(value: int | None) -> float | None:
        return None if value is None else value / 1000

    # The call was renamed; old drivers' bindings have the old name only.
    reasons = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
    bits = ask(reasons or nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
    throttle = None if bits is None else throttle_names(bits)
    processes = ask(nvml.nvmlDeviceGetComputeRunningProcesses, handle)
    memory = ask(nvml.nvmlDeviceGetMemoryInfo, handle)
    mig = ask(nvml.nvmlDeviceGetMigMode, handle)
    return Card(
        name=text(ask(nvml.nvmlDeviceGetName, handle)) or name,
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
        energy_mj=ask(nvml.nvmlDeviceGetTotalEnergyConsumption, handle),
    )


def others(pids: Any) -> int:
    """Number of processes that are not this one.

    In a container the driver shows the host's process ids (or none that exist here): then one of them is
    taken to be this process, as it holds the card too.
    """
    found = set(pids)
    mine = os.getpid() in found
    in_use = "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized()
    return len(found) - (1 if mine or (in_use and found) else 0)
