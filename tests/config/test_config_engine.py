"""`infer.engine=auto`: the composer puts an engine in its place, and says why it is that one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pytest_llmprof.config.frozen import FrozenComposer, freeze
from pytest_llmprof.config.registry import Registry
from pytest_llmprof.config.schema import AUTO, InferSettings, MeasureSettings, ModelSettings
from pytest_llmprof.datasets import builtin
from pytest_llmprof.errors import ConfigError
from pytest_llmprof.models.base import ModelPlugin
from pytest_llmprof.models.deepseek_ocr import plugin
from pytest_llmprof.run.model_cache import model_key
from pytest_llmprof.stages import packaged_stages


def by_batch(model: ModelSettings, infer: InferSettings, measure: MeasureSettings) -> tuple[str, str]:
    """As on a GPU."""
    if not measure.warmup:
        return "reference", "no warm-up"
    return ("fast", "one page\nat a time") if infer.batch_size == 1 else ("compiled", "several pages")


@pytest.fixture
def chooses(bench) -> Callable[..., None]:
    """Replaces how DeepSeek-OCR's plugin chooses."""

    def use(choose=by_batch, **changes) -> None:
        model = replace(plugin(), choose_engine=choose, **changes)
        bench.registry = Registry.of([model], packaged_stages(), builtin())

    return use


def test_each_test_gets_the_engine_of_its_own_settings(bench, chooses):
    chooses()
    one, four = bench.settings().infer, bench.settings(mark=("infer.batch_size=4",)).infer
    assert (one.engine, one.engine_reason) == ("fast", "one page at a time")
    assert (four.engine, four.engine_reason) == ("compiled", "several pages")
    assert bench.composer().session().infer.engine == "fast"
    assert bench.settings(mark=("measure.warmup=0",)).infer.engine_shown == "reference (auto: no warm-up)"
    named = bench.settings("infer=compiled").infer
    assert (named.engine, named.engine_reason) == ("compiled", None)


def test_the_engine_counts_not_how_it_was_chosen(bench, chooses):
    """For the digest, the groups of workers and all that compares settings."""
    chooses()
    auto, named, other = bench.settings(), bench.settings("infer.engine=fast"), bench.settings("infer=reference")
    assert yaml.safe_load(auto.yaml)["infer"]["engine"] == "fast"
    assert auto.digest == named.digest != other.digest
    assert auto.infer == named.infer
    assert model_key(auto) == model_key(named) != model_key(other)


def test_what_is_shown_and_saved_has_the_engine_and_why(bench, chooses):
    chooses()
    assert "engine: fast  # auto: one page at a time\n" in bench.composer().show()
    assert "engine: fast  # auto: one page at a time\n" in bench.composer().saved()
    assert "engine: fast  # auto (command line): one page at a time\n" in bench.composer("infer.engine=auto").show()
    assert "engine: reference  # preset infer=reference\n" in bench.composer("infer=reference").show()


def test_auto_is_chosen_once_for_equal_settings(bench, chooses):
    asked = []
    chooses(lambda model, infer, measure: asked.append(infer) or ("reference", "asked"))
    composer = bench.composer("pipeline.torch_profiler.output.prediction.save_dir=/out/${llmprof.test}")
    for test in "abc":
        assert composer.for_test((), "", test, "torch_profiler").infer.engine == "reference"
    assert len(asked) == 1
    assert asked[0].engine == AUTO


def test_other_keys_that_name_the_engine_get_it(bench, chooses):
    chooses()
    key = "pipeline.torch_profiler.output.prediction.save_dir"
    settings = bench.settings(f"{key}=/out/${{infer.engine}}/${{llmprof.test}}")
    assert settings.pipeline["torch_profiler"].output.prediction.save_dir == "/out/fast/mod/test_a"
    assert settings.infer.engine_reason == "one page at a time"
    assert bench.settings("infer.prompt='with ${.engine}'").infer.prompt == "with fast"
    (bench.start / "fast").mkdir()
    (bench.start / "fast" / "page.png").touch()
    assert bench.settings("dataset.root='${infer.engine}'").dataset.root == str(bench.start / "fast")


def test_a_child_gets_the_engine(bench, chooses, tmp_path: Path):
    chooses()
    settings = bench.settings()
    freeze(settings, {}, tmp_path / "frozen.yaml")
    chooses(lambda *_: pytest.fail("it was chosen again"))
    sources = bench.composer().sources
    assert FrozenComposer(sources, bench.registry, tmp_path / "frozen.yaml").session().infer.engine == "fast"


def other_model(bench, **changes) -> None:
    model = ModelPlugin("other", load=lambda *_: pytest.fail("it was loaded"), modes=("base",), **changes)
    bench.registry = Registry.of([plugin(), model], packaged_stages(), builtin())
    bench.write("model/other.yaml", "name: other\nweights: embedded\nmode: base\n")


@pytest.mark.parametrize(
    ("changes", "chosen"),
    [
        ({}, ("reference", "the only engine of other")),
        ({"engines": ("eager", "graphs")}, ("eager", "the first engine of other")),
        ({"engines": ("eager", "auto")}, ("auto", None)),
        ({"engines": ("eager", "graphs"), "choose_engine": lambda *_: ("graphs", "it can")}, ("graphs", "it can")),
    ],
)
def test_models_of_others(bench, changes, chosen):
    other_model(bench, **changes)
    infer = bench.settings("model=other").infer
    assert (infer.engine, infer.engine_reason) == chosen


def test_a_plugin_that_chooses_what_it_has_not(bench):
    other_model(bench, choose_engine=lambda *_: ("warp", "why not"))
    assert bench.error("model=other") == (
        "infer.engine=auto: the plugin of the model other chose warp, which is none of its engines: reference"
    )
    other_model(bench, engines=())
    with pytest.raises(ConfigError, match=r"infer\.engine=auto is not allowed"):
        bench.settings("model=other")


@pytest.mark.parametrize(
    ("given", "meant"), [("infer.engine=atuo", "'auto'"), ("infer.engine=fats", "'fast'"), ("infer=aut", "'auto'")]
)
def test_a_wrong_name_names_the_nearest(bench, given, meant):
    assert f"(did you mean {meant}?)" in bench.error(given)


def test_the_packaged_default(bench):
    assert bench.composer().for_test((), "", "a", "torch_profiler").choices["infer"] == AUTO
    assert bench.settings("model.device=cpu").infer.engine_shown == "reference (auto: model.device=cpu)"
    assert bench.settings("infer=reference").infer.engine_shown == "reference"
