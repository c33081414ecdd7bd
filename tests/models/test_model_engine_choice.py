"""What `infer.engine=auto` becomes, on machines that are stand-ins: for DeepSeek-OCR, and for transformers' models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from pytest_llmprof.config.schema import InferSettings, MeasureSettings, ModelSettings
from pytest_llmprof.measure.visible_gpus import VisibleGpus
from pytest_llmprof.models import engine_choice as here
from pytest_llmprof.models.deepseek_ocr import engines
from pytest_llmprof.models.deepseek_ocr.loader import EMBEDDED, load
from pytest_llmprof.models.from_transformers import auto, plugin

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

    def change(gpus: object = gpu(9, 0), cuda: bool = True, triton: str = "3.6.0", torch: str = "2.7.0") -> None:
        file = tmp_path / "triton.py"
        file.write_text(f"__version__ = '{triton}'")
        monkeypatch.setattr(here, "_gpus", gpus)
        monkeypatch.setattr(here, "torch_has_cuda", lambda: cuda)
        monkeypatch.setattr(auto, "torch_version", lambda: torch)
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


LIGHTON = {"model_type": "lighton_ocr"}
NO_TYPE = "no model_type can be read in the config.json of {}"


def of_transformers(path: Path, config: Any, *, warmup: int = 1, batch_size: int = 1, **model: str) -> tuple[str, str]:
    """What `auto` becomes for a checkpoint of transformers in *path* with this config.json."""
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    settings = ModelSettings(name="transformers", path=str(path), **model)
    infer, measure = InferSettings(batch_size=batch_size), MeasureSettings(warmup=warmup)
    chosen = plugin().choose_engine(settings, infer, measure)
    assert chosen[0] in plugin().engines
    return chosen


@pytest.mark.parametrize("kind", ["got_ocr2", "lighton_ocr", "paddleocr_vl"])
def test_a_measured_model_of_transformers_is_compiled(machine: object, tmp_path: Path, kind: str) -> None:
    chosen = ("compiled", f"a GPU, where it was measured to be faster for {kind}")
    assert of_transformers(tmp_path, {"model_type": kind}) == chosen
    assert of_transformers(tmp_path, {"model_type": kind}, device="cuda:1", dtype="float32") == chosen


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ({"gpus": lambda visible: VisibleGpus((), "nvidia-smi -L")}, "no GPU is found"),
        ({"cuda": False}, "compiled needs a torch that is built for CUDA"),
        ({"gpus": gpu(7, 5)}, "compiled needs compute capability 8.0, and a GPU here has 7.5"),
        ({"triton": ""}, "compiled needs Triton, which is not installed"),
        ({"torch": "2.6.0+cu124"}, "compiled needs torch 2.7 or newer, not 2.6.0+cu124"),
    ],
)
def test_transformers_by_the_machine(
    machine: Callable[..., None], tmp_path: Path, found: dict[str, Any], reason: str
) -> None:
    machine(**found)
    assert of_transformers(tmp_path, LIGHTON) == ("reference", reason)


def test_transformers_by_the_settings(machine: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert of_transformers(tmp_path, LIGHTON, device="cpu") == ("reference", "model.device=cpu")
    reason = "compiled is measured with one page at a time, infer.batch_size=2"
    assert of_transformers(tmp_path, LIGHTON, batch_size=2) == ("reference", reason)
    reason = "compiled compiles in the warm-up, measure.warmup=0"
    assert of_transformers(tmp_path, LIGHTON, warmup=0) == ("reference", reason)
    monkeypatch.setattr(here.shutil, "which", lambda name: None)
    reason = "compiled needs a C compiler, and none is found (gcc, clang)"
    assert of_transformers(tmp_path, LIGHTON) == ("reference", reason)
    # What no compiler would change comes first.
    reason = "compiled is not measured on a GPU for glm_ocr"
    assert of_transformers(tmp_path, {"model_type": "glm_ocr"}) == ("reference", reason)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "unlimited_ocr"}, "compiled is not measured on a GPU for unlimited_ocr"),
        ({"model_type": ["lighton_ocr"]}, "compiled is not measured on a GPU for ['lighton_ocr']"),
        (
            {**LIGHTON, "quantization_config": {"quant_method": "bitsandbytes"}},
            "compiled is not measured for weights quantized by bitsandbytes",
        ),
        (
            {**LIGHTON, "quantization_config": [8]},
            "compiled is not measured for weights quantized by an unnamed method",
        ),
        *((text, NO_TYPE) for text in ("", "{", "[1]", "{}", "[" * 200_000)),
    ],
    ids=lambda value: str(value)[:30],
)
def test_transformers_by_the_checkpoint(machine: object, tmp_path: Path, config: Any, reason: str) -> None:
    assert of_transformers(tmp_path, config) == ("reference", reason.format(tmp_path))


def test_an_adapter_of_transformers(machine: object, tmp_path: Path) -> None:
    """Some trainers put their base's config.json beside it."""
    (tmp_path / "adapter_config.json").write_text("{}")
    assert of_transformers(tmp_path, LIGHTON) == ("reference", "compiled is not measured with an adapter")


@pytest.mark.parametrize("revision", [None, "v1"])
def test_transformers_of_the_hub(
    machine: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    """The hub's own cache is read, as huggingface_hub lays it out; nothing is asked of the network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def choose() -> tuple[str, str]:
        settings = ModelSettings(name="transformers", path="owner/name", revision=revision)
        return plugin().choose_engine(settings, InferSettings(), MeasureSettings())

    reason = "compiled is measured for some models alone, and no config.json of owner/name is here yet"
    assert choose() == ("reference", reason)
    repo, commit = tmp_path / "models--owner--name", "0" * 40
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / (revision or "main")).write_text(commit)
    files = repo / "snapshots" / commit
    files.mkdir(parents=True)
    (files / "config.json").write_text(json.dumps(LIGHTON))
    assert choose()[0] == "compiled"
    (files / "adapter_config.json").write_text("{}")
    assert choose() == ("reference", "compiled is not measured with an adapter")


def test_the_version_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert here.torch_version() in (torch.__version__, torch.__version__.partition("+")[0])

    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(here.metadata, "version", version)
    assert here.torch_version() == "unknown"


def test_nothing_heavy_is_imported_to_choose(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LIGHTON))
    code = f"""
import sys
from pytest_llmprof.config.schema import InferSettings, MeasureSettings, ModelSettings
from pytest_llmprof.models.from_transformers import plugin
settings = ModelSettings(name="transformers", path={str(tmp_path)!r}, device="cuda")
print(plugin().choose_engine(settings, InferSettings(), MeasureSettings(warmup=1))[1])
print({{"torch", "transformers", "triton", "numpy"}} & set(sys.modules))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    reason, heavy = found.stdout.splitlines()
    assert reason.startswith(("compiled needs ", "a GPU, "))
    assert heavy == "set()"
