"""Engines: ways to run the forward passes, one file each behind one small protocol.

An engine gets a batch whose tensors are on the device (`Inputs`) and yields its tokens. All open the same phases, so
their metrics can be compared. A new engine needs a file here, its name in `ENGINES`, a line in `make_engine` and a
preset `conf/infer/<name>.yaml`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from pytest_llmprof.models.base import Phases, Token
    from pytest_llmprof.models.deepseek_ocr.generation import Limits, Prompts
    from pytest_llmprof.models.deepseek_ocr.preprocessing import CropGrid

__all__ = ["Engine", "Inputs", "check_engine", "make_engine"]


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
