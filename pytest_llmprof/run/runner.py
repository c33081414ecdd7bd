"""One test in one stage: from settings to files. What the `llmprof` fixture calls; it knows no pytest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmprof.compare.gates import Gate, Verdict, judge
from pytest_llmprof.config.schema import Settings
from pytest_llmprof.datasets.base import Page
from pytest_llmprof.errors import ArtifactError, LlmprofError, PageError, StageError, error_line
from pytest_llmprof.measure.figures import FIGURE_NAMES, Figures, as_dict, figures_of, spread_of
from pytest_llmprof.models.base import LoadedModel
from pytest_llmprof.quality.score import PageQuality, Quality
from pytest_llmprof.records.files import write_json, write_text
from pytest_llmprof.records.predictions import Prediction
from pytest_llmprof.run.artifacts import Artifacts, output_dirs
from pytest_llmprof.stages.base import StageContext, StagePlugin, StageResult, Workload
from pytest_llmprof.stages.runner import Answer, Failure, Sample

if TYPE_CHECKING:
    from PIL.Image import Image

    from pytest_llmprof.outputs import Outputs

__all__ = ["PagesFailed", "RunResult", "Runner"]

METRICS_SCHEMA = 1


class PagesFailed(LlmprofError):
    """Pages failed; the others ran, and their files are there."""

    def __init__(self, text: str, details: str | None) -> None:
        super().__init__(text)
        self.details = details
        """The first failure's traceback, where it was not a known kind."""


@dataclass(frozen=True)
class RunResult(Figures):
    """What `llmprof.run()` and `llmprof.measure()` return: the figures, by the names of metrics.json, and more."""

    quality: Quality | None = None
    """None for a callable; figures inside are None where they are not applicable."""
    predictions: tuple[Prediction, ...] = ()
    """The first measured round's answers, page by page."""
    samples: tuple[Sample, ...] = ()
    round_seconds: tuple[float, ...] = ()
    deterministic: bool | None = None
    """Whether later rounds gave the first one's tokens; None for a single round."""
    profile: Mapping[str, Any] | None = None
    """Figures of the profiled window; None where none ran."""
    dir: Path = Path()
    """The stage directory."""
    value: Any = None
    """`measure`: what the callable returned in the last round."""


@dataclass
class Runner:
    """Runs a workload in a stage and writes the stage directory."""

    settings: Settings
    stage: StagePlugin
    artifacts: Artifacts
    test_id: str
    gates: tuple[Gate, ...]
    progress: Callable[[str], None]
    rootdir: Path
    profiler_ran_before: bool = False
    timed: bool = True
    """Whether times mean anything here; under a tool they don't, and are null."""
    verdicts: list[Verdict] = field(default_factory=list)
    """What came of the gates, once it ran."""
    result: StageResult | None = None
    """What the stage measured, once its files are written."""

    def pages(self, load: Callable[[], LoadedModel], pages: Sequence[Page], dataset_digest: str) -> RunResult:
        """Run every page through the model that *load* gives. Raises `PagesFailed` at the end where one failed."""
        from pytest_llmprof.outputs import Outputs, check_gallery, check_writable
        from pytest_llmprof.stages.workloads import PagesWorkload

        dirs = output_dirs(self.settings, self.artifacts)
        out_dir = self._begin()
        # Found out before the model loads.
        if dirs.prediction is not None:
            check_writable(dirs.prediction, self.settings.save_dir_named("prediction"))
        if dirs.visualization is not None:
            named = self.settings.save_dir_named("visualization")
            check_writable(dirs.visualization, named)
            check_gallery(dirs.visualization, named)
        write_text(out_dir / "inputs.jsonl", "".join(_input_line(page) for page in pages))
        model = load()
        output = self.settings.current.output
        extra = output.extra.get(self.settings.model.name) if output is not None else None
        outputs = Outputs(
            dirs.prediction,
            dirs.visualization,
            title=f"{self.settings.test} · {self.settings.stage}",
            prompt_kind=model.prompt_kind(self.settings.infer),
            extra=extra,
        )
        answers = _Answers(self.settings, model, outputs, extra, timed=self.timed)
        workload = PagesWorkload(
            model,
            pages,
            self.settings.infer,
            on_answer=answers.add,
            on_failure=answers.fail,
            progress=self.progress,
        )
        facts = self._facts(model)
        try:
            result, error = self._stage(out_dir, workload)
        except BaseException:
            outputs.close(pages, facts)
            raise
        try:
            outputs.close(pages, facts)
        except ArtifactError as unwritten:  # what was measured is kept all the same
            error = error or unwritten
        about = {
            "model": asdict(model.info),
            "prompt": model.prompt(self.settings.infer),
            "dataset": {"name": self.settings.dataset.name, "digest": dataset_digest, "pages": len(pages)},
        }
        return self._finish(out_dir, workload, result, error, answers, about, model.capabilities.block)

    def callable(self, call: Callable[[], Any], name: str, device: str) -> RunResult:
        """Run a callable."""
        from pytest_llmprof.stages.workloads import CallableWorkload

        out_dir = self._begin()
        workload = CallableWorkload(call, name, device, self.progress)
        result, error = self._stage(out_dir, workload)
        return self._finish(out_dir, workload, result, error, None, {"callable": name})

    def _begin(self) -> Path:
        out_dir = self.artifacts.begin(self.settings.stage)
        write_text(out_dir / "config.yaml", self.settings.yaml)
        return out_dir

    def _facts(self, model: LoadedModel) -> dict[str, str]:
        info = model.info
        return {
            "model": f"{info.name}, {info.weights} weights, {info.parameters / 1e6:.1f} M parameters",
            "mode": info.mode,
            "device": f"{info.device}, {info.dtype}, engine {info.engine}",
            "prompt": self.settings.infer.prompt,
        }

    def _stage(self, out_dir: Path, workload: Workload) -> tuple[StageResult, BaseException | None]:
        """Do the stage's work; an error of its own comes back, so that the files are written first."""
        from pytest_llmprof.measure.memory import PeakMemory, PhasePeaks
        from pytest_llmprof.measure.phases import WARMUP_DOMAIN, PhaseRecorder

        def recorder(domain: str) -> PhaseRecorder:
            # Reading the phases' peaks takes time, so it is done where no clock runs.
            peaks = PhasePeaks(PeakMemory(workload.device)) if domain == WARMUP_DOMAIN else None
            return PhaseRecorder(workload.device, domain=domain, peaks=peaks)

        context = StageContext(
            settings=self.settings,
            out_dir=out_dir,
            workload=workload,
            recorder=recorder,
            progress=self.progress,
            result=StageResult(),
        )
        try:
            self.stage.run(context)
        except Exception as error:  # noqa: BLE001 - raised again once what was measured is written
            return context.result, error
        if workload.disturbed:
            more = f" (and {len(workload.disturbed) - 1} more like it)" if len(workload.disturbed) > 1 else ""
            return context.result, StageError(workload.disturbed[0] + more)
        return context.result, None

    def _finish(
        self,
        out_dir: Path,
        workload: Any,
        result: StageResult,
        error: BaseException | None,
        answers: _Answers | None,
        about: dict[str, Any],
        token_block: int | None = None,
    ) -> RunResult:
        from pytest_llmprof.measure.environment import environment
        from pytest_llmprof.report import write_report

        if strange := sorted(set(result.figures) - set(FIGURE_NAMES)):
            names = ", ".join(strange)
            error = error or StageError(f"the stage {self.settings.stage} gave figures that there are not: {names}")
        own = {name: value for name, value in result.figures.items() if name not in strange}
        figures = replace(figures_of(result.samples, result.round_seconds, result.energy), **own)
        if not self.timed:
            figures = Figures(tokens=figures.tokens)
        quality = answers.quality() if answers is not None else None
        named = {**as_dict(figures), **(asdict(quality) if quality is not None else {})}
        self.verdicts = judge(self.gates, named) if error is None else []
        place = environment(
            workload.device,
            self.rootdir,
            before=result.card_before,
            after=result.card_after,
            reason=result.card_reason,
        )
        failures: list[Failure] = workload.failures
        metrics = {
            "schema": METRICS_SCHEMA,
            "test": self.settings.test,
            "id": self.test_id,
            "stage": self.settings.stage,
            "kind": workload.kind,
            "status": "error" if failures or error is not None else "ok",
            "errors": [{"page": failure.page, "error": failure.error} for failure in failures]
            + [{"page": None, "error": " ".join(line.split())} for line in workload.disturbed]
            + ([{"page": None, "error": error_line(error)}] if error and not workload.disturbed else []),
            "rounds": len(result.round_seconds),
            "warmup": self.settings.measure.warmup,
            "pages": len({sample.page for sample in result.samples}),
            "batch_size": self.settings.infer.batch_size,
            "token_block": token_block,
            "deterministic": workload.deterministic,
            "samples": [asdict(sample) for sample in result.samples],
            "round_seconds": result.round_seconds,
            "phase_peaks": {name: asdict(peak) for name, peak in workload.phase_peaks.items()} or None,
            "energy": {
                "reason": result.energy_reason,
                "update_s": result.energy_update_s,
                "rounds": [asdict(taken) for taken in result.energy],
            },
            "figures": as_dict(figures),
            "spread": spread_of(result.samples, result.round_seconds) if self.timed else {},
            "quality": asdict(quality) if quality is not None else None,
            "quality_reason": answers.why_no_quality() if answers is not None else None,
            "gates": [asdict(verdict) for verdict in self.verdicts],
            "profile": result.profile,
            **result.blocks,
            "profiler_ran_before": self.profiler_ran_before,
            **about,
            "fingerprint": {
                "card": place.get("gpu", {}).get("name") if isinstance(place.get("gpu"), dict) else None,
                "device": workload.device,
                "model": about.get("model", {}).get("digest"),
                "dataset": about.get("dataset", {}).get("digest"),
                "config": self.settings.digest,
                "versions": place.get("versions"),
            },
        }
        write_json(out_dir / "environment.json", place)
        write_json(out_dir / "metrics.json", metrics)
        write_report(out_dir)
        self.result = result
        if error is not None:
            raise error
        if failures:
            raise PagesFailed(_failed_pages(failures), failures[0].details)
        if not result.samples:
            raise StageError("no page was measured")
        return RunResult(
            **as_dict(figures),
            quality=quality,
            predictions=tuple(answers.records) if answers is not None else (),
            samples=tuple(result.samples),
            round_seconds=tuple(result.round_seconds),
            deterministic=workload.deterministic,
            profile=result.profile,
            dir=out_dir,
            value=getattr(workload, "result", None),
        )


def _failed_pages(failures: Sequence[Failure]) -> str:
    first = failures[0]
    more = f" (and {len(failures) - 1} more: {', '.join(item.page for item in failures[1:6])})"
    return f"{len(failures)} page(s) failed: {first.page}: {first.error}{more if len(failures) > 1 else ''}"


def _input_line(page: Page) -> str:
    import msgspec

    from pytest_llmprof.datasets import image_digest

    line = {
        "page": page.name,
        "image": page.source,
        "sha256": image_digest(page),
        "truth": [
            kind
            for kind, there in (
                ("free", page.truth_free is not None),
                ("markdown", page.truth_markdown is not None),
                ("boxes", page.truth_boxes is not None),
            )
            if there
        ],
        "license": page.license,
    }
    return msgspec.json.encode(line).decode() + "\n"


_NO_TIMES: dict[str, Any] = {
    item.name: None for item in fields(Prediction) if item.name.endswith("_ms") or item.name == "tokens_per_s"
}


class _Answers:
    """Turns tokens into records and scores, between pages, with the clock stopped."""

    def __init__(
        self, settings: Settings, model: LoadedModel, outputs: Outputs, extra: Any, *, timed: bool = True
    ) -> None:
        from pytest_llmprof.outputs import output_options

        self.records: list[Prediction] = []
        self._settings = settings
        self._model = model
        self._outputs = outputs
        self._scores: list[PageQuality] = []
        self._random = model.info.weights == "random"
        self._prompt = model.prompt(settings.infer)
        self._kind = model.prompt_kind(settings.infer)
        self._prediction = partial(Prediction, stage=settings.stage, prompt=self._prompt)
        self._strip = output_options(extra).prediction.strip_special_tokens
        self._truths = 0
        self._timed = timed

    def add(self, page: Page, image: Image, answer: Answer, sample: Sample) -> None:
        from pytest_llmprof.quality import score_page

        try:
            text = answer.text(self._model)
            parsed = self._model.parse(text, image.size)
        except Exception as error:  # a model's own code: it fails its page by name
            raise PageError(f"the model cannot read its answer: {error_line(error)}") from error
        score = score_page(page, self._kind, parsed, answer.finish, random_weights=self._random)
        self._scores.append(score)
        self._truths += page.truth(self._kind) is not None
        phases = sample.phases
        self._put(
            parsed.plain,
            self._prediction(
                page=page.name,
                image=page.source,
                status="ok",
                error=None,
                batch_id=sample.batch_id,
                batch_size=sample.batch_size,
                round=sample.round,
                text_raw=text,
                text_clean=parsed.plain if self._strip else text,
                boxes=parsed.boxes,
                bad_boxes=parsed.bad_boxes,
                tokens=sample.tokens,
                finish_reason=answer.finish,
                preprocess_ms=phases.get("preprocess"),
                vision_ms=phases.get("vision"),
                prefill_ms=phases.get("prefill"),
                decode_ms=phases.get("decode"),
                other_ms=sample.other_ms,
                total_ms=sample.total_ms,
                ttft_ms=sample.ttft_ms,
                tokens_per_s=1000.0 / sample.tpot_ms if sample.tpot_ms else None,
                cer=score.cer,
                wer=score.wer,
                box_iou=score.box_iou,
                repetition=score.repetition,
                runaway=score.runaway,
            ),
        )

    def fail(self, page: Page, batch_id: int, batch_size: int, text: str) -> None:
        if any(record.page == page.name for record in self.records):
            return  # it was answered in an earlier round; the failure is told by the test
        self._put(
            "",
            self._prediction(
                page=page.name,
                image=page.source,
                status="error",
                error=text,
                batch_id=batch_id,
                batch_size=batch_size,
                round=0,
                text_raw="",
                text_clean="",
                boxes=(),
                bad_boxes=0,
                tokens=0,
                finish_reason=None,
                preprocess_ms=None,
                vision_ms=None,
                prefill_ms=None,
                decode_ms=None,
                other_ms=None,
                total_ms=None,
                ttft_ms=None,
                tokens_per_s=None,
                cer=None,
            ),
        )

    def _put(self, plain: str, record: Prediction) -> None:
        if not self._timed:
            record = replace(record, **_NO_TIMES)
        self.records.append(record)
        self._outputs.add(record, plain)

    def quality(self) -> Quality:
        from pytest_llmprof.quality import summarise

        return summarise(self._scores)

    def why_no_quality(self) -> str | None:
        """Why CER is null, or None where it is not."""
        if self._random:
            return "random weights"
        if self._truths:
            return None
        return "no page has truth" if self._scores else "no page was answered"

