"""The roofline's section, finding, warning and picture, of metrics.json alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_llmprof.records.files import read_json, write_json
from pytest_llmprof.report import write_report
from pytest_llmprof.report.findings import findings, warnings
from pytest_llmprof.stages.static_analysis.section import roofline_section, roofline_svg


def phase(flops: float, moved: float, ms: float | None, *, parent: str | None = None) -> dict[str, Any]:
    """A phase on a card of 100 TFLOP/s and 1 TB/s."""
    compute, memory = flops / 1e14 * 1e3, moved / 1e12 * 1e3
    floor = max(compute, memory)
    return {
        "parent": parent,
        "flops": flops,
        "bytes": moved,
        "parts": {"weights": moved},
        "intensity": flops / moved,
        "ms": ms,
        "compute_floor_ms": compute,
        "memory_floor_ms": memory,
        "floor_ms": floor,
        "bound": "compute" if compute > memory else "memory",
        "mfu": compute / ms if ms else None,
        "mbu": memory / ms if ms else None,
        "of_floor": floor / ms if ms else None,
    }


@pytest.fixture
def block() -> dict[str, Any]:
    return {
        "applicable": True,
        "reason": None,
        "card": "NVIDIA Z9",
        "peaks": {"flops": 1e14, "bandwidth": 1e12, "kind": "bfloat16", "source": "a | sheet", "reason": None},
        "phases": {
            "vision": phase(1e12, 1e9, 28.0),
            "sam": phase(8e11, 8e8, 17.2, parent="vision"),
            "decode": phase(1e12, 1e12, 15_990.0),
        },
        "decode_step": {
            "steps": 1000,
            "flops": 1e9,
            "bytes": 1e9,
            "ms": 15.99,
            "floor_ms": 1.0,
            "floor_tokens_per_s": 1000.0,
        },
        "notes": ["counted"],
        "batches": [],
    }


def test_the_report_of_a_stage(stage_dir: Path, block: dict[str, Any]) -> None:
    metrics = read_json(stage_dir / "metrics.json") | {"static_analysis": block}
    write_json(stage_dir / "metrics.json", metrics)
    write_report(stage_dir)
    text = (stage_dir / "report.md").read_text(encoding="utf-8")
    assert "On NVIDIA Z9, dense bfloat16 peak 100 TFLOP/s, memory 1.00 TB/s." in text
    assert "| vision | compute | 1.00 TFLOP | 1.00 GB | 1,000 | 28.0 | 10.0 | 35.7 % | 3.6 % | 35.7 % |" in text
    assert "| – sam | compute |" in text
    assert "its floor is 1.00 ms, 1,000 tokens/s a page." in text
    assert "**Decode takes 16.0 times its floor**: moving its weights, cache and activations once would take" in text
    assert "![roofline](roofline.svg)" in text


def test_the_phase_that_matters_comes_first(block: dict[str, Any]) -> None:
    figures = {"vision_ms": 28.0, "decode_ms": 15_990.0, "total_ms": 16_100.0, "ttft_ms": 63.4}
    texts = [finding.text for finding in findings({"static_analysis": block, "figures": figures})]
    assert [text.split(" ")[0] for text in texts] == ["**Decode", "**Vision"]
    block["phases"]["vision"]["of_floor"] = 0.9
    assert len(findings({"static_analysis": block, "figures": figures})) == 1


def test_shares_over_100_percent_are_a_warning(block: dict[str, Any]) -> None:
    assert not [line for line in warnings({"static_analysis": block}, {}) if "over 100 %" in line]
    block["phases"]["decode"]["mbu"] = 1.031
    (line,) = [line for line in warnings({"static_analysis": block}, {}) if "over 100 %" in line]
    assert line.startswith("over 100 %: decode MBU 103.1 %.")


@pytest.mark.parametrize("given", [{}, {"static_analysis": None}, {"static_analysis": {"applicable": False}}])
def test_little_or_nothing(given: dict[str, Any]) -> None:
    section = roofline_section(given)
    assert section in ([], ["n/a: no reason given.\n"])
    assert not findings(given)
    assert not [line for line in warnings(given, {}) if "over" in line]


def test_a_picture_without_roof_or_dots(block: dict[str, Any]) -> None:
    whole = roofline_svg(block)
    assert whole.count("<circle") == 2 * 3
    assert "vision, 35.7 % of floor" in whole
    assert "100 TFLOP/s" in whole
    bare = {**block, "peaks": {"flops": None, "bandwidth": None}}
    assert "TFLOP/s" not in roofline_svg(bare)
    assert roofline_svg(bare).count("<circle") == 2 * 3
    assert "no phase was measured" in roofline_svg({"phases": {"decode": phase(1, 1, None)}})
    one = roofline_svg({"phases": {"decode": phase(1e9, 1e9, 1.0)}, "peaks": {}})
    assert one.count("<circle") == 2
