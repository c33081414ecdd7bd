"""Overrides, whatever is typed: the value that Hydra and OmegaConf read, or one line of what is wrong."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from broken import SLOW, assert_one_line
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import assume, example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from pytest_llmprof.config.compose import Composer, ConfigSources
from pytest_llmprof.config.presets import quoted
from pytest_llmprof.config.registry import Registry
from pytest_llmprof.config.schema import Settings
from pytest_llmprof.config.tree import find, is_block, known_paths, root_block
from pytest_llmprof.datasets import builtin
from pytest_llmprof.errors import ConfigError, LlmprofError
from pytest_llmprof.models.deepseek_ocr import plugin
from pytest_llmprof.run.artifacts import Artifacts
from pytest_llmprof.stages import packaged_stages

REGISTRY = Registry.of([plugin()], packaged_stages(), builtin())
TREE = root_block(REGISTRY)
PATHS = sorted(known_paths(TREE))
LEAVES = [path for path in PATHS if not is_block(find(TREE, path))]
PLACE = Path(tempfile.gettempdir())

NUMBERS = ["+-5", "--5", "-0", "1e999", "-1e999", "nan", "inf", "1_0", "٣", "0x10", "1e3", "9" * 30, "-" + "9" * 30]
NUMBERS += ["9" * 5000]
WORDS = ["null", "true", "yes", "on", "???", "''", '""', "~", "~root", "~nobody_at_all/x", ".", "..", "/", "../.."]
WORDS += ["a=b", "#x", "'x", "é", "☃"]
SPACED = ["", " x", "a b", "\r\n", "a\0b", "\x1b[31m", "\u202e", "\udc80", "\ud800x"]
LONG = ["x" * 300, "/" + "x" * 5000, "a/" * 3000]
NESTED = ["[]", "{}", "[a,b]", "{a: 1}", "[[1]]", "[" * 40, "[" * 3000, "[" * 500 + "]" * 500]
NESTED += ["{a:" * 500 + "1" + "}" * 500]
FUNCTIONS = ["a,b", "choice(1,2)", "range(1,5)", "glob(*)", "shuffle(a)", "int(5)", "str(5)"]
INTERPOLATIONS = ["${", "${x}", "${oc.env:HOME}", "${oc.env:MISSING_X}", "${llmprof.test}", "${llmprof.stage}"]
INTERPOLATIONS += ["${infer.prompt}", "${model}", "${oc.env:HOME}/x", "${oc.select:llmprof.test}", "\\${x}"]
INTERPOLATIONS += ["${.x}", "${:}", "${" * 400 + "x" + "}" * 400]
ODD = [*NUMBERS, *WORDS, *SPACED, *LONG, *NESTED, *FUNCTIONS, *INTERPOLATIONS]

TEXTS = st.one_of(st.sampled_from(ODD), st.text(max_size=20), st.integers().map(str), st.floats().map(str))
VALUES = st.one_of(
    TEXTS,
    TEXTS.map(lambda text: "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"),
    st.lists(TEXTS, max_size=3).map(lambda items: f"[{','.join(items)}]"),
    st.dictionaries(st.sampled_from(["enable", "save_dir", "A", "a.b", "x y"]), TEXTS, max_size=2).map(
        lambda items: "{" + ",".join(f"{key}: {value}" for key, value in items.items()) + "}"
    ),
)
GROUPS = ["model", "infer", "dataset", "output/torch", "stages", "x", "", "output/torch@x", "a" * 5000]
LEGACY = ["outputs.x", "output.prediction.enable", "outputs.visualization.max_images"]
KEYS = st.one_of(
    *map(st.sampled_from, (LEAVES, PATHS, GROUPS, LEGACY, ["pipeline.nsys.env.A"])),
    st.text(max_size=10),
)
OVERRIDES = st.one_of(
    st.builds("{}{}={}".format, st.sampled_from(["", "", "", "+", "++", "~"]), KEYS, VALUES),
    st.text(max_size=30),
    st.builds("{}={}".format, st.sampled_from(LEAVES), st.sampled_from(["???", "${llmprof.test}", "null"])),
)


def composer(**sources: Any) -> Composer:
    return Composer(ConfigSources(invocation_dir=PLACE, rootdir=PLACE, **sources), REGISTRY)


@cache
def shared() -> Composer:
    """For overrides of markers, which need no composition of their own."""
    return composer()


def of_a_test(one: Composer, *marked: str) -> Settings:
    return one.for_test(marked, "test_x.py:1", "mod/test_a", "torch_profiler")


def check(one: Composer, marked: tuple[str, ...] = ()) -> Settings | None:
    """The settings, if there are any; an error has one line."""
    try:
        settings = of_a_test(one, *marked)
        for kind in ("prediction", "visualization"):
            Artifacts(PLACE / "run" / "mod" / "test_a", {"torch_profiler": ()}).save_dir(settings, kind)
        assert settings.digest
    except LlmprofError as error:
        assert_one_line(error)
        return None
    return settings


def value_of(settings: Settings, path: str) -> Any:
    """The value that a run uses, from its saved configuration."""
    return OmegaConf.select(OmegaConf.create(settings.yaml), path)


@given(st.lists(OVERRIDES, min_size=1, max_size=3))
@example(["measure.rounds='+-5'"])
@example(["measure.rounds=" + "9" * 30])
@example(["measure.rounds=" + "9" * 5000])
@example(["infer.prompt=" + "[" * 3000])
@example(["model.path=" + "x" * 5000, "model=deepseek_ocr"])
@example(["dataset=image_folder", "dataset.root=" + "x" * 5000])
@example(["dataset.subset=a\0b"])
@example(["pipeline.torch_profiler.output.prediction.save_dir=" + "x" * 5000])
@example(["pipeline.torch_profiler.output.prediction.save_dir='a\0b'"])
@example(["infer.prompt=${infer.prompt}"])
@example(["pipeline.ncu.kernels='a{99999999999999999999}'"])
@example(["pipeline.ncu.kernels='" + "(" * 5000 + "'"])
@example(["pipeline.ncu.kernels=top:" + "9" * 5000])
@example(["pipeline.ncu.kernels='[[a]'"])
def test_of_a_marker(overrides: list[str]) -> None:
    check(shared(), tuple(overrides))


@SLOW
@given(st.lists(OVERRIDES, min_size=1, max_size=2), st.lists(OVERRIDES, max_size=1))
@example(["dataset.pattern=${llmprof.test}"], [])
def test_of_the_command_line_and_the_ini_file(cli: list[str], ini: list[str]) -> None:
    """What is saved is read as the same settings."""
    one = composer(cli_overrides=tuple(cli), ini_overrides=tuple(ini))
    settings = check(one)
    if settings is None:
        return
    shown = one.show()
    with tempfile.TemporaryDirectory() as directory:
        for text in (one.saved(), settings.yaml, shown):
            Path(directory, "config.yaml").write_text(text, encoding="utf-8")
            again = composer(config_dir=Path(directory)).for_test((), "", "mod/test_a", "torch_profiler")
            assert again == settings
            # What is shown has the variables' values, which a saved configuration keeps as they were written.
            assert text == shown or again.yaml == settings.yaml


# Of a text that is typed: no NUL and no half of a character, which are refused, and no interpolation.
TYPED = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=15) | st.sampled_from(
    [text for text in ODD if "${" not in text and "\0" not in text and text == text.encode("utf-8", "ignore").decode()]
)


@given(TYPED.filter(lambda text: text.strip() and text != "???"))
def test_a_quoted_text_is_that_text(text: str) -> None:
    """Whatever it looks like."""
    assert value_of(of_a_test(shared(), f"infer.prompt={quoted(text)}"), "infer.prompt") == text


@given(st.lists(TYPED.filter(lambda text: text != "???"), max_size=4))
def test_a_list_of_texts_is_as_hydra_reads_it(items: list[str]) -> None:
    override = f"pipeline.nsys.args=[{','.join(map(quoted, items))}]"
    assert OverridesParser.create().parse_override(override).value() == items
    assert value_of(of_a_test(shared(), override), "pipeline.nsys.args") == items


# Names of variables; none that may be a secret's, whose value is masked.
VARIABLES = st.dictionaries(st.sampled_from(["A", "LD_LIBRARY_PATH", "x"]), st.sampled_from(["", "a", "7", "x=y"]))


@given(VARIABLES)
def test_a_mapping_is_as_hydra_reads_it(items: dict[str, str]) -> None:
    override = "pipeline.nsys.env={" + ",".join(f"{key}: {quoted(value)}" for key, value in items.items()) + "}"
    assert OverridesParser.create().parse_override(override).value() == items
    assert value_of(of_a_test(shared(), override), "pipeline.nsys.env") == items


UNQUOTED = st.text("abcXYZ0189-_./:% ", min_size=1, max_size=12) | st.sampled_from([*WORDS, *FUNCTIONS, *NUMBERS])


@given(UNQUOTED)
def test_an_unquoted_text_is_as_hydra_reads_it(text: str) -> None:
    """What Hydra takes for a number or a boolean is the text that was typed. Lists and sweeps are refused."""
    override = f"infer.prompt={text}"
    try:
        settings = of_a_test(shared(), override)
    except ConfigError as error:
        assert_one_line(error)
        return
    parsed = OverridesParser.create().parse_override(override)
    assert not parsed.is_sweep_override()
    read = parsed.value()
    assert value_of(settings, "infer.prompt") == (read if isinstance(read, str) else text.strip())


LEAST = {"measure.rounds": 1, "measure.warmup": 0, "infer.max_new_tokens": 1, "infer.no_repeat_ngram_size": 0}
LEAST |= {"infer.batch_size": 1, "pipeline.nsys.occurrences": 1, "pipeline.torch_profiler.window.start_token": 0}


@given(st.sampled_from(sorted(LEAST)), st.integers() | st.integers(-3, 3) | st.sampled_from([2**63 - 1, 2**63]))
def test_an_integer_is_that_integer_or_out_of_its_range(path: str, number: int) -> None:
    override = f"{path}={number}"
    if LEAST[path] <= number < 2**63:
        assert value_of(of_a_test(shared(), override), path) == number
    else:
        with pytest.raises(ConfigError) as caught:
            of_a_test(shared(), override)
        assert f"{path}={number} is not allowed".partition("…")[0][:60] in str(caught.value)
        assert_one_line(caught.value)


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_a_number_is_that_number_or_out_of_its_range(number: float) -> None:
    override = f"pipeline.nsys.timeout_s={number!r}"
    if 0 < number < float("inf"):
        assert value_of(of_a_test(shared(), override), "pipeline.nsys.timeout_s") == number
    else:
        with pytest.raises(ConfigError, match="is not allowed"):
            of_a_test(shared(), override)


ROUNDS = st.lists(st.integers(1, 10**6), max_size=3)


@SLOW
@given(ROUNDS, ROUNDS, ROUNDS)
def test_the_last_override_of_the_nearest_source_wins(ini: list[int], cli: list[int], marked: list[int]) -> None:
    def overrides(numbers: list[int]) -> tuple[str, ...]:
        return tuple(f"measure.rounds={number}" for number in numbers)

    one = composer(ini_overrides=overrides(ini), cli_overrides=overrides(cli))
    expected = [of_a_test(shared()).measure.rounds, *ini, *marked, *cli][-1]
    assert of_a_test(one, *overrides(marked)).measure.rounds == expected


@SLOW
@given(
    st.lists(st.text(max_size=12) | st.sampled_from(["torch_profiler", "nsys,ncu", ",", "a" * 5000, "\0"]), max_size=3)
)
def test_of_the_stage_option(stages: list[str]) -> None:
    check(composer(stages=tuple(stages)))


@given(st.text(max_size=10) | st.sampled_from(["x" * 300, "x/" * 3000, "a\0b", "..", "~nobody_at_all", "\udc80"]))
def test_of_the_configuration_directory(name: str) -> None:
    directory = f"{PLACE}/nowhere/{name}"
    assume(not os.path.exists(os.path.normpath(directory)))  # "nowhere/.." is where "nowhere" would be
    with pytest.raises(ConfigError) as caught:
        composer(config_dir=Path(directory)).session()
    assert_one_line(caught.value)


def test_a_saved_configuration_is_yaml() -> None:
    assert yaml.safe_load(of_a_test(shared()).yaml)["measure"]["rounds"] == of_a_test(shared()).measure.rounds
