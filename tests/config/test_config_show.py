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
    noted = [text.strip() for text in bench.composer("model.device=cpu").show().splitlines() if "#" in text]
    assert noted == ["device: cpu  # command line", "engine: reference  # auto: model.device=cpu"]


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


NSYS_ENV = "pipeline.nsys.env"


def test_environment_variables_stay_as_they_are_written_in_saved_files(bench, monkeypatch):
    """Issue 15, line 28: in the session's and a test's config.yaml, also where another key brings them."""
    monkeypatch.setenv("REVISION", "hidden-value")
    given = (
        "infer.prompt=${oc.env:REVISION}",
        "pipeline.nsys.args=['--o=${oc.env:REVISION}','${infer.prompt}']",
        "pipeline.nsys.env={A: '${oc.env:REVISION}', B: '${oc.env:MISSING,x}'}",
        f"{SAVE_DIR}=/out/${{oc.env:REVISION}}/${{llmprof.test}}",
    )
    settings = bench.settings(*given)
    assert settings.infer.prompt == "hidden-value"
    for saved in (settings.yaml, bench.composer(*given).saved()):
        assert "hidden-value" not in saved
        assert "prompt: ${oc.env:REVISION}" in saved
        assert "/out/${oc.env:REVISION}/${llmprof.test}" in saved
        bench.write("config.yaml", saved)
        again = bench.settings()
        assert again.infer.prompt == "hidden-value"
        assert again.pipeline["nsys"].options.args == ("--o=hidden-value", "hidden-value")
        assert again.pipeline["nsys"].options.env == {"A": "hidden-value", "B": "x"}
        assert (again.yaml, again.digest) == (settings.yaml, settings.digest)
    monkeypatch.setenv("REVISION", "other")
    assert bench.settings().digest != settings.digest


@pytest.mark.parametrize("value", ["data", "{}/start/data", "~/data"])
def test_paths_of_environment_variables_stay_too(bench, tmp_path, monkeypatch, value):
    """Issue 15, line 28: absolute as the variable gives them, else below the directory they were relative to."""
    (bench.start / "data").mkdir()
    (bench.start / "data" / "a.png").touch()
    monkeypatch.setenv("HOME", str(bench.start))
    monkeypatch.setenv("PAGES", value.format(tmp_path))
    settings = bench.settings("dataset=image_folder", "dataset.root=${oc.env:PAGES}")
    assert settings.dataset.root == str(bench.start / "data")
    start = f"{bench.start}/" if value == "data" else ""
    assert f"root: {start}${{oc.env:PAGES}}\n" in settings.yaml
    bench.write("config.yaml", settings.yaml)
    again = bench.settings()
    assert (again.dataset.root, again.yaml) == (settings.dataset.root, settings.yaml)


def test_a_hub_id_of_an_environment_variable_stays(bench, monkeypatch):
    monkeypatch.setenv("MODEL", "deepseek-ai/DeepSeek-OCR")
    settings = bench.settings("model=deepseek_ocr", "model.path=${oc.env:MODEL}")
    assert settings.model.path == "deepseek-ai/DeepSeek-OCR"
    assert "path: ${oc.env:MODEL}\n" in settings.yaml


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_TOKEN", "abc"),
        ("AWS_SECRET_ACCESS_KEY", "abc"),
        ("API_KEY", "abc"),
        ("DB_PASSWORD", "abc"),
        ("PROXY", "http://me:pw@proxy:80"),
        ("WHAT", "hf_abcdefgh"),
        ("WHAT", "my-secret"),
        ("WHAT", "0123456789abcdef0123456789abcdef01234567"),
    ],
)
def test_secrets_of_an_env_mapping_are_masked(bench, tmp_path, monkeypatch, name, value):
    """Line 28: read back, the variable is taken from the environment, or an error says that it is missing."""
    given = (f"{NSYS_ENV}={{{name}: '{value}', LD_LIBRARY_PATH: /opt/lib}}",)
    settings = bench.settings(*given)
    assert settings.pipeline["nsys"].options.env == {name: value, "LD_LIBRARY_PATH": "/opt/lib"}
    freeze(settings, {}, tmp_path / "frozen.yaml")
    for text in (settings.yaml, bench.composer(*given).saved(), bench.composer(*given).show()):
        assert value not in text
        assert f"{name}: ${{oc.env:{name}}}" in text
        assert "LD_LIBRARY_PATH: /opt/lib" in text
        bench.write("config.yaml", text)
        monkeypatch.delenv(name, raising=False)
        assert f"{NSYS_ENV}.{name}: Environment variable '{name}' not found" in bench.error()
        monkeypatch.setenv(name, value)
        assert bench.settings().pipeline["nsys"].options.env[name] == value
    assert value not in (tmp_path / "frozen.yaml").read_text()
    monkeypatch.delenv(name)
    child = FrozenComposer(bench.composer().sources, bench.registry, tmp_path / "frozen.yaml").session()
    assert child.pipeline["nsys"].options.env == {name: "***", "LD_LIBRARY_PATH": "/opt/lib"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LD_LIBRARY_PATH", "/opt/nvidia/lib:/usr/lib"),
        ("CUDA_VISIBLE_DEVICES", "GPU-8f2e5a1b-7c3d-4e6f-9a8b-1c2d3e4f5a6b"),
        ("OMP_NUM_THREADS", "4"),
        ("KEYBOARD", "us"),
        ("OLDPWD", "/home"),
        ("COMPASS", "north"),
    ],
)
def test_what_is_no_secret_is_saved(bench, name, value):
    text = bench.settings(f"{NSYS_ENV}={{{name}: '{value}'}}").yaml
    assert f"{name}: {value}" in text.replace("'", "").replace('"', "")


def test_variables_that_a_child_lacks_are_resolved_for_it(bench, tmp_path, monkeypatch):
    """pytest's own are not handed on, and a tool's `env` changes others."""
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw3")
    monkeypatch.setenv("PLACE", "here")
    given = ("infer.prompt=${oc.env:PYTEST_XDIST_WORKER}-${oc.env:PLACE}", "pipeline.nsys.env={PLACE: there}")
    composer = bench.composer(*given)
    freeze(composer.for_test((), "", "mod/test_a", "nsys"), {}, tmp_path / "frozen.yaml")
    monkeypatch.delenv("PYTEST_XDIST_WORKER")
    monkeypatch.setenv("PLACE", "there")
    child = FrozenComposer(composer.sources, bench.registry, tmp_path / "frozen.yaml").session()
    assert child.infer.prompt == "gw3-here"


def test_a_configuration_is_resolved_once_for_all_its_tests(bench, monkeypatch):
    """Issue 15, line 30: each test gets its own names, and the work is done for the first one alone."""
    from pytest_llmprof.config import compose

    calls = []
    real = compose.resolve
    monkeypatch.setattr(compose, "resolve", lambda *args: calls.append(1) or real(*args))
    composer = bench.composer("measure.rounds=3")
    tests = [composer.for_test((), "", f"mod/test_{number}", "torch_profiler") for number in range(20)]
    assert len(calls) == 1
    assert [test.test for test in tests] == [f"mod/test_{number}" for number in range(20)]
    assert tests[7].yaml.endswith("llmprof:\n  test: mod/test_7\n  stage: torch_profiler\n")
    assert len({test.digest for test in tests}) == 1


@pytest.mark.parametrize(
    "prompt", ["${llmprof.test}", "${oc.select:llmprof.test}", "a ${oc.decode:${llmprof.stage}}", "${..llmprof.test}"]
)
def test_what_may_depend_on_the_test_is_resolved_for_each(bench, prompt):
    composer = bench.composer(f"infer.prompt='{prompt}'")
    one, other = (composer.for_test((), "", test, test) for test in ("one", "other"))
    assert "one" in one.infer.prompt
    assert "other" in other.infer.prompt
