"""Configured paths: what relative ones are relative to, and which must exist."""

from __future__ import annotations

import os

import pytest

from pytest_llmprof.config.frozen import FrozenComposer, freeze

CHECKPOINT = "model=deepseek_ocr"


@pytest.fixture
def places(bench):
    """A directory `data` with one file under both the invocation directory and the rootdir."""
    for place in (bench.start, bench.root):
        (place / "data").mkdir()
        (place / "data" / "a.png").write_text("x")
        (place / "names.txt").write_text("a\n")
    return bench


@pytest.mark.parametrize("value", ["data", "./data", "../{}/data"])
def test_relative_to_where_it_was_set(places, value):
    def check(expected, *cli, name, **sources):
        settings = places.settings("dataset=image_folder", *cli, **sources)
        assert settings.dataset.root == str((expected / "data").resolve())

    for key in ("dataset.root",):
        start, root = value.format("start"), value.format("root")
        check(places.start, f"{key}={start}", name=key)
        check(places.root, ini=(f"{key}={root}",), name=key)
        check(places.root, mark=(f"{key}={root}",), name=key)
        places.write("config.yaml", f"dataset: {{root: {root}}}\n")
        check(places.root, name=key)
        check(places.start, f"{key}={start}", name=key)


def test_line28_the_root_is_kept_as_given(places, tmp_path):
    given = ("dataset=image_folder", "dataset.root=./data")
    settings = places.settings(*given)
    assert settings.dataset.root_as_given == "./data"
    assert "root_as_given" not in settings.yaml + places.composer(*given).show()
    assert "unknown key" in places.error("dataset.root_as_given=x")
    whole = places.settings("dataset=image_folder", f"dataset.root={places.start / 'data'}")
    assert whole.digest == settings.digest
    freeze(settings, {}, tmp_path / "frozen.yaml")
    frozen = FrozenComposer(places.composer().sources, places.registry, tmp_path / "frozen.yaml").session()
    assert frozen.dataset == settings.dataset
    assert frozen.digest == settings.digest


def test_subset_file_and_names(places):
    assert places.settings("dataset.subset=names.txt").dataset.subset == str(places.start / "names.txt")
    ini = places.settings(ini=("dataset.subset=names.txt",))
    assert ini.dataset.subset == str(places.root / "names.txt")
    assert places.settings("dataset.subset=[a]").dataset.subset == ("a",)
    (places.start / "blank.txt").write_text(" \n")
    assert "blank.txt is empty" in places.error("dataset.subset=blank.txt")
    assert "nope.txt does not exist, set on the command line" in places.error("dataset.subset=nope.txt")
    assert "is not a file" in places.error("dataset.subset=data")


def test_preset_paths_are_under_the_rootdir(places):
    places.write("dataset/mine.yaml", "name: image_folder\nroot: data\n")
    assert places.settings("dataset=mine").dataset.root == str(places.root / "data")
    places.write("dataset/mine.yaml", "name: image_folder\nroot: nope\n")
    assert "set in preset dataset=mine" in places.error("dataset=mine")


def test_dataset_root_must_exist(places):
    assert "dataset.root must be set" in places.error("dataset=image_folder")
    assert "--llmprof-override dataset.root=" in places.error("dataset=image_folder")
    text = places.error("dataset=image_folder", "dataset.root=nope")
    assert f"dataset.root=nope: {places.start / 'nope'} does not exist, set on the command line" in text
    assert "is not a directory" in places.error("dataset=image_folder", "dataset.root=data/a.png")
    (places.start / "empty").mkdir()
    assert "is an empty directory" in places.error("dataset=image_folder", "dataset.root=empty")


@pytest.mark.parametrize("root", ["", "''", "' '"])
def test_an_empty_root_is_not_the_current_directory(places, root):
    """As of `dataset.root=$PAGES` where the shell has no PAGES."""
    text = places.error("dataset=image_folder", f"dataset.root={root}")
    assert "it is empty, set on the command line; name a path, or null for none" in text


def test_home_and_environment(places, monkeypatch):
    monkeypatch.setenv("HOME", str(places.root))
    assert places.settings("dataset.root='~/data'", "dataset=image_folder").dataset.root == str(
        places.root / "data"
    )
    monkeypatch.setenv("DATA", "data")
    assert places.settings("dataset.root=${oc.env:DATA}", "dataset=image_folder").dataset.root == str(
        places.start / "data"
    )
    assert "does not exist" in places.error("dataset.root='~nobody-here/x'", "dataset=image_folder")


def test_model_path(places):
    assert places.settings(CHECKPOINT, "model.path=./data").model.path == str(places.start / "data")
    assert places.settings(CHECKPOINT, "model.path=data").model.path == str(places.start / "data")
    assert places.settings(CHECKPOINT, ini=("model.path=data",)).model.path == str(places.root / "data")
    hub = places.settings(CHECKPOINT, "model.path=deepseek-ai/DeepSeek-OCR", "model.revision=main")
    assert (hub.model.path, hub.model.revision) == ("deepseek-ai/DeepSeek-OCR", "main")


def test_model_path_is_needed_and_must_exist(places):
    assert "--llmprof-override model.path=/path/to/checkpoint" in places.error(CHECKPOINT)
    assert "/nope/x does not exist, set on the command line" in places.error(CHECKPOINT, "model.path=/nope/x")
    assert "does not exist" in places.error(CHECKPOINT, "model.path=./nope")
    assert "does not exist" in places.error(CHECKPOINT, "model.path=a/b/c")
    (places.start / "empty").mkdir()
    assert "is an empty directory" in places.error(CHECKPOINT, "model.path=empty")
    assert "is not a directory" in places.error(CHECKPOINT, "model.path=data/a.png")
    assert "goes with a hub id" in places.error(CHECKPOINT, "model.path=data", "model.revision=main")


def test_a_directory_whose_names_alone_may_be_read(places, monkeypatch):
    """Its list can be asked for, none of its files can."""
    real = os.lstat

    def lstat(path, **options):
        if os.path.dirname(path) == str(places.start / "data"):
            raise PermissionError(13, "Permission denied")
        return real(path, **options)

    monkeypatch.setattr(os, "lstat", lstat)
    wanted = f"{places.start / 'data'} can't be read (Permission denied), set on the command line"
    assert wanted in places.error(CHECKPOINT, "model.path=data")
    assert wanted in places.error("dataset=image_folder", "dataset.root=data")


def test_model_path_without_a_preset_that_reads_it(places):
    text = places.error("model.path=data")
    assert "has no effect with model.weights=embedded" in text
    assert "--llmprof-override model=deepseek_ocr" in text


def test_paths_that_name_the_test_are_checked_for_each_test(places):
    composer = places.composer("dataset=image_folder", "dataset.root=${llmprof.test}")
    assert composer.session().dataset.root == "<test>"
    assert composer.for_test((), "", "data", "torch_profiler").dataset.root == str(places.start / "data")
    with pytest.raises(Exception, match="other does not exist"):
        composer.for_test((), "", "other", "torch_profiler")


def test_save_dir_is_left_as_it_is(places):
    output = places.settings(
        "pipeline.torch_profiler.output.prediction.save_dir=.",
        "pipeline.torch_profiler.output.visualization.save_dir=null",
        "pipeline.direct_inference.output.visualization.save_dir=../x",
    ).pipeline
    assert output["torch_profiler"].output.prediction.save_dir == "."
    assert output["torch_profiler"].output.visualization.save_dir is None
    assert output["direct_inference"].output.visualization.save_dir == "../x"
