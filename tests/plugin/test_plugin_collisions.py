"""Two tests or stages that would write into one directory: refused before anything runs, with the fix to paste."""

from __future__ import annotations

import pytest
from plugin_bench import files, shell_words

TWO = """
import pytest
@pytest.mark.parametrize("x", ["one", "two"])
def test_pages(llmprof, x):
    llmprof.run()
"""
ECHO = ("model=echo", "dataset=blank", "infer.prompt='a'", "pipeline.torch_profiler.enable=false")


@pytest.mark.parametrize("kind", ["prediction", "visualization"])
def test_two_tests(bench, tmp_path, kind):
    bench.echo()
    bench.test(TWO)
    out = tmp_path / "out dir"
    key = f"pipeline.torch_profiler.output.{kind}"
    given = (*ECHO, f"{key}.enable=true", f"{key}.save_dir='{out}'")
    text = bench.usage_error(*given)
    assert "test_it.py::test_pages[one-torch_profiler] and test_it.py::test_pages[two-torch_profiler]" in text
    assert f"would both write into {out}: give each its own" in text
    fix = shell_words(text)
    assert fix == ["--llmprof-override", f"{key}.save_dir={out}/${{llmprof.test}}"]
    assert not out.exists()
    result = bench.run(*given, args=fix)
    result.assert_outcomes(passed=2)
    name = "predictions.jsonl" if kind == "prediction" else "predictions.md"
    assert {f"test_it/test_pages-{x}/{name}" for x in ("one", "two")} <= files(out)


def test_two_stages_both_outputs(bench, tmp_path):
    bench.echo()
    bench.test(TWO)
    stages = ("torch_profiler", "direct_inference")
    given = [*ECHO, "output/torch=full"]
    given += [
        f"pipeline.{stage}.output.{kind}.save_dir={tmp_path}/out"
        for stage in stages
        for kind in ("prediction", "visualization")
    ]
    args = [f"--llmprof-stage={','.join(stages)}"]
    text = bench.usage_error(*given, args=args)
    assert "(and 2 more)" in text
    result = bench.run(*given, args=[*args, *shell_words(text)])
    result.assert_outcomes(passed=4)
    assert {
        f"test_it/test_pages-{x}/{stage}/predictions.{suffix}"
        for x in ("one", "two")
        for stage in stages
        for suffix in ("jsonl", "md")
    } <= files(tmp_path / "out")


def test_two_stages_of_each_test(bench, tmp_path):
    """The directory names the test already; the fix is for all tests, though it is offered by one."""
    bench.echo()
    bench.test(TWO)
    stages = ("torch_profiler", "direct_inference")
    keys = [f"pipeline.{stage}.output.visualization.save_dir" for stage in stages]
    given = (*ECHO, *(f"{key}={tmp_path}/out/${{llmprof.test}}" for key in keys))
    args = [f"--llmprof-stage={','.join(stages)}"]
    fix = shell_words(bench.usage_error(*given, args=args))
    own = f"{tmp_path}/out/${{llmprof.test}}/${{llmprof.stage}}"
    assert sorted(fix[1::2]) == sorted(f"{key}={own}" for key in keys)
    bench.run(*given, args=[*args, *fix]).assert_outcomes(passed=4)


def test_outputs_where_something_is_made_anew(bench, tmp_path):
    """In a gallery's pages, and in the directory of a stage that begins later."""
    bench.test()
    block = "pipeline.{}.output.prediction"
    own = block.format("torch_profiler")
    for value in ("viz/pages", "viz/pages/deep", "viz/predictions.md"):
        text = bench.usage_error(f"{own}.enable=true", f"{own}.save_dir={value}")
        assert f"{own}.save_dir (set on the command line) is " in text
        assert "the gallery of this test itself is made anew there; set another directory" in text
    run, first = tmp_path / "run", block.format("direct_inference")
    args = ["--llmprof-stage=direct_inference,torch_profiler", f"--llmprof-run-dir={run}"]
    inside = f"{first}.save_dir={run}/${{llmprof.test}}/torch_profiler/direct"
    text = bench.usage_error(f"{first}.enable=true", inside, args=args)
    assert "the stage directory of test_it.py::test_pages[torch_profiler] is made anew there" in text


def test_one_tests_predictions_in_anothers_gallery(bench, tmp_path):
    bench.test(
        f"""
import pytest
@pytest.mark.llmprof(overrides=["output/torch=full", "pipeline.torch_profiler.output.prediction.save_dir={tmp_path}/x"])
def test_one(llmprof):
    llmprof.run()
@pytest.mark.llmprof(overrides=["pipeline.torch_profiler.output.visualization.save_dir={tmp_path}/./y/../x"])
def test_two(llmprof):
    llmprof.run()
"""
    )
    text = bench.usage_error()
    assert "test_it.py::test_one[torch_profiler] and test_it.py::test_two[torch_profiler]" in text
    assert f"would both write into {tmp_path}/x" in text


def test_what_is_off_or_alone_does_not_clash(bench, tmp_path):
    bench.echo()
    bench.test(TWO)
    key = "pipeline.torch_profiler.output"
    # Predictions are off, so both may name one place; the gallery and predictions of one test may share theirs.
    bench.passed(*ECHO, f"{key}.prediction.save_dir={tmp_path}/out", count=2)
    bench.run(
        *ECHO,
        f"{key}.prediction.enable=true",
        *(f"{key}.{kind}.save_dir={tmp_path}/one" for kind in ("prediction", "visualization")),
        args=["-k", "one"],
    ).assert_outcomes(passed=1, deselected=1)


def test_a_test_that_writes_nothing_does_not_clash(bench, tmp_path):
    bench.echo()
    bench.test(
        """
import pytest
@pytest.fixture
def through(llmprof_output):
    pass
def test_run(llmprof):
    llmprof.run()
def test_config(llmprof_config):
    pass
def test_through(through):
    pass
"""
    )
    given = (*ECHO, f"pipeline.torch_profiler.output.visualization.save_dir={tmp_path}/out")
    text = bench.usage_error(*given)
    assert "test_run[torch_profiler] and test_it.py::test_through[torch_profiler] would both" in text
    bench.run(*given, args=["-k", "not through"]).assert_outcomes(passed=2, deselected=1)


def test_through_a_link(bench, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    bench.test(
        f"""
import pytest
def place(name):
    key = "pipeline.torch_profiler.output.visualization.save_dir"
    return pytest.param(name, marks=pytest.mark.llmprof(overrides=[f"{{key}}={tmp_path}/{{name}}"]))
@pytest.mark.parametrize("x", [place("real"), place("link")])
def test_it(llmprof, x):
    llmprof.run()
"""
    )
    assert "would both write into" in bench.usage_error()


def test_tests_run_again_with_what_one_of_them_saved(bench, tmp_path):
    """Its config.yaml holds its own directory, which is not the other test's."""
    bench.echo()
    bench.test(TWO)
    given = (*ECHO, f"pipeline.torch_profiler.output.visualization.save_dir={tmp_path}/out/${{llmprof.test}}")
    bench.run(*given, args=["-k", "one"]).assert_outcomes(passed=1, deselected=1)
    saved = bench.stage_dir("test_it/test_pages-one")
    again = [f"--llmprof-config-dir={saved}", "--llmprof-run-dir=again", "-k", "two"]
    bench.run(args=again).assert_outcomes(passed=1, deselected=1)
    assert (tmp_path / "out/test_it/test_pages-two/predictions.md").is_file()
