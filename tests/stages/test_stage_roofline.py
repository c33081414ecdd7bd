"""Costs and times to floors, MFU and MBU."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_llmprof.models.base import Costs, PhaseCost
from pytest_llmprof.records.metrics import Sample
from pytest_llmprof.stages.static_analysis.records import PeakTable
from pytest_llmprof.stages.static_analysis.roofline import figures, phase_roofs

PEAKS = PeakTable(flops=100e9, bandwidth=10e9, kind="float32", source="mine", reason=None)


def sample(batch: int, round_: int, **phases: float) -> Sample:
    values: dict[str, Any] = {"tokens": 5, "ttft_ms": 1.0, "tpot_ms": 1.0, "total_ms": 9.0, "other_ms": 0.0}
    return Sample(round=round_, page=f"p{batch}", batch_id=batch, phases=phases, peak_bytes=None, **values)


def costs(**phases: tuple[int, int]) -> Costs:
    return Costs({name: PhaseCost(flops, moved, {"weights": moved}) for name, (flops, moved) in phases.items()})


def test_a_phase_is_held_against_both_peaks() -> None:
    one = costs(vision=(100_000_000, 1_000_000), decode=(1_000_000, 100_000_000))
    roofs = phase_roofs({0: one}, [sample(0, 0, vision=2.0, decode=40.0)], PEAKS)
    vision, decode = roofs["vision"], roofs["decode"]
    assert (vision.compute_floor_ms, vision.memory_floor_ms) == pytest.approx((1.0, 0.1))
    assert (vision.bound, vision.floor_ms, vision.of_floor) == ("compute", pytest.approx(1.0), pytest.approx(0.5))
    assert (vision.mfu, vision.mbu, vision.intensity) == pytest.approx((0.5, 0.05, 100.0))
    assert (decode.bound, decode.floor_ms, decode.of_floor) == ("memory", pytest.approx(10.0), pytest.approx(0.25))
    assert (decode.mfu, decode.mbu) == pytest.approx((0.01 / 40, 0.25))
    assert figures(roofs) == {
        "vision_mfu": vision.mfu,
        "prefill_mfu": None,
        "decode_mfu": decode.mfu,
        "vision_mbu": vision.mbu,
        "prefill_mbu": None,
        "decode_mbu": decode.mbu,
    }


def test_batches_are_summed_each_at_its_median_over_rounds() -> None:
    # Batch 0 has two pages, whose samples carry the batch's time twice.
    samples = [sample(0, index, prefill=time) for index, time in enumerate((4.0, 6.0, 100.0)) for _ in range(2)]
    samples += [sample(1, index, prefill=10.0) for index in range(3)]
    one, other = costs(prefill=(300, 30)), costs(prefill=(100, 10))
    (roof,) = phase_roofs({0: one, 1: other}, samples, PEAKS).values()
    assert (roof.ms, roof.flops, roof.bytes, roof.parts) == (16.0, 400, 40, {"weights": 40})


def test_without_peaks_there_are_only_flops_and_bytes() -> None:
    none = PeakTable(None, None, "float32", None, "it ran on a CPU")
    roofs = phase_roofs({0: costs(decode=(10, 5))}, [sample(0, 0, decode=1.0)], none)
    roof = roofs["decode"]
    assert (roof.flops, roof.bytes, roof.intensity, roof.ms) == (10, 5, 2.0, 1.0)
    assert [roof.compute_floor_ms, roof.memory_floor_ms, roof.floor_ms, roof.bound] == [None] * 4
    assert [roof.mfu, roof.mbu, roof.of_floor] == [None] * 3
    assert set(figures(roofs).values()) == {None}


def test_one_peak_gives_its_half() -> None:
    half = PeakTable(None, 10e9, "fp8", "a table", "the table has no fp8 peak")
    roof = phase_roofs({0: costs(decode=(10, 10_000_000))}, [sample(0, 0, decode=4.0)], half)["decode"]
    assert (roof.mfu, roof.floor_ms, roof.bound, roof.of_floor) == (None, None, None, None)
    assert roof.mbu == pytest.approx(0.25)


def test_a_phase_that_was_not_measured_has_no_share() -> None:
    roof = phase_roofs({0: costs(decode=(10, 5))}, [sample(0, 0, vision=1.0)], PEAKS)["decode"]
    assert roof.ms is None
    assert (roof.mfu, roof.mbu, roof.of_floor) == (None, None, None)
    assert roof.floor_ms is not None


def test_a_phase_without_work_has_no_intensity() -> None:
    roof = phase_roofs({0: costs(decode=(0, 0))}, [sample(0, 0, decode=1.0)], PEAKS)["decode"]
    assert (roof.intensity, roof.mfu, roof.mbu) == (None, 0.0, 0.0)
