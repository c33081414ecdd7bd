"""`llmprof doctor`: what it finds, what it says of it, and when it ends with which code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import jsonschema
import msgspec
import psutil
import pytest

from pytest_llmprof.cli import doctor, main
from pytest_llmprof.records.checks import Check, MachineReport

DOCUMENTED = Path(__file__).parents[2] / "docs" / "schemas" / "doctor.schema.json"


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


def named(report: MachineReport, name: str, stage: str | None = None) -> Check:
    return next(check for check in report.checks if (check.name, check.stage) == (name, stage))


def test_a_cpu_machine(project, capsys):
    code = main(["doctor", "--format", "json"])
    shown = capsys.readouterr()
    assert (code, shown.err) == (0, "")
    jsonschema.validate(json.loads(shown.out), json.loads(DOCUMENTED.read_text()))
    report = msgspec.json.decode(shown.out, type=MachineReport)
    assert (report.device, report.stages) == ("cpu", ["torch_profiler"])
    assert set(report.other_stages) == {"direct_inference", "static_analysis", "nsys", "ncu"}
    for check in report.checks:
        assert "\n" not in check.found
        assert check.mend or check.status in ("ok", "not checked"), check
    for name in ("Packages", "Torch", "Processors", "Load", "Threads", "Run directory", "Pages", "Model", "Engine"):
        assert named(report, name).status in ("ok", "warning"), name
    assert named(report, "Profiler", "torch_profiler").status == "ok"
    assert named(report, "GPU", "ncu").status == "problem"
    assert os.listdir(project) == []


def test_a_chosen_stage_that_cannot_run(capsys):
    code = main(["doctor", "--llmprof-stage=ncu,torch_profiler", "--llmprof-override=pipeline.nsys.enable=false"])
    out = capsys.readouterr().out
    assert code == 1
    assert "problem      ncu: GPU " in out
    assert out.count(" -> ") >= 1
    assert out.splitlines()[-5:-3] == ["ncu (chosen): cannot run: GPU", "torch_profiler (chosen): can run"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--llmprof-stage=torch_profilr"], "did you mean 'torch_profiler'"),
        (["--llmprof-override=measure.round=1"], "did you mean 'measure.rounds'"),
        (["--llmprof-override", "model=deepseek_ocr"], "model.path must be set"),
        (["--llmprof-config-dir=nowhere"], "nowhere"),
        (["--", "--no-such-option"], "unrecognized arguments: --no-such-option"),
        (["test_x.py", "--format", "json"], "arguments: --format json; --format comes before paths of tests"),
        (["--", "-p", "no:llmprof"], "does not load the plugin llmprof"),
        (["conftest.py"], "ImportError while loading conftest '{}/conftest.py'. ModuleNotFoundError: No module named"),
    ],
)
def test_bad_input_is_one_line_and_code_4(project, capsys, arguments, why):
    if arguments == ["conftest.py"]:
        (project / "conftest.py").write_text("import nm\n")
    assert main(["doctor", *arguments]) == 4
    shown = capsys.readouterr()
    assert shown.out == ""
    assert why.format(project) in shown.err
    assert (shown.err[:7], shown.err.count("\n")) == ("ERROR: ", 1)


def test_a_wrong_option_says_where_those_of_pytest_go(capsys):
    with pytest.raises(SystemExit) as found:
        main(["doctor", "--no-such-option"])
    assert found.value.code == 4
    assert 'other options of pytest come after a path or "--"' in capsys.readouterr().err


def test_a_pytest_that_breaks(project, capsys):
    """Without a report nothing is known, so nothing can run."""
    (project / "conftest.py").write_text("import os\nos._exit(7)\n")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "it ended with exit code 7: it printed nothing" in out
    assert "can run" not in out


def test_packages_that_are_too_old_or_missing(monkeypatch):
    versions = {"pytest": "9.2.0", "pytest-benchmark": "5.1.0"}

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    needed = ["pytest>=8.1", "pytest-benchmark<6,>=5.3.1", "nvtx>=0.2.11", "ruff>=1; extra == 'test'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: needed)
    monkeypatch.setattr(doctor.metadata, "version", version)
    (check,) = doctor._packages()
    assert check.status == "problem"
    assert check.found == (
        "pytest-benchmark 5.1.0, needed is pytest-benchmark<6,>=5.3.1; nvtx is missing, needed is nvtx>=0.2.11"
    )
    assert check.mend == "pip install 'pytest-benchmark<6,>=5.3.1' 'nvtx>=0.2.11'"
    versions |= {"pytest-benchmark": "5.3.1", "nvtx": "0.2.13"}
    (check,) = doctor._packages()
    assert (check.status, check.found) == ("ok", "3 requirements are met (pytest 9.2.0, pytest-benchmark 5.3.1)")


def test_an_installation_that_names_no_packages_is_not_checked(monkeypatch):
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: None)
    (check,) = doctor._packages()
    assert (check.status, check.found) == ("not checked", "this installation does not say what it needs")


def test_the_command_itself_imports_no_torch():
    code = (
        "import sys; from pytest_llmprof.cli import main; main(['doctor', '--llmprof-stage=nothing']);"
        "print(sorted({'torch', 'pytest', 'numpy', 'hydra'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_no_control_character_reaches_the_terminal(monkeypatch, capsys):
    bad = MachineReport(stages=["own"], checks=[Check("S\x1b[31m", "problem", "a\x1b[0m\nb", "b\x07", "own")])
    monkeypatch.setattr(doctor, "_from_pytest", lambda arguments: bad)
    assert main(["doctor"]) == 1
    shown = capsys.readouterr()
    assert "a␛[0m b" in shown.out
    assert not {"\x1b", "\x07"} & set(shown.out + shown.err)


def test_ctrl_c(project):
    """One line, and no process is left."""
    (project / "conftest.py").write_text(
        "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(100)\n"
    )
    command = [sys.executable, "-m", "pytest_llmprof.cli", "doctor"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, start_new_session=True, **pipes)
    deadline = time.monotonic() + 180
    while not (project / "pid").exists() or not (project / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=180)
    assert (process.returncode, out, err) == (130, "", "ERROR: interrupted\n")
    child = int((project / "pid").read_text())
    while psutil.pid_exists(child):  # a killed one is there until the system has collected it
        assert time.monotonic() < deadline
        time.sleep(0.05)
