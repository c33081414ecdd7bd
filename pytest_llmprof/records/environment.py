"""environment.json: where a result was measured. The host's name and its users stay out."""

from __future__ import annotations

from msgspec import Struct

SCHEMA = 1
"""Version of environment.json."""


class Gpu(Struct, frozen=True):
    """One GPU at the moment of reading. A part that the driver does not give is null."""

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
    """Compute processes on the GPU besides this one and its parents, as far as the driver shows them."""
    mig: bool | None = None
    energy_mj: int | None = None
    """The GPU's energy counter in millijoules since the driver was loaded."""
    throttled_ms: dict[str, float] | None = None
    """Milliseconds that clocks were held down since the driver was loaded, by cause (power, thermal ...)."""

    @property
    def shared(self) -> bool | None:
        """Whether another process used the GPU."""
        return None if self.other_processes is None else self.other_processes > 0


class Host(Struct, frozen=True):
    """The machine beside the GPU."""

    cpu: str | None = None
    cores: int | None = None
    """Logical processors of the machine."""
    affinity: int | None = None
    """Logical processors that this process may use."""
    ram_gib: float | None = None
    os: str = ""
    container: str | None = None
    """What suggests a container: docker, podman, kubernetes, lxc ...; null where nothing does."""
    torch_threads: int | None = None
    """torch.get_num_threads(); null where torch is not imported."""
    boot_id: str | None = None
    """One for each start of a machine, by the system's random number: tells machines apart without naming them. Null
    where the system has no /proc."""
    openmp: dict[str, str] = {}
    """Environment variables that rule the threads (OMP_*, GOMP_*, KMP_*, MKL_*), the plugin's own included."""


class Workers(Struct, frozen=True):
    """The workers of pytest-xdist on this host, of which this process is one."""

    count: int
    """All of them."""
    on_gpu: int | None = None
    """Those that were given this process's GPU, itself included; null where none was given to them."""


class Git(Struct, frozen=True):
    """The commit of the tested project (pytest's rootdir)."""

    commit: str
    dirty: bool | None
    """Tracked files differ from the commit; None where git did not say, as on a slow disk."""

    @property
    def brief(self) -> str:
        """ "0123456789ab+"; the plus stands for local changes."""
        return self.commit[:12] + {None: " (local changes not known)", True: "+", False: ""}[self.dirty]


class Environment(Struct, frozen=True, kw_only=True):
    """All of environment.json."""

    schema: int = SCHEMA
    python: str = ""
    versions: dict[str, str | None] = {}
    cuda: str | None = None
    """The CUDA (or HIP) version that torch was built for; null on a CPU build or where torch is not imported."""
    host: Host = Host()
    git: Git | None = None
    gpu: Gpu | None = None
    """Before the first measured round (where a stage has none: at its end). Null for a run on a CPU."""
    gpu_reason: str | None = None
    """Why `gpu`, or a part of it, is null."""
    gpu_after: Gpu | None = None
    """After the last measured round; null where none was measured."""
    gpu_throttled_ms: dict[str, float] | None = None
    """Milliseconds that the GPU's clocks were held down between the two, by cause; null where it is not known."""
    workers: Workers | None = None
    """Null in a run without workers, and in a worker on another machine than its controller."""

    duet: bool = False
    """Whether another process measured beside this one (`llmprof ab --duet`): on a CPU at the same time, on the other
    half of the processors, on a GPU in turns, round by round. `Gpu.other_processes` does not count it."""

    def other_workers(self, device: str) -> int:
        """How many other workers may have disturbed a model on *device*: those on its GPU, on a CPU those on the host.

        Of workers that were given no GPU each may have used the one that CUDA names first.
        """
        if self.workers is None:
            return 0
        on_gpu = self.workers.on_gpu if device.startswith("cuda") else None
        return (on_gpu or self.workers.count) - 1
