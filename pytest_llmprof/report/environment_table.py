"""The report's table of where it was measured."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_llmprof.records.environment import Environment, Gpu, Workers
from pytest_llmprof.report.sections import listed
from pytest_llmprof.text.escape import inline
from pytest_llmprof.text.markdown import table
from pytest_llmprof.text.numbers import count, number


def environment_table(environment: Environment | None) -> str:
    """A Markdown table of environment.json; empty where there is nothing to show."""
    return table(["", "Value"], [[name, inline(value, 200)] for name, value in environment_rows(environment)], 2)


def environment_rows(environment: Environment | None) -> list[tuple[str, str]]:
    """What environment.json says, as (name, value)."""
    return [] if environment is None else [(name, value) for name, value in _rows(environment) if value]


def _rows(environment: Environment) -> Iterator[tuple[str, str]]:
    yield "GPU", _gpu(environment.gpu, environment.gpu_reason)
    after = _state(environment.gpu_after)
    yield "GPU state before" if after else "GPU state", _state(environment.gpu)
    yield "GPU state after", after
    yield "Throttled during the rounds", _throttled(environment.gpu_throttled_ms)
    host = environment.host
    usable = f" ({host.affinity} usable)" if host.affinity and host.affinity != host.cores else ""
    yield "Processor", listed(
        host.cpu,
        host.cores and f"{host.cores} cores{usable}",
        host.torch_threads and count(host.torch_threads, "torch thread"),
        host.ram_gib and f"{number(host.ram_gib)} GiB memory",
    )
    yield "Workers on the host", _workers(environment.workers)
    yield "System", host.os + (f", in a container ({host.container})" if host.container else "")
    yield "Python", environment.python
    yield "Versions", ", ".join(f"{name} {value}" for name, value in environment.versions.items() if value)
    yield "CUDA of torch", environment.cuda or ""
    if environment.git:
        changes = {None: ", local changes not known", True: ", with local changes", False: ""}
        yield "Commit", environment.git.commit[:12] + changes[environment.git.dirty]


def _gpu(gpu: Gpu | None, reason: str | None) -> str:
    if gpu is None:
        return f"none ({reason})" if reason else ""
    memory = gpu.memory_gib and f"{number(gpu.memory_gib)} GiB"
    return listed(gpu.name, memory, gpu.driver and f"driver {gpu.driver}", reason)


def _workers(workers: Workers | None) -> str:
    if workers is None:
        return ""
    return listed(str(workers.count), workers.on_gpu and f"{workers.on_gpu} of them with this GPU")


def _throttled(by_cause: dict[str, float] | None) -> str:
    if by_cause is None:
        return ""
    parts = (f"{cause} {number(spent)} ms" for cause, spent in by_cause.items() if spent)
    return listed(*parts) or "not at all, by the driver's counters"


def _state(gpu: Gpu | None) -> str:
    if gpu is None:
        return ""
    top = f" of {gpu.sm_clock_max_mhz}" if gpu.sm_clock_max_mhz else ""
    return listed(
        gpu.power_limit_w and f"power cap {number(gpu.power_limit_w)} W",
        gpu.sm_clock_mhz and f"SM clock {gpu.sm_clock_mhz}{top} MHz",
        gpu.temperature_c and f"{gpu.temperature_c} °C",
        gpu.throttled is not None and f"{'' if gpu.throttled else 'not '}throttled",
        gpu.shared is not None and f"{'' if gpu.shared else 'not '}shared",
    )
