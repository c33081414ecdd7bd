"""What `infer.engine=auto` goes by, found without torch: GPUs, what compiling for them needs, the checkpoint's class.

Each `why_...` gives a few words for the user, and an empty text where nothing is known to be in the way.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sysconfig
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmprof.measure.visible_gpus import VARIABLE, VisibleGpus, package_file, torch_has_cuda, visible_gpus

if TYPE_CHECKING:
    from pytest_llmprof.config.schema import ModelSettings

_CAPABILITY = (8, 0)
"""Lowest compute capability that `auto` takes another engine than `reference` for: older GPUs lack bfloat16."""
_UNKNOWN = "unknown"


def why_no_gpu(model: ModelSettings) -> str:
    """Why the model does not run on a GPU."""
    if model.device == "cpu":
        return "model.device=cpu"
    return "no GPU is found" if model.device == "auto" and not _gpus_now().entries else ""


def why_not_compiled(engines: Sequence[str], warmup: int) -> str:
    """Why *engines*, which compile, cannot run on this machine's GPU after *warmup* passes."""
    names, one = " and ".join(engines), "s" if len(engines) == 1 else ""
    if not warmup:
        return f"{names} compile{one} in the warm-up, measure.warmup=0"
    lacking = _why_no_compiler(_gpus_now())
    return f"{names} need{one} {lacking}" if lacking else ""


def older(version: str, least: tuple[int, int]) -> bool:
    """Whether *version* is known to be older than *least*."""
    numbers = re.match(r"(\d+)(?:\.(\d+))?", version)  # of "3.5rc1", "3.6+git1", "4"
    return numbers is not None and (int(numbers[1]), int(numbers[2] or 0)) < least


def dotted(version: tuple[int, int]) -> str:
    """(3, 5) as "3.5"."""
    return ".".join(map(str, version))


def torch_version() -> str:
    """The version of the torch that is installed; "unknown" where it does not say. It is not imported for that."""
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return _UNKNOWN


def triton_version() -> str:
    """The version of the Triton that is installed; empty where none is, "unknown" where it does not say. It is not
    imported for that."""
    file = package_file("triton")
    if file is None:
        return ""
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    version = re.search(r"^__version__\s*=\s*['\"](\d+\.\d+[^'\"]*)", text, re.MULTILINE)
    return version[1] if version else _UNKNOWN


def checkpoint_file(model: ModelSettings, name: str) -> Path | None:
    """The checkpoint's file *name*, in its directory or in the hub's cache; None where it is not here."""
    if model.weights != "checkpoint" or model.path is None:
        return None
    file: Any = Path(os.path.expanduser(model.path), name)
    try:
        if file.parent.is_dir():
            return file if file.is_file() else None
        from huggingface_hub import try_to_load_from_cache

        file = try_to_load_from_cache(model.path, name, revision=model.revision)
    except (OSError, ValueError):
        return None  # neither a directory nor a hub id: said where the model is loaded
    return Path(file) if isinstance(file, (str, Path)) else None


def read_config(model: ModelSettings) -> Mapping[str, Any] | None:
    """The checkpoint's config.json: None where it is not here, empty where it cannot be read."""
    file = checkpoint_file(model, "config.json")
    if file is None:
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # what is wrong is said where the model is loaded
    return config if isinstance(config, Mapping) else {}


def _gpus_now() -> VisibleGpus:
    return _gpus(os.environ.get(VARIABLE))


@cache
def _gpus(visible: str | None) -> VisibleGpus:
    """The GPUs of this process while CUDA_VISIBLE_DEVICES is *visible*: the driver is asked once."""
    return visible_gpus(os.environ)


def _why_no_compiler(gpus: VisibleGpus) -> str:
    """What torch.compile and Triton lack for a GPU here."""
    if not torch_has_cuda():
        return "a torch that is built for CUDA"
    if gpus.capability is not None and gpus.capability < _CAPABILITY:
        return f"compute capability {dotted(_CAPABILITY)}, and a GPU here has {dotted(gpus.capability)}"
    if not triton_version():
        return "Triton, which is not installed"
    compilers = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]  # where Triton looks for one
    if not any(map(shutil.which, compilers)):
        return f"a C compiler, and none is found ({', '.join(compilers)})"
    # As Triton looks for them: the scheme of Debian's own Python names a place where they are not.
    scheme = sysconfig.get_default_scheme()
    folder = sysconfig.get_path("include", "posix_prefix" if scheme == "posix_local" else scheme)
    named = os.pathsep.join(os.environ.get(name, "") for name in ("CPATH", "C_INCLUDE_PATH"))  # the compiler's own
    if any(Path(place, "Python.h").exists() for place in (folder, *named.split(os.pathsep)) if place):
        return ""
    return f"Python's headers, and {Path(folder, 'Python.h')} is missing"
