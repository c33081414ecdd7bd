"""Engines: ways to run the forward passes, one file each behind one small protocol.

An engine gets a batch whose tensors are on the device (`Inputs`) and yields its tokens. All open the same phases, so
their metrics can be compared. A new engine needs a file here, its name in `ENGINES`, a line in `make_engine` and a
preset `conf/infer/<name>.yaml`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pytest_llmprof.models.engine_choice import dotted, older, read_config, triton_version, why_no_gpu, why_not_compiled

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
    if reason := why_no_gpu(model) or why_not_compiled(("compiled", "fast"), warmup):
        return "reference", reason
    language = _language_config(model)
    if reason := _why_other_layers(language):
        return "reference", f"compiled and fast need {reason}"
    if infer.batch_size > FAST_ROWS:
        return "compiled", f"fast reads up to {FAST_ROWS} pages at a time, infer.batch_size={infer.batch_size}"
    dtype = FAST_DTYPES[0] if model.dtype == "auto" else model.dtype
    if dtype not in FAST_DTYPES:
        return "compiled", f"fast runs in {' or '.join(FAST_DTYPES)}, model.dtype={dtype}"
    if older(version := triton_version(), FAST_TRITON):
        return "compiled", f"fast needs Triton {dotted(FAST_TRITON)} or newer, not {version}"
    if (size := _head_size(language)) & (size - 1):
        return "compiled", f"fast needs heads whose size is a power of two, not {size}"
    pages = "one page" if infer.batch_size == 1 else f"{infer.batch_size} pages"
    return "fast", f"a GPU, {dtype}, {pages} at a time"


def _language_config(model: ModelSettings) -> Mapping[str, Any]:
    """The language model's part of the checkpoint's config.json; empty where it is not here, or cannot be read."""
    config = read_config(model) or {}
    language = config.get("language_config") or config.get("text_config")
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
