"""DeepSeek-OCR through transformers' own class, without remote code.

::

    translate.py      config.json (released or transformers' layout) -> UnlimitedOcrConfig
    loader.py         settings -> a loaded model (checkpoint, embedded or random weights)
    random_weights.py seeded weights made on the device
    tokenizers.py     tokenizer.json, or the built-in tokenizer of random weights
    preprocessing.py  image -> views, by the released rules
    views.py          views -> tensors: by Pillow, or on the GPU with the same bytes (resize.py, resize_kernel.py)
    vision.py         SAM, CLIP, projector, merge into the prompt's embeddings
    generation.py     prefill and decode, one token at a time
    engines/          ways to run the forward passes (infer.engine)
    prompts.py        names and texts of prompts
    parsing.py        answer -> text and boxes
    costs.py          FLOPs and bytes of each phase, from the shapes
    model.py          implements the adapter protocol with these
    checks.py         whether it could be loaded, for llmprof doctor

Importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from pytest_llmprof.models.base import ModelPlugin

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_llmprof.config.schema import InferSettings, MeasureSettings, ModelSettings
    from pytest_llmprof.models.base import LoadedModel
    from pytest_llmprof.records.checks import Check

__all__ = ["ENGINES", "MODES", "plugin"]

MODES = ("tiny", "small", "base", "large", "gundam")
"""Input resolutions, see `preprocessing.MODES`."""
ENGINES = ("reference", "compiled", "fast")
"""Ways to run the forward passes."""


def _load(model: ModelSettings, infer: InferSettings) -> LoadedModel:
    from pytest_llmprof.models.deepseek_ocr.loader import load

    return load(model, infer)


def _check(model: ModelSettings) -> Iterator[tuple[str, object, str]]:
    from pytest_llmprof.config.schema import FamilySettings

    own = asdict(FamilySettings())
    for name, value in asdict(model.family).items():
        if value != own[name]:
            yield f"family.{name}", value, (
                "left out, as this model does not read it: model.name=transformers does, which a preset takes over by "
                "defaults: [transformers]"
            )


def _checks(model: ModelSettings, infer: InferSettings) -> Iterable[Check]:
    from pytest_llmprof.models.deepseek_ocr.checks import checks

    return checks(model, infer)


def _choose_engine(model: ModelSettings, infer: InferSettings, measure: MeasureSettings) -> tuple[str, str]:
    from pytest_llmprof.models.deepseek_ocr.engines import choose_engine

    return choose_engine(model, infer, measure.warmup)


def plugin() -> ModelPlugin:
    """This adapter, as the plugin registers it."""
    return ModelPlugin(
        name="deepseek_ocr",
        load=_load,
        modes=MODES,
        engines=ENGINES,
        choose_engine=_choose_engine,
        check_model=_check,
        checks=_checks,
    )
