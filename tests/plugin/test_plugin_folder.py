"""A folder of the user's own files in a run: what is left out, which pages may fail, the paths as given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from plugin_bench import Bench, clean

FOLDER = ("dataset=image_folder", "dataset.root=scans", "dataset.limit=null")


@pytest.fixture
def folder(bench: Bench) -> Path:
    """Three pages, the second of which is no image."""
    bench.test()
    scans = bench.path / "scans"
    scans.mkdir()
    for name in ("a", "c"):
        Image.new("L", (32, 32), 255).save(scans / f"{name}.png")
    (scans / "b.png").write_text("no image")
    return scans


def read(bench: Bench) -> tuple[dict, list[dict], str]:
    """metrics.json, the lines of inputs.jsonl and the report."""
    directory = bench.stage_dir()
    lines = (directory / "inputs.jsonl").read_text("utf-8").splitlines()
    metrics = json.loads((directory / "metrics.json").read_text("utf-8"))
    return metrics, [json.loads(line) for line in lines], (directory / "report.md").read_text("utf-8")


def test_line23_files_left_out_are_named_everywhere(bench: Bench, folder: Path) -> None:
    (folder / "b.png").unlink()
    for number in range(30):
        (folder / f"letter{number}.docx").write_bytes(b"")
    (folder / "x.csv").write_bytes(b"")
    result = bench.passed(*FOLDER)
    line = next(line for line in result.outlines if "left out" in line)
    assert "31 files left out: 30 .docx: no images that Pillow reads (scans/letter0.docx, " in line
    assert "1 .csv: no images that Pillow reads (scans/x.csv)" in line
    metrics, inputs, report = read(bench)
    docx, csv = metrics["dataset"]["left_out"]
    assert (docx["count"], len(docx["files"]), csv["count"], csv["files"]) == (30, 20, 1, ["scans/x.csv"])
    assert [one["page"] for one in inputs if not one["left_out"]] == ["a", "c"]
    assert len([one for one in inputs if one["left_out"]]) == 31
    assert {"page": None, "image": "scans/x.csv"}.items() <= inputs[-1].items()
    assert "31 files left out" in report


def test_line23_nothing_is_said_where_nothing_is_left_out(bench: Bench, folder: Path) -> None:
    (folder / "b.png").unlink()
    (folder / "a.md").write_text("truth")
    result = bench.passed(*FOLDER)
    metrics, inputs, report = read(bench)
    assert metrics["dataset"]["left_out"] == []
    assert "left out" not in result.stdout.str() + report
    assert len(inputs) == 2


def test_line28_image_is_the_path_as_given(bench: Bench, folder: Path) -> None:
    (folder / "b.png").unlink()
    prediction = "pipeline.torch_profiler.output.prediction.enable=true"
    bench.passed(*FOLDER, prediction)
    _, inputs, _ = read(bench)
    assert [one["image"] for one in inputs] == ["scans/a.png", "scans/c.png"]
    answers = (bench.stage_dir() / "pred/predictions.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(one)["image"] for one in answers] == ["scans/a.png", "scans/c.png"]
    # The saved configuration has the whole path, so that it can be run again from anywhere.
    assert f"root: {folder}\n" in (bench.stage_dir() / "config.yaml").read_text("utf-8")


@pytest.mark.parametrize(("allowed", "passes"), [("null", False), ("0", False), ("1", True), ("5", True)])
def test_line25_max_failed_pages(bench: Bench, folder: Path, allowed: str, passes: bool) -> None:
    result = bench.run(*FOLDER, f"measure.max_failed_pages={allowed}")
    clean(result)
    result.assert_outcomes(passed=int(passes), failed=int(not passes))
    metrics, _, report = read(bench)
    assert metrics["status"] == ("ok" if passes else "error")
    assert [one["page"] for one in metrics["errors"] if one["page"]] == ["b"]
    measured = sorted({sample["page"] for sample in metrics["samples"]})
    assert measured == ([] if allowed == "0" else ["a", "c"])
    note = "1 page failed, as measure.max_failed_pages allows: b"
    assert (note in result.stdout.str()) is passes
    assert (note in report.replace("\\_", "_")) is passes
    if allowed == "0":
        assert "ended early: 1 page failed, measure.max_failed_pages=0; the last is b: " in result.stdout.str()


def test_line25_more_failed_pages_than_allowed_end_the_test(bench: Bench, folder: Path) -> None:
    (folder / "a0.png").write_text("no image either")
    result = bench.run(*FOLDER, "measure.max_failed_pages=1")
    clean(result)
    result.assert_outcomes(failed=1)
    metrics, _, _ = read(bench)
    assert [one["page"] for one in metrics["errors"]] == ["a0", "b", None]
    assert "c" not in {sample["page"] for sample in metrics["samples"]}  # it came after them


def test_line25_a_test_whose_pages_all_failed_fails(bench: Bench, folder: Path) -> None:
    for name in ("a", "c"):
        (folder / f"{name}.png").write_text("no image")
    result = bench.run(*FOLDER, "measure.max_failed_pages=9")
    result.assert_outcomes(failed=1)
    assert "no page was measured" in result.stdout.str()


def test_line25_pages_of_a_tiff_in_a_run(bench: Bench, folder: Path) -> None:
    (folder / "b.png").unlink()
    first = Image.new("L", (32, 32), 255)
    first.save(folder / "fax.tif", save_all=True, append_images=[first])
    bench.passed(*FOLDER, "dataset.exclude=c*")
    _, inputs, _ = read(bench)
    assert [one["page"] for one in inputs] == ["a", "fax.tif.0001", "fax.tif.0002"]


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("measure.max_failed_pages=-1", "an integer >= 0, or null"),
        ("dataset.dpi=9", "an integer from 10 to 2400"),
        ("dataset.dpi=2401", "an integer from 10 to 2400"),
        ("dataset.exclude=['']", "a list of glob patterns"),
    ],
)
def test_line25_values_that_are_refused(bench: Bench, override: str, allowed: str) -> None:
    bench.test()
    text = bench.usage_error(override)
    assert override.partition("=")[0] in text
    assert allowed in text
