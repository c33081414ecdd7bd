"""The stages nsys and ncu around a stand-in for the tool: commands, results, and every way to fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_llmprof.errors import ArtifactError, StageError
from pytest_llmprof.stages.child import Child, Outcome, ToolFailed
from pytest_llmprof.stages.ncu.options import NcuOptions
from pytest_llmprof.stages.ncu.stage import NCU, Chosen, choose
from pytest_llmprof.stages.nsys.stage import NSYS
from pytest_llmprof.stages.tool_block import ToolInfo

sys.path.insert(0, str(Path(__file__).parents[1] / "analysis"))
from nsys_tables import Export, one_round
from test_ncu_report import ROW, table


@pytest.fixture
def exported(tmp_path):
    return one_round().write(tmp_path / "recorded.sqlite")


@pytest.fixture
def printed(tmp_path):
    path = tmp_path / "recorded.csv"
    path.write_text(table(ROW, (ROW[0], *ROW[1:])))
    return path


def failure(stage, name: str, mode: str, *overrides: str, **more: object) -> StageError:
    with pytest.raises(StageError) as caught:
        stage(name, mode, *overrides, **more)
    assert "\n" not in str(caught.value)
    return caught.value


def test_nsys_on_a_card(stage, exported, tmp_path):
    context = stage("nsys", "pass", report=exported)
    found = context.block
    assert found.tool == ToolInfo(path=str(tmp_path / "bin" / "nsys"), version="2025.3.1.90")
    assert (found.kernels, found.kernels_per_token, found.captures) == (6, 2.0, 1)
    assert {"kernels.csv", "kernels.md", "phases.csv", "phases.md"} <= {path.name for path in context.out_dir.iterdir()}
    command = (context.out_dir / "command.txt").read_text()
    for word in (
        "NSYS_NVTX_PROFILER_REGISTER_ONLY=0",
        "--trace=cuda,nvtx",
        "--cuda-graph-trace=node",
        "--capture-range=nvtx",
        "--nvtx-capture=round@llmprof",
        "--capture-range-end=stop",
        "--export=sqlite",
    ):
        assert f" {word} " in command
    assert "progress 100%" in (context.out_dir / "output.log").read_text()


def test_nsys_capture_and_occurrences(stage, exported):
    context = stage(
        "nsys",
        "pass",
        "pipeline.nsys.capture=decode",
        "pipeline.nsys.occurrences=3",
        "pipeline.nsys.args=['--backtrace=none']",
        "pipeline.nsys.env={WORD: a b}",
        device="cpu",
        report=exported,
    )
    command = (context.out_dir / "command.txt").read_text()
    assert "--nvtx-capture=decode@llmprof --capture-range-end=repeat:3" in command
    assert "--trace=nvtx,osrt" in command
    assert "cuda-graph" not in command
    assert "--backtrace=none" in command
    assert "'WORD=a b'" in command
    assert context.block.kernels is None  # a CPU has no figures of a card


@pytest.mark.parametrize(
    ("mode", "parts"),
    [
        ("old", ["is Nsight Systems 2019.1.1; at least 2022.4", "pipeline.nsys.path"]),
        ("other", ["is not Nsight Systems", "GNU bash"]),
        ("broken", ["exit code 127", "libfoo.so", "pipeline.nsys.env"]),
        ("crash", ["did not run under nsys", "exit code 3", "==ERROR== cannot start"]),
        ("badexit", ["nsys ended with exit code 7 although the test passed"]),
        ("nothing", ["round@llmprof", "never opened", "all, preprocess, prefill, decode, step"]),
        ("dummy", ["NVTX recorded nothing under nsys 2025.3.1.90", "nvtx 0.2.17", "pip install nvtx==0.2.11"]),
        ("noexport", ["nsys.nsys-rep", "export to SQLite failed", "LD_LIBRARY_PATH"]),
        ("importer", ["importer error", "LD_LIBRARY_PATH"]),
        ("garbage", ["cannot be read", "not an export of nsys"]),
        ("failed", ["the test failed in its child under nsys: cer 3 is over 2"]),
        ("failed dummy", ["under nsys: cer 3 is over 2. Besides, NVTX recorded nothing", "pip install nvtx==0.2.11"]),
        ("unmeasured", ["neither llmprof.run() nor llmprof.measure()"]),
    ],
)
def test_nsys_failures(stage, exported, mode, parts):
    error = failure(stage, "nsys", mode, report=exported)
    for part in parts:
        assert part in str(error)
    if isinstance(error, ToolFailed) and error.details:
        assert "progress 10%\n" not in error.details + "\n"  # what the terminal had overwritten


def test_nsys_without_kernels_or_ranges(stage, tmp_path):
    export = Export()
    export.range("round", 0, 10)
    text = str(failure(stage, "nsys", "pass", report=export.write(tmp_path / "bare.sqlite")))
    assert "captured no CUDA kernel" in text
    assert "pipeline.nsys.path" in text
    text = str(failure(stage, "nsys", "pass", report=Export().write(tmp_path / "none.sqlite")))
    assert "no range of the domain llmprof" in text


def places(monkeypatch: pytest.MonkeyPatch, name: str, *patterns: str) -> None:
    """Look for a program in other places than the usual ones."""
    program = {"nsys": NSYS, "ncu": NCU}[name]
    target = f"pytest_llmprof.stages.{name}.stage.{name.upper()}"
    monkeypatch.setattr(target, replace(program, places=patterns))


def test_a_tool_that_is_not_there(stage, exported, tmp_path, monkeypatch):
    text = str(failure(stage, "nsys", "pass", "pipeline.nsys.path=/no/such/nsys"))
    assert text.startswith("pipeline.nsys.path=/no/such/nsys does not exist")
    text = str(failure(stage, "nsys", "pass", "pipeline.nsys.path=nsys-2"))
    assert "pipeline.nsys.path=nsys-2 is not on PATH" in text
    plain = tmp_path / "plain"
    plain.write_text("no program")
    assert "is not a program" in str(failure(stage, "nsys", "pass", f"pipeline.nsys.path={plain}"))
    monkeypatch.setattr("pytest_llmprof.stages.tools.shutil.which", lambda name: None)
    places(monkeypatch, "nsys", f"{tmp_path}/nowhere/*/nsys")
    text = str(failure(stage, "nsys", "pass"))
    assert "was not found on PATH" in text
    assert "--llmprof-override pipeline.nsys.path=" in text
    # The newest of the usual places, by its number.
    places(monkeypatch, "nsys", f"{tmp_path}/opt/*/nsys")
    for version in ("2024.9", "2025.10", "2025.9"):
        path = tmp_path / "opt" / version / "nsys"
        path.parent.mkdir(parents=True)
        path.write_bytes((tmp_path / "bin" / "nsys").read_bytes())
        path.chmod(0o755)
    context = stage("nsys", "pass", report=exported)
    assert context.block.tool.path == f"{tmp_path}/opt/2025.10/nsys"
    places(monkeypatch, "ncu", f"{tmp_path}/nowhere/*/ncu")
    text = str(failure(stage, "ncu", "pass"))
    assert "the program ncu (Nsight Compute) was not found on PATH" in text
    assert "--llmprof-override pipeline.ncu.path=" in text


def test_an_importer_that_debian_puts_elsewhere(stage, tmp_path, monkeypatch):
    monkeypatch.setattr("pytest_llmprof.stages.nsys.stage._DEBIAN", tmp_path)
    for mode in ("importer", "noexport"):
        assert f"ln -s /usr/lib/nsight-systems/host-linux-x64 {tmp_path}/" in str(failure(stage, "nsys", mode))
    (tmp_path / "host-linux-x64").mkdir()
    assert "LD_LIBRARY_PATH" in str(failure(stage, "nsys", "importer"))


def gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize("name", ["nsys", "ncu"])
def test_a_child_that_hangs(stage, tmp_path, name):
    error = failure(stage, name, "hang", f"pipeline.{name}.timeout_s=1")
    assert f"the test under {name} did not end in 1 s (pipeline.{name}.timeout_s)" in str(error)
    assert gone(int((tmp_path / "pid").read_text()))


def test_ctrl_c_ends_all_of_it(tmp_path):
    """SIGINT reaches this process alone; the child is in a group of its own."""
    pid = tmp_path / "pid"
    code = f"import subprocess, time; p = subprocess.Popen(['sleep', '300']); open({str(pid)!r}, 'w').write(str(p.pid))"
    child = Child(
        [sys.executable, "-c", f"{code}; time.sleep(300)"], tmp_path, tmp_path, tmp_path, 60.0, "k", lambda *_: None
    )

    def interrupt() -> None:
        while not (pid.exists() and pid.read_text()):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        child.run([], {}, "nsys")
    thread.join()
    assert gone(int(pid.read_text()))


@pytest.mark.parametrize("lasts", [0, 300])
def test_what_has_left_the_family_is_ended_too(tmp_path, lasts):
    """As nsys's agent, which a killed nsys leaves behind: in a session of its own, its parent gone."""
    pid = tmp_path / "pid"
    daemon = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        f"        open({str(pid)!r}, 'w').write(str(os.getpid()))\n        time.sleep(300)\n    os._exit(0)\nos.wait()"
    )
    code = (
        f"import os, subprocess, sys, time\nsubprocess.run([sys.executable, '-c', {daemon!r}])\n"
        f"while not os.path.exists({str(pid)!r}): time.sleep(0.02)\ntime.sleep({lasts})"
    )
    child = Child([sys.executable, "-c", code], tmp_path, tmp_path, tmp_path, 3.0, "k", lambda *_: None)
    if lasts:
        with pytest.raises(ToolFailed, match=r"did not end in 3 s \(k\)"):
            child.run([], {}, "nsys")
    else:
        assert child.run([], {}, "nsys").code == 0
    assert gone(int(pid.read_text()))


def test_ncu_on_a_card(stage, printed):
    context = stage("ncu", "pass", "pipeline.ncu.launch_skip=2", report=printed)
    found = context.block
    assert (found.chosen_by, found.launch_count, found.launches) == ("first", 5, 2)
    assert found.kernels[0].bound == "DRAM"
    command = (context.out_dir / "command.txt").read_text()
    for words in (
        "--nvtx --nvtx-include llmprof@decode/",
        "--launch-skip 2 --launch-count 5",
        "--clock-control none",
        "--set basic",
        "--metrics gpu__time_duration.sum,",
        "--target-processes all",
    ):
        assert f" {words}" in command
    assert "--kernel-name" not in command
    assert {"kernels.csv", "kernels.md", "launches.csv", "raw.csv"} <= {path.name for path in context.out_dir.iterdir()}


def test_ncu_exports_with_a_fixed_locale(stage, printed, tmp_path, monkeypatch):
    """Whatever the user's locale is: the numbers of the export are read."""
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    stage("ncu", "pass", "pipeline.ncu.env={LC_ALL: fr_FR.UTF-8}", report=printed)
    assert (tmp_path / "pid").read_text() == "C"


@pytest.mark.parametrize(
    "text",
    [
        "name,kind,phase,busy_ms\nmine,kernel,decode\n",
        "name,kind,phase,busy_ms\nmine,kernel,decode,fast\n",
        "name,kind,phase,busy_ms\n" + "x" * 200_000 + ",kernel,decode,1\n",
    ],
)
def test_a_broken_table_of_kernels_is_named(text, tmp_path):
    (tmp_path / "kernels.csv").write_text(text)
    with pytest.raises(ArtifactError, match=r"kernels\.csv is broken: line \d is no row of kernels"):
        choose(NcuOptions(), [("nsys", tmp_path)])


@pytest.mark.parametrize("content", [b'{"outcome": 3}', b"[]", b"null", b'{"outcome": "\xff"}', b"[" * 100_000])
def test_an_outcome_of_another_shape_is_refused(content, tmp_path):
    (tmp_path / "outcome.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"outcome\.json"):
        Outcome.read(tmp_path)


def test_ncu_takes_the_longest_kernels_of_this_run(stage, printed, tmp_path):
    other = tmp_path / "mod" / "test_a" / "nsys"
    other.mkdir(parents=True)
    (other / "kernels.csv").write_text(
        "name,kind,phase,busy_ms\n"
        '"void cutlass::Kernel2<a, b>(P)",kernel,decode,5\n"void cutlass::Kernel2<c>(P)",kernel,decode,4\n'
        '"void (anonymous namespace)::small<int>(int)",kernel,decode,1\nsoftmax,kernel,prefill,50\n'
        '_triton.v1,kernel,decode,2\n"Memcpy HtoD",memcpy,decode,99\n'
    )
    context = stage("ncu", "pass", "pipeline.ncu.kernels=top:2", "pipeline.ncu.sections=[Occupancy]", report=printed)
    assert (context.block.chosen_by, context.block.chosen) == ("nsys", ["Kernel2", "_triton.v1"])
    assert context.block.missing == ["_triton.v1"]
    command = (context.out_dir / "command.txt").read_text()
    assert r"--kernel-name 'regex:^(Kernel2|_triton\.v1)$'" in command
    assert "--section Occupancy" in command
    assert "--set" not in command
    (tmp_path / "mod" / "test_a" / "torch_profiler").mkdir()
    first = tmp_path / "mod" / "test_a" / "torch_profiler" / "kernels.csv"
    first.write_text("name,kind,phase,busy_ms\nmine,kernel,decode,1\n")
    results = [("torch_profiler", first.parent), ("nsys", other)]
    assert choose(NcuOptions(), results).kernels == ("mine",)
    assert choose(NcuOptions(capture="prefill"), results).kernels == ("softmax",)
    assert choose(NcuOptions(capture="all", kernels="top:1"), results[1:]).kernels == ("softmax",)
    assert choose(NcuOptions(kernels="gemv.*"), results).pattern == "gemv.*"
    assert choose(NcuOptions(kernels="all"), results).pattern is None
    # Any stage's kernels.csv will do, in the order of the run's stages; one of other columns will not.
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "kernels.csv").write_text("kernel,launches\nother,1\n")
    assert choose(NcuOptions(), [("theirs", theirs), *reversed(results)]).source == "nsys"
    (theirs / "kernels.csv").write_text("name,kind,phase,busy_ms\nown,kernel,decode,1\n")
    assert choose(NcuOptions(), [("theirs", theirs), *results]) == Chosen("theirs", ("own",), "^(own)$", 50)


@pytest.mark.parametrize(
    ("mode", "parts"),
    [
        ("denied", ["ERR_NVGPUCTRPERM", "NVreg_RestrictProfilingToAdminUsers=0"]),
        ("nothing", ["ncu profiled no kernel", "llmprof@decode/", "launches none"]),
        ("empty", ["ncu profiled no kernel"]),
        ("dummy", ["NVTX recorded nothing under ncu", "pip install nvtx==0.2.11"]),
        ("noexport", ["export to CSV ended with exit code 9"]),
        ("crash", ["did not run under ncu", "exit code 3"]),
        ("old", ["is Nsight Compute 2019.1.1; at least", "pipeline.ncu.path"]),
        ("other", ["is not Nsight Compute", "GNU bash"]),
        ("badexit", ["ncu ended with exit code 7 although the test passed"]),
        ("failed", ["the test failed in its child under ncu: cer 3 is over 2"]),
        ("unmeasured", ["neither llmprof.run() nor llmprof.measure()"]),
    ],
)
def test_ncu_failures(stage, printed, mode, parts):
    error = failure(stage, "ncu", mode, report=printed)
    for part in parts:
        assert part in str(error)


def test_ncu_ranges_and_devices(stage, printed):
    text = str(failure(stage, "ncu", "nothing", "pipeline.ncu.capture=vision", report=printed))
    assert "llmprof@vision/" in text
    assert "never opened; this test opens all, preprocess, prefill, decode, step" in text
    text = str(failure(stage, "ncu", "pass", device="cpu"))
    assert "ncu profiles CUDA kernels, and this test runs on cpu" in text
    assert "--llmprof-stage" in text


def test_secrets_are_not_in_the_command(stage, exported, monkeypatch):
    """Issue 15, line 28: the shell that it is pasted into takes them from its environment."""
    context = stage("nsys", "pass", "pipeline.nsys.env={HF_TOKEN: 'a secret'}", report=exported)
    text = (context.out_dir / "command.txt").read_text()
    assert "a secret" not in text
    monkeypatch.setenv("HF_TOKEN", "it is $there")
    shown = subprocess.run(["bash", "-c", f"printf '%s\n' {text.splitlines()[1]}"], capture_output=True, text=True)
    assert shown.stdout.splitlines()[3] == "HF_TOKEN=it is $there"


def test_the_command_can_be_pasted(stage, exported):
    context = stage("nsys", "pass", "pipeline.nsys.env={WORD: 'a b'}", report=exported)
    first, command = (context.out_dir / "command.txt").read_text().splitlines()
    assert first.startswith("cd ")
    shown = subprocess.run(["bash", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[:5] == [
        "env",
        "-u",
        "PYTEST_ADDOPTS",
        "WORD=a b",
        "NSYS_NVTX_PROFILER_REGISTER_ONLY=0",
    ]
