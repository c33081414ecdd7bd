"""Any document model that transformers runs natively, through its own `generate`, without remote code.

::

    auto.py        what infer.engine=auto becomes
    checkpoint.py  a directory or hub id -> what it is, or why it cannot be used
    loader.py      settings -> a loaded model
    prompts.py     infer.prompt and the family -> the whole prompt
    loop.py        transformers' greedy or sampling loop as a generator, one host read a step
    boxes.py       formats of boxes -> pixels of the source image
    plain.py       an answer's markup -> the text that is scored
    costs.py       FLOPs and bytes of a batch, counted
    model.py       implements the adapter protocol with these
    checks.py      whether it could be loaded, for llmprof doctor

A family is a preset (`model.family.*`), no code. Importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

from pytest_llmprof.config.registry import by_name
from pytest_llmprof.models.base import BoxFormat, ModelPlugin

if TYPE_CHECKING:
    from pytest_llmprof.config.schema import InferSettings, MeasureSettings, ModelSettings
    from pytest_llmprof.models.base import LoadedModel
    from pytest_llmprof.records.checks import Check

__all__ = ["ENGINES", "MODE", "NAME", "plugin"]

NAME = "transformers"
MODE = "native"
"""The one value of `model.mode`: images are sized as the checkpoint's processor says."""
ENGINES = ("reference", "compiled")
"""Ways to run the forward passes."""


def _load(formats: Mapping[str, BoxFormat], model: ModelSettings, infer: InferSettings) -> LoadedModel:
    from pytest_llmprof.models.from_transformers.loader import load

    return load(model, infer, formats)


def _check(formats: Mapping[str, BoxFormat], model: ModelSettings) -> Iterator[tuple[str, object, str]]:
    from pytest_llmprof.models.from_transformers.prompts import IMAGE, MARK

    family = model.family
    if family.boxes not in formats:
        yield "family.boxes", family.boxes, f"one of {', '.join(formats)}"
    if family.markdown is None and family.free is None:
        yield "family.free", None, "a text where model.family.markdown is null, too"
    for name in ("markdown", "free"):
        text = getattr(family, name) or ""
        for mark in (one for one in (IMAGE, MARK, "{prompt}") if one in text):
            yield f"family.{name}", text, f"a text without {mark}: the model's template puts the image, and this text"
    if family.template is not None and not (family.template.count(MARK) == 1 and "{prompt}" in family.template):
        yield "family.template", family.template, "a text with {image} and {prompt}, the image once"
    if model.weights != "checkpoint":
        yield "weights", model.weights, f"checkpoint: {NAME} reads model.path"


def _checks(model: ModelSettings, infer: InferSettings) -> Iterable[Check]:
    from pytest_llmprof.models.from_transformers.checks import checks

    return checks(model, infer)


def _choose_engine(model: ModelSettings, infer: InferSettings, measure: MeasureSettings) -> tuple[str, str]:
    from pytest_llmprof.models.from_transformers.auto import choose_engine

    return choose_engine(model, infer, measure.warmup)


def plugin(formats: Iterable[BoxFormat] = ()) -> ModelPlugin:
    """This adapter, as the plugin registers it; *formats* of boxes are those of other plugins."""
    from pytest_llmprof.models.from_transformers.boxes import FORMATS

    known = by_name("format of boxes", (*FORMATS, *formats))
    return ModelPlugin(
        name=NAME,
        load=partial(_load, known),
        modes=(MODE,),
        engines=ENGINES,
        choose_engine=_choose_engine,
        generations=("greedy", "checkpoint"),
        check_model=partial(_check, known),
        checks=_checks,
    )
