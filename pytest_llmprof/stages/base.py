"""What a stage is, and what it is given.

A third party registers a `StagePlugin` through the hook ``pytest_llmprof_stages``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pytest_llmprof.config.registry import StageSpec
from pytest_llmprof.config.schema import Count, Positive, Settings, StageSettings
from pytest_llmprof.stages.runner import Failure, Sample

if TYPE_CHECKING:
    from pytest_llmprof.measure.energy import RoundEnergy
    from pytest_llmprof.measure.gpu import Card
    from pytest_llmprof.measure.memory import Peak
    from pytest_llmprof.measure.phases import PhaseRecorder
    from pytest_llmprof.stages.child import Child

__all__ = ["StageContext", "StagePlugin", "StageResult", "ToolContext", "ToolStagePlugin", "Window", "Workload"]


@dataclass(frozen=True)
class Window:
    """`pipeline.torch_profiler.window.*`: what is profiled, at a cost that doesn't grow with the answer."""

    pages: Positive = 1
    """Pages profiled."""
    start_token: Count = 0
    """Generated token at which the window opens; 0 takes in preprocessing, vision and prefill."""
    decode_tokens: Positive = 32
    """Decode steps profiled from there."""


class Workload(Protocol):
    """What a test asked to be run: pages through a model, or a callable."""

    kind: str
    """"pages" or "callable"."""
    device: str
    """"cpu" or "cuda:0"."""
    failures: list[Failure]
    """Pages that failed so far."""
    disturbed: list[str]
    """One line for each measured or profiled pass in which something compiled; the test fails with them."""
    phase_peaks: dict[str, Peak]
    """Peak device memory of each phase in the warm-up; empty on a CPU and without a warm-up."""

    def warmup(self, passes: int, recorder: PhaseRecorder) -> None:
        """Run each distinct input shape once a pass, unmeasured. Called with 0, too."""

    def round(self, index: int, recorder: PhaseRecorder) -> tuple[list[Sample], float]:
        """One measured pass. Returns its samples and its seconds (the sum of its batches)."""

    def windows(self, window: Window, recorder: PhaseRecorder) -> Iterator[Iterator[None]]:
        """Give one iterator a profiled batch: its first item comes where the profiler is to start, and it
        ends (or is closed) where the profiler is to stop."""


@dataclass
class StageResult:
    """What a stage adds to the common figures."""

    samples: list[Sample] = field(default_factory=list)
    round_seconds: list[float] = field(default_factory=list)
    profile: dict[str, Any] | None = None
    """Figures of the tool's own run; they never mix with the clean ones."""
    figures: dict[str, float | None] = field(default_factory=dict)
    """Figures that this stage alone knows, by names of `pytest_llmprof.measure.figures.Figures`."""
    blocks: dict[str, Any] = field(default_factory=dict)
    """Blocks of plain data that the stage adds to metrics.json, by their keys."""
    energy: list[RoundEnergy] = field(default_factory=list)
    """One for each round; empty on a CPU."""
    energy_update_s: float | None = None
    """Seconds between two updates of the card's energy counter, as seen."""
    energy_reason: str | None = None
    """Why there is no energy at all."""
    card_before: Card | None = None
    """The card before the first measured round."""
    card_after: Card | None = None
    """And after the last."""
    card_reason: str | None = None
    """Why the card, or a part of it, is not known."""


@dataclass(frozen=True)
class StageContext:
    """All a stage is given for one test."""

    settings: Settings
    out_dir: Path
    """The stage directory; it exists and is empty but for config.yaml."""
    workload: Workload
    recorder: Callable[[str], PhaseRecorder]
    """Makes a recorder for an NVTX domain, on the workload's device."""
    progress: Callable[[str], None]
    """Shows one line of progress."""
    result: StageResult
    """What the stage fills in as it goes, so that what was measured is kept where it fails later."""

    @property
    def stage(self) -> StageSettings:
        """The settings of this stage."""
        return self.settings.current


@dataclass(frozen=True)
class StagePlugin(StageSpec):
    """A registered stage: what the configuration knows of it, and the function that does its work."""

    run: Callable[[StageContext], None] = field(kw_only=True)
    """Do the stage's work and fill in `context.result`. Raises `StageError` with one line where it cannot."""


@dataclass(frozen=True)
class ToolContext:
    """All that a stage is given whose test runs again in a child process under a tool."""

    settings: Settings
    out_dir: Path
    """The stage directory; it exists and is empty but for config.yaml."""
    device: str
    """"cpu" or "cuda:0": where the child's model will run."""
    child: Child
    """Starts the test in a process of its own."""
    other_stages: Sequence[tuple[str, Path]]
    """The other stages of this run in their order, each with its directory for this test; it may not exist."""
    progress: Callable[[str], None]
    """Shows one line of progress."""
    figures: dict[str, Any]
    """What the tool said, for metrics.json under the stage's name; filled in as it goes."""

    @property
    def options(self) -> Any:
        """The stage's own options."""
        return self.settings.current.options


@dataclass(frozen=True)
class ToolStagePlugin(StageSpec):
    """A registered stage whose test runs in a child process, under a tool."""

    outputs: bool = field(kw_only=True)
    """Whether the child writes its outputs, into `tmp/workload/<workload>` of the test's directory."""
    workload: str = field(kw_only=True)
    """The stage that the child runs, with its own tool off."""
    run: Callable[[ToolContext], None] = field(kw_only=True)
    """Run the child once and fill in `context.figures`. Raises `StageError` with one line where it cannot."""
