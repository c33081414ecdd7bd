"""The measured loop and the profiled window, with a model that only counts and waits."""

import time
from pathlib import Path

import pytest
from PIL import Image

from pytest_llmprof.config.schema import InferSettings
from pytest_llmprof.config.stages import Window
from pytest_llmprof.datasets.base import Page
from pytest_llmprof.errors import LlmprofError, PageError
from pytest_llmprof.measure.phases import PhaseRecorder
from pytest_llmprof.models.base import ModelInfo, Token
from pytest_llmprof.stages.workloads import CallableWorkload, PagesWorkload


class CountingModel:
    """Yields 0, 1, 2, ...; sleeps where it is told to."""

    info = ModelInfo("counting", "random", "none", 0, "cpu", "float32", "tiny", "reference")

    def __init__(self, tokens=10, delays=None, fail_on=None):
        self.tokens = tokens
        self.delays = delays or {}
        self.fail_on = fail_on
        self.calls = 0
        self.yielded = 0
        self.closed_at = []

    def generate(self, images, infer, phases):
        self.calls += 1
        for phase in ("preprocess", "vision", "prefill"):
            with phases.phase(phase):
                time.sleep(self.delays.get(phase, 0.0))
                if phase == self.fail_on:
                    raise ValueError("no\nluck")
        count = 0
        try:
            with phases.phase("decode"):
                for number in range(self.tokens):
                    with phases.step():
                        time.sleep(self.delays.get("step", 0.0))
                    for row in range(len(images)):
                        count += 1
                        finish = "eos" if number == self.tokens - 1 else None
                        yield Token(row, number, None, time.perf_counter_ns(), finish)
        finally:
            self.closed_at.append(count)

    def shape_key(self, image, infer):
        return image.size


class MemoryPage(Page):
    def load(self):
        if self.name == "broken":
            raise PageError("page broken: it is broken")
        return Image.new("RGB", (8, 8) if self.name != "wide" else (16, 8))


def pages(*names):
    return [MemoryPage(name=name, source=name, path=Path(name)) for name in names]


@pytest.fixture
def recorder():
    return PhaseRecorder("cpu")


def workload(model, names, batch_size=1):
    seen, failed = [], []
    work = PagesWorkload(
        model,
        pages(*names),
        InferSettings(batch_size=batch_size),
        on_answer=lambda page, image, answer, sample: seen.append((page.name, answer.ids, sample)),
        on_failure=lambda page, batch, size, text: failed.append((page.name, text)),
        progress=lambda text: None,
    )
    return work, seen, failed


@pytest.mark.parametrize("phase", ["preprocess", "vision", "prefill", "decode"])
def test_a_delay_is_found_in_its_phase(recorder, phase):
    model = CountingModel(tokens=2, delays={"step" if phase == "decode" else phase: 0.05})
    work, _, _ = workload(model, ["a"])
    (sample,), seconds = work.round(0, recorder)
    others = {name: spent for name, spent in sample.phases.items() if name != phase}
    assert sample.phases[phase] >= 50.0
    assert sample.phases[phase] > 2 * max(others.values())
    assert sample.total_ms == pytest.approx(seconds * 1e3)
    assert sample.total_ms == pytest.approx(sum(sample.phases.values()) + sample.other_ms)
    assert (sample.ttft_ms > 50.0) or phase == "decode"


def test_times_and_tokens_of_a_batch(recorder):
    work, seen, _ = workload(CountingModel(tokens=4), ["a", "b", "c"], batch_size=2)
    samples, _ = work.round(0, recorder)
    assert [(sample.page, sample.batch_id, sample.tokens) for sample in samples] == [
        ("a", 0, 4),
        ("b", 0, 4),
        ("c", 1, 4),
    ]
    assert [ids for _, ids, _ in seen] == [[0, 1, 2, 3]] * 3


def test_warmup_runs_one_batch_of_each_shape(recorder):
    model = CountingModel()
    work, seen, _ = workload(model, ["a", "b", "wide", "c"])
    work.warmup(2, recorder)
    assert model.calls == 4
    assert seen == []


def test_unequal_rounds_are_seen(recorder):
    model = CountingModel(tokens=3)
    work, _, _ = workload(model, ["a"])
    work.round(0, recorder)
    assert work.deterministic is None
    work.round(1, recorder)
    assert work.deterministic is True
    model.tokens = 4
    work.round(2, recorder)
    assert work.deterministic is False


def test_a_failed_page_does_not_stop_the_others(recorder):
    work, seen, failed = workload(CountingModel(), ["a", "broken", "b"])
    work.round(0, recorder)
    work.round(1, recorder)
    assert [name for name, _, _ in seen] == ["a", "b"]
    assert failed == [("broken", "page broken: it is broken")]


def test_a_models_own_error_names_the_phase_and_keeps_the_traceback(recorder):
    work, _, failed = workload(CountingModel(fail_on="vision"), ["a"])
    samples, _ = work.round(0, recorder)
    assert samples == []
    assert failed == [("a", "ValueError in phase vision: no luck")]
    assert "generate" in work.failures[0].details


@pytest.mark.parametrize(
    ("window", "before", "whole"),
    [
        (Window(1, 0, 3), 0, 4),  # the first token and three decode steps
        (Window(1, 5, 3), 5, 8),
        (Window(1, 8, 30), 8, 10),  # the answer ends first
    ],
)
def test_the_window_is_bounded_and_can_start_late(recorder, window, before, whole):
    model = CountingModel(tokens=10)
    work, _, _ = workload(model, ["a", "b"])
    (batch,) = work.windows(window, recorder)
    assert model.calls == 0
    next(batch)
    assert model.calls == (1 if before else 0)
    assert list(batch) == []
    assert model.closed_at == [whole]


def test_the_window_of_a_batch_counts_steps_not_tokens(recorder):
    model = CountingModel(tokens=10)
    work, _, _ = workload(model, ["a", "b"], batch_size=2)
    (batch,) = work.windows(Window(1, 4, 2), recorder)
    list(batch)
    assert model.closed_at == [2 * 6 - 1]  # closed as soon as the first row has its sixth token


def test_a_window_beyond_the_answer_says_so(recorder):
    work, _, _ = workload(CountingModel(tokens=10), ["a"])
    (batch,) = work.windows(Window(1, 50, 3), recorder)
    with pytest.raises(LlmprofError, match=r"after 10 tokens.*start_token=50"):
        next(batch)


def test_a_callable_is_a_workload(recorder):
    work = CallableWorkload(lambda: 41 + 1, "answer", "cpu", lambda text: None)
    work.warmup(1, recorder)
    (sample,), seconds = work.round(0, recorder)
    assert (sample.page, sample.tokens, work.result) == ("answer", 0, 42)
    assert sample.total_ms == pytest.approx(seconds * 1e3)
