"""The roofline's section, finding, warning and diagram, of a stage's records alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace
from report_helpers import CATALOGUE, STAGES, notes, section, to_look_at

from pytest_llmprof.records.metrics import Metrics
from pytest_llmprof.records.stage import StageRecords
from pytest_llmprof.report import write_report
from pytest_llmprof.stages.static_analysis.records import DecodeStep, PeakTable, PhaseRoof, Roofline
from pytest_llmprof.stages.static_analysis.section import roofline_svg


def phase(flops: float, moved: float, ms: float | None, *, parent: str | None = None) -> PhaseRoof:
    """A phase on a GPU of 100 TFLOP/s and 1 TB/s."""
    compute, memory = flops / 1e14 * 1e3, moved / 1e12 * 1e3
    floor = max(compute, memory)
    return PhaseRoof(
        parent=parent,
        flops=flops,
        bytes=moved,
        parts={"weights": moved},
        intensity=flops / moved,
        ms=ms,
        compute_floor_ms=compute,
        memory_floor_ms=memory,
        floor_ms=floor,
        bound="compute" if compute > memory else "memory",
        mfu=compute / ms if ms else None,
        mbu=memory / ms if ms else None,
        of_floor=floor / ms if ms else None,
    )


@pytest.fixture
def block() -> Roofline:
    return Roofline(
        applicable=True,
        card="NVIDIA Z9",
        peaks=PeakTable(flops=1e14, bandwidth=1e12, kind="bfloat16", source="a | sheet"),
        phases={
            "vision": phase(1e12, 1e9, 28.0),
            "sam": phase(8e11, 8e8, 17.2, parent="vision"),
            "decode": phase(1e12, 1e12, 15_990.0),
        },
        decode_step=DecodeStep(
            steps=1000, flops=1e9, bytes=1e9, ms=15.99, floor_ms=1.0, floor_tokens_per_s=1000.0
        ),
        notes=["counted"],
    )


@pytest.fixture
def records(metrics: Metrics, block: Roofline) -> StageRecords:
    return StageRecords(replace(metrics, stage="static_analysis"), {"static_analysis": block})


def test_the_report_of_a_stage(tmp_path: Path, records: StageRecords) -> None:
    records.write(tmp_path)
    write_report(tmp_path, STAGES["static_analysis"], CATALOGUE)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "On NVIDIA Z9, dense bfloat16 peak 100 TFLOP/s, memory 1.00 TB/s." in text
    assert "| vision | compute | 1.00 TFLOP | 1.00 GB | 1,000 | 28.0 | 10.0 | 35.7 % | 3.6 % | 35.7 % |" in text
    assert "| – sam | compute |" in text
    assert "its floor is 1.00 ms, 1,000 tokens/s a page." in text
    assert "**Decode takes 16.0 times its floor**: moving its weights, cache and activations once would take" in text
    assert "![roofline](roofline.svg)" in text


def test_the_phase_that_matters_comes_first(records: StageRecords, block: Roofline) -> None:
    figures = {"vision_ms": 28.0, "decode_ms": 15_990.0, "total_ms": 16_100.0, "ttft_ms": 63.4}
    records = StageRecords(replace(records.metrics, figures=figures), records.blocks)
    assert [text.split(" ")[0] for text in to_look_at(records)] == ["**Decode", "**Vision"]
    block.phases["vision"].of_floor = 0.9
    assert len(to_look_at(records)) == 1


def test_shares_over_100_percent_are_a_warning(records: StageRecords, block: Roofline) -> None:
    assert not [line for line in notes(records) if "over 100 %" in line]
    block.phases["decode"].mbu = 1.031
    (line,) = [line for line in notes(records) if "over 100 %" in line]
    assert line.startswith("over 100 %: decode MBU 103.1 %.")


@pytest.mark.parametrize(
    ("blocks", "parts"),
    [
        ({}, []),
        ({"static_analysis": None}, []),
        ({"static_analysis": {"applicable": False}}, ["n/a: no reason given.\n"]),
    ],
)
def test_little_or_nothing(metrics: Metrics, blocks: dict[str, object], parts: list[str]) -> None:
    found = section(StageRecords(replace(metrics, stage="static_analysis"), blocks))
    assert (list(found.parts), list(found.findings), list(found.warnings)) == (parts, [], [])


def test_a_diagram_without_roof_or_dots(block: Roofline) -> None:
    whole = roofline_svg(block)
    assert whole.count("<circle") == 2 * 3
    assert "vision, 35.7 % of floor" in whole
    assert "100 TFLOP/s" in whole
    bare = replace(block, peaks=PeakTable())
    assert "TFLOP/s" not in roofline_svg(bare)
    assert roofline_svg(bare).count("<circle") == 2 * 3
    assert "no phase was measured" in roofline_svg(Roofline(applicable=True, phases={"decode": phase(1, 1, None)}))
    one = roofline_svg(Roofline(applicable=True, phases={"decode": phase(1e9, 1e9, 1.0)}, peaks=PeakTable()))
    assert one.count("<circle") == 2
