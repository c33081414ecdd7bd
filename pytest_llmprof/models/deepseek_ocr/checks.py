"""Checks for `llmprof doctor`: the checkpoint and the engine. Nothing is loaded and nothing downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pytest_llmprof.config.schema import InferSettings, ModelSettings
from pytest_llmprof.errors import ModelError
from pytest_llmprof.models.checkpoint import find_here, open_checkpoint, size_in_hub
from pytest_llmprof.models.deepseek_ocr.engines import check_engine
from pytest_llmprof.models.deepseek_ocr.loader import EMBEDDED
from pytest_llmprof.models.device import pick_device, pick_dtype
from pytest_llmprof.models.graphs import require_compiler
from pytest_llmprof.records.checks import Check, ok, problem, warning

_MODEL, _ENGINE = "Model", "Engine"
_HUB_WAIT_S = 20.0


def checks(model: ModelSettings, infer: InferSettings) -> Iterator[Check]:
    """Whether the weights can be found and the engine runs here."""
    yield _weights(model)
    try:
        device = pick_device(model.device)
        check_engine(infer.engine, device, pick_dtype(model.dtype, device), infer.batch_size)
        if infer.engine == "compiled" or (infer.engine == "fast" and device.type == "cuda"):
            require_compiler(infer.engine, device)
    except ModelError as error:
        chosen = "" if infer.engine_reason is None else f"infer.engine={infer.engine_shown}: "
        yield problem(_ENGINE, f"{chosen}{error}", "choose another engine (infer=reference runs everywhere)")
    else:
        yield ok(_ENGINE, f"infer.engine={infer.engine_shown} on {device}")


def _weights(model: ModelSettings) -> Check:
    if model.weights == "random":
        return ok(_MODEL, f"random weights, {model.size} size, made on the device")
    if model.weights == "checkpoint" and model.path is None:
        return problem(_MODEL, "model.weights=checkpoint has no model.path", "set model.path to a directory or hub id")
    try:
        if model.weights == "embedded":
            return _on_disk(EMBEDDED, "the embedded one")
        directory = find_here(str(model.path), model.revision)
        return _in_hub(model) if directory is None else _on_disk(directory, str(directory))
    except ModelError as error:
        return problem(_MODEL, str(error), "set model.path to a checkpoint's directory or a hub id that is there")


def _on_disk(directory: Path, name: str) -> Check:
    found = open_checkpoint(directory)
    if found.tokenizer is None:
        return problem(_MODEL, f"{directory} has no tokenizer.json", "copy it from where the weights are from")
    size = sum(file.stat().st_size for file in found.weights)
    return ok(_MODEL, f"{name}, {len(found.keys)} tensors, {size / 2**30:,.2f} GiB")


def _in_hub(model: ModelSettings) -> Check:
    size = size_in_hub(str(model.path), model.revision, min(model.hub_timeout_s, _HUB_WAIT_S))
    return warning(
        _MODEL,
        f"{model.path} is not in the cache; the hub has it, {size / 2**30:,.2f} GiB",
        "the first run downloads it; to do that before: hf download " + str(model.path),
    )
