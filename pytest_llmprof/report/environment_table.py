"""The report's table of where it was measured."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_llmprof.records.environment import Environment, Gpu
from pytest_llmprof.text.escape import inline
from pytest_llmprof.text.markdown import table
from pytest_llmprof.text.numbers import count, number

__all__ = ["environment_table"]


def environment_table(environment: Environment | None) -> str:
    """A Markdown table of environment.json; empty where there is nothing to show."""
    rows = [] if environment is None else [[name, inline(value, 200)] for name, value in _rows(environment) if value]
    return table(["", "Value"], rows, 2) if rows else ""


def _rows(environment: Environment) -> Iterator[tuple[str, str]]:
    yield "GPU", _gpu(environment.gpu, environment.gpu_reason)
    after = _state(environment.gpu_after)
    yield "GPU state before" if after else "GPU state", _state(environment.gpu)
    yield "GPU state after", after
    yield "Throttled during the rounds", _throttled(environment.gpu_throttled_ms)
    host = environment.host
    parts = [host.cpu or ""]
    if host.cores is not None:
        usable = host.affinity
        parts.append(f"{host.cores} cores" + (f" ({usable} usable)" if usable and usable != host.cores else ""))
    if host.torch_threads:
        parts.append(count(host.torch_threads, "torch thread"))
    if host.ram_gib:
        parts.append(f"{number(host.ram_gib)} GiB memory")
    yield "Processor", ", ".join(part for part in parts if part)
    yield "System", host.os + (f", in a container ({host.container})" if host.container else "")
    yield "Python", environment.python
    yield "Versions", ", ".join(f"{name} {value}" for name, value in environment.versions.items() if value)
    yield "CUDA of torch", environment.cuda or ""
    if environment.git:
        yield "Commit", environment.git.commit[:12] + (", with local changes" if environment.git.dirty else "")


def _gpu(gpu: Gpu | None, reason: str | None) -> str:
    if gpu is None:
        return f"none ({reason})" if reason else ""
    parts = [
        gpu.name,
        f"{number(gpu.memory_gib)} GiB" if gpu.memory_gib else "",
        f"driver {gpu.driver}" if gpu.driver else "",
        reason or "",
    ]
    return ", ".join(part for part in parts if part)


def _throttled(by_cause: dict[str, float] | None) -> str:
    if by_cause is None:
        return ""
    parts = [f"{cause} {number(spent)} ms" for cause, spent in by_cause.items() if spent]
    return ", ".join(parts) or "not at all, by the driver's counters"


def _state(gpu: Gpu | None) -> str:
    if gpu is None:
        return ""
    parts = []
    if gpu.power_limit_w:
        parts.append(f"power cap {number(gpu.power_limit_w)} W")
    if gpu.sm_clock_mhz:
        top = f" of {gpu.sm_clock_max_mhz}" if gpu.sm_clock_max_mhz else ""
        parts.append(f"SM clock {gpu.sm_clock_mhz}{top} MHz")
    if gpu.temperature_c:
        parts.append(f"{gpu.temperature_c} °C")
    if gpu.throttled is not None:
        parts.append("throttled" if gpu.throttled else "not throttled")
    if gpu.other_processes is not None:
        parts.append("shared" if gpu.other_processes else "not shared")
    return ", ".join(parts)
