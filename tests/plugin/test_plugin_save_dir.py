"""Where predictions and the gallery go: each form of `save_dir`, for both outputs, in files of a real run."""

from __future__ import annotations

import pytest
from plugin_bench import OUTPUT, clean, files

BLOCK = "pipeline.torch_profiler.output"
WRITES = {"prediction": "predictions.jsonl", "visualization": "predictions.md"}
DEFAULTS = {"prediction": "pred", "visualization": "viz"}
SET = "(set on the command line)"
KINDS = tuple(WRITES)


@pytest.mark.parametrize(
    ("value", "below"),
    [
        ("preds", "preds"),
        ("a/b/c", "a/b/c"),
        ("./a/../b", "b"),
        (".", ""),
        ("null", None),
        ("", None),
        ("''", None),
        ("'  '", None),
        ("with space", "with space"),
        ("${llmprof.stage}/${llmprof.test}", "torch_profiler/test_it/test_output"),
    ],
)
def test_resolves_under_the_stage_dir(bench, value, below):
    bench.test(OUTPUT)
    bench.passed(*(f"{BLOCK}.{kind}.save_dir={value}" for kind in KINDS))
    for kind in KINDS:
        wanted = DEFAULTS[kind] if below is None else below
        assert bench.output()[kind]["dir"] == str(bench.stage_dir("test_it/test_output") / wanted)


def test_the_home_directory(bench, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    bench.test(OUTPUT)
    bench.passed(f"{BLOCK}.prediction.save_dir='~/out'")
    assert bench.output()["prediction"]["dir"] == str(tmp_path / "out")
    text = bench.run(f"{BLOCK}.prediction.save_dir='~nobody_at_all/x'").stdout.str()
    assert f"{BLOCK}.prediction.save_dir {SET}: '~nobody_at_all/x': Could not determine home directory" in text


@pytest.mark.parametrize("value", ["metrics.json", "report.md/x"])
def test_a_file_of_the_stage_is_no_directory(bench, value):
    bench.test()
    text = bench.usage_error(f"{BLOCK}.prediction.enable=true", f"{BLOCK}.prediction.save_dir={value}")
    assert f"{BLOCK}.prediction.save_dir {SET}: {value!r}: {value.partition('/')[0]} is a file of the stage" in text


def test_a_gallery_that_cannot_be_written_costs_no_figures(bench):
    bench.test(
        """
def test_pages(llmprof, llmprof_artifacts, llmprof_stage, monkeypatch):
    from pytest_llmprof.outputs import writer
    from pytest_llmprof.errors import ArtifactError

    def full(*_, **__):
        raise ArtifactError("cannot write the gallery: No space left on device")

    monkeypatch.setattr(writer, "write_gallery", full)
    llmprof.run()
"""
    )
    result = bench.run()
    result.assert_outcomes(failed=1)
    clean(result)
    assert "No space left on device" in result.stdout.str()
    assert {"metrics.json", "report.md", "environment.json"} <= files(bench.stage_dir())


@pytest.mark.parametrize("source", ["command line", "ini", "config", "marker"])
def test_relative_means_the_stage_dir_wherever_it_is_set(bench, source):
    given = [f"{BLOCK}.{kind}.save_dir=my_{kind}" for kind in KINDS]
    bench.test(
        f"import pytest\npytestmark = pytest.mark.llmprof(overrides={given if source == 'marker' else []})\n" + OUTPUT
    )
    bench.ini(*(given if source == "ini" else []))
    if source == "config":
        blocks = ", ".join(f"{kind}: {{save_dir: my_{kind}}}" for kind in KINDS)
        bench.user("config.yaml", f"pipeline: {{torch_profiler: {{output: {{{blocks}}}}}}}\n")
    bench.passed(*(given if source == "command line" else []))
    for kind in KINDS:
        assert bench.output()[kind]["dir"] == str(bench.stage_dir("test_it/test_output") / f"my_{kind}")


def test_files_are_written_there(bench, tmp_path):
    bench.test()
    bench.passed(
        "output/torch=full",
        f"{BLOCK}.prediction.save_dir=my/preds",
        f"{BLOCK}.visualization.save_dir={tmp_path}/gallery",
    )
    found = files(bench.stage_dir())
    assert "my/preds/predictions.jsonl" in found
    assert not [name for name in found if name.startswith(("pred/", "viz/"))]
    gallery = files(tmp_path / "gallery")
    assert "predictions.md" in gallery
    assert [name for name in gallery if name.endswith("/thumbnail.jpg")]


def test_the_stage_dir_itself_and_one_place_for_both(bench):
    bench.test()
    bench.passed("output/torch=full", *(f"{BLOCK}.{kind}.save_dir=." for kind in KINDS))
    found = files(bench.stage_dir())
    assert {"predictions.jsonl", "predictions.md", "metrics.json", "config.yaml"} <= found
    assert [name for name in found if name.startswith("pages/")]


@pytest.mark.parametrize("value", ["null", ""])
def test_null_and_empty_are_the_defaults(bench, value):
    bench.test()
    bench.passed("output/torch=full", *(f"{BLOCK}.{kind}.save_dir={value}" for kind in KINDS))
    assert {"pred/predictions.jsonl", "viz/predictions.md"} <= files(bench.stage_dir())


def test_absolute_may_name_the_test(bench, tmp_path):
    bench.test(OUTPUT + OUTPUT.replace("test_output", "test_other"))
    bench.passed(
        *(f"{BLOCK}.{kind}.save_dir={tmp_path}/out/${{llmprof.test}}/${{llmprof.stage}}" for kind in KINDS), count=2
    )
    assert bench.output()["prediction"]["dir"] == f"{tmp_path}/out/test_it/test_other/torch_profiler"


@pytest.mark.parametrize("value", ["..", "../elsewhere", "a/../../b", "../torch_profiler_2"])
@pytest.mark.parametrize("kind", KINDS)
def test_escape_is_refused_before_anything_runs(bench, kind, value):
    bench.test(OUTPUT)
    text = bench.usage_error(f"{BLOCK}.prediction.enable=true", f"{BLOCK}.{kind}.save_dir={value}")
    assert f"{BLOCK}.{kind}.save_dir {SET}: {value!r} leaves the stage directory" in text
    assert "give a path below it, or an absolute path" in text


def test_escape_by_a_marker_fails_its_test_alone(bench):
    bench.test(
        f"""
import pytest
@pytest.mark.llmprof(overrides=["{BLOCK}.visualization.save_dir=../x"])
def test_bad(llmprof):
    pass
def test_good(llmprof_output):
    pass
"""
    )
    result = bench.run()
    result.assert_outcomes(errors=1, passed=1)
    result.stdout.fnmatch_lines(
        [
            f"{BLOCK}.visualization.save_dir (set in the marker of test_it.py::test_bad): '../x' leaves the stage *",
            "ERROR test_it.py::test_bad*",
        ]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_escape_through_a_link_is_refused(bench, tmp_path, kind):
    bench.test()
    (tmp_path / "outside").mkdir()
    stage_dir = bench.path / "run" / "test_it" / "test_pages" / "torch_profiler"
    stage_dir.mkdir(parents=True)
    (stage_dir / "link").symlink_to(tmp_path / "outside")
    result = bench.run(
        f"{BLOCK}.{kind}.enable=true", f"{BLOCK}.{kind}.save_dir=link/x", args=["--llmprof-run-dir", "run"]
    )
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {BLOCK}.{kind}.save_dir {SET}: 'link/x' leaves the stage directory*"])
    assert not files(tmp_path / "outside")


@pytest.mark.parametrize("kind", KINDS)
def test_a_place_that_cannot_be_written_is_found_before_the_model_loads(bench, kind):
    (bench.path / "file").write_text("in the way")
    bench.test(
        """
import pytest
@pytest.fixture
def llmprof_model():
    raise AssertionError("the model was loaded")
def test_pages(llmprof):
    llmprof.run()
"""
    )
    for number, place in enumerate((bench.path / "file", bench.path / "file" / "below", "/proc/nothing")):
        result = bench.run(
            f"{BLOCK}.{kind}.enable=true",
            f"{BLOCK}.{kind}.save_dir={place}",
            args=["--llmprof-run-dir", f"run-{number}"],
        )
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines([f"*{BLOCK}.{kind}.save_dir {SET}: *"])
        assert "the model was loaded" not in result.stdout.str()
        clean(result)
    assert (bench.path / "file").read_text() == "in the way"
