"""Checks of DeepSeek-OCR for `llmprof doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llmprof.config.schema import InferSettings, ModelSettings
from pytest_llmprof.models.checkpoint import open_checkpoint, total_bytes
from pytest_llmprof.models.checks import MODEL, checkpoint_check, engine_check
from pytest_llmprof.models.deepseek_ocr.engines import check_engine
from pytest_llmprof.models.deepseek_ocr.loader import EMBEDDED
from pytest_llmprof.models.device import pick_dtype
from pytest_llmprof.models.graphs import require_compiler
from pytest_llmprof.records.checks import Check, ok, problem

if TYPE_CHECKING:
    import torch


def checks(model: ModelSettings, infer: InferSettings) -> Iterator[Check]:
    """Whether the weights can be found and the engine runs here."""
    if model.weights == "random":
        yield ok(MODEL, f"random weights, {model.size} size, made on the device")
    elif model.weights == "embedded":
        yield _on_disk(EMBEDDED, "the embedded one")
    else:
        yield checkpoint_check(model, lambda directory: _on_disk(directory, str(directory)))

    def try_out(device: torch.device) -> None:
        check_engine(infer.engine, device, pick_dtype(model.dtype, device), infer.batch_size)
        if infer.engine == "compiled" or (infer.engine == "fast" and device.type == "cuda"):
            require_compiler(infer.engine, device)

    yield engine_check(model, infer, try_out)


def _on_disk(directory: Path, name: str) -> Check:
    found = open_checkpoint(directory)
    if found.tokenizer is None:
        return problem(MODEL, f"{directory} has no tokenizer.json", "copy it from where the weights are from")
    size = total_bytes(found.weights)
    return ok(MODEL, f"{name}, {len(found.keys)} tensors, {size / 2**30:,.2f} GiB")
