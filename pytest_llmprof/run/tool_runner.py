"""One test in a stage that runs under a tool: hand the configuration over, start the child, gather the files.

It loads no model. The child's outputs are in `tmp/workload` of the test's directory, the tool's in the stage
directory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from pytest_llmprof.config.frozen import freeze
from pytest_llmprof.config.schema import Settings
from pytest_llmprof.errors import ArtifactError, LlmprofError, StageError, error_line
from pytest_llmprof.records.catalogue import Catalogue
from pytest_llmprof.records.files import read_bytes, write_bytes, write_text
from pytest_llmprof.records.metrics import ErrorRecord, Fingerprint, Metrics
from pytest_llmprof.records.stage import StageRecords
from pytest_llmprof.run.artifacts import Artifacts, fresh_dir, locked
from pytest_llmprof.run.gates import Judge, TestGates
from pytest_llmprof.stages.base import ToolContext, ToolStagePlugin
from pytest_llmprof.stages.child import Child, ChildSkipped, Outcome

_FROM_CHILD = (
    *("kind", "errors", "rounds", "warmup", "pages", "quality", "quality_reason", "gates"),
    *("model", "prompt", "prompt_note", "dataset", "callable"),
)
"""Fields of metrics.json that are the child's."""


@dataclass
class ToolRunner:
    """Runs one test under one tool and writes the stage directory."""

    settings: Settings
    stage: ToolStagePlugin
    artifacts: Artifacts
    test_id: str
    command: Callable[[str, str, str], list[str]]
    """The child's command for (frozen configuration, run directory, directory for temporary files)."""
    cwd: Path
    progress: Callable[[str], None]
    catalogue: Catalogue
    gates: TestGates = field(default_factory=TestGates)
    records: StageRecords | None = None
    """What was measured, once it is."""

    @property
    def workload(self) -> Path:
        """Where the child works."""
        return self.artifacts.inside("tmp", "workload")

    def run(self) -> None:
        """Run it once. Raises `StageError` or `ChildSkipped`; the files are written first."""
        from pytest_llmprof.models.device import pick_device

        out_dir = self.artifacts.begin(self.settings.stage)
        write_text(out_dir / "config.yaml", self.settings.yaml)
        device = str(pick_device(self.settings.model.device))
        with self._alone():
            child = self._child(out_dir)
            context = ToolContext(
                settings=self.settings,
                out_dir=out_dir,
                device=device,
                child=child,
                other_stages=[
                    (stage, self.artifacts.out_dir(stage))
                    for stage in self.settings.stages
                    if stage != self.settings.stage
                ],
                progress=self.progress,
                block=self.stage.block(),
                figures={},
            )
            error: LlmprofError | None = None
            try:
                self.stage.run(context)
            except ChildSkipped:
                raise
            except LlmprofError as caught:
                error = caught
            error = error or self.catalogue.undeclared(context.figures, self.settings.stage)
            try:
                self._write(context, error)
            except (ArtifactError, StageError) as unwritten:
                error = error or unwritten
        if error is not None:
            raise error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One tool at a time for a test: stages of one test may run in two workers."""
        try:
            self.workload.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError(f"cannot make the directory {self.workload}: {error.strerror}") from error
        with locked(self.workload, wait=True):
            yield

    def _child(self, out_dir: Path) -> Child:
        run_dir, temp, outputs = (self.workload / name for name in ("run", "temp", self.stage.workload))
        for directory in (run_dir, temp, *([outputs] if self.stage.outputs else [])):
            fresh_dir(directory)
        frozen = self.workload / "frozen.yaml"
        freeze(self.settings, self._changes(outputs), frozen)
        return Child(
            command=self.command(str(frozen), str(run_dir), str(temp)),
            cwd=self.cwd,
            run_dir=run_dir,
            out_dir=out_dir,
            timeout_s=self.settings.current.options.timeout_s,
            key=f"pipeline.{self.settings.stage}.timeout_s",
            progress=self.progress,
        )

    def _changes(self, outputs: Path) -> Mapping[str, Any]:
        """What the child's configuration has otherwise: it measures once, without a profiler of its own."""
        block = f"pipeline.{self.stage.workload}"
        changes: dict[str, Any] = {
            "stages": [self.stage.workload],
            "llmprof.stage": self.stage.workload,
            "measure.rounds": 1,
            "measure.warmup": 1,
            "measure.iterations": 1,
            f"{block}.enable": False,
        }
        for kind in ("prediction", "visualization"):
            if self.stage.outputs:
                changes[f"{block}.output.{kind}.save_dir"] = str(outputs)
            else:
                changes[f"{block}.output.{kind}.enable"] = False
        return changes

    def _write(self, context: ToolContext, error: LlmprofError | None) -> None:
        from pytest_llmprof.report import write_report

        outcome = Outcome.read(self.workload / "run") or Outcome()
        child: StageRecords | None = None
        if outcome.dir:
            directory = Path(outcome.dir)
            child = StageRecords.read(directory)
            if (directory / "inputs.jsonl").exists():
                write_bytes(context.out_dir / "inputs.jsonl", read_bytes(directory / "inputs.jsonl"))
        metrics = self._metrics(child.metrics if child else None)
        metrics.figures |= {name: value for name, value in context.figures.items() if name in metrics.figures}
        if error is not None:
            metrics.status = "error"
            metrics.errors = metrics.errors or [ErrorRecord(None, error_line(error))]
        context.block.not_applied = outcome.notes
        environment = child.environment if child else None
        self.records = StageRecords(metrics, {"profile": None, self.settings.stage: context.block}, environment)
        if error is None:
            metrics.gates = Judge(self.gates, self.catalogue).judge(self.records, context.out_dir)
        self.records.write(context.out_dir)
        write_report(context.out_dir, self.stage, self.catalogue)

    def _metrics(self, ran: Metrics | None) -> Metrics:
        """What the child measured, less its times, which mean nothing under a tool."""
        figures: dict[str, float | None] = dict.fromkeys(self.catalogue.names("figures"))
        own: dict[str, Any] = {
            "test": self.settings.test,
            "id": self.test_id,
            "stage": self.settings.stage,
            "status": "ok",
            "batch_size": self.settings.infer.batch_size,
            "figures": figures,
        }
        if ran is None:
            return Metrics(kind=None, fingerprint=Fingerprint(config=self.settings.digest), **own)
        figures |= {name: ran.figures.get(name) for name in self.catalogue.without_times()}
        kept = {name: getattr(ran, name) for name in _FROM_CHILD}
        reason = self.settings.infer.engine_reason if ran.fingerprint.engine else None  # the child was told the engine
        fingerprint = replace(ran.fingerprint, config=self.settings.digest, engine_reason=reason)
        return Metrics(fingerprint=fingerprint, **kept, **own)
