"""The fixtures that tests ask for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmprof.errors import ConfigError, EngineUnavailable, StageError
from pytest_llmprof.plugin import options
from pytest_llmprof.plugin.items import ITEM, ItemState
from pytest_llmprof.plugin.shared import SHARED, SharedState
from pytest_llmprof.text.escape import visible

if TYPE_CHECKING:
    from pytest_llmprof.config.schema import Settings
    from pytest_llmprof.datasets.base import Page
    from pytest_llmprof.models.base import LoadedModel
    from pytest_llmprof.run.artifacts import Artifacts
    from pytest_llmprof.run.runner import RunResult


@dataclass(frozen=True)
class OutputKind:
    """One kind of output."""

    enable: bool
    dir: Path
    """Absolute; it exists once something was written."""


@dataclass(frozen=True)
class Output:
    """This test's outputs in its stage."""

    prediction: OutputKind
    visualization: OutputKind
    extra: Any
    """This model's own options (`pipeline.<stage>.output.extra.<model>`)."""


class LlmProf:
    """Runs one workload in this test's stage: `run()` the dataset's pages, or `measure()` a callable."""

    def __init__(self, request: pytest.FixtureRequest, state: ItemState, shared: SharedState) -> None:
        self._request = request
        self._state = state
        self._shared = shared
        self._used: str | None = None

    @property
    def settings(self) -> Settings:
        """This test's resolved configuration."""
        assert self._state.settings is not None
        return self._state.settings

    def run(self) -> RunResult:
        """Run every page of the dataset through the model in this stage and write the stage's files.

        Returns the figures by the names of metrics.json (`run.ttft_ms`, `run.quality.cer`, ...). Raises a
        one-line error at the end where a page failed; the other pages ran, and their files are there.
        """
        self._once("run()")
        pages: Sequence[Page] = self._request.getfixturevalue("llmprof_dataset")
        digest = self._shared.session.digest(pages)
        load = partial(self._request.getfixturevalue, "llmprof_model")
        return self._go(lambda runner: runner.pages(load, pages, digest))

    def measure(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> RunResult:
        """Measure a torch callable the same way: warm-up, rounds, profile. Arguments are handed on.

        `result.value` is what it returned in the last round.
        """
        self._once("measure()")
        if inspect.iscoroutinefunction(call):
            raise StageError("llmprof.measure() got a coroutine function: give it what runs the coroutine")
        from pytest_llmprof.models.device import pick_device

        name = getattr(call, "__qualname__", None) or type(call).__qualname__
        device = str(pick_device(self.settings.model.device))
        bound = partial(call, *args, **kwargs)
        return self._go(lambda runner: runner.callable(bound, name, device))

    def _once(self, name: str) -> None:
        if self._used is not None:
            raise StageError(
                f"llmprof.{name} after llmprof.{self._used}: one run() or measure() a test; make it two tests"
            )
        self._used = name

    def _go(self, work: Callable[[Any], RunResult]) -> RunResult:
        from pytest_llmprof.run.gates import TestGates
        from pytest_llmprof.run.runner import Runner
        from pytest_llmprof.stages.base import StagePlugin

        shared, session, state = self._shared, self._shared.session, self._state
        stage = session.stage(state.stage)
        assert isinstance(stage, StagePlugin)  # under a tool no test's body runs here
        rounds = self.settings.measure.rounds

        def progress(text: str, rounds_done: float | None = None) -> None:
            done = None if rounds_done is None else rounds_done / rounds
            shared.progress.show(f"{state.stage}: {text}", state.name, done)

        runner = Runner(
            settings=self.settings,
            stage=stage,
            artifacts=session.artifacts(state.test),
            test_id=self._request.node.nodeid,
            gates=state.gates or TestGates(),
            catalogue=session.catalogue,
            progress=progress,
            rootdir=shared.config.rootpath,
            profiler_ran_before=session.profiler_ran,
            timed=session.timed,
            duet=shared.duet,
        )
        try:
            result = work(runner)
        finally:
            if runner.records is not None:
                session.profiler_ran |= runner.records.blocks["profile"] is not None
                state.keep(self._request.node, runner.records, timed=session.timed)
        return result


def _state(request: pytest.FixtureRequest) -> ItemState:
    state: ItemState | None = request.node.stash.get(ITEM, None)
    if state is None:
        raise ConfigError(
            f"{request.node.nodeid} asks for {request.fixturename} while it runs: "
            "name the fixture among the test's arguments, so that the test can be run in each stage"
        )
    return state


def _shared(request: pytest.FixtureRequest) -> SharedState:
    return request.config.stash[SHARED]


@pytest.fixture
def llmprof_stage(request: pytest.FixtureRequest) -> str:
    """The stage this test runs in ("torch_profiler"): a test runs once for each stage of the session."""
    return _state(request).stage


@pytest.fixture
def llmprof_config(request: pytest.FixtureRequest, llmprof_stage: str) -> Settings:
    """This test's resolved configuration: frozen, typed, with its own marker's overrides."""
    settings = _state(request).settings
    assert settings is not None
    return settings


@pytest.fixture
def llmprof_artifacts(request: pytest.FixtureRequest, llmprof_stage: str) -> Artifacts:
    """This test's directories: `.out_dir("torch_profiler")` is the stage directory."""
    return _shared(request).session.artifacts(_state(request).test)


@pytest.fixture
def llmprof_output(llmprof_config: Settings, llmprof_artifacts: Artifacts) -> Output:
    """Where this test's predictions and gallery go: `.prediction.enable`, `.prediction.dir` (absolute),
    `.visualization.enable`, `.visualization.dir`, and `.extra`, this model's own options."""
    output = llmprof_config.current.output
    if output is None:
        raise ConfigError(f"the stage {llmprof_config.stage} has no outputs: llmprof_output is not for it")

    def kind(name: str) -> OutputKind:
        return OutputKind(getattr(output, name).enable, llmprof_artifacts.save_dir(llmprof_config, name))

    return Output(kind("prediction"), kind("visualization"), output.extra.get(llmprof_config.model.name))


@pytest.fixture
def llmprof_model(request: pytest.FixtureRequest, llmprof_config: Settings) -> LoadedModel:
    """The loaded model of this test's configuration. One is kept between tests, and freed when another is asked for.

    A test whose engine lacks something on this machine (a compiler, say) is skipped with the reason; with
    `--llmprof-strict` it fails."""
    shared, state = _shared(request), _state(request)
    try:
        return shared.session.model_cache.get(llmprof_config, lambda text: shared.progress.show(text, state.name))
    except EngineUnavailable as error:
        if options.strict(request.config):
            raise
        state.unavailable = str(error)
        pytest.skip(visible(str(error)))


@pytest.fixture
def llmprof_dataset(request: pytest.FixtureRequest, llmprof_config: Settings) -> Sequence[Page]:
    """The pages of this test's dataset with their truth, after pattern, subset, shuffle and limit."""
    return _shared(request).session.pages(llmprof_config.dataset)


@pytest.fixture
def llmprof(request: pytest.FixtureRequest, llmprof_config: Settings, llmprof_artifacts: Artifacts) -> LlmProf:
    """Run this test's workload in its stage: `llmprof.run()` sends every page of the dataset through the model,
    `llmprof.measure(fn, ...)` does the same for any torch callable. One of them, once a test."""
    return LlmProf(request, _state(request), _shared(request))
