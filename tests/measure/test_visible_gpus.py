"""The GPUs that CUDA would give, without CUDA: CUDA_VISIBLE_DEVICES as CUDA reads it, NVML, nvidia-smi."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest

from pytest_llmprof.measure import visible_gpus as module
from pytest_llmprof.measure.visible_gpus import DriverGpu, driver_gpus, read_smi_list, torch_has_cuda, visible_gpus

STAND_IN = Path(__file__).parents[1] / "plugin" / "data" / "standin_gpus"
THREE = (DriverGpu("GPU-aa11"), DriverGpu("GPU-bb22"), DriverGpu("GPU-cc33", ("MIG-dd44", "MIG-ee55")))
LIST = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aa11)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bb22)
GPU 2: NVIDIA A100-SXM4-40GB (UUID: GPU-cc33)
  MIG 3g.20gb     Device  0: (UUID: MIG-dd44)
  MIG 3g.20gb     Device  1: (UUID: MIG-ee55)
"""


def found(value: str | None, gpus=THREE) -> tuple[str, ...]:
    environ = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    return visible_gpus(environ, lambda: (gpus, "the driver")).entries


@pytest.mark.parametrize(
    ("value", "entries"),
    [
        (None, ("GPU-aa11", "GPU-bb22", "MIG-dd44", "MIG-ee55")),
        ("0,1", ("0", "1")),
        (" 1 , 0 ", ("1", "0")),
        ("1", ("1",)),
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("9" * 5000, ()),
        ("\u0660", ()),  # a digit, but not of C
        ("0,-1,1", ("0",)),
        ("0,9,1", ("0",)),
        ("0,0", ()),
        ("0,00", ()),
        ("GPU-bb22,GPU-aa11", ("GPU-bb22", "GPU-aa11")),
        ("GPU-bb,GPU-aa", ("GPU-bb", "GPU-aa")),
        ("GPU-xx,GPU-aa11", ()),
        ("GPU-aa11,0", ("GPU-aa11",)),
        ("0,GPU-bb22", ("0",)),
        ("MIG-ee55,MIG-dd44", ("MIG-ee55", "MIG-dd44")),
        ("GPU-aa11,GPU-aa11", ()),
        ("GPU-aa,GPU-aa11", ()),
        ("MIG-dd44,MIG-d", ()),
        ("GPU-bb22,GPU-,GPU-aa11", ("GPU-bb22",)),
    ],
)
def test_the_list_is_read_as_cuda_reads_it(value, entries):
    assert found(value) == entries


def test_without_a_driver_to_ask_the_list_is_taken_at_its_word():
    assert found("3,GPU-x", ()) == ("3",)
    assert found("GPU-x,GPU-y", ()) == ("GPU-x", "GPU-y")
    assert found("GPU-x,GPU-x1", ()) == found("GPU-x1,GPU-x", ()) == ()
    assert found(None, ()) == ()


def test_torch_reads_the_list_in_the_same_way(monkeypatch):
    import torch.cuda

    for value in ("0,1", "2,-1,1", "0,0", "", "1,0", "GPU-a,GPU-b", "GPU-a,1", "MIG-a,MIG-b", "GPU-a,GPU-a", "x"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert [str(one) for one in torch.cuda._parse_visible_devices()] == list(found(value, ())), value


def test_what_nvidia_smi_prints():
    assert read_smi_list(LIST) == list(THREE)
    assert read_smi_list("No devices found.\n") == []


def test_nvidia_smi_is_asked_where_there_is_no_nvml(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert driver_gpus() == ([], "nvidia-smi -L")
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n[ \"$1\" = -L ] && /bin/cat <<'END'\n{LIST}END\n")
    program.chmod(0o755)
    assert driver_gpus() == (list(THREE), "nvidia-smi -L")
    program.write_text("#!/bin/sh\nexit 9\n")
    assert driver_gpus() == ([], "nvidia-smi -L")


def test_nvml_is_asked_first(monkeypatch):
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.syspath_prepend(STAND_IN)
    monkeypatch.setenv("STANDIN_GPUS", "GPU-aa11 GPU-bb22 GPU-cc33:MIG-dd44+MIG-ee55")
    assert driver_gpus() == (list(THREE), "the driver (NVML)")
    monkeypatch.setenv("STANDIN_GPUS", "")
    monkeypatch.setenv("PATH", "")
    assert driver_gpus() == ([], "nvidia-smi -L")
    monkeypatch.delitem(sys.modules, "pynvml")


@pytest.mark.parametrize(
    "text",
    [
        "raise RuntimeError('no driver')",
        "def",
        "unrelated = 1",
        "import warnings; warnings.warn('deprecated', FutureWarning)",  # an error under `pytest -W error`
        "nvmlInit = nvmlShutdown = lambda: None; nvmlDeviceGetCount = lambda: 1; nvmlDeviceGetHandleByIndex = id",
    ],
)
def test_a_broken_or_old_nvml_is_as_none(monkeypatch, tmp_path, text):
    (tmp_path / "pynvml.py").write_text(text)
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", "")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert driver_gpus() == ([], "nvidia-smi -L")
    sys.modules.pop("pynvml", None)


@pytest.mark.parametrize(
    ("line", "known"),
    [("cuda: Optional[str] = '12.8'", True), ("cuda = '13.0'", True), ("cuda: Optional[str] = None", False)],
)
def test_whether_torch_is_built_for_cuda(monkeypatch, tmp_path, line, known):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise AssertionError('imported')\n")
    (tmp_path / "torch" / "version.py").write_text(f"__version__ = '2.9'\n{line}\nhip: Optional[str] = None\n")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.delitem(sys.modules, "torch.version", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert torch_has_cuda() is known
    assert "torch" not in sys.modules


def test_a_torch_that_cannot_be_read_or_is_a_stand_in(monkeypatch, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch" / "version.py").write_bytes(b"\xff")
    for name in ("torch", "torch.version"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert torch_has_cuda()  # the model finds out
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
    assert not torch_has_cuda()


def test_this_torch():
    import torch

    assert torch_has_cuda() is bool(torch.version.cuda)
    assert module.VARIABLE not in os.environ or visible_gpus(os.environ).source == module.VARIABLE
