"""Configuration trees of a user, whatever their files hold: the values written there, or one line of what is wrong."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml
from broken import SLOW
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from test_fuzz_overrides import LEAVES, ODD, TYPED, check, composer, of_a_test, shared

DEEP = "".join(f"{' ' * depth}a:\n" for depth in range(60))
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
RECURSIVE = ["a: &a [*a]\n", "a: &a {b: *a}\n", "&a [*a]\n", "x: *nobody\n"]
LARGE = [DEEP, BOMB, "[" * 5000, "{a: " * 3000, "a: " + "9" * 5000 + "\n"]
ODD_KEYS = ["a: 1\na: 2\n", "? [a]\n: 1\n", "1: 2\n", "null: 1\n", "~\n"]
NO_MAPPING = ["", "# nothing\n", "- a\n", "text\n", "--- a\n--- b\n"]
ODD_TAGS = [f"a: {tag}\n" for tag in ("!!python/object:os.system x", "!!int x", "!!float x", "!!binary '*'", "!x b")]
ODD_VALUES = ["a: 2026-11-28\n", "a: 1:30\n", "measure: {rounds: .inf}\n", "measure: {rounds: .nan}\n", "a: \0\n"]
NO_YAML = ["measure:\n\trounds: 3\n", "measure: {rounds: 3\n", "'", '"\\x', "%YAML 9.9\n---\na: 1\n"]
INTERPOLATED = ["a: ${\n", "infer: {prompt: '${infer.prompt}'}\n", "infer: {prompt: '${a}'}\na: '${infer.prompt}'\n"]
DEFAULTS = ["[]", "x", "[x]", "[config]", "[llmprof_root, {override model: x}]", "[{a: {b: c}}]", "[[x]]", "[null]"]
DEFAULTS += ["[_self_, _self_]", "[{model: null}]", "[llmprof_root, llmprof_root]"]
DEFAULTS += ["[{override hydra/job_logging: x}]"]
OF_HYDRA = ["hydra: {run: {dir: x}}\n", "_target_: os.system\n", "_recursive_: 1\n", "llmprof: {test: a, stage: b}\n"]
OF_HYDRA += [f"# @package {package}\na: 1\n" for package in ("x.y", "", "a b", "_global_")]
OF_HYDRA += ["# @package _global_\ndefaults: [self]\n", "defaults:\n"]
OF_HYDRA += [f"defaults: {text}\n" for text in DEFAULTS]
BROKEN = [*RECURSIVE, *LARGE, *ODD_KEYS, *NO_MAPPING, *ODD_TAGS, *ODD_VALUES, *NO_YAML, *INTERPOLATED, *OF_HYDRA]

NAMES = ["config.yaml", "infer/mine.yaml", "model/mine.yaml", "dataset/mine.yaml", "experiment/mine.yaml"]
NAMES += ["output/torch/mine.yaml", "infer/auto.yaml", "model/deepseek_ocr_tiny.yaml"]
NAMES += ["pipeline/nsys/default.yaml", "pipeline/torch_profiler/default.yaml", "output/torch/default.yaml"]
NAMES += ["model/deepseek_ocr/output/torch/default.yaml", "config.yml", "infer/config.yaml", "x/y/z.yaml"]
CHOICES = ["infer=mine", "model=mine", "dataset=mine", "+experiment=mine", "experiment=mine", "output/torch=mine"]
CHOICES += ["x/y=z", "measure.rounds=3", "output/torch@pipeline.torch_profiler.output=mine"]
SCALARS = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.integers(-5, 5), st.floats(), st.text(max_size=10)),
    st.sampled_from(ODD),
)
PLAIN = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def nested(path: str, value: Any) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


CONTENTS = st.one_of(
    st.sampled_from(BROKEN),
    st.text(max_size=60),
    st.builds(nested, st.sampled_from(LEAVES), PLAIN).map(lambda value: yaml.safe_dump(value, allow_unicode=True)),
    st.builds(nested, st.sampled_from(LEAVES).map(lambda path: path.partition(".")[2] or path), PLAIN).map(
        yaml.safe_dump
    ),
    st.dictionaries(st.text(max_size=8), PLAIN, max_size=3).map(yaml.safe_dump),
    st.builds(
        "{}{}".format, st.sampled_from(["# @package _global_\n", "defaults: [default]\n"]), st.text(max_size=30)
    ),
)


@SLOW
@given(
    st.dictionaries(st.sampled_from(NAMES), CONTENTS, min_size=1, max_size=3),
    st.lists(st.sampled_from(CHOICES), max_size=2),
)
@example({"config.yaml": "a: &a [*a]\n"}, [])
@example({"config.yaml": DEEP}, [])
@example({"infer/mine.yaml": "[" * 5000}, ["infer=mine"])
@example({"config.yaml": BOMB}, [])
def test_any_files(files: dict[str, str], choices: list[str]) -> None:
    """Where the files make a configuration, what is saved of it is read as the same one."""
    with tempfile.TemporaryDirectory() as directory:
        tree, saved = Path(directory, "tree"), Path(directory, "saved")
        for name, text in files.items():
            file = tree / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text.encode("utf-8", "surrogatepass"))
        one = composer(config_dir=tree, cli_overrides=tuple(choices))
        settings = check(one)
        if settings is None:
            return
        saved.mkdir()
        for text in (settings.yaml, one.saved(), one.show()):
            (saved / "config.yaml").write_text(text, encoding="utf-8")
            again = check(composer(config_dir=saved))
            assert again is not None
            assert again.digest == settings.digest


@SLOW
@given(st.binary(max_size=200), st.sampled_from(NAMES[:6]))
def test_any_bytes(data: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        check(composer(config_dir=Path(directory), cli_overrides=tuple(CHOICES[:1])))


# Keys whose values no other key is taken from, with values that are allowed.
COUNTS = st.integers(1, 10**6)
ALLOWED = {
    "infer.prompt": TYPED.filter(lambda text: text.strip() and text != "???"),
    "infer.no_repeat_ngram_size": COUNTS,
    "infer.ignore_eos": st.booleans(),
    "infer.max_new_tokens": COUNTS,
    "measure.rounds": COUNTS,
    "measure.warmup": COUNTS,
    "dataset.limit": st.none() | COUNTS,
    "pipeline.nsys.args": st.lists(TYPED.filter(lambda text: text != "???"), max_size=3),
    "pipeline.ncu.timeout_s": st.floats(0.001, 1e9),
}
SETTINGS = st.fixed_dictionaries({}, optional=ALLOWED)


class _Quoted(yaml.SafeDumper):
    """Quotes each text. In its plain and single-quoted ones PyYAML loses U+0085, and "-inf" becomes a number."""


_Quoted.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def write_yaml(path: Path, content: object) -> None:
    path.write_text(yaml.dump(content, Dumper=_Quoted), encoding="utf-8")


def tree_of(values: dict[str, Any]) -> Any:
    return OmegaConf.merge(*(OmegaConf.create(nested(path, value)) for path, value in values.items()), {})


@SLOW
@given(SETTINGS, SETTINGS, st.fixed_dictionaries({}, optional={"measure.rounds": COUNTS, "dataset.limit": COUNTS}))
@example({}, {"infer.prompt": "a\x85b", "pipeline.nsys.args": ["-inf"]}, {})
def test_layers_are_merged_as_omegaconf_does(
    preset: dict[str, Any], user: dict[str, Any], typed: dict[str, Any]
) -> None:
    """Packaged defaults, a preset of the user's for `infer`, config.yaml, the command line: the last one wins."""
    preset = {path: value for path, value in preset.items() if path.startswith("infer.")}
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory)
        (tree / "infer").mkdir()
        inner = {path.removeprefix("infer."): value for path, value in preset.items()}
        write_yaml(tree / "infer/mine.yaml", {"defaults": ["reference"]} | inner)
        defaults = ["llmprof_root", {"override infer": "mine"}, "_self_"]
        write_yaml(tree / "config.yaml", {"defaults": defaults} | OmegaConf.to_container(tree_of(user)))
        overrides = tuple(f"{path}={value}" for path, value in typed.items())
        settings = of_a_test(composer(config_dir=tree, cli_overrides=overrides))
    base = OmegaConf.create(of_a_test(shared()).yaml)
    expected = OmegaConf.merge(base, tree_of(preset), tree_of(user), tree_of(typed))
    assert yaml.safe_load(settings.yaml) == OmegaConf.to_container(expected)
