"""Mistakes: one line that names the thing and the fix; exit code 4, or a failed test; nothing half-written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from plugin_bench import clean, files, shell_words

CHECKPOINT = Path(__file__).parents[1] / "data" / "official_format_checkpoint"
EXTRA = "pipeline.torch_profiler.output.extra.deepseek_ocr.visualization"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("pipeline.torch_profiler.outptu.prediction.enable=true", ["unknown key", "did you mean"]),
        ("infer.max_new_token=3", ["unknown key", "did you mean 'infer.max_new_tokens'"]),
        ("+infer.max_new_token=3", ["unknown key", "did you mean 'infer.max_new_tokens'"]),
        ("model=deepseek_orc", ["unknown preset", "did you mean 'deepseek_ocr'"]),
        ("output/torhc=full", ["unknown preset group", "did you mean 'output/torch'"]),
        ("output/torch=ful", ["default, full, none", "did you mean 'full'"]),
        (f"{EXTRA}.max_images=-1", ["max_images=-1 is not allowed", ">= 0"]),
        (f"{EXTRA}.thumbnail_width=0", ["thumbnail_width=0 is not allowed", ">= 1"]),
        ("infer.max_new_tokens=many", ["infer.max_new_tokens=many is not allowed", "an integer >= 1"]),
        ("infer.max_new_tokens=0", ["infer.max_new_tokens=0 is not allowed"]),
        ("pipeline.torch_profiler.output.prediction.enable=banana", ["enable=banana is not allowed", "true"]),
        ("model.device=gpu", ["model.device=gpu is not allowed", "cuda"]),
        ("model.mode=bsae", ["model.mode=bsae is not allowed", "did you mean 'base'"]),
        ("a=b,c", ["'a=b,c'", "several values", "\"a='b,c'\""]),
        ("k=x=y", ["'k=x=y'", "\"k='x=y'\""]),
        ("noequals", ["'noequals'", "no '='"]),
        ("", ["empty override", "KEY=VALUE"]),
        ("pipeline.nsys.output.prediction.enable=true", ["no output block", "use pipeline.torch_profiler.output"]),
        ("dataset=image_folder", ["dataset.root must be set"]),
        ("model=deepseek_ocr", ["model.path must be set"]),
        ("outputs.save_prediction=true", ["unknown key", "did you mean 'outputs.save_predictions'"]),
    ],
)
def test_override(bench, override, words):
    bench.test()
    text = bench.usage_error(override)
    for word in words:
        assert word in text


def test_the_quoting_that_is_suggested_works_in_a_shell(bench):
    bench.test('def test_it(llmprof_config):\n    assert llmprof_config.infer.prompt == "it\'s $5, a=b"\n')
    text = bench.usage_error("infer.prompt=it's $5, a=b")
    bench.passed(args=shell_words(text))


@pytest.mark.parametrize("where", ["ini", "config", "addopts"])
def test_where_it_was_set_is_named(bench, where, monkeypatch):
    bench.test()
    if where == "ini":
        bench.ini("measure.rounds=0")
        assert "in the ini value llmprof_override" in bench.usage_error()
    elif where == "config":
        path = bench.user("config.yaml", "measure: {rounds: 0}\n")
        assert str(path) in bench.usage_error()
    else:
        monkeypatch.setenv("PYTEST_ADDOPTS", "--llmprof-override measure.rounds=0")
        assert "on the command line" in bench.usage_error()


def test_stage(bench):
    bench.test()
    text = bench.usage_error(args=["--llmprof-stage=torch_profler"])
    assert "unknown stage 'torch_profler', set by --llmprof-stage on the command line" in text
    assert "did you mean 'torch_profiler'" in text
    assert "a list of at least one stage" in bench.usage_error(args=["--llmprof-stage="])
    assert "unknown stage" in bench.usage_error("stages=[nsyss]")


def test_config_dir(bench):
    bench.test()
    for name, words in (
        ("missing", "does not exist"),
        ("empty", "holds no .yaml file"),
        ("file.yaml", "is not a directory"),
    ):
        (bench.path / "empty").mkdir(exist_ok=True)
        (bench.path / "file.yaml").touch()
        text = bench.usage_error(args=[f"--llmprof-config-dir={name}"])
        assert words in text
        assert name in text


def test_broken_yaml_in_the_config_dir(bench):
    bench.test()
    bench.user("config.yaml", "measure: {rounds: 2\n")
    assert "config.yaml" in bench.usage_error()


def test_model_path(bench):
    bench.test()
    text = bench.usage_error("model=deepseek_ocr", "model.path=./missing")
    assert f"model.path=./missing: {bench.path}/missing does not exist" in text
    (bench.path / "empty").mkdir()
    result = bench.run("model=deepseek_ocr", "model.path=./empty")
    clean(result)
    assert "empty" in result.stdout.str() + result.stderr.str()
    assert result.ret in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.USAGE_ERROR)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("missing", "lacks *model.norm.weight*"),
        ("unexpected", "has 1 tensor that config.json has no place for: model.surplus.weight"),
        ("truncated", "*model.safetensors*"),
    ],
)
def test_checkpoint(bench, change, words):
    from safetensors.torch import load_file, save_file

    folder = bench.path / "checkpoint"
    shutil.copytree(CHECKPOINT, folder)
    weights = load_file(folder / "model.safetensors")
    if change == "missing":
        del weights["model.norm.weight"]
    if change == "unexpected":
        weights["model.surplus.weight"] = weights["model.norm.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if change == "truncated":
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    # The reference checkpoint has no tokenizer of its own; that is not what is asked here.
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    bench.test()
    result = bench.run("model=deepseek_ocr", "model.path=checkpoint")
    result.assert_outcomes(failed=1)
    clean(result)
    result.stdout.fnmatch_lines([f"*checkpoint*{words}"])
    left = files(bench.stage_dir())
    assert not [name for name in left if name.startswith(("viz/", "pred/")) or name == "metrics.json"]


TOKENIZER = {
    "version": "1.0",
    "added_tokens": [],
    "model": {"type": "WordLevel", "vocab": {"a": 0, "<image>": 1}, "unk_token": "a"},
}


def test_dataset_root(bench):
    bench.test()
    folder = ("dataset=image_folder",)
    assert "dataset.root=missing" in bench.usage_error(*folder, "dataset.root=missing")
    (bench.path / "empty").mkdir()
    assert "dataset.root=empty" in bench.usage_error(*folder, "dataset.root=empty")
    (bench.path / "empty" / "notes.txt").touch()
    result = bench.run(*folder, "dataset.root=empty")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*empty*files seen: 1, images among them: 0*"])
    clean(result)


def test_dataset_subset(bench):
    from PIL import Image

    (bench.path / "pages").mkdir()
    Image.new("RGB", (8, 8)).save(bench.path / "pages" / "a.png")
    bench.test()
    given = ("dataset=image_folder", "dataset.root=pages")
    assert "dataset.subset" in bench.usage_error(*given, "dataset.subset=missing.txt")
    (bench.path / "list.txt").write_text("\n")
    for subset in ("list.txt", "[b]"):
        result = bench.run(*given, f"dataset.subset={subset}")
        assert result.ret in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.USAGE_ERROR)
        clean(result)
        assert "subset" in result.stdout.str() + result.stderr.str()


def test_bad_pictures_fail_by_name_and_the_others_go_on(bench):
    from PIL import Image

    folder = bench.path / "pages"
    folder.mkdir()
    Image.new("RGB", (40, 30), "white").save(folder / "good.png")
    whole = (folder / "good.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[:60])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no picture")
    Image.new("L", (1, 1)).save(folder / "one.png")
    Image.new("I;16", (30, 20), 40000).save(folder / "deep.png")
    Image.new("RGBA", (30, 20), (1, 2, 3, 4)).save(folder / "rgba.png")
    Image.new("P", (30, 20)).save(folder / "palette.png")
    Image.new("CMYK", (30, 20)).save(folder / "cmyk.jpg")
    Image.new("1", (20000, 10)).save(folder / "wide.png")
    bench.test()
    bench.ini("dataset.limit=null", "infer.max_new_tokens=1")
    result = bench.run(
        "dataset=image_folder", "dataset.root=pages", "output/torch=full", "pipeline.torch_profiler.enable=false"
    )
    result.assert_outcomes(failed=1)
    clean(result)
    result.stdout.fnmatch_lines(["3 pages failed: empty: cannot read *(and 2 more: text, truncated)"])
    lines = (bench.stage_dir() / "pred" / "predictions.jsonl").read_text().splitlines()
    status = {json.loads(line)["page"]: json.loads(line)["status"] for line in lines}
    assert status == {
        name: "error" if name in ("truncated", "empty", "text") else "ok"
        for name in ("good", "truncated", "empty", "text", "one", "deep", "rgba", "palette", "cmyk", "wide")
    }
    metrics = json.loads((bench.stage_dir() / "metrics.json").read_text())
    assert metrics["status"] == "error"
    assert {error["page"] for error in metrics["errors"]} == {"truncated", "empty", "text"}
    assert "viz/predictions.md" in files(bench.stage_dir())
    assert bench.run_json()["tests"][0]["outcome"] == "failed"


def test_of_many_bad_pages_some_are_named(bench):
    folder = bench.path / "pages"
    folder.mkdir()
    for number in range(8):
        (folder / f"p{number}.png").touch()
    from PIL import Image

    Image.new("RGB", (40, 30), "white").save(folder / "good.png")
    bench.test()
    bench.ini("dataset.limit=null", "infer.max_new_tokens=1")
    result = bench.run("dataset=image_folder", "dataset.root=pages", "pipeline.torch_profiler.enable=false")
    result.stdout.fnmatch_lines(["8 pages failed: p0: *(and 7 more: p1, p2, p3, p4, p5, …)"])


def test_the_largest_limit_of_tokens(bench):
    bench.test()
    bench.passed("infer.max_new_tokens=9223372036854775807", "dataset.limit=1", "pipeline.torch_profiler.enable=false")


def test_all_pages_bad(bench):
    (bench.path / "pages").mkdir()
    (bench.path / "pages" / "a.png").touch()
    bench.test()
    result = bench.run("dataset=image_folder", "dataset.root=pages")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["1 page failed: a: cannot read *zero bytes*"])
    clean(result)


def test_a_model_that_breaks_shows_where(bench):
    bench.echo()
    bench.test()
    result = bench.run("model=echo", "dataset=blank", "infer.prompt=boom", args=["--llmprof-stage=direct_inference"])
    result.assert_outcomes(failed=1)
    assert "INTERNALERROR" not in result.stdout.str()
    result.stdout.fnmatch_lines(
        [
            "*page failed: one: RuntimeError in phase prefill: the echo broke in two lines*",
            "*llmprof: where it failed*",
            "Traceback (most recent call last):",
            "*conftest.py*",
            '    raise RuntimeError("the echo broke*',
            "RuntimeError: the echo broke",
        ]
    )
    assert "\n" not in bench.run_json()["tests"][0]["error"]


def test_options_that_are_not_there(bench):
    bench.test()
    result = bench.run(args=["--llmprof-nothing=x"])
    assert result.ret == pytest.ExitCode.USAGE_ERROR


LONG = "x" * 5000
LOADED = """
import pytest
@pytest.fixture
def llmprof_model():
    raise AssertionError("the model was loaded")
def test_pages(llmprof):
    llmprof.run()
"""


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("measure.rounds='+-5'", ["measure.rounds=+-5 is not allowed", "an integer >= 1"]),
        (f"measure.rounds={'9' * 30}", ["measure.rounds=999999999", "an integer >= 1"]),
        (f"measure.rounds={'9' * 5000}", ["measure.rounds=999999999"]),
        (f"infer.prompt={'[' * 3000}", ["infer.prompt=[[[", "can't be read"]),
        (f"dataset.root={LONG}", ["dataset.root=xxx", "the path is too long"]),
        (f"dataset.root={'x' * 300}", ["dataset.root=xxx", "the path is too long"]),
        (f"dataset.subset={LONG}", ["dataset.subset=xxx", "the path is too long"]),
        (f"model={LONG}", ["model=xxx", "unknown preset"]),
        (f"output/torch@{LONG}=full", ["nothing is mounted at xxx"]),
        (f"pipeline.torch_profiler.output.visualization.save_dir={LONG}", ["save_dir (set on", "the path is too long"]),
        (f"pipeline.torch_profiler.output.visualization.save_dir=/{'x' * 300}", ["the path is too long"]),
        (f"pipeline.torch_profiler.output.visualization.save_dir={'abc/' * 1200}", ["the path is too long"]),
        ("pipeline.torch_profiler.output.visualization.save_dir='a\0b'", ["save_dir=", "NUL"]),
        ("dataset.root='a\0b'", ["dataset.root=", "NUL"]),
        ("pipeline.nsys.env={A: 'a\0b'}", ["pipeline.nsys.env.A=", "NUL"]),
        ("infer.prompt=${infer.prompt}", ["infer.prompt", "set on the command line"]),
        (f"infer.prompt={'${' * 400}x{'}' * 400}", ["infer.prompt"]),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_values_that_no_one_can_use(bench, override, words):
    """Issue 15, line 17: one line and exit code 4."""
    bench.test(LOADED)
    text = bench.usage_error(override)
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("measure.rounds='+-5'", "measure.rounds=+-5 is not allowed"),
        (f"measure.rounds={'9' * 5000}", "measure.rounds=999999999"),
        (f"pipeline.torch_profiler.output.visualization.save_dir={LONG}", "the path is too long"),
        ("dataset.root='a\0b'", "NUL"),
    ],
    ids=["sign", "digits", "long", "nul"],
)
def test_such_values_in_a_marker(bench, override, words):
    """Issue 15, line 17: the marked test fails before the model loads, the others run."""
    bench.test(
        f"import pytest\n{LOADED}\n@pytest.mark.llmprof(overrides=[{override!r}])\n"
        "def test_marked(llmprof, llmprof_model):\n    pass\n\ndef test_other(llmprof_config):\n    pass\n"
    )
    result = bench.run(args=["-k", "marked or other"])
    result.assert_outcomes(errors=1, passed=1, deselected=1)
    clean(result)
    assert "the model was loaded" not in result.stdout.str()
    assert words in result.stdout.str()


@pytest.mark.parametrize("option", ["--llmprof-config-dir", "--llmprof-run-dir"])
@pytest.mark.parametrize(
    ("value", "why"),
    [
        (LONG, "the path is too long"),
        ("x" * 300, "the path is too long"),
        ("x/" * 3000, "the path is too long"),
        ("loop/run", "too many levels of symbolic links"),
        ("file/run", None),
    ],
    ids=["long", "name", "deep", "loop", "file"],
)
@pytest.mark.parametrize("ini", [False, True], ids=["option", "ini"])
def test_directories_that_cannot_be(bench, option, value, why, ini):
    """Issue 15, line 17."""
    (bench.path / "loop").symlink_to("loop")
    (bench.path / "file").touch()
    bench.test(LOADED)
    if ini:
        bench.ini(**{option.removeprefix("--").replace("-", "_"): value})
    text = bench.usage_error(args=[] if ini else [f"{option}={value}"])
    assert option.removeprefix("--").replace("-", "_") in text.replace("-", "_") or "run directory" in text
    if why:
        assert why in text


def test_a_run_directory_of_links(bench):
    """The default one, whose place is a link to itself."""
    (bench.path / "llmprof-runs").symlink_to("llmprof-runs")
    bench.test(LOADED)
    result = bench.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    clean(result)
    text = f"cannot make the run directory {bench.path / 'llmprof-runs'}: too many levels of symbolic links"
    assert text in result.stderr.str()


@pytest.mark.parametrize("name", ["config.yaml", "infer/mine.yaml"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [*a]\n", "the alias *a in line 1 is a part of itself"),
        ("".join(f"{' ' * depth}a:\n" for depth in range(60)), "is nested more than 50 deep"),
        ("[" * 5000, " nest"),
        (
            "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
            + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)),
            "it stands for more than 100,000 values",
        ),
        (f"a: {'9' * 5000}\n", "can't be read"),
        ("a: !!int x\n", "can't be read"),
    ],
    ids=["alias", "deep", "deeper", "bomb", "digits", "tag"],
)
def test_yaml_that_stands_for_too_much(bench, name, text, words):
    """Issue 15, line 17."""
    path = bench.user(name, text)
    bench.test(LOADED)
    error = bench.usage_error(*(["infer=mine"] if name != "config.yaml" else []))
    assert str(path) in error
    assert words in error
