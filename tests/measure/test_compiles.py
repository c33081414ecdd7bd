"""What compiles inside a timed pass is seen, with its cause."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch._dynamo.callback
from PIL import Image

from pytest_llmprof.config.schema import InferSettings
from pytest_llmprof.datasets.base import Page
from pytest_llmprof.measure.compiles import CompileWatch, complaint
from pytest_llmprof.measure.phases import PhaseRecorder
from pytest_llmprof.models.base import ModelInfo, Token
from pytest_llmprof.stages.base import Window
from pytest_llmprof.stages.callable import CallableWorkload
from pytest_llmprof.stages.runner import PagesWorkload


@pytest.fixture(autouse=True)
def forget():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


CAUSES = hasattr(torch._dynamo.utils.CompilationMetrics, "recompile_reason")
"""Whether this torch records why it compiles again: 2.6 does not."""


def watched(call):
    with CompileWatch() as watch:
        call()
    return watch.seen


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_compile_is_seen_with_its_cause(backend):
    def double(tensor):
        return tensor * 2

    call = torch.compile(double, backend=backend)
    (first,) = watched(lambda: call(torch.ones(3)))
    assert first.startswith("torch.compile compiled double (")
    assert "test_compiles.py:" in first
    assert watched(lambda: call(torch.ones(3))) == []
    (again,) = watched(lambda: call(torch.ones(4)))
    assert "double" in again
    if CAUSES:
        assert "again (cause: " in again
        assert "size mismatch at index 0. expected 3, actual 4" in again
    assert watched(lambda: torch.ones(5) * 2) == []
    assert not torch._dynamo.callback.callback_handler.start_callbacks


def test_a_compile_that_raises_leaves_nothing_behind():
    def broken(graph, inputs):
        raise ValueError("no backend")

    call = torch.compile(lambda tensor: tensor + 1, backend=broken)
    with pytest.raises(Exception, match="no backend"), CompileWatch() as watch:
        call(torch.ones(2))
    assert len(watch.seen) == 1
    assert not torch._dynamo.callback.callback_handler.start_callbacks


def test_a_first_import_inside_the_clock_is_seen_too():
    # A process of its own: here torch.compile is loaded already.
    script = """
import sys, torch
from pytest_llmprof.measure.compiles import CompileWatch
assert "torch._dynamo" not in sys.modules
with CompileWatch() as quiet:
    torch.ones(3) + 1
assert "torch._dynamo" not in sys.modules and "triton" not in sys.modules
with CompileWatch() as watch:
    def late(tensor):
        return tensor + 1
    torch.compile(late, backend="eager")(torch.ones(3))
print(quiet.seen, *watch.seen)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[] torch.compile compiled late (")


def test_triton_is_seen_and_left_as_it_was(monkeypatch):
    class Autotuner:
        base_fn = SimpleNamespace(__name__="gemv")

        def _bench(self, *arguments, **named):
            return 1.0

    theirs = []
    runtime = SimpleNamespace(jit_post_compile_hook=lambda **given: theirs.append(given["repr"]))
    hook, bench = runtime.jit_post_compile_hook, Autotuner._bench
    modules = {
        "triton": SimpleNamespace(knobs=SimpleNamespace(runtime=runtime)),
        "triton.runtime.jit": SimpleNamespace(JITFunction=type("JITFunction", (), {})),
        "triton.runtime.autotuner": SimpleNamespace(Autotuner=Autotuner),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)

    def compile_and_tune():
        runtime.jit_post_compile_hook(fn=SimpleNamespace(name="softmax"), repr="softmax[...]")
        assert Autotuner()._bench(config=1) == 1.0
        assert Autotuner()._bench(config=2) == 1.0

    assert watched(compile_and_tune) == ["Triton compiled softmax", "Triton tuned gemv"]
    assert theirs == ["softmax[...]"]
    assert runtime.jit_post_compile_hook is hook
    assert Autotuner._bench is bench
    # Before 3.4 the hook is the class's.
    function = type("JITFunction", (), {"compiled_hook": None})
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "triton.runtime.jit", SimpleNamespace(JITFunction=function))
    assert watched(lambda: function.compiled_hook(repr="old")) == ["Triton compiled old"]
    assert function.compiled_hook is None


def test_captures_of_cuda_graphs_are_seen(monkeypatch):
    begun = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_begin", lambda self, pool=None: begun.append(pool))
    before = torch.cuda.CUDAGraph.capture_begin
    assert watched(lambda: torch.cuda.CUDAGraph.capture_begin(None, pool=3)) == ["a CUDA graph was captured"]
    assert begun == [3]
    assert torch.cuda.CUDAGraph.capture_begin is before


def test_the_complaint_says_what_to_do():
    seen = ["torch.compile compiled f (x.py:1)", "Triton compiled g"]
    text = complaint("round 1, page letter", seen, 1)
    assert text.startswith("round 1, page letter: torch.compile compiled f (x.py:1) (and 1 more) inside the clock: ")
    assert "raise measure.warmup" in text
    assert "set measure.warmup to 1 or more" in complaint("round 1, page letter", seen[:1], 0)


def test_a_workload_tells_of_it_and_goes_on():
    sizes = iter([3, 3, 4, 3])
    call = torch.compile(lambda tensor: tensor * 2, backend="eager")
    work = CallableWorkload(lambda: call(torch.ones(next(sizes))), "double", "cpu", lambda *_: None, iterations=1)
    recorder = PhaseRecorder("cpu")
    work.warmup(1, recorder)
    for index in range(3):
        work.round(index, recorder)
    (line,) = work.disturbed
    assert line.startswith("round 2, double: torch.compile compiled ")


def test_the_profiled_window_is_watched_too():
    sizes = iter([3, 3, 4])
    call = torch.compile(lambda tensor: tensor * 2, backend="eager")
    work = CallableWorkload(lambda: call(torch.ones(next(sizes))), "double", "cpu", lambda *_: None, iterations=1)
    recorder = PhaseRecorder("cpu")
    work.warmup(1, recorder)
    for batch in work.windows(Window(2, 0, 3), recorder):
        assert list(batch) == [None]
    (line,) = work.disturbed
    assert line.startswith("the profiled window, double: torch.compile compiled ")
    assert ("again (cause: " in line) == CAUSES


class CompilingModel:
    """Compiles a step for each new image's height."""

    info = ModelInfo("compiling", "random", "none", 0, "cpu", "float32", "tiny", "reference")

    def __init__(self):
        self.step = torch.compile(lambda tensor: tensor + 1, backend="eager", dynamic=False)

    def generate(self, images, infer, phases):
        with phases.phase("prefill"):
            self.step(torch.ones(images[0].height))
        yield Token(0, 1, None, time.perf_counter_ns(), None)
        with phases.phase("decode"):
            self.step(torch.ones(images[0].height))
        yield Token(0, 2, None, time.perf_counter_ns(), "length")

    def shape_key(self, image, infer):
        return "all alike"  # not true: what a warm-up misses


class TallPage(Page):
    def load(self):
        return Image.new("RGB", (8, len(self.name)))


def test_a_page_whose_shape_the_warmup_missed_is_named():
    answered = []
    work = PagesWorkload(
        CompilingModel(),
        [TallPage(name=name, source=name, path=Path(name)) for name in ("one", "two", "three")],
        InferSettings(),
        on_answer=lambda page, image, answer, sample: answered.append(page.name),
        on_failure=lambda page, batch, size, text: pytest.fail(text),
        progress=lambda *_: None,
    )
    recorder = PhaseRecorder("cpu")
    work.warmup(1, recorder)
    for index in range(2):
        work.round(index, recorder)
    (line,) = work.disturbed
    assert line.startswith("round 1, page three: torch.compile compiled <lambda> (")
    assert "warm-up (measure.warmup=1) did not run this shape" in line
    assert answered == ["one", "two", "three"]
    assert work.failures == []
    # In the window it is watched from the window's start on only: what came before is not profiled.
    fresh = PagesWorkload(
        CompilingModel(),
        work.pages[:1],
        InferSettings(),
        on_answer=lambda *given: None,
        on_failure=lambda page, batch, size, text: pytest.fail(text),
        progress=lambda *_: None,
    )
    for start, complaints in ((1, 0), (0, 1)):
        torch._dynamo.reset()
        (batch,) = fresh.windows(Window(1, start, 1), recorder)
        assert list(batch) == [None]
        assert len(fresh.disturbed) == complaints
