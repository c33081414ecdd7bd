"""The measured loop and the profiled window, with a model that only counts and waits."""

import sys
import time
import weakref
from pathlib import Path

import pytest
from PIL import Image

from pytest_llmprof.config.schema import InferSettings
from pytest_llmprof.datasets.base import Page
from pytest_llmprof.errors import LlmprofError, ModelError, PageError, StageError
from pytest_llmprof.measure import phases as phases_module
from pytest_llmprof.measure.figures import figures_of
from pytest_llmprof.measure.memory import PhasePeaks
from pytest_llmprof.measure.phases import PhaseRecorder
from pytest_llmprof.models.base import ModelInfo, Token
from pytest_llmprof.records.metrics import Peak, RoundEnergy
from pytest_llmprof.stages import callable as callable_module
from pytest_llmprof.stages import runner as runner_module
from pytest_llmprof.stages.base import Window
from pytest_llmprof.stages.callable import CallableWorkload
from pytest_llmprof.stages.failures import out_of_memory
from pytest_llmprof.stages.runner import PagesWorkload, batch_rate, time_per_token


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


def workload(model, names, batch_size=1, on_answer=None):
    seen, failed = [], []
    work = PagesWorkload(
        model,
        pages(*names),
        InferSettings(batch_size=batch_size),
        on_answer=on_answer or (lambda page, image, answer, sample: seen.append((page.name, answer.ids, sample))),
        on_failure=lambda page, batch, size, text: failed.append((page.name, text)),
        progress=lambda *_: None,
    )
    return work, seen, failed


PHASES = ("preprocess", "vision", "prefill", "decode")


class Clock:
    """Stands, but for what a model says that it spent."""

    def __init__(self):
        self.now = 1_000_000

    def perf_counter_ns(self):
        return self.now

    def sleep(self, seconds):
        self.now += round(seconds * 1e9)


@pytest.mark.parametrize("phase", PHASES)
def test_a_delay_is_found_in_its_phase_and_nowhere_else(recorder, monkeypatch, phase):
    clock = Clock()
    for module in (phases_module, runner_module, sys.modules[__name__]):
        monkeypatch.setattr(module, "time", clock)
    model = CountingModel(tokens=3, delays={"step" if phase == "decode" else phase: 0.05})
    work, _, _ = workload(model, ["a"])
    (sample,), seconds = work.round(0, recorder)
    spent = 150.0 if phase == "decode" else 50.0
    assert sample.phases == {name: spent if name == phase else 0.0 for name in PHASES}
    assert (sample.total_ms, seconds * 1e3, sample.other_ms) == (spent, spent, 0.0)
    # The fake's first token comes after its first step.
    assert sample.ttft_ms == 50.0
    assert sample.tpot_ms == (50.0 if phase == "decode" else None)


def test_real_delays_are_in_the_phases_times(recorder):
    delays = {"preprocess": 0.02, "vision": 0.04, "prefill": 0.03, "step": 0.01}
    work, _, _ = workload(CountingModel(tokens=3, delays=delays), ["a"])
    (sample,), seconds = work.round(0, recorder)
    least = {"preprocess": 20.0, "vision": 40.0, "prefill": 30.0, "decode": 30.0}
    for name, milliseconds in least.items():
        # What is not the delay itself can only be as long as all that is no delay.
        assert milliseconds <= sample.phases[name] <= milliseconds + sample.total_ms - sum(least.values())
    assert sample.total_ms == pytest.approx(seconds * 1e3)
    assert sample.total_ms == pytest.approx(sum(sample.phases.values()) + sample.other_ms)
    assert sample.other_ms >= 0
    assert sample.phases["vision"] + sample.phases["prefill"] <= sample.ttft_ms


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


def test_a_device_that_stays_broken_hides_no_error(recorder, monkeypatch):
    """After an illegal access every later call into CUDA fails too, waiting for the device among them."""
    work, _, failed = workload(CountingModel(fail_on="vision"), ["a"])
    taken = []

    def take():
        taken.append(1)
        if len(taken) > 1:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return {}

    monkeypatch.setattr(recorder, "take", take)
    work.round(0, recorder)
    assert failed == [("a", "ValueError in phase vision: no luck")]


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
    work = CallableWorkload(lambda: 41 + 1, "answer", "cpu", lambda *_: None)
    work.warmup(1, recorder)
    (sample,), seconds = work.round(0, recorder)
    assert (sample.page, sample.tokens, work.value) == ("answer", 0, 42)
    assert sample.total_ms == pytest.approx(seconds * 1e3 / work.iterations)


class Calls:
    """A callable that takes *milliseconds* of a clock, the first call *first* more."""

    def __init__(self, clock, milliseconds, first=0.0):
        self.clock, self.milliseconds, self.first, self.count = clock, milliseconds, first, 0

    def __call__(self):
        self.clock.sleep((self.milliseconds + (0 if self.count else self.first)) / 1e3)
        self.count += 1
        return self.count


@pytest.mark.parametrize(
    ("milliseconds", "first", "given", "calls", "warmed"),
    [
        (0.05, 0.0, None, 256, 1 + 1 + 510),  # 128 of them take 6.4 ms
        (0.05, 900.0, None, 256, 1 + 1 + 510),  # a first call that compiles or initialises decides nothing
        (9.9, 0.0, None, 2, 1 + 1 + 2),
        (10.0, 0.0, None, 1, 1 + 1),
        (1000.0, 0.0, None, 1, 1),  # a long call is not made again to see how long it takes
        (0.05, 0.0, 1, 1, 1),
        (0.05, 0.0, 7, 7, 1),
    ],
)
def test_a_short_callable_is_called_until_a_round_is_long_enough(
    recorder, monkeypatch, milliseconds, first, given, calls, warmed
):
    clock = Clock()
    for module in (phases_module, callable_module):
        monkeypatch.setattr(module, "time", clock)
    call = Calls(clock, milliseconds, first)
    work = CallableWorkload(call, "call", "cpu", lambda *_: None, given)
    work.warmup(1, recorder)
    assert (work.iterations, call.count) == (calls, warmed)
    (sample,), seconds = work.round(0, recorder)
    assert call.count == work.value == warmed + calls
    assert (sample.total_ms, sample.phases["call"]) == (pytest.approx(milliseconds), pytest.approx(milliseconds))
    assert seconds == pytest.approx(calls * milliseconds / 1e3)
    figures = figures_of([sample], [seconds / calls], [RoundEnergy(3.0, seconds, None)], iterations=calls)
    assert figures["pages_per_s"] == pytest.approx(1e3 / milliseconds)
    assert figures["joules_per_page"] == pytest.approx(3.0 / calls)
    # What a profiler sees is one call.
    for window in work.windows(Window(1, 0, 3), recorder):
        assert list(window) == [None]
    assert call.count == warmed + calls + 1


def test_without_a_warm_up_a_round_is_one_call(recorder):
    calls = []
    work = CallableWorkload(lambda: calls.append(1), "call", "cpu", lambda *_: None)
    work.warmup(0, recorder)
    work.round(0, recorder)
    assert len(calls) == work.iterations == 1


def test_tokens_of_a_block_share_their_arrival():
    # The first token alone, then blocks of four: ten tokens after it in 30 ms.
    times = [0, *[10_000_000] * 4, *[20_000_000] * 4, *[30_000_000] * 2]
    assert time_per_token(times) == 3.0
    # A first block of four says nothing of its own four tokens.
    assert time_per_token([5, 5, 5, 5, 4_000_005, 4_000_005, 4_000_005, 4_000_005]) == 1.0
    assert time_per_token([7, 7, 7]) is None
    assert time_per_token([7]) is None
    assert time_per_token([]) is None


def test_the_rate_of_a_batch_is_all_rows_over_its_whole_decode():
    rows = [[0, 10_000_000, 20_000_000], [0, 10_000_000], []]
    assert batch_rate(rows) == pytest.approx(3 / 0.02)
    assert batch_rate([[5], [6]]) is None


class UnevenModel(CountingModel):
    """Row 0 ends after one token, row 1 after three."""

    def generate(self, images, infer, phases):
        self.calls += 1
        with phases.phase("decode"):
            for number in range(3):
                time.sleep(0.01)
                for row in range(len(images)):
                    if row or not number:
                        end = "eos" if not row or number == 2 else None
                        yield Token(row, number, None, time.perf_counter_ns(), end)


def test_a_page_that_ends_early_has_its_own_total(recorder, monkeypatch):
    clock = Clock()
    for module in (phases_module, runner_module, sys.modules[__name__]):
        monkeypatch.setattr(module, "time", clock)
    work, _, _ = workload(UnevenModel(), ["a", "b"], batch_size=2)
    (early, late), seconds = work.round(0, recorder)
    assert (early.total_ms, late.total_ms) == (10.0, 30.0)
    assert early.batch_total_ms == late.batch_total_ms == seconds * 1e3 == 30.0
    assert early.phases == late.phases == {"decode": 30.0}
    assert (early.tpot_ms, late.tpot_ms) == (None, 10.0)
    assert early.batch_tokens_per_s == late.batch_tokens_per_s == pytest.approx(100.0)


class Memory:
    """Peaks in the order in which they are asked for."""

    def __init__(self, *peaks):
        self.peaks = list(peaks)

    def take(self):
        bytes_ = self.peaks.pop(0)
        return Peak(bytes_, 2 * bytes_)


def test_a_phases_peak_holds_those_of_its_parts():
    # Before vision, before sam, sam, after sam (vision), before prefill, prefill.
    recorder = PhaseRecorder("cpu", peaks=PhasePeaks(Memory(900, 10, 50, 20, 800, 30)))
    with recorder.phase("vision"), recorder.phase("sam"):
        pass
    with recorder.phase("prefill"):
        pass
    assert recorder.take_peaks() == {"vision": Peak(50, 100), "sam": Peak(50, 100), "prefill": Peak(30, 60)}
    assert recorder.take_peaks() == {}


def test_calls_of_one_phase_keep_the_highest_peak():
    recorder = PhaseRecorder("cpu", peaks=PhasePeaks(Memory(1, 70, 1, 40)))
    for _ in range(2):
        with recorder.phase("sam"):
            pass
    assert recorder.take_peaks() == {"sam": Peak(70, 140)}


def test_the_last_warmup_pass_gives_the_peaks():
    class Count:
        def __init__(self):
            self.reads = 0

        def take(self):
            self.reads += 1
            return Peak(self.reads, self.reads)

    memory = Count()
    work, _, _ = workload(CountingModel(tokens=1), ["a", "wide"])
    work.warmup(2, PhaseRecorder("cpu", peaks=PhasePeaks(memory)))
    # Two readings a phase, four phases a batch, two shapes a pass: the very last is decode's of the second pass.
    assert memory.reads == 32
    assert work.phase_peaks["decode"] == Peak(32, 32)
    assert set(work.phase_peaks) == set(PHASES)


class HungryModel(CountingModel):
    """Runs out of memory in prefill, with a tensor at hand."""

    def __init__(self):
        super().__init__()
        self.held = None
        self.enough = False

    def generate(self, images, infer, phases):
        import torch

        with phases.phase("vision"), phases.phase("sam"):
            features = torch.zeros(1000)
        self.held = weakref.ref(features)
        with phases.phase("prefill"):
            if not self.enough:
                self.fill(features)
        yield Token(0, 1, None, time.perf_counter_ns(), "eos")

    def fill(self, features):
        import torch

        copy = features.clone()
        self.held = weakref.ref(copy)
        try:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has")
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(str(error))  # noqa: B904 - the first one's frames stay with it


def test_out_of_memory_names_phase_and_batch_and_frees_the_memory(recorder):
    model = HungryModel()
    work, seen, failed = workload(model, ["a", "b", "c"], batch_size=2)
    assert work.round(0, recorder) == ([], 0.0)
    text = failed[0][1]
    assert text.startswith("out of device memory in phase prefill, batch of 2 (a ... b), 20.00 GiB more asked for: ")
    assert "infer.batch_size" in text
    assert "batch of 1 (c)" in failed[2][1]
    assert model.held() is None
    assert recorder.take() == {}
    # What a recorder read of a failed batch's peaks is not the next one's.
    reading = PhaseRecorder("cpu", peaks=PhasePeaks(Memory(*range(1, 13))))
    again, _, _ = workload(model, ["a"])
    again.round(0, reading)
    assert reading.take_peaks() == {}
    model.enough = True
    next_work, seen, failed = workload(model, ["a"])
    next_work.round(0, recorder)
    assert [name for name, _, _ in seen] == ["a"]
    assert failed == []


@pytest.mark.parametrize("off_by", [-1_000_000_000, 1_000_000_000])
def test_times_that_cannot_be_fail_their_page(recorder, off_by):
    class Model(CountingModel):
        def generate(self, images, infer, phases):
            for token in super().generate(images, infer, phases):
                yield token._replace(time_ns=token.time_ns + (off_by if token.id == 2 else 0))

    work, seen, failed = workload(Model(), ["a"])
    work.round(0, recorder)
    number = 3 if off_by < 0 else 4
    assert f": the time of token {number} is before that of the token in front of it" in failed[0][1]
    assert seen == []


def test_what_a_model_raises_around_its_answer_fails_its_page_alone(recorder):
    class Model(CountingModel):
        def shape_key(self, image, infer):
            if image.size == (16, 8):
                raise KeyError("wide")
            return image.size

    seen = []

    def unreadable(page, image, answer, sample):
        if page.name == "b":
            raise PageError("the model cannot read its answer: ValueError: no luck")
        seen.append(page.name)

    work, _, failed = workload(Model(), ["wide", "a", "b", "c"], on_answer=unreadable)
    work.warmup(1, recorder)
    work.round(0, recorder)
    assert seen == ["a", "c"]
    assert failed == [("wide", "KeyError: 'wide'"), ("b", "the model cannot read its answer: ValueError: no luck")]
    assert "KeyError" in work.failures[0].details
    samples, _ = work.round(1, recorder)
    assert [sample.page for sample in samples] == ["a", "c"]
    # In one batch with a page that could not be read, which fails once.
    pair, _, failed = workload(Model(), ["broken", "wide"], batch_size=2)
    pair.warmup(1, recorder)
    assert failed == [("broken", "page broken: it is broken"), ("wide", "KeyError: 'wide'")]


@pytest.mark.parametrize("passes", [0, 1], ids=["no warm-up", "a warm-up"])
def test_a_page_that_the_model_refuses_fails_alone_in_its_batch(recorder, passes):
    class Model(CountingModel):
        def shape_key(self, image, infer):
            if image.size == (16, 8):
                raise ModelError("16 pixels are too wide")
            return image.size

        def generate(self, images, infer, phases):
            for image in images:
                self.shape_key(image, infer)
            yield from super().generate(images, infer, phases)

    work, seen, failed = workload(Model(), ["a", "wide", "b"], batch_size=3)
    work.warmup(passes, recorder)
    samples, _ = work.round(0, recorder)
    assert failed == [("wide", "16 pixels are too wide")]
    assert [name for name, _, _ in seen] == ["a", "b"] == [sample.page for sample in samples]


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has", True),
        ("CUDA error: out of memory\nCUDA kernel errors might be", True),
        ("CUDA driver error: out of memory", True),
        ("Triton Error [CUDA]: out of memory", True),
        ("HIP out of memory. Tried to allocate", True),
        ("backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory. Tried to allocate 64.00 MiB", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA error: an illegal memory access was encountered", False),
        ("CUDA is not there. The sandbox is out of memory", False),
    ],
)
def test_out_of_memory_is_known_by_its_words_whoever_wraps_it(text, full):
    assert out_of_memory(RuntimeError(text)) is full
    assert not out_of_memory(ValueError(text))


def test_out_of_memory_in_a_window_and_in_a_callable(recorder):
    model = HungryModel()
    work, _, _ = workload(model, ["a"])
    (batch,) = work.windows(Window(1, 0, 3), recorder)
    with pytest.raises(StageError, match=r"the profiled window: out of device memory in phase prefill"):
        list(batch)
    assert model.held() is None
    inner = PhaseRecorder("cpu")
    call = CallableWorkload(lambda: list(model.generate([], None, inner)), "eat", "cpu", lambda *_: None)
    with pytest.raises(StageError, match=r"round 1: out of device memory in the callable eat, 20.00 GiB more"):
        call.round(0, recorder)
    assert model.held() is None


def test_a_callables_last_value_is_not_kept_through_the_next_round(recorder):
    class Value:
        pass

    values, alive = [], weakref.WeakSet()

    def call():
        assert not alive  # none of all before it
        value = Value()
        values.append(weakref.ref(value))
        alive.add(value)
        return value

    work = CallableWorkload(call, "call", "cpu", lambda *_: None)
    work.warmup(1, recorder)
    work.round(0, recorder)
    work.round(1, recorder)
    assert work.value is values[-1]()
