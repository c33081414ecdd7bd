"""Prompts as shells and ini files hand them over."""

from __future__ import annotations

import json

import pytest

FREE = "<image>\nFree OCR."


@pytest.mark.parametrize("source", ["command line", "ini"])
def test_a_released_prompt_whose_line_break_is_a_backslash_and_an_n(bench, source):
    """Issue 15, line 6: it is scored with the truth of free OCR, as the same prompt with a line break."""
    typed = r"infer.prompt='<image>\nFree OCR.'"
    bench.test()
    if source == "ini":
        bench.ini(typed)
    result = bench.passed(*([] if source == "ini" else [typed]))
    result.stdout.fnmatch_lines([r"*infer.prompt: the \n beside the image is read as a line break"])
    metrics = json.loads((bench.stage_dir() / "metrics.json").read_text())
    assert metrics["prompt"] == FREE
    report = (bench.stage_dir() / "report.md").read_text()
    assert "is read as a line break" in report


def test_a_backslash_and_an_n_elsewhere(bench):
    bench.test()
    result = bench.passed(r"infer.prompt='Write $\nabla$.'")
    result.stdout.fnmatch_lines([r"*infer.prompt: its \n stays a backslash and an n; type a line break as one*"])
    assert json.loads((bench.stage_dir() / "metrics.json").read_text())["prompt"] == "<image>\nWrite $\\nabla$."


def test_a_line_break_is_not_mentioned(bench):
    bench.test()
    assert "infer.prompt" not in bench.passed("infer.prompt=free").stdout.str()
