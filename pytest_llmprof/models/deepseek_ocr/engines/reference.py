"""The engine `reference`: transformers' modules called one by one, as released."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pytest_llmprof.models.deepseek_ocr import generation, vision

if TYPE_CHECKING:
    from pytest_llmprof.models.base import Phases, Token
    from pytest_llmprof.models.deepseek_ocr.engines import Inputs
    from pytest_llmprof.models.deepseek_ocr.generation import Limits

_EXPERTS = "grouped_mm"
"""transformers' fastest implementation that reads only the chosen experts, on CUDA and on a CPU."""


class ReferenceEngine:
    """Eager forward passes with a cache that grows."""

    block = 1

    def __init__(self, model: Any) -> None:
        self._model = model
        model.set_experts_implementation(_EXPERTS)
        vision.cache_position_tables(model)
        self.details: Mapping[str, Any] = {"attention": model.config._attn_implementation, "experts": _EXPERTS}

    def generate(self, inputs: Inputs, limits: Limits, phases: Phases) -> Iterator[Token]:
        """Yield the batch's tokens as they come; see `Engine.generate`."""
        model = self._model
        with phases.phase("vision"):
            features = vision.page_features(model, inputs.overviews, inputs.crops, inputs.grids, phases)
            embeddings = model.model.language_model.embed_tokens(inputs.prompts.ids_to_embed)
            embeddings = vision.insert_features(embeddings, features, inputs.image_starts)
        prompts = inputs.prompts
        del inputs, features
        yield from generation.stream(model, prompts, embeddings, limits, phases)

    def close(self) -> None:
        """Drop the model."""
        self._model = None
