"""Checks of document models for `llmprof doctor`: the checkpoint's files, its processor with the packages that it asks
for, and the engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llmprof.models.checkpoint import total_bytes
from pytest_llmprof.models.checks import MODEL, checkpoint_check, engine_check
from pytest_llmprof.models.device import pick_dtype
from pytest_llmprof.models.from_transformers.checkpoint import WANTED, BaseElsewhere, Source, open_source
from pytest_llmprof.models.from_transformers.loader import (
    check_compilable,
    check_compiler,
    check_family,
    check_memory,
    read_processor,
)
from pytest_llmprof.records.checks import Check, ok, warning

if TYPE_CHECKING:
    import torch

    from pytest_llmprof.config.schema import InferSettings, ModelSettings


def checks(model: ModelSettings, infer: InferSettings) -> Iterator[Check]:
    """Whether the checkpoint can be read and the engine runs here."""
    sources: list[Source] = []

    def look(directory: Path) -> Check:
        try:
            source = open_source(replace(model, path=str(directory), revision=None), download=False)
        except BaseElsewhere as error:
            return warning(MODEL, str(error), "the first run downloads it")
        processor = read_processor(source)
        check_family(source, processor, model, infer)
        sources.append(source)
        size = total_bytes(source.weights)
        kind = source.config.get("model_type")
        return ok(MODEL, f"{directory}, {kind}, {type(processor).__name__}, {size / 2**30:,.2f} GiB")

    yield checkpoint_check(model, look, WANTED)

    def try_out(device: torch.device) -> None:
        pick_dtype(model.dtype, device)
        if infer.engine == "compiled":
            check_compiler(device)
        for source in sources:
            check_memory(source, device)
            if infer.engine == "compiled":
                check_compilable(source)

    yield engine_check(model, infer, try_out)
