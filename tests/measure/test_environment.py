"""measure/environment.py and measure/gpu.py: this machine, and a GPU by a stand-in for NVML."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from pytest_llmprof.measure import gpu as gpu_module
from pytest_llmprof.measure.environment import environment
from pytest_llmprof.measure.gpu import GpuReader, nvml_gpu, read_gpu, throttle_names, throttled_between
from pytest_llmprof.records.environment import Environment, Git, Gpu

STAND_IN = Path(__file__).parents[1] / "plugin" / "data" / "standin_gpus"

def test_this_machine(tmp_path: Path) -> None:
    begin = time.perf_counter()
    found = environment("cpu", tmp_path)
    assert time.perf_counter() - begin < 1.0
    assert msgspec.json.decode(msgspec.json.encode(found), type=Environment) == found
    assert found.schema == 1
    assert found.versions["pytest"] == pytest.__version__
    assert found.host.cores is not None
    assert found.host.affinity is not None
    assert found.host.cores >= found.host.affinity >= 1
    assert found.host.ram_gib is not None
    assert found.host.ram_gib > 0
    assert found.git is None
    assert (found.gpu, found.gpu_reason) == (None, "the device is cpu")
    assert os.uname().nodename not in msgspec.json.encode((found.host, found.versions)).decode()


def test_commit_and_local_changes(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "a.txt").write_text("one")
    git("add", "a.txt")
    git("commit", "-q", "-m", "first")
    assert environment("cpu", tmp_path).git == Git(commit=git("rev-parse", "HEAD"), dirty=False)
    (tmp_path / "new.txt").write_text("untracked files do not count")
    assert environment("cpu", tmp_path).git == Git(commit=git("rev-parse", "HEAD"), dirty=False)
    (tmp_path / "a.txt").write_text("two")
    assert environment("cpu", tmp_path).git == Git(commit=git("rev-parse", "HEAD"), dirty=True)
    (tmp_path / ".git/index").write_bytes(b"broken")
    assert environment("cpu", tmp_path).git == Git(commit=git("rev-parse", "HEAD"), dirty=None)


def test_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment("cpu", tmp_path).git is None


def test_torch_is_not_imported_for_a_cpu() -> None:
    script = (
        "import sys; from pytest_llmprof.measure.environment import environment;"
        "environment('cpu'); environment(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


NOBODY = 2**22 + 1
"""No process has this number: Linux ends at 2**22."""


class _NvmlError(Exception):
    pass


class _Nvml:
    """As much of pynvml as is asked; what a GPU lacks raises, as NVML does."""

    NVMLError = _NvmlError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, pids: list[int], reasons: int = 0x24, lacking: tuple[str, ...] = ()) -> None:
        answers = {
            "nvmlDeviceGetName": "NVIDIA H100 80GB HBM3",
            "nvmlSystemGetDriverVersion": b"580.65",
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=80 * 2**30),
            "nvmlDeviceGetEnforcedPowerLimit": 350_000,
            "nvmlDeviceGetPowerManagementDefaultLimit": 700_000,
            "nvmlDeviceGetClockInfo": 1_500,
            "nvmlDeviceGetMaxClockInfo": 1_980,
            "nvmlDeviceGetTemperature": 70,
            "nvmlDeviceGetCurrentClocksEventReasons": reasons,
            "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=pid) for pid in pids],
            "nvmlDeviceGetMigMode": (0, 0),
            "nvmlDeviceGetTotalEnergyConsumption": 123,
            "nvmlDeviceGetViolationStatus": SimpleNamespace(referenceTime=0, violationTime=2_500_000),
        }
        for name, answer in answers.items():
            setattr(self, name, self._call(name, answer, name in lacking))

    def _call(self, name: str, answer: Any, lacking: bool) -> Any:
        def call(*_: Any) -> Any:
            if lacking:
                raise _NvmlError(f"{name}: Not Supported")
            return answer

        return call


def test_a_gpu_with_its_state() -> None:
    gpu = nvml_gpu(_Nvml([os.getpid(), NOBODY]), object(), "H100", "GPU-1")
    assert (gpu.name, gpu.driver, gpu.memory_gib) == ("NVIDIA H100 80GB HBM3", "580.65", 80.0)
    assert (gpu.power_limit_w, gpu.power_default_w) == (350.0, 700.0)
    assert gpu.throttle_reasons == ("sw_power_cap", "sw_thermal_slowdown")
    assert gpu.throttled is True
    assert (gpu.other_processes, gpu.shared, gpu.mig) == (1, True, False)


def test_a_parent_that_waits_is_no_other_process() -> None:
    gpu = nvml_gpu(_Nvml([os.getpid(), os.getppid(), NOBODY]), object(), "H100", "GPU-1")
    assert gpu.other_processes == 1


def test_idle_clocks_are_no_throttling() -> None:
    gpu = nvml_gpu(_Nvml([os.getpid()], reasons=0x1), object(), "H100", "GPU-1")
    assert (gpu.throttle_reasons, gpu.throttled, gpu.shared) == (("gpu_idle",), False, False)
    assert throttle_names(0x1000) == ("0x1000",)


def test_what_a_gpu_does_not_tell_is_none() -> None:
    lacking = ("nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetMigMode", "nvmlDeviceGetComputeRunningProcesses")
    gpu = nvml_gpu(_Nvml([], lacking=lacking), object(), "H100", None)
    assert (gpu.power_limit_w, gpu.mig, gpu.other_processes, gpu.shared) == (None, None, None, None)
    assert gpu.sm_clock_mhz == 1_500


def test_the_gpu_is_found_by_its_uuid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvml = _Nvml([])
    asked: list[str] = []

    def by_uuid(uuid: str) -> str:
        asked.append(uuid)
        if uuid != "GPU-2":
            raise _NvmlError("Not Found")
        return "handle"

    for name, call in (
        ("nvmlInit", lambda: None),
        ("nvmlShutdown", lambda: None),
        ("nvmlDeviceGetHandleByUUID", by_uuid),
    ):
        setattr(nvml, name, call)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)  # type: ignore[arg-type]
    monkeypatch.setattr(gpu_module, "_torch_gpu", lambda device: ("H100", "GPU-2", None))
    gpu, reason = read_gpu("cuda:0")
    assert gpu is not None
    assert (gpu.driver, reason, asked) == ("580.65", None, ["GPU-2"])
    monkeypatch.setattr(gpu_module, "_torch_gpu", lambda device: ("H100", "GPU-3", None))
    gpu, reason = read_gpu("cuda:0")
    assert gpu is not None
    assert gpu.driver is None
    assert reason is not None
    assert "does not find GPU-3" in reason
    monkeypatch.setitem(sys.modules, "pynvml", None)  # type: ignore[arg-type]
    gpu, reason = read_gpu("cuda:0")
    assert gpu is not None
    assert reason is not None
    assert "nvidia-ml-py is not installed" in reason
    monkeypatch.delitem(sys.modules, "pynvml")
    (tmp_path / "pynvml.py").write_text("raise OSError('no libnvidia-ml')")
    monkeypatch.syspath_prepend(tmp_path)
    assert read_gpu("cuda:0") == (Gpu("H100", "GPU-3"), "nvidia-ml-py cannot be imported: OSError: no libnvidia-ml")


@pytest.mark.parametrize(
    ("visible", "torch_gives"),
    [("MIG-d", "GPU-b"), ("MIG-c,MIG-d", "GPU-b"), ("MIG-d", "GPU-d"), (None, "GPU-d")],
    ids=["by the list", "by its place in the list", "where both know it", "by torch"],
)
def test_a_mig_instance(monkeypatch: pytest.MonkeyPatch, visible: str | None, torch_gives: str) -> None:
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.syspath_prepend(STAND_IN)
    monkeypatch.setenv("STANDIN_GPUS", "GPU-a GPU-b:MIG-c+MIG-d")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(gpu_module, "_torch_gpu", lambda device: ("A100", torch_gives, None))
    with GpuReader("cuda:1" if "," in (visible or "") else "cuda:0") as reader:
        gpu = reader.gpu()
        assert gpu is not None
        assert (gpu.name, gpu.uuid, gpu.mig) == ("Stand-in GPU MIG 1g", "MIG-d", True)
        assert gpu.energy_mj is reader.energy_mj() is None
        assert reader.reason == "a MIG instance has no energy counter of its own"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-x")
    monkeypatch.setattr(gpu_module, "_torch_gpu", lambda device: ("A100", "GPU-y", None))
    with GpuReader("cuda:0") as reader:
        assert reader.gpu() == Gpu("A100", "GPU-y")
    monkeypatch.delitem(sys.modules, "pynvml")


def test_throttling_is_counted_between_two_readings() -> None:
    before = nvml_gpu(_Nvml([]), object(), "H100", "GPU-1")
    assert before.throttled_ms == dict.fromkeys(("power", "thermal", "sync_boost", "board_limit", "reliability"), 2.5)
    after = Gpu("H100", "GPU-1", throttled_ms={"power": 12.5, "thermal": 2.5})
    assert throttled_between(before, after) == {"power": 10.0, "thermal": 0.0}
    assert throttled_between(before, None) is None
    silent = nvml_gpu(_Nvml([], lacking=("nvmlDeviceGetViolationStatus",)), object(), "H100", "GPU-1")
    assert silent.throttled_ms is None
    assert throttled_between(silent, after) is None


def test_the_gpu_around_the_rounds_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = Gpu("H100", "GPU-1", sm_clock_mhz=1980, throttled_ms={"power": 1.0})
    after = Gpu("H100", "GPU-1", sm_clock_mhz=1500, throttled_ms={"power": 4.0})
    found = environment("cuda:0", tmp_path, before=before, after=after, reason=None)
    assert (found.gpu, found.gpu_after) == (before, after)
    assert found.gpu_throttled_ms == {"power": 3.0}
    assert found.gpu_reason is None
    found = environment("cpu", tmp_path)
    assert (found.gpu, found.gpu_after, found.gpu_throttled_ms) == (None, None, None)


def test_a_reader_keeps_the_driver_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = _Nvml([])
    calls: list[str] = []
    for name in ("nvmlInit", "nvmlShutdown"):
        setattr(nvml, name, lambda name=name: calls.append(name))
    nvml.nvmlDeviceGetHandleByUUID = lambda uuid: "handle"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynvml", nvml)  # type: ignore[arg-type]
    monkeypatch.setattr(gpu_module, "_torch_gpu", lambda device: ("H100", "GPU-2", None))
    with GpuReader("cuda:0") as reader:
        assert [reader.energy_mj(), reader.energy_mj()] == [123, 123]
        gpu = reader.gpu()
        assert gpu is not None
        assert gpu.driver == "580.65"
    assert calls == ["nvmlInit", "nvmlShutdown"]
    monkeypatch.setattr(gpu_module, "others", lambda pids: 2)
    for beside in (0, 1, 3):
        with GpuReader("cuda:0", beside=beside) as others:
            found = others.gpu()
            assert found is not None
            assert found.other_processes == max(2 - beside, 0)
    calls.clear()
    assert reader.energy_mj() is None
    nvml.nvmlDeviceGetTotalEnergyConsumption = nvml._call("energy", 0, lacking=True)  # type: ignore[attr-defined]
    with GpuReader("cuda:0") as reader:
        assert reader.energy_mj() is None
    with GpuReader("cpu") as reader:
        assert (reader.gpu(), reader.energy_mj(), reader.reason) == (None, None, "the device is cpu")
