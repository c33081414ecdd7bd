"""`--llmprof-show-config`: the session's configuration as YAML, and nothing else on standard output."""

from __future__ import annotations

import shlex
import sys

import pytest
import yaml
from plugin_bench import clean


def test_standard_output_is_pure_yaml(bench):
    bench.test("raise AssertionError('it was collected')")
    result = bench.run_apart("infer.max_new_tokens=7", args=["--llmprof-show-config", "-v"])
    assert result.ret == 0
    assert result.stderr.str() == ""
    shown = yaml.safe_load(result.stdout.str())
    assert shown["infer"]["max_new_tokens"] == 7
    assert shown["dataset"]["limit"] == 1
    assert shown["pipeline"]["torch_profiler"]["output"]["prediction"] == {"enable": False, "save_dir": "pred"}
    assert shown["pipeline"]["torch_profiler"]["output"]["extra"]["deepseek_ocr"]["visualization"]["max_images"] == 16
    assert shown["stages"] == ["torch_profiler"]


def test_comments_say_where_a_value_was_set(bench):
    path = bench.user("config.yaml", "measure: {warmup: 2}\n")
    bench.ini("infer.batch_size=2", tiny=False)
    bench.test()
    result = bench.run(
        "measure.rounds=5", "output/torch=full", "outputs.visualization.max_images=3", args=["--llmprof-show-config"]
    )
    result.stdout.fnmatch_lines_random(
        [
            "  rounds: 5  # command line",
            f"  warmup: 2  # {path}",
            "  batch_size: 2  # ini",
            "*enable: true  # preset output/torch*=full*",
            "*max_images: 3  # command line",
        ]
    )
    assert "outputs" not in yaml.safe_load(result.stdout.str())


def test_what_depends_on_the_test(bench):
    bench.test()
    result = bench.run(
        "pipeline.torch_profiler.output.prediction.save_dir=/out/${llmprof.test}/x", args=["--llmprof-show-config"]
    )
    shown = yaml.safe_load(result.stdout.str())
    assert shown["pipeline"]["torch_profiler"]["output"]["prediction"]["save_dir"] == "/out/<test>/x"
    assert shown["llmprof"]["test"] == "<test>"


def test_stages_and_plugins_show(bench):
    bench.echo()
    bench.test()
    shown = yaml.safe_load(
        bench.run("model=echo", args=["--llmprof-show-config", "--llmprof-stage=count,direct_inference"]).stdout.str()
    )
    assert shown["stages"] == ["count", "direct_inference"]
    assert shown["model"]["name"] == "echo"
    assert shown["pipeline"]["count"]["label"] == "count"


def test_it_can_be_given_back_as_a_configuration(bench):
    bench.test(
        """
def test_it(llmprof_config):
    assert llmprof_config.measure.rounds == 5
    assert llmprof_config.dataset.limit == 1
"""
    )
    text = bench.run("measure.rounds=5", args=["--llmprof-show-config"]).stdout.str()
    bench.ini(tiny=False)
    bench.user("config.yaml", text)
    bench.passed()


def test_what_each_test_has_of_its_own_survives(bench, tmp_path):
    key = "pipeline.torch_profiler.output.prediction"
    bench.test()
    given = f"{key}.save_dir={tmp_path}/out/${{llmprof.test}}/${{llmprof.stage}}"
    shown = bench.run(f"{key}.enable=true", given, args=["--llmprof-show-config"])
    bench.user("config.yaml", shown.stdout.str())
    bench.passed()
    assert (tmp_path / "out" / "test_it" / "test_pages" / "torch_profiler" / "predictions.jsonl").is_file()


def test_a_run_directory_that_holds_a_run_does_not_matter(bench):
    (bench.path / "mine").mkdir()
    (bench.path / "mine" / "run.json").write_text("{}")
    bench.test()
    assert bench.run(args=["--llmprof-show-config", "--llmprof-run-dir=mine"]).ret == 0


@pytest.mark.parametrize(
    "args", [["--llmprof-override=measure.rounds=0"], ["--llmprof-stage=x"], ["--llmprof-config-dir=missing"]]
)
def test_a_mistake_is_one_line_on_standard_error(bench, args):
    bench.test()
    result = bench.run(args=["--llmprof-show-config", *args])
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.stdout.str() == ""
    assert len([line for line in result.errlines if line]) == 1
    clean(result)


def test_under_xdist(bench):
    bench.test()
    result = bench.run_apart(args=["--llmprof-show-config", "-n2"])
    assert yaml.safe_load(result.stdout.str())["measure"]["rounds"] == 1


def test_what_stops_a_session_is_not_shown_as_its_configuration(bench):
    """An ini key that does not exist, and a gate that is none."""
    bench.test()
    show = ["--llmprof-show-config"]
    assert "gate.limits.nope" in bench.usage_error("gate.limits.nope='<=5'", args=show)
    assert "unknown ini key llmprof_stages in -o" in bench.usage_error(args=[*show, "-o", "llmprof_stages=nsys"])
    bench.ini(llmprof_stages="nsys")
    assert "unknown ini key llmprof_stages in pytest.ini" in bench.usage_error(args=show)


def test_it_is_utf_8_whatever_the_locale(bench):
    bench.test()
    command = shlex.join([sys.executable, "-m", "pytest", "--llmprof-show-config", "--llmprof-override"])
    pipe = f"PYTHONIOENCODING=ascii {command} \"infer.prompt='é → 文'\" > shown.yaml"
    result = bench.pytester.run("bash", "-c", pipe)
    assert (result.ret, result.stderr.str()) == (0, "")
    assert yaml.safe_load((bench.path / "shown.yaml").read_text("utf-8"))["infer"]["prompt"] == "é → 文"


def test_a_full_disk_is_told(bench):
    bench.test()
    command = shlex.join([sys.executable, "-m", "pytest", "--llmprof-show-config"])
    result = bench.pytester.run("bash", "-c", f"{command} > /dev/full")
    assert result.ret == 4
    assert result.stderr.str().strip() == "ERROR: cannot write standard output: No space left on device"
