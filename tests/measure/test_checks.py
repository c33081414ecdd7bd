"""The checks of a machine, on machines made of files and stand-ins for the driver."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple

import pytest
import torch

from pytest_llmprof.measure import checks
from pytest_llmprof.records.environment import Gpu

H100 = Gpu(
    "NVIDIA H100 80GB HBM3", "GPU-1", memory_gib=79.6, power_limit_w=700.0, power_default_w=700.0, sm_clock_mhz=345,
    sm_clock_max_mhz=1980, throttle_reasons=("gpu_idle",), throttled=False, other_processes=0, mig=False,
)  # fmt: skip


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes files of a machine; gives its root."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def make(**files: str):
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


def build(monkeypatch, cuda: str | None, *, sees: int = 0, driver: tuple[int, int] | None = None) -> None:
    """A torch that is built for *cuda* and sees so many GPUs, and a driver for the CUDA *driver*."""
    monkeypatch.setattr(torch, "__version__", "2.9.0")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: sees > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: sees)
    monkeypatch.setattr(checks, "_driver_cuda", lambda: driver)


def pci(root, number: str, vendor: str, kind: str):
    folder = root / "sys/bus/pci/devices" / number
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor}\n")
    (folder / "class").write_text(f"{kind}\n")


def test_a_machine_without_a_gpu(machine, monkeypatch):
    build(monkeypatch, "12.6")
    root = machine(dev__nvidiactl="")  # some containers have it without any GPU
    pci(root, "0000:00:01.0", "0x10de", "0x020000")  # NVIDIA's network card
    pci(root, "0000:00:02.0", "0x8086", "0x030000")  # another's GPU
    (check,) = checks.missing_gpu_checks("auto", root)
    assert check.status == "ok"
    assert check.found == "none in this machine (torch 2.9.0 for CUDA 12.6): the model runs on the CPU"
    (check,) = checks.missing_gpu_checks("cuda:1", root)
    assert check.status == "problem"
    assert "model.device=cuda:1" in check.found


@pytest.mark.parametrize(
    ("cuda", "driver", "visible", "found", "mend"),
    [
        (None, (12, 8), None, "is built without CUDA", "pip install torch --index-url"),
        ("12.6", (12, 8), "", "CUDA_VISIBLE_DEVICES='' hides it", "unset CUDA_VISIBLE_DEVICES"),
        ("12.6", (12, 8), "-1", "CUDA_VISIBLE_DEVICES='-1' hides it", "unset CUDA_VISIBLE_DEVICES"),
        ("12.6", None, None, "no driver for it", "install NVIDIA's driver"),
        ("13.0", (12, 8), None, "CUDA 12.8, torch 2.9.0 for CUDA 13.0: too old", "update NVIDIA's driver"),
        ("12.6", (12, 8), None, "torch cannot start it", "torch.cuda.init()"),
    ],
)
@pytest.mark.parametrize(("wanted", "status"), [("auto", "warning"), ("cuda", "problem")])
def test_a_gpu_that_torch_does_not_see(machine, monkeypatch, cuda, driver, visible, found, mend, wanted, status):
    build(monkeypatch, cuda, driver=driver)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    root = machine(dev__nvidia0="", sys__module__nvidia__version="570.1\n")
    (check,) = checks.missing_gpu_checks(wanted, root)
    assert check.status == status
    assert found in check.found
    assert mend in check.mend


def test_a_gpu_that_a_container_was_not_given(machine, monkeypatch):
    build(monkeypatch, "12.6", driver=(12, 8))
    root = machine()
    pci(root, "0000:3b:00.0", "0x10de", "0x030200")
    (check,) = checks.missing_gpu_checks("auto", root)
    assert "no driver for it (/dev/nvidia0" in check.found
    assert "--gpus all" in check.mend


@pytest.mark.parametrize(
    ("cuda", "driver", "status"),
    [
        ("12.6", (12, 8), "ok"),
        ("12.8", (13, 0), "ok"),
        ("12.8", (12, 2), "warning"),
        ("13.0", (12, 8), "problem"),
        ("12.6", None, "not checked"),
    ],
)
def test_the_driver_against_torchs_cuda(machine, monkeypatch, cuda, driver, status):
    build(monkeypatch, cuda, driver=driver)
    assert checks._driver("torch", cuda, machine()).status == status


@pytest.mark.parametrize(
    ("capability", "known", "status"),
    [
        ((9, 0), ["sm_80", "sm_90"], "ok"),
        ((8, 9), ["sm_80", "sm_86", "sm_90"], "ok"),
        ((9, 0), ["sm_90a"], "ok"),
        ((10, 0), ["sm_90", "compute_90"], "warning"),
        ((10, 0), ["sm_90"], "problem"),
        ((7, 5), ["sm_80", "compute_90"], "problem"),
    ],
)
def test_torchs_kernels_against_the_gpu(monkeypatch, capability, known, status):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: known)
    assert checks._kernels(torch, "cuda:0", "torch 2.9.0").status == status


def test_a_gpu_in_use(machine, monkeypatch):
    build(monkeypatch, "12.6", sees=2, driver=(12, 8))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90"])
    monkeypatch.setattr(checks, "read_gpu", lambda device: (H100, None))
    root = machine(proc__driver__nvidia__params="RmProfilingAdminOnly: 0\n", sys__module__nvidia__version="570.1")
    found = list(checks.gpu_checks("cuda:1", "auto", root))
    assert [check.status for check in found] == ["ok"] * 8
    assert found[0].found == "NVIDIA H100 80GB HBM3, 79.6 GiB as cuda:1, of 2 that torch sees"
    monkeypatch.setattr(checks, "read_gpu", lambda device: (Gpu("H100", "GPU-1"), "nvidia-ml-py is not installed"))
    found = list(checks.gpu_checks("cuda:0", "auto", root))
    assert [check.status for check in found] == ["ok", "ok", "ok", "not checked", "ok"]
    assert found[3].mend == "pip install nvidia-ml-py"


@pytest.mark.parametrize(
    ("changes", "name", "found"),
    [
        ({"throttle_reasons": ("hw_thermal_slowdown",)}, "GPU clocks", "held down now by hw_thermal_slowdown"),
        ({"power_limit_w": 500.0}, "Power cap", "500 W, below the default of 700 W"),
        ({"other_processes": 2}, "Other processes", "2 on this GPU"),
    ],
)
def test_what_disturbs_a_gpu(changes, name, found):
    from msgspec import structs

    gpu = structs.replace(H100, **changes)
    (check,) = [check for check in checks.gpu_state(gpu) if check.status != "ok"]
    assert (check.name, check.status) == (name, "warning")
    assert found in check.found
    assert not [check for check in checks.gpu_state(H100) if check.status != "ok"]


def test_a_driver_that_tells_nothing():
    assert list(checks.gpu_state(Gpu("H100", "GPU-1"))) == []


@pytest.mark.parametrize(
    ("params", "capabilities", "status"),
    [
        ("RmProfilingAdminOnly: 0\n", "0000000000000000", "ok"),
        ("RmProfilingAdminOnly: 1\n", "000001ffffffffff", "ok"),
        ("RmProfilingAdminOnly: 1\n", "00000000a80425fb", "warning"),  # root in a container
        (None, "0000000000000000", "not checked"),
    ],
)
def test_counters(machine, params, capabilities, status):
    root = machine(proc__self__status=f"Name:\tpython\nCapEff:\t{capabilities}\n")
    if params is not None:
        machine(proc__driver__nvidia__params=f"ResmanDebugLevel: 1\n{params}")
    check = checks.counters(root)
    assert check.status == status
    assert (check.mend is not None) == (status == "warning")


@pytest.mark.parametrize(
    ("governors", "status"),
    [((), "not checked"), (("performance", "performance"), "ok"), (("performance", "powersave"), "warning")],
)
def test_governors(machine, governors, status):
    name = "sys__devices__system__cpu__cpu{}__cpufreq__scaling_governor"
    root = machine(**{name.format(number): text for number, text in enumerate(governors)})
    assert checks._governor(root).status == status


@pytest.mark.parametrize(("load", "status"), [(0.3, "ok"), (3.1, "warning")])
def test_load(monkeypatch, load, status):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    assert checks._load(4).status == status


@pytest.mark.parametrize(("threads", "status"), [(2, "ok"), (8, "warning")])
def test_threads(monkeypatch, threads, status):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert checks._threads(2).status == status


@pytest.mark.parametrize(("free", "status"), [(10 * 2**30, "ok"), (2**30, "warning"), (2**20, "problem")])
def test_space(tmp_path, monkeypatch, free, status):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(free))
    check = checks.disk_check("Run directory", tmp_path / "not" / "yet", "name another")
    assert check.status == status
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    check = checks.disk_check("Run directory", tmp_path / "file" / "run", "name another")
    assert (check.status, check.mend) == ("problem", "name another")
    assert "cannot be written: " in check.found


def test_this_machine():
    assert all(check.found and (check.mend or check.status in ("ok", "not checked")) for check in checks.host_checks())
