"""Energy from a counter that moves only now and then."""

from types import SimpleNamespace

import pytest

from pytest_llmprof.measure.energy import EnergyMeter
from pytest_llmprof.measure.phases import PhaseRecorder
from pytest_llmprof.records.environment import Gpu
from pytest_llmprof.records.metrics import RoundEnergy
from pytest_llmprof.stages import runner
from pytest_llmprof.stages.base import StageResult


class Counter:
    """A GPU of steady *watts* whose counter moves every *update_s*; time passes only in sleeps."""

    def __init__(self, update_s=0.1, watts=400.0):
        self.update_s = update_s
        self.watts = watts
        self.now = 0.037

    def read(self):
        return round(self.watts * 1000 * (self.now // self.update_s) * self.update_s)

    def sleep(self, seconds):
        self.now += seconds

    def meter(self):
        return EnergyMeter(self.read, clock=lambda: self.now, sleep=self.sleep)


def test_the_energy_of_a_round():
    gpu = Counter()
    meter = gpu.meter()
    for _ in range(2):
        meter.begin()
        assert meter.update_s == pytest.approx(0.1, abs=0.002)
        gpu.sleep(2.05)
        taken = meter.end(2.05)
        assert taken.reason is None
        assert taken.span_s == pytest.approx(2.1, abs=0.002)  # up to the counter's next update
        assert taken.energy_j == pytest.approx(400.0 * taken.span_s, rel=0.002)


@pytest.mark.parametrize(("update_s", "least"), [(0.02, 0.5), (0.1, 1.0)])
def test_a_short_round_has_no_energy(update_s, least):
    gpu = Counter(update_s)
    meter = gpu.meter()
    meter.begin()
    gpu.sleep(least - 1.5 * update_s)
    taken = meter.end(least)
    assert taken.energy_j is None
    assert "too short" in taken.reason
    assert f"asks for {least:.1f} s" in taken.reason
    meter.begin()
    gpu.sleep(least + update_s)
    assert meter.end(least + update_s).energy_j is not None


def test_a_round_of_mostly_other_work_has_no_energy():
    gpu = Counter()
    meter = gpu.meter()
    meter.begin()
    gpu.sleep(3.0)
    taken = meter.end(1.5)
    assert taken.energy_j is None
    assert "worked for 48% of the round" in taken.reason


@pytest.mark.parametrize("value", [None, 5])
def test_a_counter_that_stands_says_so(value):
    gpu = Counter()
    meter = EnergyMeter(lambda: value, clock=lambda: gpu.now, sleep=gpu.sleep)
    meter.begin()
    gpu.sleep(2.0)
    taken = meter.end(2.0)
    assert (taken.energy_j, meter.update_s) == (None, None)
    assert "did not move" in taken.reason


class Rounds:
    """A workload that only writes down when it ran."""

    device = "cuda:0"

    def __init__(self, log):
        self.log = log

    def warmup(self, passes, recorder):
        self.log.append("warm-up")

    def round(self, index, recorder):
        self.log.append(f"round {index}")
        return [f"sample {index}"], 1.0


def clean_rounds(monkeypatch, *readings):
    """What `clean_rounds` makes of a GPU that reads as *readings*, and the order of things."""
    log, left = [], list(readings)

    class Reader:
        reason = None
        energy_mj = staticmethod(int)

        def __init__(self, device, beside):
            assert (device, beside) == ("cuda:0", 0)

        def gpu(self):
            log.append("gpu")
            return left.pop(0)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            log.append("closed")

    class Meter:
        update_s = 0.1

        def __init__(self, read):
            pass

        def begin(self):
            log.append("begin")

        def end(self, seconds):
            log.append("end")
            return RoundEnergy(100.0, seconds, None)

    monkeypatch.setattr(runner, "GpuReader", Reader)
    monkeypatch.setattr(runner, "EnergyMeter", Meter)
    context = SimpleNamespace(
        settings=SimpleNamespace(measure=SimpleNamespace(rounds=2, warmup=1)),
        workload=Rounds(log),
        result=StageResult(),
        recorder=lambda domain: PhaseRecorder("cpu", domain=domain),
        progress=lambda *_: None,
        more_rounds=lambda: 0,
        duet=None,
    )
    runner.clean_rounds(context)
    return context.result, log


def test_the_gpu_is_read_around_the_rounds(monkeypatch):
    before, after = (Gpu("H100", "GPU-1", energy_mj=value, other_processes=0) for value in (1, 2))
    result, log = clean_rounds(monkeypatch, before, after)
    ordered = "warm-up, gpu, begin, round 0, end, begin, round 1, gpu, end, closed"
    assert ", ".join(log) == ordered
    assert (result.gpu_before, result.gpu_after) == (before, after)
    assert [taken.energy_j for taken in result.energy.rounds] == [100.0, 100.0]
    assert (result.energy.reason, result.energy.update_s) == (None, 0.1)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({}, "no energy counter"),
        ({"energy_mj": 1, "other_processes": 1}, "another process"),
        ({"energy_mj": 1, "mig": True}, "MIG"),
    ],
)
def test_a_counter_that_says_nothing_of_the_model_gives_no_energy(monkeypatch, facts, reason):
    fine = Gpu("H100", "GPU-1", energy_mj=1, other_processes=0)
    for readings in ((Gpu("H100", "GPU-1", **facts), fine), (fine, Gpu("H100", "GPU-1", **facts))):
        result, _ = clean_rounds(monkeypatch, *readings)
        assert result.energy.rounds == []
        assert reason in result.energy.reason
        assert result.round_seconds == [1.0, 1.0]
