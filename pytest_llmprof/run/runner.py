"""One test in one stage: from settings to files. What the `llmprof` fixture calls; it knows no pytest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_llmprof.config.schema import Settings
from pytest_llmprof.datasets.base import Page, Pages
from pytest_llmprof.errors import ArtifactError, LlmprofError, PageError, StageError, error_line, nearest
from pytest_llmprof.measure.figures import figures_of, spread_of
from pytest_llmprof.models.base import LoadedModel
from pytest_llmprof.quality.score import PageQuality
from pytest_llmprof.records.catalogue import Catalogue, Metric
from pytest_llmprof.records.files import encode_json, write_text
from pytest_llmprof.records.metrics import DatasetInfo, ErrorRecord, Fingerprint, LeftOut, Metrics, Sample
from pytest_llmprof.records.predictions import Prediction
from pytest_llmprof.records.stage import StageRecords
from pytest_llmprof.run.artifacts import Artifacts
from pytest_llmprof.run.gates import Judge, TestGates
from pytest_llmprof.stages.base import ShowProgress, StageContext, StagePlugin, StageResult, Workload
from pytest_llmprof.stages.contract import Answer, check_model
from pytest_llmprof.stages.failures import Failure
from pytest_llmprof.text.numbers import count, millions

if TYPE_CHECKING:
    from PIL.Image import Image

    from pytest_llmprof.measure.duet import Duet
    from pytest_llmprof.outputs import Outputs


_NAMED = 20
"""Files that metrics.json names of those left out, for each reason."""


class PagesFailed(LlmprofError):
    """Pages failed; the others ran, and their files are there."""

    def __init__(self, text: str, details: str | None) -> None:
        super().__init__(text)
        self.details = details
        """The first failure's traceback, where it was not a known kind."""


class Values(Mapping[str, float | None]):
    """Metrics by name, as items and as attributes: `values["cer"]`, `values.cer`. None where one cannot be known."""

    def __init__(self, values: Mapping[str, float | None]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> float | None:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getattr__(self, name: str) -> float | None:
        if name.startswith("_") or name not in self._values:
            raise AttributeError(f"unknown metric {name!r}{nearest(name, self.__dict__.get('_values', ()))}")
        return self._values[name]

    def __repr__(self) -> str:
        return f"Values({self._values!r})"


class RunResult(Values):
    """What `llmprof.run()` and `llmprof.measure()` return: `run.ttft_ms`, `run.quality.cer`, and more.

    The attributes are the metrics of the catalogue that metrics.json has under `figures`.
    """

    def __init__(
        self, metrics: Metrics, profile: object, predictions: tuple[Prediction, ...], dir: Path, value: Any
    ) -> None:
        super().__init__(metrics.figures)
        self.quality = None if metrics.quality is None else Values(metrics.quality)
        """None for a callable; values inside are None where they are not applicable."""
        self.predictions = predictions
        """The first measured round's answers, page by page."""
        self.samples = tuple(metrics.samples)
        self.round_seconds = tuple(metrics.round_seconds)
        self.deterministic = metrics.deterministic
        """Whether later rounds gave the first one's tokens; None for a single round."""
        self.profile: Mapping[str, Any] | None = msgspec.to_builtins(profile)
        """Results of the profiled window; None where none ran."""
        self.dir = dir
        """The stage directory."""
        self.value = value
        """`measure`: what the callable returned in the last round."""


@dataclass
class Runner:
    """Runs a workload in a stage and writes the stage directory."""

    settings: Settings
    stage: StagePlugin
    artifacts: Artifacts
    test_id: str
    gates: TestGates
    catalogue: Catalogue
    progress: ShowProgress
    rootdir: Path
    profiler_ran_before: bool = False
    timed: bool = True
    """Whether times mean anything here; under a tool they don't, and are null."""
    duet: Duet | None = None
    """The connection to the process that measures beside this one."""
    records: StageRecords | None = None
    """What was measured, once it is."""

    def __post_init__(self) -> None:
        self._judge = Judge(self.gates, self.catalogue)

    def pages(self, load: Callable[[], LoadedModel], pages: Sequence[Page], dataset_digest: str) -> RunResult:
        """Run every page through the model that *load* gives. Raises `PagesFailed` at the end where one failed."""
        out_dir = self._begin()
        with self.artifacts.outputs(self.settings) as dirs:  # before the model loads
            return self._pages(out_dir, dirs, load, pages, dataset_digest)

    def _pages(
        self,
        out_dir: Path,
        dirs: Mapping[str, Path],
        load: Callable[[], LoadedModel],
        pages: Sequence[Page],
        dataset_digest: str,
    ) -> RunResult:
        from pytest_llmprof.outputs import Outputs
        from pytest_llmprof.stages.runner import PagesWorkload

        left_out = pages.left_out if isinstance(pages, Pages) else {}
        lines = [*map(_input_line, pages)]
        lines += [_left_out_line(file, reason) for reason, files in left_out.items() for file in files]
        write_text(out_dir / "inputs.jsonl", "".join(lines))
        model = load()
        check_model(model, self.settings.infer)
        output = self.settings.current.output
        extra = output.extra.get(self.settings.model.name) if output is not None else None
        outputs = Outputs(
            dirs.get("prediction"),
            dirs.get("visualization"),
            title=f"{self.settings.test} · {self.settings.stage}",
            prompt_kind=model.prompt_kind(self.settings.infer),
            extra=extra,
        )
        answers = _Answers(self.settings, model, outputs, extra, self.catalogue, timed=self.timed)
        workload = PagesWorkload(
            model,
            pages,
            self.settings.infer,
            max_failed_pages=self.settings.measure.max_failed_pages,
            on_answer=answers.add,
            on_failure=answers.fail,
            progress=self.progress,
        )
        info, prompt = model.info, model.prompt(self.settings.infer)
        facts = {
            "model": f"{info.name}, {info.weights} weights, {millions(info.parameters)} parameters",
            "mode": info.mode,
            "device": f"{info.device}, {info.dtype}, engine {info.engine}",
            "prompt": self.settings.infer.prompt,
        }

        def measured(result: StageResult) -> Metrics:
            metrics = self._metrics(
                workload,
                result,
                token_block=model.capabilities.block,
                model=info,
                prompt=prompt,
                prompt_note=_prompt_note(self.settings.infer.prompt, prompt),
                dataset=DatasetInfo(
                    self.settings.dataset.name,
                    dataset_digest,
                    len(pages),
                    [LeftOut(reason, len(files), list(files[:_NAMED])) for reason, files in left_out.items()],
                ),
                quality=answers.quality(),
                quality_reason=answers.why_no_quality(),
            )
            metrics.fingerprint.model = info.digest
            metrics.fingerprint.engine = info.engine
            metrics.fingerprint.engine_reason = self.settings.infer.engine_reason
            metrics.fingerprint.dataset = dataset_digest
            metrics.figures |= answers.scores("figures")
            return metrics

        try:
            result, error = self._stage(out_dir, workload, measured)
        except BaseException:
            outputs.close(pages, facts)
            raise
        try:
            outputs.close(pages, facts)
        except ArtifactError as unwritten:  # what was measured is kept all the same
            error = error or unwritten
        return self._finish(out_dir, workload, result, error, measured(result), tuple(answers.records))

    def callable(self, call: Callable[[], Any], name: str, device: str) -> RunResult:
        """Run a callable."""
        from pytest_llmprof.stages.callable import CallableWorkload

        out_dir = self._begin()
        workload = CallableWorkload(call, name, device, self.progress, self.settings.measure.iterations)

        def measured(result: StageResult) -> Metrics:
            return self._metrics(workload, result, callable=name)

        result, error = self._stage(out_dir, workload, measured)
        return self._finish(out_dir, workload, result, error, measured(result), ())

    def _begin(self) -> Path:
        out_dir = self.artifacts.begin(self.settings.stage)
        write_text(out_dir / "config.yaml", self.settings.yaml)
        return out_dir

    def _stage(
        self, out_dir: Path, workload: Workload, measured: Callable[[StageResult], Metrics]
    ) -> tuple[StageResult, BaseException | None]:
        """Do the stage's work; an error of its own comes back, so that the files are written first.

        *measured* gives the metrics of a result, also while more rounds may come.
        """
        from pytest_llmprof.measure.memory import PeakMemory, PhasePeaks
        from pytest_llmprof.measure.phases import WARMUP_DOMAIN, PhaseRecorder

        def recorder(domain: str) -> PhaseRecorder:
            # Reading the phases' peaks takes time, so it is done where no clock runs.
            peaks = PhasePeaks(PeakMemory(workload.device)) if domain == WARMUP_DOMAIN else None
            return PhaseRecorder(workload.device, domain=domain, peaks=peaks)

        result = StageResult()

        def more_rounds() -> int:
            if not self._judge.looks or workload.failures or workload.disturbed or not result.samples:
                return 0
            records = self._records(workload, result, measured(result), None)
            return self._judge.more_rounds(records, out_dir)

        context = StageContext(
            settings=self.settings,
            out_dir=out_dir,
            workload=workload,
            recorder=recorder,
            progress=self.progress,
            result=result,
            more_rounds=more_rounds,
            test_id=self.test_id,
            duet=self.duet,
        )
        try:
            self.stage.run(context)
        except Exception as error:  # noqa: BLE001 - raised again once what was measured is written
            if self.duet is not None:
                self.duet.leave()
            return context.result, error
        if workload.disturbed:
            more = f" (and {len(workload.disturbed) - 1} more like it)" if len(workload.disturbed) > 1 else ""
            return context.result, StageError(workload.disturbed[0] + more)
        return context.result, None

    def _metrics(self, workload: Workload, result: StageResult, **more: Any) -> Metrics:
        """What pages and callables have in common, and *more*."""
        seconds = [spent / workload.iterations for spent in result.round_seconds]
        return Metrics(
            test=self.settings.test,
            id=self.test_id,
            stage=self.settings.stage,
            kind=workload.kind,
            status="ok",
            rounds=len(result.round_seconds),
            warmup=self.settings.measure.warmup,
            pages=len({sample.page for sample in result.samples}),
            batch_size=self.settings.infer.batch_size,
            deterministic=workload.deterministic,
            samples=result.samples,
            round_seconds=result.round_seconds,
            round_host=result.round_host if self.timed else [],
            phase_peaks=workload.phase_peaks or None,
            energy=result.energy,
            iterations=workload.iterations,
            figures=figures_of(result.samples, seconds, result.energy.rounds, self.catalogue, workload.iterations),
            spread=spread_of(result.samples, seconds, self.catalogue) if self.timed else {},
            profiler_ran_before=self.profiler_ran_before,
            fingerprint=Fingerprint(device=workload.device, config=self.settings.digest),
            **more,
        )

    def _finish(
        self,
        out_dir: Path,
        workload: Workload,
        result: StageResult,
        error: BaseException | None,
        metrics: Metrics,
        predictions: tuple[Prediction, ...],
    ) -> RunResult:
        """Judge the gates, write the files, then raise what went wrong."""
        from pytest_llmprof.report import write_report

        error = error or self.catalogue.undeclared(result.figures, self.settings.stage)
        records = self._records(workload, result, metrics, error)
        if error is None:
            try:
                metrics.gates = self._judge.judge(records, out_dir)
            except ArtifactError as unread:
                error = unread
                records = self._records(workload, result, metrics, error)
        self.records = records
        try:
            records.write(out_dir)
            write_report(out_dir, self.stage, self.catalogue)
        except (ArtifactError, StageError) as unwritten:  # what was measured is kept all the same
            error = error or unwritten
        if error is not None:
            raise error
        if metrics.status == "error":
            raise PagesFailed(_failed_pages(workload.failures), workload.failures[0].details)
        if not result.samples:
            raise StageError("no page was measured")
        return RunResult(metrics, result.profile, predictions, out_dir, workload.value)

    def _records(
        self, workload: Workload, result: StageResult, metrics: Metrics, error: BaseException | None
    ) -> StageRecords:
        """What is written of *metrics*: with the stage's own metrics, errors and the machine."""
        from pytest_llmprof.measure.environment import environment

        if hosts := result.round_host:
            metrics.figures["contended"] = sum(host.contended for host in hosts) / len(hosts)
        metrics.figures |= {name: value for name, value in result.figures.items() if name in metrics.figures}
        if not self.timed:
            kept = self.catalogue.without_times()
            metrics.figures = {name: value if name in kept else None for name, value in metrics.figures.items()}
        failures = workload.failures
        may_fail = (self.settings.measure.max_failed_pages or 0) if workload.kind == "pages" else 0
        metrics.status = "error" if len(failures) > may_fail or error is not None else "ok"
        metrics.errors = [ErrorRecord(failure.page, failure.error) for failure in failures]
        metrics.errors += [ErrorRecord(None, " ".join(line.split())) for line in workload.disturbed]
        if error is not None and not workload.disturbed:
            metrics.errors.append(ErrorRecord(None, error_line(error)))
        place = environment(
            workload.device,
            self.rootdir,
            before=result.gpu_before,
            after=result.gpu_after,
            reason=result.gpu_reason,
            duet=self.duet is not None,
        )
        metrics.fingerprint.card = place.gpu.name if place.gpu is not None else None
        metrics.fingerprint.versions = place.versions
        return StageRecords(metrics, {"profile": result.profile, **result.blocks}, place)


def _prompt_note(typed: str, prompt: str) -> str | None:
    r"""How `\n` in the *typed* prompt, a backslash and an n, came into the model's *prompt*."""
    if r"\n" not in typed:
        return None
    if prompt.count(r"\n") < typed.count(r"\n"):
        return r"infer.prompt: the \n beside the image is read as a line break"
    return r"infer.prompt: its \n stays a backslash and an n; type a line break as one (in bash $'...')"


def _failed_pages(failures: Sequence[Failure]) -> str:
    first = failures[0]
    names = ", ".join([*(item.page for item in failures[1:6]), *(["…"] if len(failures) > 6 else [])])
    more = f" (and {len(failures) - 1} more: {names})"
    return f"{count(len(failures), 'page')} failed: {first.page}: {first.error}{more if len(failures) > 1 else ''}"


def _input_line(page: Page) -> str:
    from pytest_llmprof.datasets import image_digest

    line = {
        "page": page.name,
        "image": page.source,
        "sha256": image_digest(page),
        "truth": [kind for kind in ("free", "markdown", "boxes") if getattr(page, f"truth_{kind}") is not None],
        "license": page.license,
        "left_out": None,
    }
    return encode_json(line).decode() + "\n"


def _left_out_line(file: str, reason: str) -> str:
    none: dict[str, Any] = {"sha256": None, "truth": [], "license": None}
    line = {"page": None, "image": file, **none, "left_out": reason}
    return encode_json(line).decode() + "\n"


_SAMPLED = ("batch_id", "batch_size", "round", "tokens", "other_ms", "total_ms", "ttft_ms")
"""What a prediction takes from the page's sample as it is."""
_TIMES = tuple(name for name in Prediction.__struct_fields__ if name.endswith("_ms") or name == "tokens_per_s")


class _Answers:
    """Turns tokens into records and scores, between pages, with the clock stopped."""

    def __init__(
        self,
        settings: Settings,
        model: LoadedModel,
        outputs: Outputs,
        extra: Any,
        catalogue: Catalogue,
        *,
        timed: bool,
    ) -> None:
        from pytest_llmprof.outputs import output_options

        self.records: list[Prediction] = []
        self._model = model
        self._outputs = outputs
        self._timed = timed
        self._quality: list[PageQuality] = []
        self._random = model.info.weights == "random"
        self._kind = model.prompt_kind(settings.infer)
        prompt = model.prompt(settings.infer)
        self._prediction: Callable[..., Prediction] = partial(Prediction, stage=settings.stage, prompt=prompt)
        self._strip = output_options(extra).prediction.strip_special_tokens
        self._scored = [metric for metric in catalogue if metric.score is not None]
        self._truths = 0

    def add(self, page: Page, image: Image, answer: Answer, sample: Sample) -> None:
        """Take a page's first answer. Raises `PageError` where the model or a metric cannot read it."""
        from pytest_llmprof.quality import score_page

        try:
            text, parsed = answer.parse(self._model, image)
        except Exception as error:  # a model's own code: it fails its page by name
            raise PageError(f"the model cannot read its answer: {error_line(error)}") from error
        quality = score_page(page, self._kind, parsed, answer.finish, random_weights=self._random)
        record = self._prediction(
            page=page.name,
            image=page.source,
            status="ok",
            text_raw=text,
            text_clean=parsed.plain if self._strip else text,
            boxes=parsed.boxes,
            bad_boxes=parsed.bad_boxes,
            finish_reason=answer.finish,
            tokens_per_s=1000.0 / sample.tpot_ms if sample.tpot_ms else None,
            **{name: getattr(sample, name) for name in _SAMPLED},
            **{f"{name}_ms": sample.phases.get(name) for name in ("preprocess", "vision", "prefill", "decode")},
            **{name: getattr(quality, name) for name in ("cer", "wer", "box_iou", "repetition", "runaway")},
        )
        scores = {metric.name: _score(metric, page, record) for metric in self._scored}
        self._quality.append(quality)
        self._truths += page.truth(self._kind) is not None
        self._put(parsed.plain, msgspec.structs.replace(record, scores=scores))

    def fail(self, page: Page, batch_id: int, batch_size: int, text: str) -> None:
        """Take a page that could not be read or run."""
        if any(record.page == page.name for record in self.records):
            return  # it was answered in an earlier round; the failure is told by the test
        batch = {"batch_id": batch_id, "batch_size": batch_size, "round": 0}
        self._put("", self._prediction(page=page.name, image=page.source, status="error", error=text, **batch))

    def _put(self, plain: str, record: Prediction) -> None:
        if not self._timed:
            record = msgspec.structs.replace(record, **dict.fromkeys(_TIMES))
        self.records.append(record)
        self._outputs.add(record, plain)

    def scores(self, section: str) -> dict[str, float | None]:
        """The metrics of *section* that plugins compute of each page, reduced over the pages."""
        found: dict[str, float | None] = {}
        for metric in self._scored:
            if metric.section == section:
                values = [one for record in self.records if (one := record.scores.get(metric.name)) is not None]
                reduced = sum(values) if metric.reduce == "sum" else sum(values) / max(len(values), 1)
                found[metric.name] = (max(values) if metric.reduce == "max" else reduced) if values else None
        return found

    def quality(self) -> dict[str, float | None]:
        """The object `quality` of metrics.json."""
        from pytest_llmprof.quality import summarise

        return {**summarise(self._quality), **self.scores("quality")}

    def why_no_quality(self) -> str | None:
        """Why CER is null, or None where it is not."""
        if self._random:
            return "random weights"
        if self._truths:
            return None
        return "no page has truth" if self._quality else "no page was answered"


def _score(metric: Metric, page: Page, record: Prediction) -> float | None:
    assert metric.score is not None
    try:
        value = metric.score(page, record)
        return None if value is None else float(value)
    except Exception as error:  # a plugin's own code: it fails its page by name
        raise PageError(f"the metric {metric.name} cannot be computed: {error_line(error)}") from error
