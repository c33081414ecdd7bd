"""Third parties: a model, a stage and a dataset with options of their own, and with presets."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pytest
import yaml

from pytest_llmprof.config.registry import Registry, StageSpec
from pytest_llmprof.config.schema import OutputExtra, VisualizationExtra
from pytest_llmprof.datasets import builtin
from pytest_llmprof.datasets.base import DatasetPlugin
from pytest_llmprof.errors import ConfigError
from pytest_llmprof.models.base import ModelPlugin
from pytest_llmprof.models.deepseek_ocr import plugin
from pytest_llmprof.stages import direct_inference
from pytest_llmprof.stages.torch_profiler import stage as torch_profiler


class Level(enum.Enum):
    low = 1
    high = 2


@dataclass(frozen=True)
class Nested:
    ratio: float = 0.5


@dataclass(frozen=True)
class CountOptions:
    every: int = 10
    level: Level = Level.low
    kind: Literal["a", "b"] = "a"
    names: tuple[str, ...] = ()
    weights: dict[str, int] | None = None
    nested: Nested = Nested()


def check_count(options: CountOptions) -> Iterator[tuple[str, object, str]]:
    if options.every < 1:
        yield "every", options.every, "an integer >= 1"


@dataclass(frozen=True)
class OtherExtra:
    threshold: float = 0.25


def check_other(extra: OtherExtra) -> Iterator[tuple[str, object, str]]:
    if not 0 <= extra.threshold <= 1:
        yield "threshold", extra.threshold, "a number from 0 to 1"


def load(*_: object) -> list[object]:
    raise AssertionError("the configuration loads nothing")


@pytest.fixture
def wide(bench, tmp_path):
    """A bench whose registry holds other people's plugins too."""
    conf = tmp_path / "other_conf"
    for name, text in {
        "model/other_large.yaml": "name: other\nmode: wide\nweights: random\n",
        "dataset/books.yaml": "name: books\nlimit: 3\n",
        "pipeline/count/default.yaml": "every: 20\n",
        "pipeline/count/often.yaml": "every: 1\n",
        "model/other/output/torch/default.yaml": "threshold: 0.75\n",
    }.items():
        path = conf / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    other = ModelPlugin(
        "other", load, modes=("wide",), extra=OtherExtra, check_extra=check_other, config_dir=conf
    )
    bench.registry = Registry.of(
        [plugin(), other],
        [
            torch_profiler.plugin(),
            direct_inference.plugin(),
            StageSpec("count", options=CountOptions, output=True, check=check_count, config_dir=conf),
            StageSpec("bare"),
        ],
        [*builtin(), DatasetPlugin("books", load, config_dir=conf)],
    )
    return bench


def test_keys_of_others_exist_with_their_defaults(wide):
    settings = wide.settings(
        "pipeline.count.nested.ratio=1", "pipeline.count.level=high", "pipeline.count.kind=b"
    )
    count = settings.pipeline["count"]
    assert count.options == CountOptions(every=20, level=Level.high, kind="b", nested=Nested(1.0))
    assert count.output.visualization.enable is True
    assert count.output.extra["other"] == OtherExtra(0.75)
    assert settings.pipeline["torch_profiler"].output.extra["other"] == OtherExtra(0.75)
    assert settings.pipeline["bare"].options is None
    assert settings.pipeline["bare"].output is None
    shown = yaml.safe_load(settings.yaml)["pipeline"]["count"]
    assert shown["every"] == 20
    assert shown["level"] == "high"
    assert shown["output"]["extra"]["other"] == {"threshold": 0.75}


def test_presets_of_others(wide):
    settings = wide.settings(
        "model=other_large", "dataset=books", "pipeline/count=often", "output/torch=full"
    )
    assert (settings.model.name, settings.model.mode) == ("other", "wide")
    assert (settings.dataset.name, settings.dataset.limit) == ("books", 3)
    assert settings.pipeline["count"].options.every == 1
    assert settings.pipeline["count"].output.prediction.enable is True
    assert wide.settings("output/torch@pipeline.count.output=full").pipeline["count"].output.prediction.enable
    assert wide.composer(stages=("count",)).session().stages == ("count",)


def test_users_tree_lies_over_the_plugins(wide):
    wide.write("pipeline/count/default.yaml", "every: 30\n")
    assert wide.settings().pipeline["count"].options.every == 30
    wide.write("config.yaml", "defaults: [llmprof_root, override pipeline/count: often]\n")
    assert wide.settings().pipeline["count"].options.every == 1
    assert wide.settings("pipeline.count.every=4").pipeline["count"].options.every == 4


def test_values_of_others_are_checked(wide):
    assert "pipeline.count.every=0 is not allowed" in wide.error("pipeline.count.every=0")
    assert "it must be one of low, high" in wide.error("pipeline.count.level=mid")
    assert "it must be one of a, b" in wide.error("pipeline.count.kind=c")
    assert "pipeline.count.nested.ratio=x" in wide.error("pipeline.count.nested.ratio=x")
    assert "every, level" in wide.error("pipeline.count.evry=2")
    assert "did you mean 'pipeline.count.every'" in wide.error("pipeline.count.evry=2")
    key = "pipeline.count.output.extra.other.threshold"
    assert f"{key}=2.0 is not allowed, set in the marker" in wide.error(mark=(f"{key}=2",))
    assert "it must be a mode of other: wide" in wide.error("model=other_large", "model.mode=base")
    assert "stage bare has no output block of its own" in wide.error(
        "pipeline.bare.output.prediction.enable=true"
    )


def test_a_model_without_options_of_its_own_has_the_common_ones(wide):
    wide.registry = Registry.of([plugin(), ModelPlugin("plain", load, ("any",))], [torch_profiler.plugin()], builtin())
    key = "pipeline.torch_profiler.output.extra.plain.visualization"
    extras = wide.settings(f"{key}.max_images=2", f"{key}.thumbnail_width=99").current.output.extra
    assert extras["plain"] == OutputExtra(visualization=VisualizationExtra(2, 99))
    assert extras["deepseek_ocr"] == OutputExtra()
    assert wide.settings(f"{key}.max_images=null").current.output.extra["plain"].visualization.max_images is None
    assert "must be an integer >= 0, or null for all pages" in wide.error(f"{key}.max_images=-1")
    assert "must be an integer >= 1" in wide.error(f"{key}.thumbnail_width=0")


def test_mapping_and_list_options(wide):
    options = (
        wide.settings("pipeline.count.weights={a: 1}", "pipeline.count.names=[x,y]").pipeline["count"].options
    )
    assert dict(options.weights) == {"a": 1}
    assert options.names == ("x", "y")
    text = wide.error("pipeline.count.weights={a: x}")
    assert "pipeline.count.weights" in text
    wide.write("config.yaml", wide.settings("pipeline.count.weights={a: 1}").yaml)
    assert dict(wide.settings().pipeline["count"].options.weights) == {"a": 1}


def test_registry_refuses_what_cannot_work():
    with pytest.raises(ConfigError, match="two plugins register the stage 'count'"):
        Registry.of([], [StageSpec("count"), StageSpec("count")], [])
    with pytest.raises(ConfigError, match="a plugin registers a model whose name is 5: it must be a text"):
        Registry.of([ModelPlugin(5, load, ())], [], [])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"model name 'a\.b'"):
        Registry.of([ModelPlugin("a.b", load, ())], [], [])

    @dataclass
    class Thawed:
        every: int = 1

    @dataclass(frozen=True)
    class Taken:
        enable: bool = True

    @dataclass(frozen=True)
    class Open:
        every: int

    for options, match in ((Thawed, "frozen"), (Taken, "every stage has already"), (Open, "needs a default")):
        with pytest.raises(ConfigError, match=match):
            Registry.of([], [StageSpec("count", options=options)], [])


def test_missing_plugin_tree(bench, tmp_path):
    bench.registry = Registry.of(
        [plugin()], [torch_profiler.plugin(), StageSpec("count", config_dir=tmp_path / "nope")], builtin()
    )
    assert "nope is not a directory" in bench.error()


def test_stages_that_are_not_registered_leave_no_mount(bench):
    bench.registry = Registry.of([plugin()], [torch_profiler.plugin()], builtin())
    settings = bench.settings("output/torch=full")
    assert set(settings.pipeline) == {"torch_profiler"}
    assert not [key for key in settings.choices if "direct_inference" in key]
