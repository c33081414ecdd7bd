"""Keys of before the output plan: mapped, below explicit keys from anywhere, told of once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from plugin_bench import OUTPUT, PAGES, clean

BLOCK = "pipeline.torch_profiler.output"
EXTRA = f"{BLOCK}.extra.deepseek_ocr"
SOURCES = ("command line", "ini", "marker", "config")

PREDICTION = f"{BLOCK}.prediction.enable"
GALLERY = f"{BLOCK}.visualization.enable"
STRIP = f"{EXTRA}.prediction.strip_special_tokens"
IMAGES = f"{EXTRA}.visualization.max_images"
WIDTH = f"{EXTRA}.visualization.thumbnail_width"
DEFAULTS = {PREDICTION: False, GALLERY: True, STRIP: False, IMAGES: 16, WIDTH: 480}
OTHERS = {PREDICTION: True, GALLERY: False, STRIP: True, IMAGES: 3, WIDTH: 77}


def spelling(root: str) -> dict[str, str]:
    return {
        f"{root}.save_predictions": PREDICTION,
        f"{root}.visualization.enable": GALLERY,
        f"{root}.predictions.strip_special_tokens": STRIP,
        f"{root}.visualization.max_images": IMAGES,
        f"{root}.visualization.thumbnail_width": WIDTH,
    }


SPELLINGS = {
    "outputs": spelling("outputs"),
    "output": spelling("output"),
    "output.prediction": {
        "output.prediction.enable": PREDICTION,
        "output.prediction.strip_special_tokens": STRIP,
        "output.visualization.max_images": IMAGES,
    },
}
"""Legacy key -> today's, in each of the spellings that were."""


def yaml_value(value: Any) -> str:
    return json.dumps(value)


def run(bench, given: list[tuple[str, str, Any]], *, count: int = 1, args: tuple[str, ...] = ()):
    """Run a test that tells its outputs, where each (source, key, value) is set; it must pass."""
    by_source = {
        source: [f"{key}={yaml_value(value)}" for where, key, value in given if where == source] for source in SOURCES
    }
    mark = f"import pytest\npytestmark = pytest.mark.llmprof(overrides={by_source['marker']!r})\n"
    bench.test(mark + OUTPUT)
    bench.ini(*by_source["ini"])
    tree: dict[str, Any] = {}
    for where, key, value in given:
        if where == "config":
            node = tree
            *path, last = key.split(".")
            for part in path:
                node = node.setdefault(part, {})
            node[last] = value
    if tree:
        bench.user("config.yaml", json.dumps(tree) + "\n")
    return bench.passed(*by_source["command line"], count=count, args=args)


def found(bench, key: str) -> Any:
    """What the test saw of today's *key*."""
    output = bench.output()
    if key in (PREDICTION, GALLERY):
        return output["prediction" if key == PREDICTION else "visualization"]["enable"]
    _, _, rest = key.partition(f"{EXTRA}.")
    block, name = rest.split(".")
    return output["extra"][block][name]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("names", SPELLINGS.values(), ids=SPELLINGS)
def test_alone(bench, names, source):
    result = run(bench, [(source, old, OTHERS[new]) for old, new in names.items()])
    for new in DEFAULTS:
        assert found(bench, new) == (OTHERS if new in names.values() else DEFAULTS)[new]
    told = [line for line in result.outlines if "INFO" in line]
    assert len(told) == 1
    for old, new in names.items():
        assert f"{old} (use {new})" in told[0]


@pytest.mark.parametrize("explicit", ["default", "other"])
@pytest.mark.parametrize("explicit_source", SOURCES)
@pytest.mark.parametrize("source", SOURCES)
def test_an_explicit_key_wins_from_anywhere_with_either_value(bench, source, explicit_source, explicit):
    # All spellings at once: one that won would show.
    names = {old: new for spelled in SPELLINGS.values() for old, new in spelled.items()}
    wanted, legacy = (DEFAULTS, OTHERS) if explicit == "default" else (OTHERS, DEFAULTS)
    given = [(source, old, legacy[new]) for old, new in names.items()]
    given += [(explicit_source, new, wanted[new]) for new in wanted]
    run(bench, given)
    assert {new: found(bench, new) for new in wanted} == wanted


@pytest.mark.parametrize("source", SOURCES)
def test_a_preset_loses_to_a_legacy_key(bench, source):
    overrides = ["outputs.save_predictions=true"]
    bench.user(
        "output/torch/mine.yaml", "defaults: [none]\nprediction: {enable: false}\nvisualization: {enable: false}\n"
    )
    bench.test(
        f"import pytest\npytestmark = pytest.mark.llmprof(overrides={overrides if source == 'marker' else []})\n"
        + OUTPUT
    )
    bench.ini(*(overrides if source == "ini" else []))
    if source == "config":
        bench.user("config.yaml", "outputs: {save_predictions: true}\n")
    bench.passed("output/torch=mine", *(overrides if source == "command line" else []))
    assert found(bench, PREDICTION) is True
    assert found(bench, GALLERY) is False


def test_legacy_keys_are_torch_profilers(bench):
    bench.test(OUTPUT)
    bench.passed("outputs.save_predictions=true", args=["--llmprof-stage=torch_profiler,direct_inference"], count=2)
    assert bench.output("torch_profiler")["prediction"]["enable"] is True
    assert bench.output("direct_inference")["prediction"]["enable"] is False


def test_they_decide_which_files_are_written(bench):
    bench.test(PAGES)
    bench.passed(
        "outputs.save_predictions=true", "outputs.visualization.enable=false", "pipeline.torch_profiler.enable=false"
    )
    assert (bench.stage_dir() / "pred" / "predictions.jsonl").is_file()
    assert not (bench.stage_dir() / "viz").exists()


MARKED = """
import pytest
@pytest.mark.llmprof(overrides=["outputs.save_predictions=true"])
def test_one(llmprof_output):
    pass
@pytest.mark.parametrize("x", range(3))
@pytest.mark.llmprof(overrides=["output.visualization.max_images=2"])
def test_two(llmprof_output, x):
    pass
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_one_info_a_session_names_the_keys_of_all_markers(bench, workers):
    bench.test(MARKED)
    run = bench.run_apart if workers else bench.run
    result = run("outputs.visualization.thumbnail_width=9", args=["-n2"] if workers else [])
    result.assert_outcomes(passed=4)
    clean(result)
    told = [line for line in result.outlines if "INFO" in line]
    assert len(told) == 1
    for key in ("outputs.save_predictions", "output.visualization.max_images", "outputs.visualization.thumbnail_width"):
        assert told[0].count(f"{key} (use ") == 1


def test_the_info_is_logged_too(bench):
    bench.test(MARKED)
    result = bench.run("outputs.visualization.thumbnail_width=9", args=["--log-file=log.txt", "--log-file-level=INFO"])
    result.assert_outcomes(passed=4)
    lines = [line for line in (bench.path / "log.txt").read_text().splitlines() if "legacy" in line]
    assert len(lines) == 1
    assert "INFO" in lines[0]


def test_no_info_without_legacy_keys(bench):
    result = run(bench, [("command line", PREDICTION, True)])
    assert "INFO" not in result.stdout.str()


def test_they_are_gone_from_what_is_written(bench):
    run(bench, [("command line", "outputs.save_predictions", True)])
    text = (bench.run_dir / "config.yaml").read_text()
    assert "outputs" not in text
    assert "save_predictions" not in text
