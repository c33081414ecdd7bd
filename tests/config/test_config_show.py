"""The configuration as it is shown."""

from __future__ import annotations

import json

import pytest
import yaml

from pytest_llmprof.config.frozen import FrozenComposer, freeze
from pytest_llmprof.config.render import escaped


def line(shown: str, key: str) -> str:
    """The line of a key, by its last name, where that is unique."""
    found = [text for text in shown.splitlines() if text.strip().startswith(f"{key}:")]
    assert len(found) == 1, (key, found)
    return found[0].strip()


def test_shown_configuration_is_yaml_of_the_session(bench):
    composer = bench.composer("model.revision=1e3", "infer.prompt='a: b # c'")
    shown = yaml.safe_load(composer.show())
    assert shown == yaml.safe_load(composer.session().yaml)
    assert shown["llmprof"] == {"test": "<test>", "stage": "<stage>"}
    assert shown["model"]["revision"] == "1e3"
    assert shown["infer"]["prompt"] == "a: b # c"


def test_nothing_set_nothing_noted(bench):
    assert "#" not in bench.composer().show()


def test_comments_say_where_a_value_was_set(bench):
    path = bench.write("config.yaml", "measure: {rounds: 5}\n")
    bench.write("infer/mine.yaml", "defaults: [reference]\nbatch_size: 2\n")
    shown = bench.composer(
        "infer=mine",
        "model.mode=base",
        "outputs.visualization.max_images=3",
        ini=("measure.warmup=2", "model=deepseek_ocr_random"),
        stages=("direct_inference",),
    ).show()
    assert line(shown, "mode") == "mode: base  # command line"
    assert line(shown, "warmup") == "warmup: 2  # ini"
    assert line(shown, "rounds") == f"rounds: 5  # {path}"
    assert line(shown, "batch_size") == "batch_size: 2  # preset infer=mine"
    assert line(shown, "prompt") == "prompt: markdown  # preset infer=mine"
    assert line(shown, "weights") == "weights: random  # preset model=deepseek_ocr_random"
    assert line(shown, "stages") == "stages: [direct_inference]  # command line"
    assert "max_images: 3  # command line" in shown
    assert line(shown, "shuffle") == "shuffle: false"
    assert "outputs" not in shown


def test_comments_of_presets_that_the_users_tree_chose(bench):
    bench.write("config.yaml", "defaults: [llmprof_root, override infer: mine]\n")
    bench.write("infer/mine.yaml", "batch_size: 2\n")
    bench.write("dataset/sample_pages.yaml", "name: sample_pages\nlimit: 2\n")
    shown = bench.composer().show()
    assert line(shown, "batch_size") == "batch_size: 2  # preset infer=mine"
    assert line(shown, "limit") == "limit: 2  # preset dataset=sample_pages"
    assert line(shown, "mode") == "mode: tiny"


def test_values_that_depend_on_the_test(bench):
    shown = bench.composer("pipeline.torch_profiler.output.prediction.save_dir=/out/${llmprof.test}").show()
    assert "save_dir: /out/<test>  # command line" in shown


def test_awkward_texts_survive(bench):
    for text in (
        "line\nline",
        "tab\t",
        "\u2028",
        "1e3",
        "0x1F",
        "yes",
        "null",
        "~",
        "",
        "- a",
        "a: b",
        "'",
        '"',
        "é\u202e",
    ):
        if not text.strip():
            continue
        bench.write("config.yaml", "infer: {prompt: " + json.dumps(text) + "}\n")
        settings = bench.settings()
        assert settings.infer.prompt == text
        assert yaml.safe_load(settings.yaml)["infer"]["prompt"] == text
        bench.write("config.yaml", settings.yaml)
        assert bench.settings().infer.prompt == text


SAVE_DIR = "pipeline.torch_profiler.output.prediction.save_dir"


def test_a_saved_configuration_gives_each_test_its_own_again(bench):
    """Whether it was shown (with placeholders) or saved, by the session or a test (with interpolations)."""
    given = (
        f"{SAVE_DIR}=/out/${{llmprof.test}}/${{llmprof.stage}}",
        "pipeline.nsys.args=['--o=${llmprof.test}']",
        "pipeline.nsys.env={A: '${llmprof.stage}'}",
    )
    shown, saved = bench.composer(*given).show(), bench.settings(*given).yaml
    assert "save_dir: /out/<test>/<stage>" in shown
    assert "save_dir: /out/${llmprof.test}/${llmprof.stage}" in saved
    for text in (shown, saved, bench.composer(*given).saved()):
        bench.write("config.yaml", text)
        settings = bench.composer().for_test((), "", "mod/test_b", "direct_inference")
        prediction = settings.pipeline["torch_profiler"].output.prediction
        assert prediction.save_dir == "/out/mod/test_b/direct_inference"
        settings = bench.settings()
        assert settings.yaml == saved
        assert settings.pipeline["nsys"].options.args == ("--o=mod/test_a",)
        assert settings.pipeline["nsys"].options.env == {"A": "torch_profiler"}


def test_a_saved_configuration_keeps_what_depends_on_the_test_by_another_key(bench):
    mine = "pipeline.torch_profiler.output.visualization.save_dir=${pipeline.torch_profiler.output.prediction.save_dir}"
    given = (f"{SAVE_DIR}=/out/${{llmprof.test}}", mine, "measure.rounds=${infer.batch_size}")
    bench.write("config.yaml", bench.settings(*given).yaml)
    assert bench.settings().measure.rounds == 1
    settings = bench.composer().for_test((), "", "mod/test_b", "torch_profiler")
    assert settings.current.output.visualization.save_dir == "/out/mod/test_b"
    assert "rounds: 1\n" in settings.yaml
    other = bench.composer(*given).for_test((), "", "mod/test_b", "torch_profiler")
    assert other.digest == bench.settings(*given).digest == settings.digest


def test_the_frozen_configuration_keeps_what_depends_on_the_test(bench, tmp_path):
    path = tmp_path / "frozen.yaml"
    freeze(bench.settings(f"{SAVE_DIR}=/out/${{llmprof.test}}/${{llmprof.stage}}"), {"llmprof.stage": "x"}, path)
    assert "${llmprof.test}" in path.read_text()
    settings = FrozenComposer(bench.composer().sources, bench.registry, path).session()
    assert (settings.test, settings.stage) == ("mod/test_a", "x")
    assert settings.pipeline["torch_profiler"].output.prediction.save_dir == "/out/mod/test_a/x"


def test_only_a_saved_configuration_has_placeholders(bench):
    prompt = "Mark <stage> directions of the <test>"
    bench.write("config.yaml", f"infer: {{prompt: {prompt}}}\n{SAVE_DIR}: /out/torch_profiler\n")
    assert bench.settings().infer.prompt == prompt
    bench.write("config.yaml", bench.settings().yaml)
    assert bench.settings().infer.prompt == prompt


@pytest.mark.parametrize("text", ["${x} esc", "costs ${5", r"a\${b}", r"\\${infer.batch_size}\\", "$x {y}"])
def test_resolved_texts_are_not_resolved_again(bench, text, tmp_path):
    bench.write("config.yaml", "infer: {prompt: " + json.dumps(escaped(text)) + "}\n")
    settings = bench.settings()
    assert settings.infer.prompt == text
    freeze(settings, {"measure.rounds": 7}, tmp_path / "frozen.yaml")
    composer = FrozenComposer(bench.composer().sources, bench.registry, tmp_path / "frozen.yaml")
    assert composer.session().infer.prompt == text
    for saved in (settings.yaml, bench.composer().show(), composer.show()):
        bench.write("config.yaml", saved)
        assert bench.settings().infer.prompt == text
