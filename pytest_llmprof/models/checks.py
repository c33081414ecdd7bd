"""What models check for `llmprof doctor`: the checkpoint and the engine. Nothing is loaded and nothing downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llmprof.errors import EngineUnavailable, ModelError
from pytest_llmprof.models.checkpoint import WANTED, find_here, size_in_hub
from pytest_llmprof.models.device import pick_device
from pytest_llmprof.records.checks import Check, ok, problem, warning

if TYPE_CHECKING:
    import torch

    from pytest_llmprof.config.schema import InferSettings, ModelSettings

MODEL, ENGINE = "Model", "Engine"
_HUB_WAIT_S = 20.0


def checkpoint_check(
    model: ModelSettings, look: Callable[[Path], Check], wanted: tuple[str, ...] = WANTED
) -> Check:
    """What *look* says of the directory of `model.path`; where that is in the hub alone, the size there of the files
    that *wanted* names."""
    if model.path is None:
        return problem(MODEL, "model.weights=checkpoint has no model.path", "set model.path to a directory or hub id")
    try:
        directory = find_here(model.path, model.revision, wanted)
        return _in_hub(model, model.path, wanted) if directory is None else look(directory)
    except ModelError as error:
        return problem(MODEL, str(error), "do as that says, or set model.path to another checkpoint")


def _in_hub(model: ModelSettings, path: str, wanted: tuple[str, ...]) -> Check:
    size = size_in_hub(path, model.revision, min(model.hub_timeout_s, _HUB_WAIT_S), wanted)
    return warning(
        MODEL,
        f"{path} is not in the cache; the hub has it, {size / 2**30:,.2f} GiB",
        f"the first run downloads it; to do that before: hf download {path}",
    )


def engine_check(model: ModelSettings, infer: InferSettings, try_out: Callable[[torch.device], None]) -> Check:
    """Whether `infer.engine` runs on the model's device, by *try_out*, which raises `ModelError` where it does not."""
    try:
        device = pick_device(model.device)
        try_out(device)
    except ModelError as error:
        chosen = "" if infer.engine_reason is None else f"infer.engine={infer.engine_shown}: "
        mend = "change the setting as that says"
        if isinstance(error, EngineUnavailable):
            mend = "choose another engine (infer=reference runs everywhere)"
        return problem(ENGINE, f"{chosen}{error}", mend)
    return ok(ENGINE, f"infer.engine={infer.engine_shown} on {device}")
