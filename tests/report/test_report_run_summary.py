"""summary.md of a run, made of its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from pytest_llmprof.compare.result import COMPARISON, Comparison, Row, Side
from pytest_llmprof.compare.verdicts import Verdict
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.records.catalogue import BUILTIN
from pytest_llmprof.records.environment import Environment, Gpu
from pytest_llmprof.records.files import write_json
from pytest_llmprof.records.metrics import DatasetInfo, ErrorRecord, Fingerprint, GateResult, LeftOut, Metrics
from pytest_llmprof.records.run import RunRecord, TestRecord
from pytest_llmprof.records.stage import StageRecords
from pytest_llmprof.report.run_summary import SUMMARY, write_summary

MARKUP = "<img src=x>`|](http://x)\n# [a](b) *c* \x1b[31m \u202e"


def measured(name: str, **changes: Any) -> Metrics:
    values: dict[str, Any] = {
        "test": f"test_x/{name}",
        "id": f"test_x.py::{name}",
        "stage": "direct_inference",
        "kind": "pages",
        "status": "ok",
        "figures": {"ttft_ms": 61.2, "tokens_per_s": 247.6, "total_ms": 820.3, "tpot_ms": 4.04},
        "quality": {"cer": 0.0288},
        "fingerprint": Fingerprint("NVIDIA H100", "cuda:0"),
    }
    return Metrics(**{**values, **changes})


class Run:
    """A run directory, made by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tests: list[TestRecord] = []
        self.status = "complete"

    def test(
        self, name: str, metrics: Metrics | None = None, outcome: str = "passed", error: str | None = None
    ) -> Path:
        """Add a test; gives its stage directory."""
        place = f"test_x/{len(self.tests)}/direct_inference"
        (self.path / place).mkdir(parents=True)
        if metrics is not None:
            StageRecords(metrics).write(self.path / place)
        self.tests.append(TestRecord(f"test_x.py::{name}", "direct_inference", "pages", outcome, place, error))
        return self.path / place

    def summary(self, **options: Any) -> str:
        record = RunRecord(
            status=self.status,
            argv=[],
            started="2026-11-28T10:00:00+00:00",
            versions={},
            metrics=[metric.declaration for metric in BUILTIN],
            tests=self.tests,
        )
        write_json(self.path / "run.json", record)
        write_summary(self.path, **options)
        return (self.path / SUMMARY).read_text(encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def first(text: str) -> str:
    return text.splitlines()[0]


def section(text: str, heading: str) -> str:
    return text.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def test_without_a_baseline_the_first_line_has_outcomes_and_main_metrics(run):
    run.test("test_a", measured("test_a"))
    other = measured("test_b", figures={"ttft_ms": 80.0, "tokens_per_s": 240.0, "total_ms": 900.0})
    run.test("test_b", other, "failed", "assert 1 == 2")
    run.test("test_c", outcome="skipped")
    text = run.summary()
    assert first(text) == (
        "**3 tests: 1 passed, 1 failed, 1 skipped.** NVIDIA H100: Time to first token 61.2 to 80.0 ms, "
        "Decode 240 to 248 tokens/s, Total a page 820 to 900 ms, Character error rate 0.0288."
    )
    assert "| `test_x.py::test_a` | passed | 61.2 | 248 | 820 | 0.0288 |" in text
    assert "| `test_x.py::test_c` | **skipped** | – | – | – | – |" in text
    assert section(text, "Failed tests").strip() == "- `test_x.py::test_b`: assert 1 == 2"


def test_one_gpus_metrics_are_never_in_a_range_with_anothers(run):
    run.test("test_a", measured("test_a", quality=None))
    slow = measured("test_b", figures={"ttft_ms": 90.0}, quality=None, fingerprint=Fingerprint("NVIDIA A100"))
    run.test("test_b", slow)
    run.test("test_c", measured("test_c", figures={"ttft_ms": 700.0}, quality=None, fingerprint=Fingerprint()))
    text = run.summary()
    assert "NVIDIA H100: Time to first token 61.2 ms" in first(text)
    assert "NVIDIA A100: Time to first token 90.0 ms. CPU: Time to first token 700 ms." in first(text)
    assert "| Test | Outcome | GPU | TTFT ms |" in text
    assert "| `test_x.py::test_b` | passed | NVIDIA A100 | 90.0 |" in text


@pytest.mark.parametrize("status", ["interrupted", "stopped"])
def test_a_run_that_did_not_end_says_so_first(run, status):
    run.status = status
    run.test("test_a", measured("test_a"))
    run.test("test_b", outcome="interrupted")
    text = run.summary()
    assert first(text).startswith(f"The run was {status}. **2 tests: 1 passed, 1 interrupted.**")
    assert "- `test_x.py::test_b`: interrupted" in section(text, "Failed tests")


def test_a_callables_times_are_not_in_a_range_with_those_of_pages(run):
    run.test("test_a", measured("test_a"))
    call = measured("test_call", kind="callable", figures={"total_ms": 0.01}, quality=None)
    run.test("test_call", call)
    run.tests[-1].kind = "callable"
    text = run.summary()
    assert "Total a page 820 ms, " in first(text)
    assert "| page/call ms |" in text
    assert "| `test_x.py::test_call` | passed | – | – | 0.0100 | – |" in text
    del run.tests[0]
    assert first(run.summary()) == "**1 test: 1 passed.** NVIDIA H100: Total a call 0.0100 ms."


def test_a_run_that_measured_nothing(run):
    run.test("test_a")
    assert first(run.summary()) == "**1 test: 1 passed.** Nothing was measured."


def test_a_run_without_tests(run):
    assert run.summary() == "**0 tests.** Nothing was measured.\n"


def comparison(verdict: Verdict = Verdict.SLOWER) -> Comparison:
    row = Row(
        test="test_x.py::test_a",
        stage="direct_inference",
        metric="tpot_ms",
        title="Time per output token (ms)",
        shown=True,
        before=0.54,
        after=0.567,
        ratio=1.05,
        low=1.032,
        high=1.07,
        verdict=verdict,
    )
    side = Side("main", 1, ("1",), "H100", None, False)
    lists: dict[str, Any] = {name: [] for name in ("notices", "only_before", "only_after", "texts", "kernels")}
    return Comparison(
        before=side, after=replace(side, name="runs/x"), margin=0.006, alpha=0.01, gated=0, rows=[row], **lists
    )


def test_with_a_baseline_the_first_line_is_the_verdict(run):
    run.test("test_a", measured("test_a"))
    run.test("test_b", measured("test_b"), "failed", "assert 0")
    write_json(run.path / COMPARISON, comparison())
    text = run.summary()
    assert first(text) == (
        "**Slower than main**: Time per output token (ms) of test_x.py::test_a +5.0 % (+3.2 to +7.0 %), "
        "0.540 → 0.567; 1 of 1 metric slower. 1 of 2 tests failed."
    )
    assert "| Time per output token (ms) | 0.540 | 0.567 | +5.0 % | +3.2 to +7.0 % | slower |" in section(
        text, "Compared with main"
    )


def test_a_comparison_that_was_refused_is_named(run):
    run.test("test_a", measured("test_a"))
    assert first(run.summary(not_compared="main: other pages")).startswith(
        "**Not compared:** main: other pages. **1 test: 1 passed.**"
    )


def gallery(stage_dir: Path, page: str, *images: str, **info: Any) -> None:
    directory = stage_dir / "viz" / "pages" / page
    directory.mkdir(parents=True)
    for name in images:
        (directory / name).write_bytes(b"image")
    (directory / "info.json").write_text(json.dumps({"page": page, **info}))


def test_failing_pages_come_with_their_images(run):
    metrics = measured("test_a", status="error", errors=[ErrorRecord("p1", "no answer"), ErrorRecord("p2", "too wide")])
    metrics.errors.append(ErrorRecord("p3", "cannot be read"))
    stage_dir = run.test("test_a", metrics, "failed", "2 pages failed")
    gallery(stage_dir, "p1", "thumbnail.jpg", "boxes.jpg")
    gallery(stage_dir, "p2", "thumbnail.jpg")
    gallery(stage_dir, "p3")
    (stage_dir / "inputs.jsonl").write_text('{"page": "p3", "image": "scans/p3.png"}\n')
    rows = section(run.summary(), "Failing pages").splitlines()
    place = "test_x/0/direct_inference/viz/pages"
    assert f"| `test_x.py::test_a` | p1 | no answer | `{place}/p1/boxes.jpg` |" in rows
    assert f"| `test_x.py::test_a` | p2 | too wide | `{place}/p2/thumbnail.jpg` |" in rows
    assert "| `test_x.py::test_a` | p3 | cannot be read | `scans/p3.png` |" in rows
    assert (run.path / place / "p1" / "boxes.jpg").is_file()


@pytest.mark.parametrize(("name", "first"), [("cer", "p6"), ("box_iou", "p0")])
@pytest.mark.parametrize(("share", "shown"), [(0.0, 5), (0.4, 4), (0.6, 3), (0.99, 1)])
def test_where_a_limit_on_quality_is_broken_the_worst_pages_are_shown(run, name, first, share, shown):
    """Those that are better than the test's value are left out; *share* of the pages are."""
    figure = 0.6 * share if name == "cer" else 0.6 * (1 - share)
    gate = GateResult(name, "0.05", figure, "failed")
    stage_dir = run.test("test_a", measured("test_a", gates=[gate]), "failed", "llmprof_gate")
    for number in range(7):
        gallery(stage_dir, f"p{number}", "thumbnail.jpg", **{name: number / 10})
    rows = [line for line in section(run.summary(), "Failing pages").splitlines() if "test_x.py" in line]
    assert len(rows) == shown
    assert f"| {first} | " in rows[0]
    assert f"/{first}/thumbnail.jpg` |" in rows[0]


def test_a_gate_on_a_plugins_own_score_shows_its_worst_pages(run):
    declared = [*(metric.declaration for metric in BUILTIN)]
    gate = GateResult("words", ">=3", 1.0, "failed")
    stage_dir = run.test("test_a", measured("test_a", gates=[gate]), "failed", "llmprof_gate")
    gallery(stage_dir, "few", "thumbnail.jpg", scores={"words": 1})
    gallery(stage_dir, "none", "thumbnail.jpg", scores={"words": None})
    own = replace(declared[-1], name="words", label="Words", better="higher")
    from pytest_llmprof.report.failing_pages import failing_pages

    found = list(failing_pages(run.path, stage_dir, measured("test_a", gates=[gate]), [*declared, own]))
    assert [(page.page, page.why) for page in found] == [("few", "Words 1.00")]


def test_a_test_that_passed_shows_no_pages(run):
    stage_dir = run.test("test_a", measured("test_a"))
    gallery(stage_dir, "p1", "thumbnail.jpg", cer=0.9)
    assert "Failing pages" not in run.summary()


def test_what_makes_times_doubtful_is_shown(run):
    stage_dir = run.test("test_a", measured("test_a"))
    write_json(stage_dir / "environment.json", Environment(gpu=Gpu("NVIDIA H100", "GPU-1", other_processes=2)))
    assert "> **Note:** `test_x.py::test_a`: The GPU was shared with 2 other processes." in run.summary()
    assert not run.summary().endswith(">\n")


def test_files_and_pages_that_are_not_in_the_numbers_are_named(run):
    left_out = [LeftOut(".doc: no images that Pillow reads", 1, ["scans/notes.doc"])]
    dataset = DatasetInfo("image_folder", "pages:1", 2, left_out)
    run.test("test_a", measured("test_a", dataset=dataset, errors=[ErrorRecord("c.pdf", "cannot be read")]))
    text = run.summary()
    assert "1 file left out: 1 .doc: no images that Pillow reads (scans/notes.doc)" in text
    assert "1 page failed, as measure.max_failed_pages allows: c.pdf" in text


def test_no_text_of_a_run_is_markup(run):
    metrics = measured("test_a", status="error", errors=[ErrorRecord(MARKUP, MARKUP)], fingerprint=Fingerprint(MARKUP))
    stage_dir = run.test(f"test_a[{MARKUP}]", metrics, "failed", MARKUP)
    (stage_dir / "inputs.jsonl").write_text(json.dumps({"page": MARKUP, "image": MARKUP}) + "\n")
    run.test("test_b", measured("test_b"))
    text = run.summary(not_compared=MARKUP)
    assert "\x1b" not in text
    assert "\u202e" not in text
    plain = [line.replace("`", "\0").split("\0") for line in text.splitlines()]
    outside = "".join(part for line in plain for part in line[::2])
    assert "<img" not in outside
    assert "](http" not in outside.replace("\\]", "")
    assert [line for line in text.splitlines() if line.startswith("# ")] == []
    for line in text.splitlines():
        if line.startswith("| `test_x.py"):
            assert line.replace("\\|", "").count("|") in (5, 8), line


def test_long_runs_are_cut(run):
    for number in range(260):
        run.test(f"test_{number}", outcome="failed", error="broken")
    text = run.summary()
    assert text.count("| `test_x.py") == 200
    assert "60 more tests: see run.json" in text
    assert text.count("- `test_x.py") == 50
    assert "- and 210 more, in run.json" in text


def test_a_broken_file_costs_its_test_alone(run):
    run.test("test_a", measured("test_a"))
    stage_dir = run.test("test_b", measured("test_b"))
    (stage_dir / "metrics.json").write_text("{")
    text = run.summary()
    assert "| `test_x.py::test_a` | passed | 61.2 |" in text
    assert "is not JSON" in section(text, "Failed tests")


def test_a_run_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot read .*run\.json"):
        write_summary(tmp_path)
    (tmp_path / "run.json").write_text('{"schema": 99}')
    with pytest.raises(ArtifactError, match="schema 99"):
        write_summary(tmp_path)
    assert not (tmp_path / SUMMARY).exists()
