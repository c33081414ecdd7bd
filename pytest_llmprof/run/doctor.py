"""What `llmprof doctor` looks at in one session's configuration: the machine, the model, the pages, each stage."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llmprof.errors import LlmprofError, error_line
from pytest_llmprof.measure.checks import disk_check, gpu_checks, host_checks, missing_gpu_checks
from pytest_llmprof.records.checks import Check, MachineReport, not_checked, of_stage, ok, problem
from pytest_llmprof.stages.base import CheckContext
from pytest_llmprof.text.escape import one_line
from pytest_llmprof.text.numbers import count

if TYPE_CHECKING:
    from pytest_llmprof.config.schema import Settings
    from pytest_llmprof.run.session import Session


def examine(session: Session) -> MachineReport:
    """Look at all that the session's tests would need. Raises `LlmprofError` where its configuration is wrong."""
    settings = session.check()
    report = MachineReport(stages=list(settings.stages))
    report.other_stages = [stage.name for stage in session.stages if stage.name not in settings.stages]
    report.checks += _tried("Torch", _torch)
    if report.checks[-1].status != "problem":
        report.checks += _tried("Device", lambda: _device(settings, report))
    if report.device is not None:
        report.checks += _tried("GPU", lambda: gpu_checks(str(report.device), settings.model.device))
        report.checks += _tried("Host", host_checks)
    report.checks += _tried("Disk", lambda: _disk(session.run_dir))
    report.checks += _tried("Pages", lambda: _pages(session, settings))
    report.checks += _tried("Model", lambda: _model(session, settings))
    for name in (stage.name for stage in session.stages):
        checks = _tried("Stage", partial(_stage, session, settings, name, report.device))
        report.checks += of_stage(checks, name)
    return report


def _tried(name: str, checks: Callable[[], Iterable[Check]]) -> list[Check]:
    """The checks, as many as there are before one fails itself: each part is looked at, whatever another raises."""
    found: list[Check] = []
    try:
        found.extend(checks())
    except LlmprofError as error:
        found.append(problem(name, error_line(error), "see the message"))
    except Exception as error:  # noqa: BLE001 - a driver's, a library's or a stranger's: the rest is looked at
        found.append(problem(name, f"its check failed: {one_line(error_line(error))}", "report this with the message"))
    return found


def _torch() -> Iterator[Check]:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library that it is linked to
        yield problem("Torch", f"torch cannot be imported: {one_line(str(error))}", "install torch again")
        return
    yield ok("Torch", f"torch {torch.__version__}")


def _device(settings: Settings, report: MachineReport) -> Iterator[Check]:
    from pytest_llmprof.models.device import pick_device

    try:
        report.device = str(pick_device(settings.model.device))
    except LlmprofError as error:
        yield problem("Device", error_line(error), "use model.device=auto or cpu, or mend what is said of the GPU")
        yield from missing_gpu_checks(settings.model.device)


def _disk(run_dir: Path) -> Iterator[Check]:
    yield disk_check("Run directory", run_dir, "name another directory with --llmprof-run-dir")
    temporary = Path(tempfile.gettempdir())
    yield disk_check("Temporary files", temporary, "name another directory in TMPDIR")


def _pages(session: Session, settings: Settings) -> Iterator[Check]:
    try:
        pages = session.pages(settings.dataset)
    except LlmprofError as error:
        yield problem("Pages", error_line(error), "set dataset and dataset.root to pages that are there")
        return
    yield ok("Pages", f"{count(len(pages), 'page')} of {settings.dataset.name}")


def _model(session: Session, settings: Settings) -> Iterable[Check]:
    plugin = next(model for model in session.models if model.name == settings.model.name)
    if plugin.checks is None:
        return [not_checked("Model", f"the model {plugin.name} has no checks")]
    return plugin.checks(settings.model, settings.infer)


def _stage(session: Session, settings: Settings, name: str, device: str | None) -> Iterable[Check]:
    stage = session.stage(name)
    if stage.checks is None:
        return []
    if not settings.pipeline[name].enable:
        return [not_checked("Tool", f"pipeline.{name}.enable=false")]
    if device is None:
        return [not_checked("Stage", "there is no device for the model")]
    return stage.checks(CheckContext(replace(settings, stage=name), device))
