"""A third party's model, stage and dataset, from a conftest, used from the command line."""

from __future__ import annotations

import json

import pytest
from plugin_bench import clean, files

ECHO = ("model=echo", "dataset=blank", "infer.prompt='hello world'")


def test_model_stage_and_dataset(bench):
    bench.echo()
    bench.test(
        """
def test_pages(llmprof, llmprof_output, llmprof_config, llmprof_model):
    run = llmprof.run()
    assert llmprof_model.info.name == "echo"
    assert llmprof_output.extra.times == 3
    assert llmprof_config.current.options.repeat == 4
    assert len(run.samples) == 8
    assert run.quality.cer == 0
    assert [prediction.text_raw for prediction in run.predictions] == ["hello world"] * 2
"""
    )
    bench.ini(tiny=False)
    bench.passed(
        *ECHO,
        "pipeline.count.repeat=4",
        "pipeline.count.label=mine",
        "pipeline.count.output.prediction.enable=true",
        "pipeline.count.output.extra.echo.times=3",
        args=["--llmprof-stage=count"],
    )
    stage_dir = bench.stage_dir(stage="count")
    found = files(stage_dir)
    assert {
        "count.txt",
        "metrics.json",
        "report.md",
        "config.yaml",
        "pred/predictions.jsonl",
        "viz/predictions.md",
    } <= found
    assert (stage_dir / "count.txt").read_text() == "mine 8\n"
    line = json.loads((stage_dir / "pred" / "predictions.jsonl").read_text().splitlines()[0])
    assert line["text_raw"] == "hello world"
    assert line["tokens"] == 2
    assert line["finish_reason"] == "eos"
    assert line["cer"] == 0
    assert line["stage"] == "count"


def test_beside_the_packaged_ones(bench):
    bench.echo()
    bench.test()
    bench.passed(args=["--llmprof-stage=count,direct_inference"], count=2)
    assert (bench.stage_dir(stage="count") / "count.txt").read_text() == "count 2\n"


def test_their_options_are_checked(bench):
    bench.echo()
    bench.test()
    stage = ["--llmprof-stage=count"]
    assert "pipeline.count.repeat=0 is not allowed" in bench.usage_error("pipeline.count.repeat=0", args=stage)
    assert "pipeline.count.repeat=x is not allowed" in bench.usage_error("pipeline.count.repeat=x", args=stage)
    assert "did you mean 'pipeline.count.repeat'" in bench.usage_error("pipeline.count.repaet=1", args=stage)
    text = bench.usage_error("pipeline.count.output.extra.echo.times=0", args=stage)
    assert "pipeline.count.output.extra.echo.times=0 is not allowed" in text
    assert "an integer >= 1" in text
    assert "model.mode=tiny is not allowed" in bench.usage_error(*ECHO, "model.mode=tiny", args=stage)


def test_their_keys_are_shown(bench):
    bench.echo()
    bench.test()
    text = bench.run(*ECHO, args=["--llmprof-show-config", "--llmprof-stage=count"]).stdout.str()
    assert "repeat: 2" in text
    assert "times: 1" in text


def test_two_plugins_with_one_name(bench):
    bench.echo()
    conftest = bench.path / "conftest.py"
    conftest.write_text(conftest.read_text().replace('name="count"', 'name="torch_profiler"'))
    bench.test()
    assert "two plugins register the stage 'torch_profiler'" in bench.usage_error("measure.rounds=1")


@pytest.mark.parametrize("args", [["--llmprof-stage=direct_inference"], []])
@pytest.mark.parametrize(
    ("hook", "returned", "line"),
    [
        ("models", "['m']", "returned 'm': it must be a list of ModelPlugin"),
        ("stages", "[5]", "returned 5: it must be a list of StagePlugin or ToolStagePlugin"),
        ("datasets", "'d'", "returned 'd': it must be a list of DatasetPlugin"),
        ("metrics", "7", "returned 7: it must be a list of Metric"),
        ("box_formats", "[BoxFormat]", "returned <class 'pytest_llmprof.models.base.BoxFormat'>: it must be a list of"),
        ("box_formats", "BoxFormat('a', str)", "returned BoxFormat(name='a', read=<class 'str'>, "),
        ("box_formats", "{'a': str}", "returned 'a': it must be a list of BoxFormat"),
    ],
)
def test_a_hook_that_returns_something_else(bench, hook, returned, line, args):
    name = f"pytest_llmprof_{hook}"
    code = f"from pytest_llmprof.models.base import BoxFormat\ndef {name}(config): return {returned}\n"
    bench.test(code, "conftest.py")
    bench.test()
    assert f"the hook {name} {line}" in bench.usage_error(args=args)


@pytest.mark.parametrize("name", ["mine", "none", "qwen"])
def test_two_formats_of_boxes_with_one_name(bench, name):
    formats = f"[BoxFormat({name!r}, str)] * {1 + (name == 'mine')}"
    code = "from pytest_llmprof.models.base import BoxFormat\n"
    bench.test(f"{code}def pytest_llmprof_box_formats(config): return {formats}\n", "conftest.py")
    bench.test()
    line = f"two plugins register the format of boxes {name!r}: names must differ"
    assert line in bench.usage_error("measure.rounds=1")


@pytest.mark.parametrize("name", [5, None, ""])
def test_a_plugin_whose_name_is_no_text(bench, name):
    code = "from pytest_llmprof.models.base import BoxFormat\n"
    bench.test(f"{code}def pytest_llmprof_box_formats(config): return [BoxFormat({name!r}, str)]\n", "conftest.py")
    bench.test()
    line = f"a plugin registers a format of boxes whose name is {name!r}: it must be a text"
    assert line in bench.usage_error("model=transformers", "model.path=x", "model.family.boxes=x")


def test_a_hook_that_returns_nothing(bench):
    bench.test("def test_it(llmprof_config): pass", "test_it.py")
    bench.test("def pytest_llmprof_models(config): pass\ndef pytest_llmprof_stages(): return []\n", "conftest.py")
    bench.passed()


def test_in_xdist_workers(bench):
    bench.echo()
    bench.test("def test_it(llmprof_config, llmprof_output):\n    assert llmprof_output.extra.times == 3\n")
    result = bench.run_apart(*ECHO, "pipeline.count.output.extra.echo.times=3", args=["--llmprof-stage=count", "-n1"])
    result.assert_outcomes(passed=1)
    clean(result)
