"""What `infer.engine=auto` becomes for these models, and why; decided without torch and transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pytest_llmprof.models.checkpoint import ADAPTER
from pytest_llmprof.models.engine_choice import (
    checkpoint_file,
    dotted,
    older,
    read_config,
    torch_version,
    why_no_gpu,
    why_not_compiled,
)
from pytest_llmprof.models.from_transformers.checkpoint import quant_method

if TYPE_CHECKING:
    from pytest_llmprof.config.schema import InferSettings, ModelSettings

MEASURED = ("got_ocr2", "lighton_ocr", "paddleocr_vl")
"""Classes (`model_type`) whose `compiled` was measured on a GPU, where it decodes faster than `reference`."""
TORCH = (2, 7)
"""Oldest torch that compiles them: the decorators of transformers' models break in the code that 2.6 makes of them."""


def choose_engine(model: ModelSettings, infer: InferSettings, warmup: int) -> tuple[str, str]:
    """`compiled` where it was measured to be faster and nothing that it needs is missing, after *warmup* passes; else
    `reference`."""
    if reason := why_no_gpu(model):
        return "reference", reason
    config = read_config(model)
    unmeasured = _why_not_measured(model, infer, config)
    if reason := unmeasured or _why_old_torch() or why_not_compiled(("compiled",), warmup):
        return "reference", reason
    return "compiled", f"a GPU, where it was measured to be faster for {_kind(config)}"


def _why_not_measured(model: ModelSettings, infer: InferSettings, config: Mapping[str, Any] | None) -> str:
    """Why nobody knows whether `compiled` is faster for this checkpoint, or runs at all."""
    if checkpoint_file(model, ADAPTER) is not None:
        return "compiled is not measured with an adapter"
    if config is None:
        return f"compiled is measured for some models alone, and no config.json of {model.path} is here yet"
    if method := quant_method(config):
        return f"compiled is not measured for weights quantized by {method}"
    if not (kind := _kind(config)):
        return f"no model_type can be read in the config.json of {model.path}"
    if kind not in MEASURED:
        return f"compiled is not measured on a GPU for {kind}"
    rows = infer.batch_size
    return "" if rows == 1 else f"compiled is measured with one page at a time, infer.batch_size={rows}"


def _kind(config: Mapping[str, Any] | None) -> Any:
    return (config or {}).get("model_type")


def _why_old_torch() -> str:
    version = torch_version()
    return f"compiled needs torch {dotted(TORCH)} or newer, not {version}" if older(version, TORCH) else ""
