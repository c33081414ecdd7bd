"""The checks of stages, with stand-ins for the tools, and with the real nsys where it is."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pytest_llmprof.config.compose import Composer, ConfigSources
from pytest_llmprof.config.registry import Registry
from pytest_llmprof.datasets import builtin
from pytest_llmprof.models.deepseek_ocr import plugin
from pytest_llmprof.stages import packaged_stages, probe
from pytest_llmprof.stages.base import CheckContext

sys.path.insert(0, str(Path(__file__).parents[1] / "analysis"))
from nsys_tables import one_round

TOOL = """#!{python}
import pathlib, shutil, subprocess, sys
name, mode, report = {name!r}, {mode!r}, {report!r}
if sys.argv[1] == "--version":
    print("NVIDIA Nsight Systems" if name == "nsys" else "NVIDIA (R) Nsight Compute Command Line Profiler")
    print("Version 2025.3.1")
    sys.exit()
if mode == "unprivileged":
    print("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters")
    sys.exit(1)
if mode == "crash":
    print("==ERROR== the driver resource is unavailable")
    sys.exit(3)
print('llmprof-nvtx: {{"version": "0.2.13", "records": %s}}' % ("false" if mode == "deaf" else "true"))
if mode == "hangs":
    child = subprocess.Popen(["sleep", "100"])
    pathlib.Path(report).write_text(str(child.pid))
    child.wait()
if "--launch-skip" in sys.argv and sys.argv[sys.argv.index("--launch-skip") + 1] != "0":
    sys.exit()  # the probe has too few launches
if mode == "records":
    out = sys.argv[sys.argv.index("-o") + 1]
    shutil.copy(report, out + (".sqlite" if name == "nsys" else ".ncu-rep"))
"""


@pytest.fixture
def look(tmp_path, monkeypatch):
    """Runs a stage's checks with a stand-in for its tool; gives them."""

    def run(name: str, mode: str, *overrides: str, device: str = "cuda:0", report: Path | None = None):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(TOOL.format(python=sys.executable, name=name, mode=mode, report=str(report)))
        path.chmod(0o755)
        return checks(tmp_path, name, f"pipeline.{name}.path={path}", *overrides, device=device)

    return run


def checks(tmp_path: Path, name: str, *overrides: str, device: str):
    registry = Registry.of([plugin()], packaged_stages(), builtin())
    settings = Composer(ConfigSources(tmp_path, tmp_path, cli_overrides=overrides), registry).session()
    stage = next(stage for stage in packaged_stages() if stage.name == name)
    return list(stage.checks(CheckContext(replace(settings, stage=name), device)))


def runs(pid: int) -> bool:
    """Whether the process goes on. One that has ended may stay as a zombie where nothing waits for it."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_nsys_that_records(look, tmp_path):
    report = one_round().write(tmp_path / "recorded.sqlite")
    program, recording, _ = look("nsys", "records", report=report)
    assert (program.status, program.found) == ("ok", f"Nsight Systems 2025.3.1, {tmp_path}/bin/nsys")
    assert (recording.status, recording.found) == ("ok", "NVTX ranges and CUDA kernels")


@pytest.mark.parametrize(
    ("mode", "found", "mend"),
    [
        ("deaf", "records nothing under nsys 2025.3.1", "pip install nvtx==0.2.11"),
        ("crash", "(exit code 3); last line: ==ERROR== the driver resource is unavailable", "LD_LIBRARY_PATH"),
        ("silent", "no report (exit code 0)", "LD_LIBRARY_PATH"),
    ],
)
def test_nsys_that_does_not_record(look, mode, found, mend):
    _, recording, _ = look("nsys", mode)
    assert recording.status == "problem"
    assert found in recording.found
    assert mend in recording.mend


def test_a_report_of_nsys_that_lacks_what_is_needed(look, tmp_path):
    bad = tmp_path / "bad.sqlite"
    bad.write_bytes(b"no database")
    _, recording, _ = look("nsys", "records", report=bad)
    assert (recording.status, "cannot be read" in recording.found) == ("problem", True)


def test_ncu(look, tmp_path):
    (tmp_path / "report").write_text("")
    program, recording = look("ncu", "records", "pipeline.ncu.launch_skip=100", report=tmp_path / "report")
    assert (program.status, recording.status) == ("ok", "ok"), recording


@pytest.mark.parametrize(
    ("mode", "found", "mend"),
    [
        ("unprivileged", "ERR_NVGPUCTRPERM", "NVreg_RestrictProfilingToAdminUsers=0"),
        ("deaf", "records nothing under ncu 2025.3.1", "pip install nvtx==0.2.11"),
        ("crash", "exit code 3): ==ERROR== the driver resource is unavailable", "use a newer ncu"),
        ("silent", "no kernel was profiled (exit code 0)", "use a newer ncu"),
    ],
)
def test_ncu_that_does_not_profile(look, mode, found, mend):
    _, recording = look("ncu", mode)
    assert recording.status == "problem"
    assert found in recording.found
    assert mend in recording.mend


@pytest.mark.parametrize("name", ["nsys", "ncu"])
def test_a_tool_that_hangs_is_ended_with_all_that_it_started(look, tmp_path, monkeypatch, name):
    monkeypatch.setattr(probe, "_TIMEOUT_S", 2.0)
    recording = look(name, "hangs", report=tmp_path / "pid")[1]
    assert (recording.status, "no end in 2 s" in recording.found) == ("problem", True)
    deadline = time.monotonic() + 60
    while runs(int((tmp_path / "pid").read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ncu_needs_a_gpu(look):
    (check,) = look("ncu", "records", device="cpu")
    assert (check.status, check.name) == ("problem", "GPU")


@pytest.mark.parametrize("name", ["nsys", "ncu"])
def test_a_tool_that_is_not_there(tmp_path, name):
    (check,) = checks(tmp_path, name, f"pipeline.{name}.path={tmp_path}/none", device="cuda:0")
    assert (check.status, check.name) == ("problem", "Program")
    assert "does not exist" in check.found


@pytest.mark.parametrize(
    ("level", "arguments", "status"),
    [("2", "--sample=cpu", "ok"), ("4", "--sample=cpu", "warning"), ("4", "--sample=none", "ok"), ("4", "", "ok")],
)
def test_samples_of_the_cpu(tmp_path, monkeypatch, look, level, arguments, status):
    from pytest_llmprof.stages.nsys import checks as nsys

    monkeypatch.setattr(nsys, "_PARANOID", tmp_path / "level")
    (tmp_path / "level").write_text(f"{level}\n")
    samples = look("nsys", "silent", f"pipeline.nsys.args=['{arguments}']")[2]
    assert samples.status == status


def test_peaks(tmp_path):
    (check,) = checks(tmp_path, "static_analysis", device="cpu")
    assert (check.status, "the CPU is not in the table" in check.found) == ("warning", True)
    own = ("pipeline.static_analysis.peak_tflops=1.5", "pipeline.static_analysis.bandwidth_gbs=40")
    (check,) = checks(tmp_path, "static_analysis", *own, device="cpu")
    assert (check.status, check.found) == ("ok", "yours: 1.5 TFLOP/s, 40 GB/s")


@pytest.mark.nsys
def test_the_real_nsys(tmp_path):
    program, recording, _ = checks(tmp_path, "nsys", device="cpu")
    assert program.status == "ok"
    if "records nothing under nsys" in recording.found:  # an old nsys with a new nvtx, and the check names both
        pytest.skip(f"{recording.found}: {recording.mend}")
    assert recording.status == "ok", recording


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["torch_profiler", "static_analysis"])
def test_on_a_gpu(tmp_path, name):
    assert [check.status for check in checks(tmp_path, name, device="cuda:0")] in (["ok"], ["warning"])
