"""What is kept of a run to compare later ones with: one file a run in the store, `.llmprof/`."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field

from pytest_llmprof.records.catalogue import Declaration
from pytest_llmprof.records.environment import Git
from pytest_llmprof.records.metrics import Fingerprint

SCHEMA = 1
"""Version of a saved run."""


class SavedKernel(Struct, frozen=True):
    """A kernel (or copy, or fill) in one phase of the profiled window."""

    name: str
    """Normalised: without return type, namespaces, template arguments and compiler's numbers."""
    phase: str
    count: int
    busy_ms: float
    """What it added to the GPU's busy time."""
    mean_us: float


class SavedPage(Struct, frozen=True):
    """What a test's first round answered for one page."""

    tokens: int | None = None
    text: str | None = None
    """Digest of the raw answer; null where predictions were off."""
    cer: float | None = None


class SavedMachine(Struct, frozen=True):
    """What must be equal for times to be compared."""

    gpu: str | None = None
    """The GPU's name; null on a CPU."""
    power_limit_w: float | None = None
    sm_clock_max_mhz: int | None = None
    cpu: str | None = None
    cores: int | None = None
    """Logical processors that the process may use."""


class SavedTest(Struct, kw_only=True):
    """One test in one stage."""

    id: str
    """pytest's node id."""
    stage: str
    kind: str | None = None
    problem: str | None = None
    """Why it was not measured, one line; null where it was."""
    doubts: list[str] = []
    """Why its times cannot be trusted: the GPU was shared or throttled."""
    duet: bool = False
    """Whether another process measured beside it, as in environment.json."""
    rounds: int = 0
    seconds: float | None = None
    """Wall time of the test, as in run.json."""
    figures: dict[str, float | None] = {}
    quality: dict[str, float | None] = {}
    noise: dict[str, float] = {}
    """Interquartile range of the rounds / median, by metric; missing for a single round."""
    engine: str | None = None
    fingerprint: Fingerprint = field(default_factory=Fingerprint)
    machine: SavedMachine = SavedMachine()
    pages: dict[str, SavedPage] = {}
    kernels: list[SavedKernel] | None = None
    """The busiest first; null without a profiled window on a GPU."""


class SavedRun(Struct, kw_only=True):
    """All of a saved run."""

    schema: int = SCHEMA
    key: str
    """Tells two runs apart, wherever their files lie."""
    name: str = ""
    """The name it was saved under."""
    source: str
    """The directory or file that it was read from."""
    started: str
    """ISO 8601, UTC."""
    saved: str = ""
    """ISO 8601, UTC; empty where it was not saved."""
    status: str = "complete"
    """As in run.json."""
    machine: str = ""
    """Its machine in the store: a GPU's name, or a CPU's with its cores."""
    git: Git | None = None
    metrics: list[Declaration] = []
    """The run's catalogue."""
    configs: dict[str, dict[str, Any]] = {}
    """The configurations of its tests, flat ("infer.engine"), by digest; the first few."""
    tests: list[SavedTest] = []
