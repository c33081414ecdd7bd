"""The plan's output keys, by the files that a run leaves."""

from __future__ import annotations

import json

import pytest
from plugin_bench import PAGES, files

BLOCK = "pipeline.torch_profiler.output"
EXTRA = f"{BLOCK}.extra.deepseek_ocr"
COMMON = {"config.yaml", "metrics.json", "report.md", "environment.json", "inputs.jsonl"}
PROFILE = {"trace.json.gz", "timeline.json", "operators.csv", "operators.md"}


def run(bench, *overrides: str, source: str = PAGES) -> set[str]:
    """Run the pages in torch_profiler without the profiler (it costs time here); give the files."""
    bench.test(source)
    bench.passed("pipeline.torch_profiler.enable=false", *overrides)
    return files(bench.stage_dir())


def predictions(bench) -> list[dict]:
    lines = (bench.stage_dir() / "pred" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_by_default_a_gallery_and_no_predictions(bench):
    bench.test()
    bench.passed()
    found = files(bench.stage_dir())
    assert COMMON | PROFILE | {"viz/predictions.md"} <= found
    assert not [name for name in found if name.endswith("predictions.jsonl")]
    top = {name.split("/")[0] for name in found}
    assert top == COMMON | PROFILE | {"viz"}


@pytest.mark.parametrize("gallery", [True, False])
@pytest.mark.parametrize("prediction", [True, False])
def test_files_only_where_enabled(bench, prediction, gallery):
    found = run(
        bench,
        f"{BLOCK}.prediction.enable={str(prediction).lower()}",
        f"{BLOCK}.visualization.enable={str(gallery).lower()}",
    )
    assert found >= COMMON
    assert ("pred/predictions.jsonl" in found) is prediction
    assert ("viz/predictions.md" in found) is gallery
    top = {name.split("/")[0] for name in found} - COMMON
    assert top == {name for name, wanted in (("pred", prediction), ("viz", gallery)) if wanted}


def test_the_plans_validation_lines(bench):
    found = run(bench, f"{BLOCK}.prediction.enable=true", f"{BLOCK}.visualization.enable=false")
    assert "pred/predictions.jsonl" in found
    assert not [name for name in found if name.startswith("viz")]


def test_profiler_off_still_measures_and_writes_outputs(bench):
    found = run(bench, "output/torch=full")
    assert {"pred/predictions.jsonl", "viz/predictions.md", "metrics.json"} <= found
    assert not found & PROFILE
    metrics = json.loads((bench.stage_dir() / "metrics.json").read_text())
    assert metrics["figures"]["ttft_ms"] > 0
    assert metrics["samples"]
    assert metrics["profile"] is None


@pytest.mark.parametrize("strip", [True, False])
def test_strip_special_tokens(bench, strip):
    # The echo model's answer has special text of its own, so that both forms differ.
    bench.echo()
    bench.test()
    bench.passed(
        "model=echo",
        "infer.prompt='a b<end>'",
        f"{BLOCK}.prediction.enable=true",
        "pipeline.torch_profiler.enable=false",
        f"{BLOCK}.extra.echo.prediction.strip_special_tokens={str(strip).lower()}",
    )
    (line,) = predictions(bench)
    assert line["text_raw"] == "a b<end>"
    assert line["text_clean"] == ("a b" if strip else "a b<end>")


def test_strip_special_tokens_of_deepseek_ocr(bench):
    bench.test()
    bench.passed(
        "output/torch=full",
        "pipeline.torch_profiler.enable=false",
        f"{EXTRA}.prediction.strip_special_tokens=true",
    )
    (line,) = predictions(bench)
    assert line["text_clean"] != ""
    assert line["tokens"] == 4


@pytest.mark.parametrize(("value", "shown"), [("0", 0), ("1", 1), ("2", 2), ("null", 3)])
def test_max_images(bench, value, shown):
    found = run(bench, "dataset.limit=3", f"{EXTRA}.visualization.max_images={value}", "infer.max_new_tokens=1")
    assert len([name for name in found if name.endswith("/thumbnail.jpg")]) == shown
    table = (bench.stage_dir() / "viz" / "predictions.md").read_text(encoding="utf-8")
    inputs = (bench.stage_dir() / "inputs.jsonl").read_text().splitlines()
    for line in inputs:
        assert json.loads(line)["page"] in table


@pytest.mark.parametrize(("width", "expected"), [(100, 100), (1, 1), (5000, 512)])
def test_thumbnail_width_is_never_an_enlargement(bench, width, expected):
    from PIL import Image

    run(bench, f"{EXTRA}.visualization.thumbnail_width={width}")
    (path,) = (bench.stage_dir() / "viz").rglob("thumbnail.jpg")
    with Image.open(path) as picture:
        assert picture.width == expected


def test_predictions_line_has_its_fields(bench):
    run(bench, "output/torch=full")
    (line,) = predictions(bench)
    wanted = (
        "schema page image stage prompt status error batch_id batch_size round text_raw text_clean boxes tokens "
        "finish_reason preprocess_ms vision_ms prefill_ms decode_ms other_ms total_ms ttft_ms tokens_per_s cer"
    )
    assert not [name for name in wanted.split(" ") if name not in line]
    assert line["stage"] == "torch_profiler"
    assert line["image"].startswith("sample_pages/")
    assert line["finish_reason"] in ("eos", "length")
    assert 0.5 < line["cer"] <= 1  # only its first four tokens


def test_direct_inference_has_the_same_block(bench):
    bench.test()
    bench.passed(
        "pipeline.direct_inference.output.prediction.enable=true",
        "pipeline.direct_inference.output.prediction.save_dir=preds",
        "pipeline.direct_inference.output.extra.deepseek_ocr.visualization.max_images=0",
        args=["--llmprof-stage=direct_inference"],
    )
    found = files(bench.stage_dir(stage="direct_inference"))
    assert "preds/predictions.jsonl" in found
    assert not [name for name in found if name.endswith("/thumbnail.jpg")]
    assert not found & PROFILE


def test_a_rerun_into_the_same_test_dir_replaces_it(bench):
    stage_dir = bench.path / "run" / "test_it" / "test_pages" / "torch_profiler"
    (stage_dir / "viz").mkdir(parents=True)
    (stage_dir / "old.txt").write_text("of a run that never began")
    bench.test()
    bench.passed("pipeline.torch_profiler.enable=false", args=["--llmprof-run-dir=run"])
    assert "old.txt" not in files(stage_dir)
