"""Whole runs: a family of one's own by a preset, its boxes by a hook, as docs/models.md tells."""

from __future__ import annotations

import gc
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
import zoo
from ocr_helpers import Record, blocks_image
from test_any_model import ALONE, BOXES, preset

from pytest_llmprof.models.from_transformers.loader import load

DOC = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
PRESET, HOOK = (re.search(rf"```{kind}\n(.*?)```", DOC, re.DOTALL)[1] for kind in ("yaml", "python"))
TEST = "def test_pages(llmprof):\n    llmprof.run()\n"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built and used outside of pytester, which forgets what is imported in it: torch cannot start twice."""
    path = zoo.build(zoo.paddleocr_vl, tmp_path_factory.mktemp("checkpoint"))
    model = load(preset("paddleocr_vl", path), ALONE, BOXES)
    list(model.generate([blocks_image(1)], ALONE, Record()))
    model.costs([blocks_image(1)], ALONE, [2])
    model.close()
    gc.freeze()
    return path


@pytest.fixture
def project(checkpoint: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """The files of docs/models.md, with a tiny checkpoint in place of one's own."""
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"):
        monkeypatch.delenv(name, raising=False)
    preset = PRESET.replace("/models/my-ocr", str(checkpoint)).replace("<|done|>", "<|IMAGE_END|>")
    pytester.mkdir("conf").joinpath("model").mkdir()
    (pytester.path / "conf" / "model" / "my_ocr.yaml").write_text(preset, encoding="utf-8")
    # Random weights write no box: what the function is called with is written down instead.
    called = 'Path("read.txt").open("a").write(f"{size} {resized}\\n")'
    hook = HOOK.replace("import re\n", "import re\nfrom pathlib import Path\n").replace(
        "    found = [", f"    {called}\n    found = ["
    )
    pytester.makeconftest(hook)
    pytester.makepyfile(test_it=TEST)
    return pytester


def run(project: pytest.Pytester, *keys: str) -> pytest.RunResult:
    given = ("dataset.limit=2", "infer.max_new_tokens=4", "measure.rounds=2", "model.device=cpu", *keys)
    options = [word for key in given for word in ("--llmprof-override", key)]
    args = ["-p", "no:cacheprovider", "--llmprof-config-dir=conf", "--llmprof-stage=torch_profiler,static_analysis"]
    return project.runpytest_inprocess(*args, *options)


def test_a_family_is_a_preset_and_its_boxes_a_hook(project):
    result = run(project, "model=my_ocr", "infer.batch_size=2")
    result.assert_outcomes(passed=2)
    (stage_dir,) = project.path.glob("llmprof-runs/*-*/test_it/test_pages/torch_profiler")
    metrics = json.loads((stage_dir / "metrics.json").read_text())
    assert metrics["prompt"] == "<|IMAGE_PLACEHOLDER|>\nMarkdown, please:"
    assert metrics["model"]["details"]["class"] == "PaddleOCRVLForConditionalGeneration"
    assert metrics["fingerprint"]["engine_reason"] == "model.device=cpu"
    assert metrics["deterministic"] is True
    assert set(metrics["samples"][0]["phases"]) == {"preprocess", "vision", "prefill", "decode"}
    assert metrics["quality"]["cer"] is not None
    (costs,) = project.path.glob("llmprof-runs/*-*/test_it/test_pages/static_analysis/metrics.json")
    assert set(json.loads(costs.read_text())["static_analysis"]["phases"]) >= {"vision", "prefill", "decode"}
    assert (project.path / "read.txt").read_text().startswith("(512, 512) None\n")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("model.family.boxes=corner", ["model.family.boxes=corner is not allowed", "did you mean 'corners'"]),
        ("model.family.template=Read", ["model.family.template=Read is not allowed", "{image} and {prompt}"]),
        ("model.family.template='{image}{image}{prompt}'", ["{image} and {prompt}, the image once"]),
        ("model.family.markdown='{image} Read.'", ["a text without {image}: the model's template puts the image"]),
        ("model.family.markdown='{prompt}'", ["a text without {prompt}: the model's template puts the image"]),
        ("model.weights=random", ["reads model.path"]),
        ("infer=fast", ["infer.engine=fast", "reference, compiled"]),
        ("model.family.free='<image>Read.'", ["model.family.free=<image>Read. is not", "the model's template puts"]),
        ("model.family.markdown=null", ["model.family.free=null", "model.family.markdown"]),
    ],
)
def test_values_that_are_refused_before_anything_loads(project, key, words):
    result = run(project, "model=my_ocr", key)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in result.errlines if line.strip()]
    assert all(word in line for word in words), line


def test_a_family_that_the_model_does_not_read(project):
    """As of a preset that leaves out `defaults: [transformers]`: else its boxes are none without a word."""
    file = project.path / "conf" / "model" / "my_ocr.yaml"
    file.write_text("path: x\nfamily:\n  boxes: qwen\n", encoding="utf-8")
    result = run(project, "model=my_ocr")
    (line,) = [line for line in result.errlines if line.strip()]
    assert f"model.family.boxes=qwen is not allowed, set in preset model=my_ocr ({file}); it must be left out" in line
    assert "defaults: [transformers]" in line


def test_deepseek_ocr_is_greedy_only(project):
    result = run(project, "infer.generation=checkpoint")
    (line,) = [line for line in result.errlines if line.strip()]
    assert "infer.generation=checkpoint is not allowed" in line


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a script of benchmarks/."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # one of them sets it
    folder = Path(__file__).parents[2] / "benchmarks"

    def imported(name: str) -> Any:
        monkeypatch.syspath_prepend(str((folder / name).parent))
        return importlib.import_module(Path(name).name)

    yield imported
    for name in ("models", "compare_models"):
        sys.modules.pop(name, None)


def test_the_gpus_comparison_at_its_smallest(tmp_path, script, capfd):
    options = ["--tiny", "--families", "lighton_ocr", "--engines", "reference"]
    code = script("gpus/models").main([str(tmp_path / "out"), *options])
    assert code == 0, capfd.readouterr()
    table = (tmp_path / "out" / "models.md").read_text().splitlines()
    (line,) = table[2:]
    assert line.split(" | ")[:2] == ["| lighton_ocr", "reference"]
    times, rest = line.split(" | ")[2:7], line.split(" | ")[7:]
    assert all(float(time) > 0 for time in times), line
    assert {cell.strip(" |") for cell in rest} == {"n/a"}, "what a CPU does not have"


def test_a_step_that_takes_too_long_is_ended(tmp_path, script):
    compare_models = script("compare_models")
    code = "import time\nprint('begun', flush=True)\ntime.sleep(60)"
    assert compare_models.run_logged([sys.executable, "-c", code], tmp_path / "log", 2.0) == compare_models.TIMED_OUT
    lines = (tmp_path / "log").read_text().splitlines()
    assert (lines[0], lines[-1]) == ("begun", "KeyboardInterrupt")


def test_compare_models_as_a_script(checkpoint, tmp_path):
    """One engine runs, the other cannot: its test is skipped, which pytest does not call a failure."""
    root = Path(__file__).parents[2]
    keys = ("--set", "dataset.limit=1", "infer.max_new_tokens=4", "--set", "measure.rounds=1", "model.device=cpu")
    done = subprocess.run(
        [sys.executable, str(root / "benchmarks/compare_models.py"), str(tmp_path / "out"),
         f"a=paddleocr_vl:{checkpoint}", "--engine", "all", *keys],
        env={**os.environ, "PYTHONPATH": str(root), "CXX": "no-such-compiler"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    table = (tmp_path / "out" / "models.md").read_text()
    (line,) = table.splitlines()[2:]
    assert [cell.strip() for cell in line.split("|")][1:4] == ["a", "reference", "1"]
    assert " 4.00 " in line, "both lists of --set"
    assert table in done.stdout
    first, reason = done.stderr.splitlines()
    assert first == f"a lacks figures: {tmp_path}/out/a.log"
    assert "SKIPPED" in reason
    assert "infer=compiled" in reason


def test_compare_models_names_a_model_that_fails(tmp_path, script, capsys):
    main = script("compare_models").main
    assert main([str(tmp_path), f"gone=glm_ocr:{tmp_path}/none"]) == 1
    first, reason = capsys.readouterr().err.splitlines()
    assert first == f"gone failed: {tmp_path}/gone.log"
    assert "does not exist" in reason
    assert not (tmp_path / "models.md").exists(), "no figures, no table"
    (tmp_path / "a.log").mkdir()
    assert main([str(tmp_path), "a=glm_ocr"]) == 1
    assert capsys.readouterr().err == f"a failed: {tmp_path}/a.log cannot be written: Is a directory\n"
    (tmp_path / "old").mkdir()
    for models, words in (
        (["gone"], "is not NAME=PRESET"),
        (["=glm_ocr"], "is not NAME=PRESET"),
        (["a=glm_ocr", "a=qwen_vl"], "two models are named a"),
        (["old=glm_ocr"], f"{tmp_path}/old is there already"),
        (["a/b=glm_ocr"], "NAME becomes the directory"),
        (["models.md=glm_ocr"], "NAME becomes the directory"),
        (["a|b=glm_ocr"], "NAME becomes the directory"),
        ([f"{'x' * 300}=glm_ocr"], "NAME becomes the directory"),
        (["b=glm_ocr:"], "is not NAME=PRESET"),  # of a variable that is not set
        (["b=:/models/glm"], "is not NAME=PRESET"),
        (["b=glm_ocr", "--stage", "nsys,ncu"], "--stage nsys,ncu: name one stage"),
        (["b=glm_ocr", "--set", "model=qwen_vl"], "--set model=qwen_vl: it would be the model of all rows"),
        (["b=glm_ocr", "--set", "model.path=x"], "--set model.path=x: it would be the model of all rows"),
    ):
        with pytest.raises(SystemExit):
            main([str(tmp_path), *models])
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path / "gone.log"), "a=glm_ocr"])
    assert f"the directory {tmp_path}/gone.log cannot be made: File exists" in capsys.readouterr().err
    (tmp_path / "models.md").touch()
    with pytest.raises(SystemExit):
        main([str(tmp_path), "b=glm_ocr"])
    assert f"{tmp_path}/models.md is there already, the table of another call" in capsys.readouterr().err


def test_compare_models_says_that_pages_failed(script, tmp_path, project, monkeypatch):
    """Else two models' figures would seem to be of the same pages. Their file, which has each sample, is read once."""
    compare_models = script("compare_models")
    run(project, "model=my_ocr")
    (file,) = project.path.glob("llmprof-runs/*-*/*/*/static_analysis/metrics.json")
    metrics = json.loads(file.read_text())
    metrics["errors"] = [{"page": "a", "error": "b"}, {"page": "a", "error": "c"}, {"page": None, "error": "d"}]
    file.write_text(json.dumps(metrics))

    def run_model(out: Path, name: str, *given: Any) -> int:
        file.parents[3].rename(out / name)
        return (out / f"{name}.log").write_text("E  a failure")

    decoded = Mock(wraps=msgspec.json.decode)
    monkeypatch.setattr(msgspec.json, "decode", decoded)
    monkeypatch.setattr(compare_models, "run_model", run_model)
    assert compare_models.main([str(tmp_path / "out"), "one=my_ocr", "--stage", "static_analysis"]) == 1
    assert decoded.call_count == 1
    (line,) = (tmp_path / "out" / "models.md").read_text().splitlines()[2:]
    assert [cell.strip() for cell in line.split("|")][1:4] == ["one", "reference", "2, 1 failed"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopping_compare_models_ends_the_run_and_keeps_the_table(tmp_path, number):
    """By Ctrl-C, a kill, or the end of the terminal: the model's run ends as by Ctrl-C, and nothing is left running."""
    root = Path(__file__).parents[2]
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, time, pathlib\n"
        "if '-m' in sys.orig_argv:\n"
        "    try:\n"
        f"        pathlib.Path({str(tmp_path)!r}, 'begun').touch()\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        f"        pathlib.Path({str(tmp_path)!r}, 'ended').touch()\n"
    )
    script = root / "benchmarks" / "compare_models.py"
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "out"), "a=glm_ocr", "b=qwen_vl"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{root}"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (tmp_path / "begun").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 130
    assert errors.splitlines() == [
        f"a failed: {tmp_path}/out/a.log", "stopped at a, so the table is not whole"
    ]  # fmt: skip
    assert (tmp_path / "ended").exists(), "it was told to end"
    assert not (tmp_path / "out" / "b.log").exists()


@pytest.mark.parametrize(
    ("path", "given"),
    [("päth [1]", "HERE/päth [1]"), ("owner/name", "owner/name"), ("HERE/gone", "HERE/gone")],
)
def test_the_paths_that_compare_models_hands_on(tmp_path, script, monkeypatch, path, given):
    """A directory of here, with any name; a hub id as it is."""
    compare_models = script("compare_models")
    commands: list[list[str]] = []
    monkeypatch.setattr(compare_models, "run_logged", lambda command, log, limit: commands.append(command))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "päth [1]").mkdir()
    path, given = (text.replace("HERE", str(tmp_path)) for text in (path, given))
    compare_models.run_model(tmp_path, "a", f"glm_ocr:{path}", "all", "direct_inference", [])
    assert f"model.path='{given}'" in commands[0]
