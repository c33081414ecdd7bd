"""Presets and configuration trees from the options, and what a relative path is relative to."""

from __future__ import annotations

import pytest
from plugin_bench import OUTPUT

BOTH = ["--llmprof-stage=torch_profiler,direct_inference"]
MOUNT = "output/torch@pipeline.torch_profiler.output"


def enabled(bench) -> dict[str, tuple[bool, bool]]:
    return {
        stage: (bench.output(stage)["prediction"]["enable"], bench.output(stage)["visualization"]["enable"])
        for stage in ("torch_profiler", "direct_inference")
    }


@pytest.mark.parametrize(
    ("overrides", "first", "second"),
    [
        ([], (False, True), (False, True)),
        (["output/torch=full"], (True, True), (True, True)),
        (["output/torch=none"], (False, False), (False, False)),
        ([f"{MOUNT}=full"], (True, True), (False, True)),
        (["output/torch=none", f"{MOUNT}=full"], (True, True), (False, False)),
        # A key beats a preset, wherever either stands.
        (["pipeline.torch_profiler.output.prediction.enable=true", "output/torch=none"], (True, False), (False, False)),
    ],
)
def test_output_presets(bench, overrides, first, second):
    bench.test(OUTPUT)
    bench.passed(*overrides, args=BOTH, count=2)
    assert enabled(bench) == {"torch_profiler": first, "direct_inference": second}


def test_an_ini_key_beats_a_command_line_preset(bench):
    bench.user("infer/short.yaml", "defaults: [reference]\nmax_new_tokens: 9\n")
    bench.test("def test_it(llmprof_config):\n    assert llmprof_config.infer.max_new_tokens == 4\n")
    bench.passed("infer=short")


def test_presets_of_the_users_tree(bench):
    bench.user("output/torch/mine.yaml", "defaults: [full]\nprediction: {save_dir: my_preds}\n")
    bench.user("measure_twice.yaml", "# @package _global_\nmeasure: {rounds: 2}\n")
    bench.test(OUTPUT)
    bench.passed("output/torch=mine")
    assert bench.output()["prediction"]["enable"] is True
    assert bench.output()["prediction"]["dir"].endswith("/torch_profiler/my_preds")


@pytest.mark.parametrize(
    "defaults", ["", "defaults: [llmprof_root, override output/torch@pipeline.torch_profiler.output: none, _self_]\n"]
)
def test_the_users_config_yaml(bench, defaults):
    bench.user("config.yaml", defaults + "infer: {batch_size: 3}\n")
    bench.test("def test_it(llmprof_config):\n    assert llmprof_config.infer.batch_size == 3\n" + OUTPUT)
    bench.passed(count=2)
    assert bench.output()["visualization"]["enable"] is (defaults == "")


@pytest.mark.parametrize("source", ["command line", "ini", "config", "marker"])
def test_a_relative_path(bench, source, monkeypatch):
    """Of the command line: below the directory pytest was started in; of all else: below the rootdir."""
    from PIL import Image

    for place in (bench.path / "start", bench.path):
        (place / "pages").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(place / "pages" / f"{place.name}.png")
    key = "dataset.root=pages"
    given = ["dataset=image_folder", key] if source == "marker" else []
    marks = f"import pytest\npytestmark = pytest.mark.llmprof(overrides={given})\n"
    bench.test(
        marks + "def test_it(llmprof_dataset):\n    print('PAGE', llmprof_dataset[0].name)\n", "start/test_it.py"
    )
    bench.ini(*([key] if source == "ini" else []))
    if source == "config":
        bench.user("config.yaml", "dataset: {root: pages}\n")
    monkeypatch.chdir(bench.path / "start")
    given = [] if source == "marker" else ["dataset=image_folder"]
    result = bench.passed(*given, *([key] if source == "command line" else []), args=["-s"])
    wanted = "start" if source == "command line" else bench.path.name
    result.stdout.fnmatch_lines([f"*PAGE {wanted}"])


@pytest.mark.parametrize("source", ["command line", "ini"])
def test_the_config_dir_itself(bench, source, monkeypatch):
    for place, rounds in ((bench.path / "start" / "mine", 2), (bench.path / "mine", 3)):
        place.mkdir(parents=True)
        (place / "config.yaml").write_text(f"infer: {{batch_size: {rounds}}}\n")
    wanted = 2 if source == "command line" else 3
    bench.test(
        f"def test_it(llmprof_config):\n    assert llmprof_config.infer.batch_size == {wanted}\n", "start/test_it.py"
    )
    monkeypatch.chdir(bench.path / "start")
    if source == "ini":
        bench.ini(llmprof_config_dir="mine")
    bench.passed(args=["--llmprof-config-dir=mine"] if source == "command line" else [])


def test_each_test_has_its_own_config_yaml(bench):
    import yaml

    bench.echo()
    bench.test(
        """
import pytest
@pytest.mark.llmprof(overrides=["infer.prompt=mine"])
def test_one(llmprof):
    llmprof.run()
def test_two(llmprof):
    llmprof.run()
"""
    )
    bench.ini("model=echo", "dataset=blank", "infer.prompt=ours")
    bench.passed(args=["--llmprof-stage=direct_inference"], count=2)
    for name, prompt in (("one", "mine"), ("two", "ours")):
        path = bench.stage_dir(f"test_it/test_{name}", "direct_inference") / "config.yaml"
        config = yaml.safe_load(path.read_text())
        assert config["infer"]["prompt"] == prompt
        assert config["llmprof"] == {"test": f"test_it/test_{name}", "stage": "direct_inference"}
    assert yaml.safe_load((bench.run_dir / "config.yaml").read_text())["infer"]["prompt"] == "ours"


def test_an_engine_that_this_machine_cannot_run_is_skipped_with_the_reason(bench, monkeypatch):
    from pytest_llmprof.models import graphs

    def broken(function):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(graphs, "compile_whole", broken)
    bench.test()
    result = bench.run("infer=compiled", args=["-rs"])
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(
        ["SKIPPED*infer=compiled needs torch.compile,*: No working C++ compiler found; use infer=reference"]
    )
    assert [test["outcome"] for test in bench.run_json()["tests"]] == ["skipped"]
