"""Engines: ways to run the forward passes, one file each behind one small protocol.

An engine gets a batch whose tensors are on the device (`Inputs`) and yields its tokens. All open the same phases, so
their metrics can be compared. A new engine needs a file here, its name in `ENGINES`, a line in `make_engine` and a
preset `conf/infer/<name>.yaml`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pytest_llmprof.measure.visible_gpus import VARIABLE, VisibleGpus, package_file, torch_has_cuda, visible_gpus

if TYPE_CHECKING:
    import torch

    from pytest_llmprof.config.schema import InferSettings, ModelSettings
    from pytest_llmprof.models.base import Phases, Token
    from pytest_llmprof.models.deepseek_ocr.generation import Limits, Prompts
    from pytest_llmprof.models.deepseek_ocr.preprocessing import CropGrid

__all__ = ["Engine", "Inputs", "check_engine", "choose_engine", "make_engine"]

LAYERS: Mapping[str, Any] = {
    "hidden_act": "silu",
    "topk_method": "greedy",
    "attention_bias": False,
    "mlp_bias": False,
}
"""The language model's configuration that engines with a static cache compute; each value is the default, too."""
FAST_TRITON = (3, 5)
"""Oldest version that has the launch option (PDL) of `fast`'s kernels and takes tuples of tiles."""
FAST_DTYPES = ("bfloat16", "float16")
"""What `fast` runs in on a GPU."""
FAST_ROWS = 8
"""The pages that `fast` reads at a time, at most."""
_CAPABILITY = (8, 0)
"""Lowest compute capability that `auto` takes another engine than `reference` for: older GPUs lack bfloat16."""


@dataclass(frozen=True)
class Inputs:
    """A preprocessed batch; its tensors are on the model's device, the images in its dtype."""

    overviews: torch.Tensor
    """[pages, 3, size, size]: each page's global view."""
    crops: torch.Tensor | None
    """[all pages' crops, 3, 640, 640], page by page; None where no page has any."""
    grids: tuple[CropGrid, ...]
    """Each page's columns and rows of crops; (1, 1) = none."""
    prompts: Prompts
    image_starts: tuple[int, ...]
    """Where in its row each page's image tokens begin."""


class Engine(Protocol):
    """One way to run the model. It keeps what it compiles and captures until `close`."""

    block: int
    """Tokens that the host reads at once: 1, or the steps launched between two reads."""
    details: Mapping[str, Any]
    """Facts for the report."""

    def generate(self, inputs: Inputs, limits: Limits, phases: Phases) -> Iterator[Token]:
        """Yield the batch's tokens as they come; called in inference mode.

        Opens vision (with sam, clip and projector inside), prefill and decode with its steps. Raises `ModelError`
        for a batch that it cannot run.
        """

    def close(self) -> None:
        """Drop the model and everything made for it."""


def check_engine(name: str, device: torch.device, dtype: torch.dtype, batch_size: int) -> None:
    """Before weights are loaded, raise `ModelError` where *name* cannot run with these; it names an engine that can."""
    if name == "fast":
        from pytest_llmprof.models.deepseek_ocr.engines.fast import check_supported

        check_supported(device, dtype, batch_size)


def choose_engine(model: ModelSettings, infer: InferSettings, warmup: int) -> tuple[str, str]:
    """The fastest engine that can run with these settings here, after *warmup* passes, and why it is that one.

    torch is not imported. So this goes by what is installed, by the driver's list of GPUs and by the checkpoint's
    config.json; one that is not here yet is taken to be DeepSeek-OCR's.
    """
    if model.device == "cpu":
        return "reference", "model.device=cpu"
    gpus = _gpus(os.environ.get(VARIABLE))
    if model.device == "auto" and not gpus.entries:
        return "reference", "no GPU is found"
    if not warmup:
        return "reference", "compiled and fast compile in the warm-up, measure.warmup=0"
    language = _language_config(model)
    if reason := _why_no_compiler(gpus) or _why_other_layers(language):
        return "reference", f"compiled and fast need {reason}"
    if infer.batch_size > FAST_ROWS:
        return "compiled", f"fast reads up to {FAST_ROWS} pages at a time, infer.batch_size={infer.batch_size}"
    dtype = FAST_DTYPES[0] if model.dtype == "auto" else model.dtype
    if dtype not in FAST_DTYPES:
        return "compiled", f"fast runs in {' or '.join(FAST_DTYPES)}, model.dtype={dtype}"
    if old_triton(version := _triton()):
        return "compiled", f"fast needs Triton {_dotted(FAST_TRITON)} or newer, not {version}"
    if (size := _head_size(language)) & (size - 1):
        return "compiled", f"fast needs heads whose size is a power of two, not {size}"
    pages = "one page" if infer.batch_size == 1 else f"{infer.batch_size} pages"
    return "fast", f"a GPU, {dtype}, {pages} at a time"


def old_triton(version: str) -> bool:
    """Whether *version* of Triton is too old for `fast`."""
    numbers = re.match(r"(\d+)(?:\.(\d+))?", version)  # of "3.5rc1", "3.6+git1", "4"
    return numbers is not None and (int(numbers[1]), int(numbers[2] or 0)) < FAST_TRITON


@cache
def _gpus(visible: str | None) -> VisibleGpus:
    """The GPUs of this process while CUDA_VISIBLE_DEVICES is *visible*: the driver is asked once."""
    return visible_gpus(os.environ)


def _why_no_compiler(gpus: VisibleGpus) -> str:
    """What torch.compile and Triton lack for a GPU here; empty where nothing is known to be missing."""
    if not torch_has_cuda():
        return "a torch that is built for CUDA"
    if gpus.capability is not None and gpus.capability < _CAPABILITY:
        return f"compute capability {_dotted(_CAPABILITY)}, and a GPU here has {_dotted(gpus.capability)}"
    if not _triton():
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


def _triton() -> str:
    """The version of the Triton that is installed; empty where none is. It is not imported for that."""
    file = package_file("triton")
    if file is None:
        return ""
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    version = re.search(r"^__version__\s*=\s*['\"](\d+\.\d+[^'\"]*)", text, re.MULTILINE)
    return version[1] if version else _dotted(FAST_TRITON)  # of another make: the engine finds out


def _language_config(model: ModelSettings) -> Mapping[str, Any]:
    """The language model's part of the checkpoint's config.json; empty where it is not here, or cannot be read."""
    if model.weights != "checkpoint" or model.path is None:
        return {}
    file: Any = Path(os.path.expanduser(model.path), "config.json")
    try:
        if not file.parent.is_dir():
            from huggingface_hub import try_to_load_from_cache

            file = try_to_load_from_cache(model.path, "config.json", revision=model.revision)
        if not isinstance(file, (str, Path)):
            return {}
        config = json.loads(Path(file).read_text(encoding="utf-8"))
        language = config.get("language_config") or config.get("text_config")
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}  # what is wrong is said where the model is loaded
    return language if isinstance(language, Mapping) else {}


def _why_other_layers(language: Mapping[str, Any]) -> str:
    for key, value in LAYERS.items():
        if language.get(key) not in (value, None):
            return f"a model whose {key} is {value!r}, not {language[key]!r}"
    return ""


def _head_size(language: Mapping[str, Any]) -> int:
    """The size of an attention head; 1 where it is not known."""
    size, heads = language.get("hidden_size"), language.get("num_attention_heads")
    own = language.get("head_dim")
    if isinstance(own, int):
        return own
    return size // heads if isinstance(size, int) and isinstance(heads, int) and heads > 0 else 1


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def make_engine(name: str, model: Any) -> Engine:
    """Return the engine *name* for transformers' *model*, on its device and in its dtype.

    Raises `ModelError` where it cannot run there, naming an engine that can.
    """
    if name == "compiled":
        from pytest_llmprof.models.deepseek_ocr.engines.compiled import CompiledEngine

        return CompiledEngine(model)
    if name == "fast":
        from pytest_llmprof.models.deepseek_ocr.engines.fast import FastEngine

        return FastEngine(model)
    from pytest_llmprof.models.deepseek_ocr.engines.reference import ReferenceEngine

    return ReferenceEngine(model)
