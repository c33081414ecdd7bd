"""What a stage is, and what it is given.

A third party registers a `StagePlugin` through the hook ``pytest_llmprof_stages``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pytest_llmprof.config.registry import StageSpec
from pytest_llmprof.config.schema import Count, InferSettings, Positive, Settings, StageSettings
from pytest_llmprof.datasets.base import Page
from pytest_llmprof.records.catalogue import Metric
from pytest_llmprof.records.checks import Check
from pytest_llmprof.records.environment import Gpu
from pytest_llmprof.records.metrics import Energy, Peak, RoundHost, Sample
from pytest_llmprof.records.stage import StageRecords
from pytest_llmprof.report.sections import Section
from pytest_llmprof.stages.tool_block import ToolBlock

if TYPE_CHECKING:
    from pytest_llmprof.measure.duet import Duet
    from pytest_llmprof.measure.phases import PhaseRecorder
    from pytest_llmprof.models.base import LoadedModel
    from pytest_llmprof.stages.child import Child
    from pytest_llmprof.stages.failures import Failure


@dataclass(frozen=True)
class Window:
    """`pipeline.torch_profiler.window.*`: what is profiled, at a cost that doesn't grow with the answer."""

    pages: Positive = 1
    """Pages profiled (batches, with `infer.batch_size` over 1)."""
    start_token: Count = 0
    """Generated token at which the window opens; 0 includes preprocessing, vision and prefill."""
    decode_tokens: Positive = 32
    """Decode steps profiled from there."""


class Workload(Protocol):
    """What a test asked to be run: pages through a model, or a callable."""

    kind: str
    """"pages" or "callable"."""
    device: str
    """"cpu" or "cuda:0"."""
    model: LoadedModel | None
    """None for a callable."""
    pages: Sequence[Page]
    """Empty for a callable."""
    infer: InferSettings | None
    """None for a callable."""
    failures: list[Failure]
    """Pages that failed so far."""
    disturbed: list[str]
    """One line for each measured or profiled pass in which something compiled; the test fails with them."""
    deterministic: bool | None
    """Whether later rounds gave the first one's tokens; None for a single round and for a callable."""
    phase_peaks: dict[str, Peak]
    """Peak device memory of each phase in the warm-up; empty on a CPU and without a warm-up."""
    iterations: int
    """Calls a round; 1 for pages."""
    value: Any
    """What the callable returned in the last round; None for pages."""

    def warmup(self, passes: int, recorder: PhaseRecorder) -> None:
        """Run each distinct input shape once a pass, unmeasured. Called with 0, too."""

    def round(self, index: int, recorder: PhaseRecorder) -> tuple[list[Sample], float]:
        """One measured pass. Returns its samples and its seconds (the sum of its batches)."""

    def windows(self, window: Window, recorder: PhaseRecorder) -> Iterator[Iterator[None]]:
        """Give one iterator a profiled batch: its first item comes where the profiler is to start, and it
        ends (or is closed) where the profiler is to stop."""


@dataclass
class StageResult:
    """What a stage adds to the common metrics."""

    samples: list[Sample] = field(default_factory=list)
    round_seconds: list[float] = field(default_factory=list)
    figures: dict[str, float | None] = field(default_factory=dict)
    """Metrics that this stage alone knows, by the names that it declares (`StagePlugin.metrics`)."""
    blocks: dict[str, Any] = field(default_factory=dict)
    """What the stage adds to metrics.json, by key: Structs, dataclasses or plain data."""
    profile: Any = None
    """The block "profile": results of a tool's own run, which never mix with the measured rounds."""
    energy: Energy = field(default_factory=Energy)
    round_host: list[RoundHost] = field(default_factory=list)
    """The host's processors in each round."""
    gpu_before: Gpu | None = None
    """The GPU before the first measured round."""
    gpu_after: Gpu | None = None
    """And after the last."""
    gpu_reason: str | None = None
    """Why the GPU, or a part of it, is not known."""


class ShowProgress(Protocol):
    """Shows one line of progress; *rounds_done*, such as 1.5, tells how far the measured rounds are."""

    def __call__(self, text: str, rounds_done: float | None = None) -> None: ...


@dataclass(kw_only=True)
class _Context:
    settings: Settings
    out_dir: Path
    """The stage directory; it exists and is empty but for config.yaml."""
    progress: Callable[[str], None]
    """Shows one line of progress."""


@dataclass(kw_only=True)
class StageContext(_Context):
    """All a stage is given for one test."""

    workload: Workload
    recorder: Callable[[str], PhaseRecorder]
    """Makes a recorder for an NVTX domain, on the workload's device."""
    result: StageResult
    """What the stage fills in as it goes, so that what was measured is kept where it fails later."""
    more_rounds: Callable[[], int] = lambda: 0
    """Called after the rounds so far: how many more the test's gates need (0 mostly)."""
    test_id: str = ""
    """pytest's node id."""
    duet: Duet | None = None
    """The connection to the process that measures beside this one."""

    @property
    def stage(self) -> StageSettings:
        """The settings of this stage."""
        return self.settings.current


@dataclass(frozen=True)
class CheckContext:
    """What a stage's checks are given, for `llmprof doctor`."""

    settings: Settings
    """Those of the session; `settings.stage` is this stage."""
    device: str
    """"cpu" or "cuda:0": where the model would run."""


@dataclass(frozen=True)
class _Stage(StageSpec):
    """What all stages have beside their options: metrics, and a part of the report."""

    metrics: tuple[Metric, ...] = ()
    """Metrics of its own. It sets them in `result.figures`; they show wherever the common ones do."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Files that it writes into the stage directory and what each holds, for the report."""
    blocks: Mapping[str, type] = field(default_factory=dict)
    """The types of the blocks that it adds to metrics.json, by key, for the JSON Schema."""
    report: Callable[[StageRecords], Section | None] | None = None
    """Makes its section of the report of what the run left in the stage directory."""
    checks: Callable[[CheckContext], Iterable[Check]] | None = None
    """Looks whether this machine has what the stage needs, in seconds, for `llmprof doctor`. A `problem` of
    `records.checks` says that the stage cannot run here."""

    def section(self, records: StageRecords) -> Section | None:
        """Its section of the report; None where it has nothing to show."""
        return None if self.report is None else self.report(records)


@dataclass(frozen=True)
class StagePlugin(_Stage):
    """A stage that runs in this process: what the configuration knows of it, and the function that does its work."""

    run: Callable[[StageContext], None] = field(kw_only=True)
    """Do the stage's work and fill in `context.result`. Raises `StageError` with one line where it cannot."""
    in_child = False


@dataclass(kw_only=True)
class ToolContext(_Context):
    """All that a stage is given whose test runs again in a child process under a tool."""

    device: str
    """"cpu" or "cuda:0": where the child's model will run."""
    child: Child
    """Starts the test in a process of its own."""
    other_stages: Sequence[tuple[str, Path]]
    """The other stages of this run in their order, each with its directory for this test; it may not exist."""
    block: Any
    """A new `ToolStagePlugin.block`, for metrics.json under the stage's name; filled in as the tool goes."""
    figures: dict[str, float | None]
    """Metrics that the stage declares, by name."""

    @property
    def options(self) -> Any:
        """The stage's own options."""
        return self.settings.current.options


@dataclass(frozen=True)
class ToolStagePlugin(_Stage):
    """A stage whose test runs again in a child process, under a tool."""

    block: type[ToolBlock] = ToolBlock
    """The Struct of its block in metrics.json; all fields have defaults."""
    outputs: bool = field(kw_only=True)
    """Whether the child writes its outputs, into `tmp/workload/<workload>` of the test's directory."""
    workload: str = field(kw_only=True)
    """The stage that the child runs, with its own tool off."""
    run: Callable[[ToolContext], None] = field(kw_only=True)
    """Run the child once and fill in `context.block`. Raises `StageError` with one line where it cannot."""
    in_child = True
