"""What `infer.engine=auto` becomes for DeepSeek-OCR, on machines that are stand-ins."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pytest_llmprof.config.schema import InferSettings, ModelSettings
from pytest_llmprof.measure.visible_gpus import VisibleGpus
from pytest_llmprof.models import engine_choice as here
from pytest_llmprof.models.deepseek_ocr import engines
from pytest_llmprof.models.deepseek_ocr.loader import EMBEDDED, load

RANDOM = ModelSettings(weights="random")


def choose_engine(model: ModelSettings, infer: InferSettings, warmup: int = 1) -> tuple[str, str]:
    return engines.choose_engine(model, infer, warmup)


def gpu(*capability: int) -> Callable[[str | None], VisibleGpus]:
    return lambda visible: VisibleGpus(("GPU-a",), "the driver", capability or None)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """A machine on which every engine runs; called with something else, it has that."""
    (tmp_path / "Python.h").touch()
    for name in ("CC", "CPATH", "C_INCLUDE_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(here.sysconfig, "get_path", lambda name, scheme: str(tmp_path))
    monkeypatch.setattr(here.shutil, "which", lambda name: f"/usr/bin/{name}")

    def change(gpus: object = gpu(9, 0), cuda: bool = True, triton: str = "3.6.0") -> None:
        file = tmp_path / "triton.py"
        file.write_text(f"__version__ = '{triton}'")
        monkeypatch.setattr(here, "_gpus", gpus)
        monkeypatch.setattr(here, "torch_has_cuda", lambda: cuda)
        monkeypatch.setattr(here, "package_file", lambda name: file if triton else None)

    change()
    return change


@pytest.mark.parametrize(
    ("model", "infer", "chosen"),
    [
        ({}, {}, ("fast", "a GPU, bfloat16, one page at a time")),
        ({"device": "cuda:1", "dtype": "float16"}, {}, ("fast", "a GPU, float16, one page at a time")),
        ({"size": "tiny"}, {}, ("fast", "a GPU, bfloat16, one page at a time")),
        ({"device": "cpu"}, {}, ("reference", "model.device=cpu")),
        ({}, {"batch_size": 8}, ("fast", "a GPU, bfloat16, 8 pages at a time")),
        ({}, {"batch_size": 9}, ("compiled", "fast reads up to 8 pages at a time, infer.batch_size=9")),
        ({"dtype": "float32"}, {}, ("compiled", "fast runs in bfloat16 or float16, model.dtype=float32")),
    ],
)
def test_by_the_settings(
    machine: object, model: dict[str, Any], infer: dict[str, Any], chosen: tuple[str, str]
) -> None:
    assert choose_engine(ModelSettings(weights="random", **model), InferSettings(**infer)) == chosen


@pytest.mark.parametrize(
    ("lacks", "chosen"),
    [
        ({"gpus": lambda visible: VisibleGpus((), "nvidia-smi -L")}, ("reference", "no GPU is found")),
        ({"cuda": False}, ("reference", "compiled and fast need a torch that is built for CUDA")),
        (
            {"gpus": gpu(7, 5)},
            ("reference", "compiled and fast need compute capability 8.0, and a GPU here has 7.5"),
        ),
        ({"gpus": gpu(8, 0)}, ("fast", "a GPU, bfloat16, one page at a time")),
        ({"gpus": gpu()}, ("fast", "a GPU, bfloat16, one page at a time")),
        ({"triton": ""}, ("reference", "compiled and fast need Triton, which is not installed")),
        ({"triton": "3.4.1"}, ("compiled", "fast needs Triton 3.5 or newer, not 3.4.1")),
    ],
)
def test_by_the_machine(machine: Callable[..., None], lacks: dict[str, Any], chosen: tuple[str, str]) -> None:
    machine(**lacks)
    assert choose_engine(RANDOM, InferSettings()) == chosen


def test_without_a_warm_up_nothing_can_be_compiled(machine: object) -> None:
    reason = "compiled and fast compile in the warm-up, measure.warmup=0"
    assert choose_engine(RANDOM, InferSettings(), 0) == ("reference", reason)


def test_without_a_compiler(machine: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    header = tmp_path / "Python.h"
    header.unlink()
    reason = f"compiled and fast need Python's headers, and {header} is missing"
    assert choose_engine(RANDOM, InferSettings()) == ("reference", reason)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "Python.h").touch()
    monkeypatch.setenv("CPATH", os.pathsep.join(["/nowhere", str(tmp_path / "own")]))
    assert choose_engine(RANDOM, InferSettings())[0] == "fast"
    monkeypatch.setattr(here.shutil, "which", lambda name: None)
    reason = "compiled and fast need a C compiler, and none is found (gcc, clang)"
    assert choose_engine(RANDOM, InferSettings()) == ("reference", reason)
    monkeypatch.setenv("CC", "/opt/cc")
    assert choose_engine(RANDOM, InferSettings())[1].endswith("none is found (/opt/cc)")


def test_headers_of_debians_own_python(machine: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folders = {"posix_local": "/usr/local/nowhere", "posix_prefix": str(tmp_path)}
    monkeypatch.setattr(here.sysconfig, "get_default_scheme", lambda: "posix_local")
    monkeypatch.setattr(here.sysconfig, "get_path", lambda name, scheme: folders[scheme])
    assert choose_engine(RANDOM, InferSettings())[0] == "fast"


def checkpoint(directory: Path, **language: Any) -> ModelSettings:
    """A checkpoint with the tiny reader's configuration, and *language* in its language model's."""
    config = json.loads((EMBEDDED / "config.json").read_text())
    config["language_config"] |= language
    (directory / "config.json").write_text(json.dumps(config))
    return ModelSettings(path=str(directory))


@pytest.mark.parametrize(
    ("language", "chosen"),
    [
        ({}, ("fast", "a GPU, bfloat16, one page at a time")),
        ({"hidden_act": None}, ("fast", "a GPU, bfloat16, one page at a time")),
        (
            {"hidden_act": "gelu"},
            ("reference", "compiled and fast need a model whose hidden_act is 'silu', not 'gelu'"),
        ),
        (
            {"attention_bias": True},
            ("reference", "compiled and fast need a model whose attention_bias is False, not True"),
        ),
        ({"hidden_size": 384}, ("compiled", "fast needs heads whose size is a power of two, not 96")),
        ({"head_dim": 80}, ("compiled", "fast needs heads whose size is a power of two, not 80")),
    ],
)
def test_by_the_checkpoint(machine: object, tmp_path: Path, language: dict[str, Any], chosen: tuple[str, str]) -> None:
    assert choose_engine(checkpoint(tmp_path, **language), InferSettings()) == chosen


@pytest.mark.parametrize("text", [None, "", "[1]", "{", '{"language_config": 3}', "[" * 200_000])
def test_a_config_that_cannot_be_read_is_left_to_the_loader(machine: object, tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert choose_engine(ModelSettings(path=str(tmp_path)), InferSettings())[0] == "fast"


def test_a_checkpoint_of_the_hub(machine: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def cached(repo: str, file: str, revision: str | None) -> str | None:
        assert (repo, file, revision) == ("owner/name", "config.json", "v1")
        return found

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    settings, found = ModelSettings(path="owner/name", revision="v1"), None
    assert choose_engine(settings, InferSettings())[0] == "fast"
    checkpoint(tmp_path, mlp_bias=True)
    found = str(tmp_path / "config.json")
    assert choose_engine(settings, InferSettings())[0] == "reference"


@pytest.mark.parametrize(
    ("version", "old"),
    [
        *(("3.4.0", True), ("3.5.0", False), ("3.10.1+git1", False), ("4.0", False)),
        *(("3.4rc1", True), ("3.5rc1", False), ("3.6+git1", False), ("3", True), ("4", False), ("unknown", False)),
    ],
)
def test_older(version: str, old: bool) -> None:
    assert here.older(version, (3, 5)) is old


def test_the_installed_triton_is_read_as_it_names_itself() -> None:
    triton = pytest.importorskip("triton")
    assert here.triton_version() == triton.__version__


@pytest.mark.parametrize(
    ("text", "version"),
    [(b"__version__ = '3.5rc1'", "3.5rc1"), (b"\xff\xfe", "unknown"), (b"", "unknown"), (None, "")],
)
def test_a_triton_of_another_make(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: bytes | None, version: str
) -> None:
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    if text is None:
        monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))  # a stand-in without a file
    else:
        (tmp_path / "triton.py").write_bytes(text)
        monkeypatch.syspath_prepend(tmp_path)
    assert here.triton_version() == version


def test_the_loader_takes_auto_too() -> None:
    """For callers who make their settings themselves; in a session `auto` is no more by then."""
    model = load(ModelSettings(weights="random", size="tiny", mode="tiny", device="cpu"), InferSettings())
    assert model.info.engine == "reference"
    model.close()
