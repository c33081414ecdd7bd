"""One test in a stage that runs under a tool: hand the configuration over, start the child, gather the files.

It loads no model. The child's outputs are in `tmp/workload` of the test's directory, the tool's in the stage
directory.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_llmprof.config.frozen import freeze
from pytest_llmprof.config.schema import Settings
from pytest_llmprof.errors import ArtifactError, LlmprofError
from pytest_llmprof.measure.figures import Figures, as_dict
from pytest_llmprof.records.files import read_json, write_json, write_text
from pytest_llmprof.run.artifacts import Artifacts
from pytest_llmprof.stages.base import ToolContext, ToolStagePlugin
from pytest_llmprof.stages.child import Child, ChildSkipped, Outcome

__all__ = ["ToolRunner"]

_FROM_CHILD = ("model", "prompt", "dataset", "callable")


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
    metrics: dict[str, Any] | None = None
    """metrics.json, once it is written."""

    @property
    def workload(self) -> Path:
        """Where the child works."""
        return self.artifacts.test_dir / "tmp" / "workload"

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
                figures={},
            )
            error: LlmprofError | None = None
            try:
                self.stage.run(context)
            except ChildSkipped:
                raise
            except LlmprofError as caught:
                error = caught
            self._write(context, error)
        if error is not None:
            raise error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One tool at a time for a test: stages of one test may run in two workers."""
        try:
            self.workload.mkdir(parents=True, exist_ok=True)
            lock = (self.workload / ".lock").open("w")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise ArtifactError(f"cannot work in {self.workload}: {error.strerror}") from error
        with lock:
            yield

    def _child(self, out_dir: Path) -> Child:
        run_dir, temp, outputs = (self.workload / name for name in ("run", "temp", self.stage.workload))
        for directory in (run_dir, temp, *([outputs] if self.stage.outputs else [])):
            shutil.rmtree(directory, ignore_errors=True)
        temp.mkdir()
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
        ran: Mapping[str, Any] = {}
        if outcome.dir:
            directory = Path(outcome.dir)
            ran = read_json(directory / "metrics.json")
            for name in ("environment.json", "inputs.jsonl"):
                if (directory / name).exists():
                    shutil.copyfile(directory / name, context.out_dir / name)
        errors = list(ran.get("errors", ()))
        if error is not None and not errors:
            errors = [{"page": None, "error": " ".join(str(error).split())}]
        self.metrics = {
            "schema": ran.get("schema", 1),
            "test": self.settings.test,
            "id": self.test_id,
            "stage": self.settings.stage,
            "kind": ran.get("kind"),
            "status": "ok" if error is None else "error",
            "errors": errors,
            "rounds": ran.get("rounds", 0),
            "warmup": ran.get("warmup", 0),
            "pages": ran.get("pages", 0),
            "batch_size": self.settings.infer.batch_size,
            "deterministic": None,
            "samples": [],
            "round_seconds": [],
            "figures": as_dict(Figures(tokens=ran.get("figures", {}).get("tokens"))),
            "spread": {},
            "quality": ran.get("quality"),
            "quality_reason": ran.get("quality_reason"),
            "gates": ran.get("gates", []),
            "profile": None,
            "profiler_ran_before": False,
            **{name: ran[name] for name in _FROM_CHILD if name in ran},
            "fingerprint": {**ran.get("fingerprint", {}), "config": self.settings.digest},
            self.settings.stage: {**context.figures, "not_applied": outcome.notes},
        }
        write_json(context.out_dir / "metrics.json", self.metrics)
        write_report(context.out_dir)
