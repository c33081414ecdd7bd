"""Models: the adapter protocol (`pytest_llmprof.models.base`) and the packaged adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_llmprof.models.base import ModelPlugin

__all__ = ["packaged_models"]


def packaged_models() -> tuple[ModelPlugin, ...]:
    """The adapters in this package. Imports neither torch nor transformers."""
    from pytest_llmprof.models import deepseek_ocr

    return (deepseek_ocr.plugin(),)
