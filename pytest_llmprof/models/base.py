"""What a model must offer: the adapter protocol and its plain data types.

Nothing here imports torch. A third party registers a `ModelPlugin` through the hook
``pytest_llmprof_models`` (see `pytest_llmprof.plugin.hookspecs`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from pytest_llmprof.records.catalogue import Metric
from pytest_llmprof.records.checks import Check
from pytest_llmprof.records.metrics import ModelInfo
from pytest_llmprof.records.predictions import Box

if TYPE_CHECKING:
    from PIL.Image import Image

    from pytest_llmprof.config.schema import InferSettings, MeasureSettings, ModelSettings

__all__ = [
    "Box",
    "BoxFormat",
    "Capabilities",
    "Costed",
    "Costs",
    "LoadedModel",
    "ModelInfo",
    "ModelPlugin",
    "NoPhases",
    "ParsedOutput",
    "PhaseCost",
    "Phases",
    "Token",
]


class Token(NamedTuple):
    """One generated token, yielded as soon as the host has it."""

    row: int
    """Index of its page in the batch."""
    id: int | None
    """Token id; None for engines that yield text only."""
    text: str | None
    """The token's text for engines without ids; None where `id` is set (`LoadedModel.text` decodes it)."""
    time_ns: int
    """`time.perf_counter_ns()` when it arrived on the host."""
    finish: str | None = None
    """Why the row ended with this token, "eos" or "length"; None where it goes on."""


@dataclass(frozen=True)
class ParsedOutput:
    """An answer, read."""

    plain: str
    """The text without special tokens (EOS, padding) and without whole grounding spans, unless their labels are it."""
    boxes: tuple[Box, ...] = ()
    bad_boxes: int = 0
    """Boxes that were skipped because they were malformed or empty. Those of `boxes` that have no area in the image are
    skipped and counted, too."""
    loop_text: str | None = None
    """The text that is searched for a loop, if `plain` lacks a part that may repeat; None = `plain`."""


@dataclass(frozen=True)
class BoxFormat:
    """A way to write boxes in an answer; `model.family.boxes` names it."""

    name: str
    read: Callable[[str, tuple[int, int], tuple[int, int] | None], ParsedOutput]
    """Called with an answer, the source image's (width, height) in pixels, and for a `resized` format the size that the
    processor gave the image. Its boxes are in pixels of the source image, its `plain` is the answer without them."""
    description: str = ""
    """What it looks like, for the docs."""
    resized: bool = False
    """Whether its numbers are pixels of the image as the processor resized it."""


@dataclass(frozen=True)
class Capabilities:
    """What a loaded model can do."""

    phases: tuple[str, ...]
    """The phases it opens with `Phases.phase`, in order, with sub-phases."""
    profiler: bool = True
    """Whether it runs in this process, so that torch.profiler sees it."""
    token_ids: bool = True
    """Whether tokens carry ids."""
    block: int = 1
    """Tokens that arrive together. Of the times within such a block only the mean is known."""


class Phases(Protocol):
    """A model opens its phases here; they become NVTX ranges, profiler ranges and times.

    Phases: preprocess, vision (with sam, clip and projector inside), prefill, decode (with a step for each token
    inside).
    """

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Open the phase *name*; leaving the block ends it. Nothing synchronises inside."""

    def step(self) -> AbstractContextManager[None]:
        """Open one decode step (inside the phase `decode`)."""


class NoPhases:
    """`Phases` that do nothing, to run a model without measuring it."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def step(self) -> AbstractContextManager[None]:
        return nullcontext()


class LoadedModel(Protocol):
    """A model ready to run."""

    info: ModelInfo
    capabilities: Capabilities

    def generate(self, images: Sequence[Image], infer: InferSettings, phases: Phases) -> Iterator[Token]:
        """Yield the tokens of a batch of RGB images as they come, EOS included.

        The caller may close the iterator early. Raises `ModelError` for what the model cannot do.
        """

    def prompt(self, infer: InferSettings) -> str:
        """The full text of the prompt `infer.prompt`."""

    def prompt_kind(self, infer: InferSettings) -> str:
        """"markdown", "free" or "other": which truth its answer is compared with."""

    def text(self, ids: Sequence[int]) -> str:
        """Decode token ids, special tokens included."""

    def parse(self, text: str, size: tuple[int, int]) -> ParsedOutput:
        """Read an answer; *size* is the source image's (width, height) in pixels."""

    def shape_key(self, image: Image, infer: InferSettings) -> object:
        """Equal for two images that give tensors of equal shapes; warm-up runs one image of each key."""

    def close(self) -> None:
        """Free the weights."""


@dataclass(frozen=True)
class PhaseCost:
    """FLOPs and bytes of one phase of one batch, whatever runs it."""

    flops: int
    """Floating-point operations, two for each multiply-add."""
    bytes: int
    """Bytes that must cross the device's memory bus."""
    parts: Mapping[str, int] = field(default_factory=dict)
    """The summands of `bytes` (weights, cache, activations), for the report."""


@dataclass(frozen=True)
class Costs:
    """FLOPs and bytes of one batch."""

    phases: Mapping[str, PhaseCost]
    """By the names of `Phases.phase`, with sub-phases. A phase that is left out gets no MFU and no MBU."""
    note: str = ""
    """One line: how it was counted, where that can differ from run to run."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Plain data for metrics.json."""


@runtime_checkable
class Costed(Protocol):
    """A `LoadedModel` that also counts its FLOPs and bytes, for the stage `static_analysis`."""

    def costs(self, images: Sequence[Image], infer: InferSettings, tokens: Sequence[int]) -> Costs:
        """Costs of the batch *images*; its answers have *tokens* tokens each, the end token included.

        Called outside the timed rounds, once for each batch. It may run the batch again to count what depends on the
        data. Raises `ModelError` where it cannot count.
        """


@dataclass(frozen=True)
class ModelPlugin:
    """A registered model."""

    name: str
    load: Callable[[ModelSettings, InferSettings], LoadedModel]
    """Loads the model; heavy imports belong inside. Raises `ModelError` with one line."""
    modes: tuple[str, ...]
    """Allowed values of `model.mode`."""
    engines: tuple[str, ...] = ("reference",)
    """Allowed values of `infer.engine`, beside `auto`."""
    choose_engine: Callable[[ModelSettings, InferSettings, MeasureSettings], tuple[str, str]] | None = None
    """For `infer.engine=auto`: the fastest of `engines` that can run, and why it is that one, in a few words. It is
    called while tests are collected, so it should not import torch. None = the first of `engines`."""
    generations: tuple[str, ...] = ("greedy",)
    """Allowed values of `infer.generation`."""
    check_model: Callable[[ModelSettings], Iterator[tuple[str, object, str]]] | None = None
    """Yields (key below `model`, value, what is allowed) for each value that is not allowed; of "one of a, b" the
    message gives the nearest. It is called while tests are collected, so it should not import torch."""
    extra: type | None = None
    """Frozen dataclass (nested ones allowed) of `pipeline.<stage>.output.extra.<name>`; None = `OutputExtra`."""
    check_extra: Callable[[Any], Iterator[tuple[str, object, str]]] | None = None
    """Yields (key below the extra block, value, what is allowed) for each value out of range."""
    config_dir: Path | None = None
    """A directory with its own Hydra groups (`model/<preset>.yaml`, ...), laid over the packaged ones."""
    metrics: tuple[Metric, ...] = ()
    """Metrics of its own: a `Metric` with a `score` is computed of each page's answer."""
    checks: Callable[[ModelSettings, InferSettings], Iterable[Check]] | None = None
    """Looks whether the model can be loaded as configured, without loading it, for `llmprof doctor`."""
