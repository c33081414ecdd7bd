"""`llmprof init`: what it writes, what it leaves alone, and that its project runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from PIL import Image

from pytest_llmprof.cli import main, starter
from pytest_llmprof.cli.command import INTERRUPTED

NEW = {
    ".github/workflows/llmprof.yml",
    ".gitignore",
    "benchmarks/test_pages.py",
    "conf/dataset/my_pages.yaml",
    "pytest.ini",
}
OPTION = 'llmprof_config_dir = "conf"'


@pytest.fixture
def project(tmp_path, monkeypatch):
    path = tmp_path / "project"
    (path / ".git").mkdir(parents=True)
    monkeypatch.chdir(path)
    return path


def tree(path: Path) -> dict[str, bytes]:
    """Every file below *path* but git's own."""
    found = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    return {name: file.read_bytes() for name, file in found.items() if not name.startswith(".git/")}


def init(capsys, *arguments: str) -> str:
    assert main(["init", *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments: str) -> str:
    assert main(["init", *arguments]) == 4
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    return shown.err


def test_an_empty_project(project, capsys):
    shown = init(capsys)
    assert set(tree(project)) == NEW
    assert all(f"wrote {name}" in shown for name in NEW)
    assert (project / "pytest.ini").read_text() == "[pytest]\nllmprof_config_dir = conf\n"
    assert (project / ".gitignore").read_text() == "llmprof-runs/\n.llmprof/\n.benchmarks/\n"


def test_a_dry_run_writes_nothing_and_names_the_same(project, capsys):
    (project / ".gitignore").write_text("*.pyc\n")
    before = tree(project)
    shown = init(capsys, "--dry-run")
    assert tree(project) == before
    assert "would add to .gitignore:\n    llmprof-runs/\n" in shown
    real = init(capsys)
    assert shown.replace("would write", "wrote").replace("would add", "added") == real


def test_a_second_time_keeps_everything(project, capsys):
    init(capsys)
    (project / "benchmarks" / "test_pages.py").write_text("# mine\n")
    before = tree(project)
    shown = init(capsys)
    assert tree(project) == before
    assert all(f"kept {name}: it " in shown for name in NEW)


def test_a_directory_that_is_not_there_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shown = init(capsys, "new/bench")
    assert set(tree(tmp_path / "new" / "bench")) == NEW
    assert f"    cd {tmp_path}/new/bench && " in shown


@pytest.mark.slow
def test_its_workflow_and_its_commands_are_green(project, tmp_path, monkeypatch, capsys):
    """Each step but the installation, which needs an index; one page, one round, without the slow tools."""
    shown = init(capsys)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, module in (("python", ""), ("llmprof", "-m pytest_llmprof.cli")):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n')
        (programs / name).chmod(0o755)
    less = ("dataset.limit=1", "measure.rounds=1", "measure.warmup=0", "pipeline.nsys.enable=false")
    monkeypatch.setenv("PYTEST_ADDOPTS", " ".join(f"--llmprof-override={one}" for one in less))
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))
    workflow = yaml.safe_load((project / ".github" / "workflows" / "llmprof.yml").read_text())
    steps = {step["name"]: step["run"] for step in workflow["jobs"]["benchmarks"]["steps"] if "run" in step}
    assert list(steps) == ["Install", "Check the machine", "Benchmarks", "Summary"]
    for name in list(steps)[1:]:
        done = subprocess.run(["bash", "-e", "-c", steps[name]], capture_output=True, text=True)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
    assert "1 passed" in (tmp_path / "summary").read_text()
    commands = [line.strip() for line in shown.splitlines()[-2:]]
    assert steps["Check the machine"] == f"llmprof {commands[0].split()[-1]}"
    assert steps["Benchmarks"].startswith("python -m pytest benchmarks ")
    assert commands[1].endswith(" -m pytest benchmarks")


def test_its_own_pages(project, capsys):
    init(capsys)
    (project / "pages").mkdir()
    Image.new("RGB", (8, 8)).save(project / "pages" / "a.png")
    show = [sys.executable, "-m", "pytest", "--llmprof-show-config", "--llmprof-override=dataset=my_pages"]
    done = subprocess.run(show, capture_output=True, text=True, check=True)
    dataset = yaml.safe_load(done.stdout)["dataset"]
    assert (dataset["name"], dataset["root"], dataset["limit"]) == ("image_folder", str(project / "pages"), 20)


@pytest.mark.parametrize(
    ("given", "path"),
    [("org/model", "org/model"), ("./weights/ocr", "./weights/ocr"), ("../elsewhere", "{parent}/elsewhere")],
)
def test_a_model_of_its_own(project, capsys, given, path):
    for directory in (project / "weights" / "ocr", project.parent / "elsewhere"):
        directory.mkdir(parents=True)
        (directory / "config.json").write_text("{}")
    init(capsys, "--model", given)
    wanted = path.format(parent=project.parent)
    preset = yaml.safe_load((project / "conf" / "model" / "my_model.yaml").read_text())
    assert preset == {"defaults": ["deepseek_ocr"], "path": wanted}
    show = [sys.executable, "-m", "pytest", "--llmprof-show-config"]
    done = subprocess.run(show, capture_output=True, text=True, check=True)
    model = yaml.safe_load(done.stdout)["model"]
    assert model["path"] == (str(project / path) if path.startswith("./") else wanted)
    assert model["weights"] == "checkpoint"


def test_a_packaged_preset_as_model(project, capsys):
    init(capsys, "--model", "deepseek_ocr_random")
    assert "llmprof_override =\n    model=deepseek_ocr_random\n" in (project / "pytest.ini").read_text()
    assert not (project / "conf" / "model").exists()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--model", "deepseek_ocr_tinny"), "is no preset (did you mean 'deepseek_ocr_tiny'?); give deepseek_ocr, "),
        (("--model", "deepseek_ocr"), "the preset deepseek_ocr is for a checkpoint: give its directory, or a hub id"),
        (("--model", "./nowhere"), "there is no directory ./nowhere"),
        (("--model", "a/b/c"), "is no preset"),
        (("--model", ""), "'' is no preset; give deepseek_ocr, "),
        (("--model", "org/"), "'org/' is no preset; give deepseek_ocr, "),
        (("--model", "org/a\nb"), "is no preset; give deepseek_ocr, "),
        (("file",), "file is not a directory"),
        (("x" * 300,), "the path is too long"),
    ],
)
def test_bad_input_is_one_line(project, capsys, arguments, why):
    (project / "file").write_text("")
    before = tree(project)
    assert why in refused(capsys, *arguments)
    assert tree(project) == before


def test_a_checkpoint_that_may_not_be_read(project, capsys, monkeypatch):
    closed, access = project / "weights", os.access
    closed.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: access(path, mode) and Path(path) != closed)
    assert "--model: the directory ./weights cannot be read: permission denied" in refused(
        capsys, "--model", "./weights"
    )


def test_an_empty_name_is_not_the_current_directory(project, capsys):
    """As of a variable of the shell that is not set."""
    with pytest.raises(SystemExit):
        main(["init", ""])
    assert "argument DIR: an empty name; give . for the current directory" in capsys.readouterr().err
    assert tree(project) == {}


@pytest.mark.parametrize(
    "text",
    [
        "[project]\nname = 'x'\n",
        "[project]\nname = 'x'",
        "",
        "# a comment\r\n[tool.ruff]\r\nline-length = 100\r\n",
        '[tool.pytest.ini_options]  # ours\ntestpaths = ["tests"]\n\n[tool.ruff]\nline-length = 100\n',
        "[tool.pytest.ini_options]",
        'x = """\n[tool.pytest.ini_options]\n"""\n[tool . pytest . ini_options]\nminversion = "8"\n',
        'tool.pytest.ini_options.minversion = "8"\n',
    ],
)
def test_options_in_pyproject(project, capsys, text):
    """They are added where that changes nothing else, and shown where it would."""
    path = project / "pyproject.toml"
    path.write_bytes(text.encode())
    path.chmod(0o600)
    before = tomllib.loads(text)
    shown = init(capsys)
    now = path.read_bytes().decode()
    if "for you to do: add to pyproject.toml" in shown:
        assert now == text
        assert text.startswith(("x =", "tool."))
        assert f"    {OPTION}" in shown
    else:
        before.setdefault("tool", {}).setdefault("pytest", {}).setdefault("ini_options", {})
        before["tool"]["pytest"]["ini_options"]["llmprof_config_dir"] = "conf"
        assert tomllib.loads(now) == before
        assert set(text.splitlines()) <= set(now.splitlines())
        assert ("\r\n" in text) == ("\r\n" in now)
        assert now.count("\n") - now.count("\r\n") == (0 if "\r\n" in text else now.count("\n"))
        assert path.stat().st_mode & 0o777 == 0o600
        assert "added to pyproject.toml:\n" in shown
    assert not (project / "pytest.ini").exists()


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("pyproject.toml", "[tool\n", "add to pyproject.toml (it is not valid TOML now: "),
        ("pyproject.toml", "[tool.pytest]\nminversion = '9'\n", f"pyproject.toml:\n    [tool.pytest]\n    {OPTION}"),
        ("pytest.toml", "[pytest]\n", f"add to pytest.toml:\n    [pytest]\n    {OPTION}"),
        ("pytest.ini", "", "add to pytest.ini:\n    [pytest]\n    llmprof_config_dir = conf"),
        ("tox.ini", "[pytest]\n", "add to tox.ini:\n    [pytest]\n    llmprof_config_dir = conf"),
        ("setup.cfg", "[tool:pytest]\n", "add to setup.cfg:\n    [tool:pytest]\n    llmprof_config_dir = conf"),
    ],
)
def test_options_for_the_user_to_add(project, capsys, name, text, wanted):
    (project / name).write_text(text)
    assert wanted in init(capsys)
    assert (project / name).read_text() == text
    assert {"pytest.ini", name} & set(tree(project)) == {name}


def test_a_tox_ini_without_pytest_is_no_place(project, capsys):
    (project / "tox.ini").write_text("[tox]\n")
    init(capsys)
    assert (project / "pytest.ini").exists()


def test_an_override_that_is_there_stays(project, capsys):
    text = '[tool.pytest.ini_options]\nllmprof_config_dir = "presets"\nllmprof_override = ["measure.rounds=5"]\n'
    (project / "pyproject.toml").write_text(text)
    shown = init(capsys, "--model", "org/model")
    assert (project / "pyproject.toml").read_text() == text
    assert 'has its own llmprof_override, so add to it:\n    llmprof_override = ["model=my_model"]' in shown
    assert (project / "presets" / "model" / "my_model.yaml").exists()


def test_a_conf_of_another_program_is_left_alone(project, capsys):
    (project / "conf").mkdir()
    (project / "conf" / "config.yaml").write_text("theirs: 1\n")
    init(capsys)
    assert "llmprof_config_dir = llmprof-conf" in (project / "pytest.ini").read_text()
    assert sorted(os.listdir(project / "conf")) == ["config.yaml"]
    init(capsys)
    (project / "pytest.ini").unlink()
    (project / "llmprof-conf" / "dataset" / "my_pages.yaml").unlink()
    before = tree(project)
    assert "name a directory for presets" in refused(capsys)
    assert tree(project) == before


def test_below_the_top_of_a_repository_no_workflow_is_written(project, capsys):
    (project / "sub").mkdir()
    shown = init(capsys, "sub")
    assert set(tree(project / "sub")) == NEW - {".github/workflows/llmprof.yml"}
    assert f"it is for the top of a repository, which is {project}" in shown


def test_lines_of_gitignore(project, capsys):
    (project / ".gitignore").write_bytes(b"/llmprof-runs\r\n*.pyc")
    init(capsys)
    assert (project / ".gitignore").read_bytes() == b"/llmprof-runs\r\n*.pyc\r\n.llmprof/\r\n.benchmarks/\r\n"


def test_a_link_stays_a_link(project, capsys):
    (project / "shared").write_text("*.pyc\n")
    (project / ".gitignore").symlink_to("shared")
    init(capsys)
    assert (project / ".gitignore").is_symlink()
    assert "llmprof-runs/" in (project / "shared").read_text()


@pytest.mark.parametrize("name", ["benchmarks", ".github", "conf/dataset"])
def test_a_file_in_the_way_is_named_and_nothing_written(project, capsys, name):
    (project / name).parent.mkdir(exist_ok=True)
    (project / name).write_text("")
    if name == "conf/dataset":
        (project / "pytest.ini").write_text("[pytest]\nllmprof_config_dir = conf\n")
    before = tree(project)
    assert f"{project / name} is not a directory" in refused(capsys)
    assert tree(project) == before


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("name", ["pytest.ini", ".gitignore"])
def test_a_pipe_is_named_and_stays(project, capsys, name, link):
    pipe = project / ("pipe" if link else name)
    os.mkfifo(pipe)
    if link:  # as one to /dev/null, which root could replace
        (project / name).symlink_to(pipe)
    assert main(["init"]) == 4
    assert capsys.readouterr().err == f"ERROR: cannot read {project / name}: it is not a regular file\n"
    assert pipe.is_fifo()


def test_what_is_no_text_is_named(project, capsys):
    (project / ".gitignore").write_bytes(b"\xff\xfe")
    assert "cannot read" in refused(capsys)
    assert set(tree(project)) == {".gitignore"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("good", range(5))
def test_all_is_written_or_nothing(project, monkeypatch, capsys, good, error):
    (project / ".gitignore").write_text("*.pyc\n")
    (project / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    before, directories = tree(project), sorted(project.rglob("*"))
    left = [good]

    def write(path, text, real=starter.write_text):
        if not left[0]:
            raise error
        left[0] -= 1
        real(path, text)

    monkeypatch.setattr(starter, "write_text", write)
    if isinstance(error, OSError):
        refused(capsys)
    else:
        assert main(["init"]) == INTERRUPTED
        assert capsys.readouterr().err == "ERROR: interrupted\n"
    assert tree(project) == before
    assert sorted(project.rglob("*")) == directories


def test_a_file_that_appears_meanwhile_is_kept(project, capsys):
    found = starter.plan(project, None)
    (project / "benchmarks").mkdir()
    (project / "benchmarks" / "test_pages.py").write_text("# mine\n")
    before = tree(project)
    with pytest.raises(Exception, match="it has appeared meanwhile"):
        found.write()
    assert tree(project) == before


def test_a_second_run_completes_the_first(project, capsys):
    """As after a kill between two files: each is whole, some are missing."""
    init(capsys)
    whole = tree(project)
    (project / ".github" / "workflows" / "llmprof.yml").unlink()
    (project / "conf" / "dataset" / "my_pages.yaml").unlink()
    init(capsys)
    assert tree(project) == whole


@pytest.mark.parametrize("on_path", [True, False])
def test_the_commands_name_this_environment(project, monkeypatch, capsys, on_path):
    """A shell that would find other programs is given whole paths."""
    programs = os.path.dirname(sys.executable)
    monkeypatch.setattr(sys, "argv", [f"{programs}/llmprof"])
    monkeypatch.setattr("shutil.which", lambda name: f"{programs if on_path else '/usr/bin'}/{name}")
    monkeypatch.setattr(sys, "executable", f"{programs}/python")
    doctor, run = (line.strip() for line in init(capsys).splitlines()[-2:])
    front = "" if on_path else re.escape(f"{programs}/")
    assert re.fullmatch(f"{front}llmprof doctor", doctor)
    assert re.fullmatch(f"{front}python -m pytest benchmarks", run)
