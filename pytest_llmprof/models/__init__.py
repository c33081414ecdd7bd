"""Models: the adapter protocol (`pytest_llmprof.models.base`) and the packaged adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_llmprof.models.base import BoxFormat, ModelPlugin

__all__ = ["packaged_models"]


def packaged_models(formats: Iterable[BoxFormat] = ()) -> tuple[ModelPlugin, ...]:
    """The adapters in this package; *formats* of boxes are those of other plugins. Imports neither torch nor
    transformers."""
    from pytest_llmprof.models import deepseek_ocr, from_transformers

    return deepseek_ocr.plugin(), from_transformers.plugin(formats)
