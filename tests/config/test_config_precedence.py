"""Who wins: explicit key > legacy key > preset; command line > marker > ini > the user's config.yaml."""

from __future__ import annotations

from itertools import combinations

import pytest

from pytest_llmprof.config.legacy import message as legacy_message

STAGE = "pipeline.torch_profiler.output"
EXTRA = f"{STAGE}.extra.deepseek_ocr"
SOURCES = ("config", "ini", "mark", "cli")
"""In rising order."""

# legacy key, the key to use instead, a value that is not the default, another one (the default)
LEGACY = [
    *(
        row
        for root in ("outputs", "output")
        for row in (
            (f"{root}.save_predictions", f"{STAGE}.prediction.enable", True, False),
            (f"{root}.visualization.enable", f"{STAGE}.visualization.enable", False, True),
            (f"{root}.visualization.max_images", f"{EXTRA}.visualization.max_images", 5, 16),
            (f"{root}.visualization.thumbnail_width", f"{EXTRA}.visualization.thumbnail_width", 99, 480),
            (
                f"{root}.predictions.strip_special_tokens",
                f"{EXTRA}.prediction.strip_special_tokens",
                True,
                False,
            ),
        )
    ),
    ("output.prediction.enable", f"{STAGE}.prediction.enable", True, False),
    ("output.prediction.strip_special_tokens", f"{EXTRA}.prediction.strip_special_tokens", True, False),
]


def text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def give(bench, *given: tuple[str, str, object]):
    """Settings of a test where each (source, key, value) is set."""
    found: dict[str, list[str]] = {source: [] for source in SOURCES}
    for source, key, value in given:
        found[source].append(f"{key}={text(value)}")
    if found["config"]:
        lines = [line.replace("=", ": ", 1) for line in found["config"]]
        bench.write("config.yaml", "\n".join(nested(line) for line in lines) + "\n")
    return bench.settings(*found["cli"], ini=tuple(found["ini"]), mark=tuple(found["mark"]))


def nested(line: str) -> str:
    """`a.b: c` as a flow mapping below its first key: `a: {b: c}`."""
    path, _, value = line.partition(": ")
    first, *rest = path.split(".")
    for part in reversed(rest):
        value = f"{{{part}: {value}}}"
    return f"{first}: {value}"


def at(settings, path: str) -> object:
    """The value of a key under `pipeline.torch_profiler.output`."""
    value = settings.pipeline["torch_profiler"].output
    for part in path.removeprefix(f"{STAGE}.").split("."):
        value = value[part] if isinstance(value, type(settings.pipeline)) else getattr(value, part)
    return value


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("old", "new", "value", "default"), LEGACY, ids=[row[0] for row in LEGACY])
def test_legacy_key_alone(bench, source, old, new, value, default):
    assert at(bench.settings(), new) == default
    settings = give(bench, (source, old, value))
    assert at(settings, new) == value
    for line in settings.yaml.splitlines():
        assert not line.startswith(("outputs:", "output:"))


@pytest.mark.parametrize("legacy_source", SOURCES)
@pytest.mark.parametrize("explicit_source", SOURCES)
@pytest.mark.parametrize("explicit", [True, False])
def test_explicit_key_beats_legacy_from_anywhere(bench, legacy_source, explicit_source, explicit):
    key = f"{STAGE}.prediction.enable"
    if legacy_source == explicit_source == "config":
        bench.write(
            "config.yaml",
            f"pipeline: {{torch_profiler: {{output: {{prediction: {{enable: {text(explicit)}}}}}}}}}\n"
            f"outputs: {{save_predictions: {text(not explicit)}}}\n",
        )
        settings = bench.settings()
    else:
        settings = give(
            bench, (explicit_source, key, explicit), (legacy_source, "outputs.save_predictions", not explicit)
        )
    assert at(settings, key) is explicit


@pytest.mark.parametrize(("old", "new", "value", "default"), LEGACY, ids=[row[0] for row in LEGACY])
def test_explicit_default_beats_legacy(bench, old, new, value, default):
    assert at(give(bench, ("cli", old, value), ("ini", new, default)), new) == default


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("preset_source", ["ini", "mark", "cli"])
def test_legacy_beats_presets_from_anywhere(bench, source, preset_source):
    settings = give(
        bench, (source, "outputs.save_predictions", False), (preset_source, "output/torch", "full")
    )
    assert at(settings, f"{STAGE}.prediction.enable") is False


@pytest.mark.parametrize(("low", "high"), list(combinations(SOURCES, 2)))
@pytest.mark.parametrize("value", [True, False])
def test_among_legacy_keys_the_nearer_source_wins(bench, low, high, value):
    settings = give(
        bench, (high, "output.prediction.enable", value), (low, "outputs.save_predictions", not value)
    )
    assert at(settings, f"{STAGE}.prediction.enable") is value


@pytest.mark.parametrize(("low", "high"), list(combinations(SOURCES, 2)))
@pytest.mark.parametrize("key", ["measure.rounds", "infer.max_new_tokens"])
def test_among_keys_the_nearer_source_wins(bench, low, high, key):
    settings = give(bench, (high, key, 7), (low, key, 5))
    block, name = key.split(".")
    assert getattr(getattr(settings, block), name) == 7


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("preset_source", ["ini", "mark", "cli"])
def test_key_beats_preset_wherever_either_was_given(bench, source, preset_source):
    bench.write("infer/fast.yaml", "defaults: [reference]\nmax_new_tokens: 50\n")
    settings = give(bench, (source, "infer.max_new_tokens", 7), (preset_source, "infer", "fast"))
    assert settings.infer.max_new_tokens == 7
    assert settings.choices["infer"] == "fast"


@pytest.mark.parametrize(("low", "high"), list(combinations(("ini", "mark", "cli"), 2)))
def test_among_presets_the_nearer_source_wins(bench, low, high):
    settings = give(bench, (high, "output/torch", "full"), (low, "output/torch", "none"))
    assert at(settings, f"{STAGE}.prediction.enable") is True


def test_presets_of_every_source_beat_the_config_files(bench):
    bench.write("config.yaml", "defaults: [llmprof_root, override infer: mine, _self_]\n")
    bench.write("infer/mine.yaml", "max_new_tokens: 11\n")
    bench.write("infer/other.yaml", "max_new_tokens: 12\n")
    assert bench.settings().infer.max_new_tokens == 11
    assert bench.settings(ini=("infer=other",)).infer.max_new_tokens == 12


def test_later_one_wins_within_a_source(bench):
    assert bench.settings("measure.rounds=2", "measure.rounds=4").measure.rounds == 4
    assert bench.settings(mark=("measure.rounds=2", "measure.rounds=4")).measure.rounds == 4
    settings = bench.settings("model=deepseek_ocr_random", "model=deepseek_ocr_tiny")
    assert settings.model.size == "tiny"
    assert (
        at(
            bench.settings("outputs.save_predictions=true", "output.save_predictions=false"),
            f"{STAGE}.prediction.enable",
        )
        is False
    )


def test_short_preset_stands_for_every_mount_and_the_long_form_beats_it(bench):
    def enabled(*cli: str, **sources) -> list[bool]:
        settings = bench.settings(*cli, **sources)
        return [
            settings.pipeline[name].output.prediction.enable
            for name in ("torch_profiler", "direct_inference")
        ]

    mount = "output/torch@pipeline.torch_profiler.output"
    assert enabled("output/torch=full") == [True, True]
    assert enabled(f"{mount}=full") == [True, False]
    assert enabled(f"{mount}=none", "output/torch=full") == [False, True]
    assert enabled("output/torch=full", f"{mount}=none") == [False, True]
    assert enabled("output/torch=full", ini=(f"{mount}=none",)) == [True, True]
    assert enabled(f"{mount}=none", ini=("output/torch=full",)) == [False, True]


def test_output_presets(bench):
    def both(preset: str) -> tuple[bool, bool]:
        found = bench.settings(f"output/torch={preset}").pipeline["torch_profiler"].output
        return found.prediction.enable, found.visualization.enable

    assert both("default") == (False, True)
    assert both("full") == (True, True)
    assert both("none") == (False, False)


def test_legacy_null_is_unset(bench):
    bench.write("config.yaml", "outputs: {visualization: }\n")  # a section whose keys are commented out
    composer = bench.composer(
        "outputs.visualization.max_images=null", "outputs.save_predictions=null", "output.visualization=null"
    )
    settings = composer.session()
    assert at(settings, f"{EXTRA}.visualization.max_images") == 16
    assert legacy_message(composer.legacy_keys) is None


def test_legacy_keys_apply_to_torch_profiler_alone(bench):
    settings = bench.settings("outputs.save_predictions=true")
    assert settings.pipeline["torch_profiler"].output.prediction.enable is True
    assert settings.pipeline["direct_inference"].output.prediction.enable is False


def test_legacy_forms(bench):
    key = f"{STAGE}.prediction.enable"
    assert at(bench.settings("+outputs.save_predictions=true"), key) is True
    assert at(bench.settings("++output.prediction.enable=yes"), key) is True
    assert at(bench.settings("outputs={save_predictions: true, visualization: {max_images: 3}}"), key) is True


def test_legacy_keys_of_a_users_preset(bench):
    bench.write("experiment/old.yaml", "# @package _global_\noutputs:\n  save_predictions: true\n")
    composer = bench.composer("experiment=old")
    assert at(composer.session(), f"{STAGE}.prediction.enable") is True
    assert "outputs.save_predictions" in legacy_message(composer.legacy_keys)
    assert (
        at(bench.settings("experiment=old", f"{STAGE}.prediction.enable=false"), f"{STAGE}.prediction.enable")
        is False
    )


def test_legacy_message_names_each_key_once(bench):
    composer = bench.composer("outputs.save_predictions=true", ini=("outputs.save_predictions=false",))
    assert legacy_message(composer.legacy_keys) is None
    composer.session()
    composer.for_test(("output.visualization.enable=false",), "x:1", "t", "torch_profiler")
    composer.for_test(("output.visualization.enable=false",), "x:2", "u", "torch_profiler")
    message = legacy_message(composer.legacy_keys)
    assert "\n" not in message
    assert message.count("outputs.save_predictions") == 1
    assert message.count("output.visualization.enable (use") == 1
    assert "pipeline.torch_profiler.output.prediction.enable" in message
    assert "pipeline.torch_profiler.output.visualization.enable" in message
    quiet = bench.composer("pipeline.torch_profiler.output.prediction.enable=true")
    quiet.session()
    assert legacy_message(quiet.legacy_keys) is None


def test_stages_option_ini_and_key(bench):
    def stages(*cli: str, **sources) -> tuple[str, ...]:
        return bench.composer(*cli, **sources).session().stages

    assert stages() == ("torch_profiler",)
    assert stages("stages=[direct_inference]") == ("direct_inference",)
    assert stages("stages=direct_inference") == ("direct_inference",)
    both = ("direct_inference", "torch_profiler")
    assert stages(stages=("direct_inference,torch_profiler", "direct_inference")) == both
    assert stages("stages=[direct_inference]", stages=("torch_profiler",)) == ("torch_profiler",)
    ini = {"stages": ("torch_profiler",), "stages_from_ini": True}
    assert stages("stages=[direct_inference]", **ini) == ("direct_inference",)
    assert stages(ini=("stages=[direct_inference]",), **ini) == ("torch_profiler",)
