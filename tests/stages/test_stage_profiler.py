"""The profiled window: its files and costs, what it says where the card stayed silent, and what it leaves behind."""

from __future__ import annotations

import gc
import gzip
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stage_helpers import context, pages

from pytest_llmprof.config.schema import InferSettings, ModelSettings
from pytest_llmprof.errors import StageError
from pytest_llmprof.measure.phases import PhaseRecorder
from pytest_llmprof.stages.base import Window
from pytest_llmprof.stages.callable import CallableWorkload
from pytest_llmprof.stages.torch_profiler import cupti
from pytest_llmprof.stages.torch_profiler import stage as torch_profiler
from pytest_llmprof.stages.torch_profiler.compress import GzipWriter

START = "WARNING:2026-01-01 00:00:00 1:1 init.cpp:155] function cbapi->getCuptiStatus() failed with error "
HINT = "INFO:2026-01-01 00:00:00 1:1 init.cpp:158] If you see CUPTI_ERROR_INSUFFICIENT_PRIVILEGES, refer to the web"


@pytest.fixture(scope="module")
def tiny() -> Iterator[Any]:
    from pytest_llmprof.models.deepseek_ocr.loader import load

    model = load(ModelSettings(weights="random", size="tiny", mode="tiny", device="cpu"), InferSettings())
    yield model
    model.close()


@pytest.fixture
def complaints(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    fresh: list[str] = []
    monkeypatch.setattr(cupti, "_messages", fresh)
    return fresh


def on_card(monkeypatch: pytest.MonkeyPatch, say: Callable[[], None]) -> CallableWorkload:
    """A workload that claims to run on a card, under a profiler that speaks on standard error as it starts."""
    import torch

    workload = CallableWorkload(lambda: torch.ones(3).sum(), "sum", "cpu", lambda *_: None)
    real = torch_profiler._profiler

    def profiler(context: Any) -> Any:
        workload.device = "cpu"
        made = real(context)
        workload.device = "cuda:0"
        start = made.start

        def speak() -> None:
            say()
            start()

        made.start = speak
        return made

    workload.device = "cuda:0"
    monkeypatch.setattr(torch_profiler, "_profiler", profiler)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(cupti.Cupti, "load", lambda self: None)
    return workload


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("CUPTI_ERROR_INSUFFICIENT_PRIVILEGES (35)", "this user may not profile"),
        ("CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED (39)", "another profiler holds this process"),
        ("CUPTI_ERROR_NOT_INITIALIZED (15)", ""),
    ],
)
def test_a_trace_without_a_kernel_fails_with_what_cupti_said(
    error: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complaints: list[str]
) -> None:
    workload = on_card(monkeypatch, lambda: void(os.write(2, f"{START}{error}\n{HINT}\n".encode())))
    with pytest.raises(StageError) as failed:
        torch_profiler.profile_window(context(tmp_path, workload, Window()))
    text = str(failed.value)
    assert text.startswith(f"the profiled window holds no CUDA kernel: CUPTI could not start: {error}")
    assert told in text
    assert ("may not profile" in text) is ("PRIVILEGES" in error)
    assert "\n" not in text


def test_a_trace_without_a_kernel_fails_where_cupti_was_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complaints: list[str]
) -> None:
    workload = on_card(monkeypatch, lambda: None)
    with pytest.raises(StageError, match=r"holds no CUDA kernel: .*gave no reason"):
        torch_profiler.profile_window(context(tmp_path, workload, Window()))


def test_kinetos_words_are_kept_and_passed_on_without_its_noise(
    capfd: pytest.CaptureFixture[str], complaints: list[str]
) -> None:
    with cupti.capture_messages():
        os.write(2, b"USDT:2026-01-01 handler.cpp:52] profiler_start\nWARNING: about CUPTI\nsomething else\n")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "WARNING: about CUPTI\nsomething else\nafter\n"
    assert complaints == ["WARNING: about CUPTI"]


def test_what_the_user_set_of_cupti_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupti, "_can_end", lambda: True)
    monkeypatch.delenv("TEARDOWN_CUPTI", raising=False)
    assert cupti.Cupti("cuda:0", lambda: None).ends
    assert not cupti.Cupti("cpu", lambda: None).ends
    monkeypatch.setenv("TEARDOWN_CUPTI", "0")
    assert not cupti.Cupti("cuda:0", lambda: None).ends


def test_cupti_is_ended_by_the_last_stop_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kineto reads the variable at each start and stop; an end between two windows would lose the second one's."""
    seen: list[tuple[str, str | None]] = []

    def note(what: str) -> None:
        seen.append((what, os.environ.get("TEARDOWN_CUPTI")))

    def fake() -> SimpleNamespace:
        return SimpleNamespace(start=lambda: note("start"), stop=lambda: note("stop"))

    monkeypatch.setattr(cupti, "_can_end", lambda: True)
    monkeypatch.setattr(cupti, "synchronise", lambda device: None)
    monkeypatch.delenv("TEARDOWN_CUPTI", raising=False)
    one = cupti.Cupti("cuda:0", fake)
    one._device = "cpu"
    one.load()
    one.unload()
    assert seen == [("start", "1"), ("stop", None), ("start", None), ("stop", "1")]
    assert "TEARDOWN_CUPTI" not in os.environ


def test_cupti_has_until_its_thread_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that ends it reads the variable once more at its own end."""
    threads = iter([7, 8, 8, 8, 7])
    monkeypatch.setattr(cupti, "_can_end", lambda: True)
    monkeypatch.setattr(cupti, "_ENDS_AFTER_S", 0.0)
    monkeypatch.setattr(cupti, "synchronise", lambda device: None)
    monkeypatch.setattr(cupti, "_threads", lambda: next(threads))
    monkeypatch.delenv("TEARDOWN_CUPTI", raising=False)
    cupti.Cupti("cuda:0", lambda: SimpleNamespace(start=lambda: None, stop=lambda: None)).unload()
    assert list(threads) == []


@pytest.mark.parametrize("known", [True, False])
def test_torch_is_spared_the_events_it_need_not_make(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Config:
        def __init__(self, **options: bool) -> None:
            if not known:
                raise TypeError("__init__(): incompatible constructor arguments")
            vars(self).update(options)

    monkeypatch.setattr("torch._C._profiler._ExperimentalConfig", Config)
    config = torch_profiler._trace_only()
    assert getattr(config, "trace_only", None) is (True if known else None)


def test_a_profiler_is_freed_at_once(tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the next full collection frees its events, inside whatever is measured then."""
    made: list[weakref.ref[Any]] = []
    real = torch_profiler._profiler

    def profiler(context: Any) -> Any:
        one = real(context)
        made.append(weakref.ref(one))
        return one

    monkeypatch.setattr(torch_profiler, "_profiler", profiler)
    gc.disable()
    try:
        torch_profiler.profile_window(context(tmp_path, pages(tiny, 8), Window(decode_tokens=3)))
        assert [one() for one in made] == [None, None]  # the first start, and the window's
    finally:
        gc.enable()


def test_a_window_writes_its_trace_and_its_costs(tmp_path: Path, tiny: Any) -> None:
    profile = torch_profiler.profile_window(context(tmp_path, pages(tiny, 8), Window(decode_tokens=3)))
    raw = gzip.decompress((tmp_path / "trace.json.gz").read_bytes())
    assert len(raw) == profile.trace_bytes
    assert profile.steps == 3
    parts = profile.stage_costs_s
    assert set(parts) == {"reach", "start", "window", "stop", "export", "release", "read", "tables", "write"}
    assert all(seconds > 0 for seconds in parts.values())
    assert sum(parts.values()) <= profile.stage_cost_s
    assert profile.profiler_unload_s is None
    assert {phase.event_ms_profiled for phase in profile.phases.values()} == {None}


def test_a_late_window_profiles_its_steps_alone(tmp_path: Path, tiny: Any) -> None:
    late = torch_profiler.profile_window(context(tmp_path, pages(tiny, 200), Window(start_token=120, decode_tokens=4)))
    assert late.steps == 4
    assert set(late.phases) == {"decode"}
    early = torch_profiler.profile_window(context(tmp_path, pages(tiny, 200), Window(decode_tokens=4)))
    assert late.events < early.events


def test_a_window_behind_the_last_step_says_so(tmp_path: Path, tiny: Any) -> None:
    with pytest.raises(StageError, match=r"no decode step was launched after token 8 of the answer"):
        torch_profiler.profile_window(context(tmp_path, pages(tiny, 8), Window(start_token=8, decode_tokens=4)))


def test_rounds_after_a_window_are_those_before_it(tmp_path: Path, tiny: Any) -> None:
    """The window closes the answer early; what was measured, and the model, are as they were."""
    workload = pages(tiny, 40)
    recorder = PhaseRecorder("cpu")
    samples, _ = workload.round(0, recorder)
    before = list(samples)
    torch_profiler.profile_window(context(tmp_path, workload, Window(decode_tokens=3), samples))
    assert samples == before
    (sample,), _ = workload.round(1, recorder)
    assert workload.deterministic is True
    assert sample.tokens == before[0].tokens == 40
    assert set(sample.phases) == set(before[0].phases)
    assert recorder.take() == {}


def test_a_window_that_breaks_closes_its_answer_and_stops_the_profiler(tmp_path: Path) -> None:
    import torch

    def call() -> None:
        raise ValueError("no luck")

    workload = CallableWorkload(call, "call", "cpu", lambda *_: None)
    with pytest.raises(ValueError, match="no luck"):
        torch_profiler.profile_window(context(tmp_path, workload, Window()))
    assert not torch.autograd._profiler_enabled()  # type: ignore[attr-defined]


@pytest.mark.parametrize("lost", ["all", "half"])
def test_a_trace_that_did_not_fit_is_said_with_the_space(
    tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    from torch.profiler import profile

    whole = profile.export_chrome_trace

    def export(self: Any, path: str) -> None:
        whole(self, path)
        if lost == "all":
            Path(path).unlink()
        else:
            Path(path).write_bytes(Path(path).read_bytes()[:9999])

    monkeypatch.setattr(profile, "export_chrome_trace", export)
    with pytest.raises(StageError, match=r"^the profiler's trace: .*; [\d,]+ MB were free in .*\(TMPDIR\)$"):
        torch_profiler.profile_window(context(tmp_path, pages(tiny, 8), Window(decode_tokens=3)))


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 12_345])
def test_blocks_packed_apart_are_one_gzip_file(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GzipWriter, "BLOCK", 100)
    data = bytes(number * 7 % 251 for number in range(size))
    with GzipWriter(data) as packed:
        whole = packed.data()
    import zlib

    one = zlib.decompressobj(wbits=31)
    assert one.decompress(whole) == data
    assert one.eof
    assert one.unused_data == b""  # a single member, as browsers read only the first


def void(_: object) -> None:
    """Drop a result."""
