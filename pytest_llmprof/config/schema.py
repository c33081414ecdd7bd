"""The typed configuration: frozen dataclasses that the rest of the program reads.

`pytest_llmprof.config.compose` makes and checks them once; no other code sees a DictConfig or a default. A field's
type says what is allowed: `Meta` holds ranges and patterns, its description the words for the error message.
Paths are absolute once they are resolved.

A field's docstring becomes its row in docs/configuration.md (`tools/write_docs.py`): Markdown, with links from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal

from msgspec import Meta

AUTO = "auto"
"""`infer.engine`: the fastest engine that can run; `Composer` puts its name in this one's place."""
NO_KEY = {"key": False}
"""Metadata of a field that is no key of the configuration."""

Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1, description="an integer from 0 to 2**63 - 1")]
Share = Annotated[
    str, Meta(pattern=r"^\s*(\d+\.?\d*|\.\d+)\s*%\s*\Z", description='a percentage above 0, such as "2%"')
]
Texts = Annotated[tuple[str, ...], Meta(min_length=1)]


@dataclass(frozen=True)
class FamilySettings:
    """What the files of a checkpoint do not say (`model.family.*`); `model.name=transformers` reads it."""

    markdown: str | None = "Convert this page to Markdown."
    """The text of `infer.prompt=markdown`. Null: this family has no such prompt, and the other one is used. Empty: the
    image alone."""
    free: str | None = "Read the text of this page."
    """The text of `infer.prompt=free`, likewise."""
    template: str | None = None
    """The whole prompt, with `{image}` and `{prompt}` in it. Null: the checkpoint's chat template."""
    stop: tuple[str, ...] = ()
    """Tokens that end an answer beside those of the checkpoint's generation_config."""
    images: Literal["nested", "flat"] = "nested"
    """How the processor takes a batch: a list of images for each page (`nested`), or one list (`flat`)."""
    boxes: str = "none"
    """The [format of its boxes](models.md#boxes)."""
    answer: Literal["text", "html", "doctags", "json"] = "text"
    """The markup of its answers, for the [text that is scored](models.md#the-text-of-an-answer). `text`: as it is, also
    Markdown."""


@dataclass(frozen=True)
class ModelSettings:
    """Which model runs and how (`model.*`)."""

    name: str = "deepseek_ocr"
    """The registered model that runs it (not the preset's name)."""
    path: str | None = None
    """A checkpoint's directory in the released format (`config.json`, `tokenizer.json`, `*.safetensors`), or a hub id
    (`deepseek-ai/DeepSeek-OCR`), of which only these files are fetched, no code. Required with
    `model.weights=checkpoint`."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    hub_timeout_s: Seconds = 60.0
    """Seconds without an answer or a byte from the hub after which a copy in its cache is used, or else loading fails
    ("the hub is not reachable"). With `HF_HUB_OFFLINE=1` only the cache is read."""
    mode: str = "base"
    """Input resolution, one of the model's modes. DeepSeek-OCR's are `tiny`, `small`, `base`, `large`: 512, 640, 1024
    or 1280 pixels square; `gundam` is 1024 and crops of 640."""
    device: Annotated[str, Meta(pattern=r"^(auto|cpu|cuda(:\d+)?)\Z", description="auto, cpu, cuda or cuda:N")] = "auto"
    """`auto`: CUDA if there is a GPU."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 on CUDA, float32 on a CPU."""
    weights: Literal["checkpoint", "embedded", "random"] = "checkpoint"
    """From `model.path`, shipped with the package (`embedded`), or seeded random. Random weights give meaningless
    answers, so quality is null."""
    size: Literal["full", "tiny"] = "full"
    """Size of random weights."""
    seed: Seed = 0
    """Seed of random weights."""
    max_new_tokens: Positive = 8192
    """The preset's own limit, used by the presets of `infer`. To change the limit, set `infer.max_new_tokens`."""
    no_repeat_ngram_size: Count = 35
    """The preset's own size, likewise. To change it, set `infer.no_repeat_ngram_size`."""
    family: FamilySettings = FamilySettings()


@dataclass(frozen=True)
class InferSettings:
    """How it generates (`infer.*`)."""

    prompt: Annotated[str, Meta(pattern=r"\S", description="markdown, free or a prompt's text")] = "markdown"
    r"""A released prompt's name, or a whole prompt. `<image>` marks the image's place; without it the image comes
    first. Neither a shell nor an ini file makes a line break of `\n`, so right beside the image DeepSeek-OCR reads one
    as a line break; elsewhere it stays, as in `\nabla`. A run says either in one line. Type other line breaks as such:
    in bash `$'…'`, or in a YAML file."""
    max_new_tokens: Positive = ModelSettings.max_new_tokens
    """Most generated tokens per page, end token included. Default: `${model.max_new_tokens}`."""
    no_repeat_ngram_size: Count = ModelSettings.no_repeat_ngram_size
    """An n-gram of this size is never generated twice; 0 turns this off. Default: `${model.no_repeat_ngram_size}`."""
    generation: Literal["greedy", "checkpoint"] = "greedy"
    """`greedy`: the likeliest token each time. `checkpoint`: what the checkpoint's generation_config asks for, such as
    a repetition penalty or sampling (seeded by `model.seed`). DeepSeek-OCR is greedy only."""
    ignore_eos: bool = False
    """Continue past the end token to `infer.max_new_tokens`, so that all answers have the same length. To measure
    speed: text after the end means nothing."""
    batch_size: Positive = 1
    """Pages generated together."""
    engine: str = AUTO
    """How the forward passes run: one of the model's [engines](engines.md), or `auto`, the fastest that can run with
    these settings on this machine ([how it is chosen](engines.md#auto))."""
    engine_reason: str | None = field(default=None, compare=False, metadata=NO_KEY)
    """Why `auto` became this engine, in a few words; None where the engine was named. `engine` is never `auto` in the
    settings of a test."""

    @property
    def engine_shown(self) -> str:
        """The engine for the user, with why `auto` became it: "fast (auto: a GPU, bfloat16, one page at a time)"."""
        return self.engine if self.engine_reason is None else f"{self.engine} (auto: {self.engine_reason})"


@dataclass(frozen=True)
class MeasureSettings:
    """How often it is measured (`measure.*`)."""

    rounds: Positive = 2
    """Measured passes over a test's pages."""
    warmup: Count = 1
    """Unmeasured passes over the distinct input shapes before the first round."""
    iterations: Annotated[Positive | None, Meta(description="an integer >= 1, or null to choose it")] = None
    """Calls of `llmprof.measure`'s function a round. Null: the warm-up doubles them until a round takes 10 ms
    ([why](measures.md#rounds)). Set 1 for a function that changes what the next call does."""
    max_failed_pages: Count | None = None
    """Null: all pages run, and any failed page fails the test at its end. N: up to N pages may fail. They are named in
    the summary and the report, and the test can pass. One more ends the test at once, as failed."""


@dataclass(frozen=True)
class GateSettings:
    """What fails a test (`gate.*`). Texts are read, and metrics' names checked, by `pytest_llmprof.run.gates`."""

    limits: Mapping[str, str | None] = field(default_factory=lambda: MappingProxyType({}))
    """Metric → limit: `"gate.limits.ttft_ms='<=200'"`. Null: none."""
    slower: Mapping[str, str | None] = field(default_factory=lambda: MappingProxyType({}))
    """Metric → how much worse than in the baseline it may be: `gate.slower.tpot_ms=2%`."""
    worse: Mapping[str, str | float | None] = field(default_factory=lambda: MappingProxyType({}))
    """Metric of quality → the amount by which it may be worse: `gate.worse.cer=0.005`."""
    margin: Share = "0.6%"
    """The smallest change that matters in the comparison, for metrics without a gate."""
    alpha: Share = "0.2%"
    """How often a metric that did not change may be called different; all gates of a test together."""
    process_sd: Share | None = None
    """The standard deviation between processes, where fewer than 3 saved runs show it. Null: [0.5 % or 15
    %](comparing.md#how-many-processes)."""
    max_rounds: Positive = 20
    """Measured rounds at most, where a gate is unclear."""
    unclear: Literal["pass", "fail"] = "pass"
    """What a gate does that stays unclear."""


@dataclass(frozen=True)
class DatasetSettings:
    """The pages (`dataset.*`)."""

    name: str = "sample_pages"
    """The registered dataset: `sample_pages`, `documents`, `image_folder`."""
    root: str | None = None
    """Directory of the images. Only for `image_folder`, which requires it."""
    pattern: Annotated[
        tuple[Annotated[str, Meta(min_length=1)], ...],
        Meta(min_length=1, description="a list of at least one glob pattern"),
    ] = ("**/*",)
    """Takes a page that matches any of them, by its image's path below the root or by its name."""
    exclude: Annotated[
        tuple[Annotated[str, Meta(min_length=1)], ...], Meta(description="a list of glob patterns")
    ] = ()
    """Leaves out a page that matches any of them, in the same way."""
    subset: Annotated[
        Annotated[str, Meta(min_length=1)] | Texts | None,
        Meta(description="a text file, a list of at least one page name, or null"),
    ] = None
    """Page names, or a text file with one name a line (`#` begins a comment)."""
    limit: Annotated[Positive | None, Meta(description="an integer >= 1, or null for all pages")] = None
    """At most this many pages."""
    shuffle: bool = False
    """Shuffle before the limit; else natural order of names (`p2` before `p10`)."""
    seed: Seed = 0
    """Seed of the shuffle."""
    dpi: Annotated[int, Meta(ge=10, le=2400, description="an integer from 10 to 2400")] = 144
    """Resolution that pages of PDF files are drawn at. The default is that of DeepSeek-OCR's own script."""
    root_as_given: str | None = field(default=None, metadata=NO_KEY)
    """`root` as it was written, for what is shown."""


@dataclass(frozen=True)
class PredictionSettings:
    """`pipeline.<stage>.output.prediction.*`"""

    enable: bool = False
    """Write `predictions.jsonl`."""
    save_dir: str | None = "pred"
    """[Where](#save_dir): relative to the stage directory, or absolute. Null or empty: `pred`."""


@dataclass(frozen=True)
class VisualizationSettings:
    """`pipeline.<stage>.output.visualization.*`"""

    enable: bool = True
    """Write the gallery; it does not need the predictions file."""
    save_dir: str | None = "viz"
    """[Where](#save_dir): relative to the stage directory, or absolute. Null or empty: `viz`."""


@dataclass(frozen=True)
class OutputSettings:
    """`pipeline.<stage>.output.*`"""

    prediction: PredictionSettings = PredictionSettings()
    visualization: VisualizationSettings = VisualizationSettings()
    extra: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Per model: an instance of the model's own frozen `extra` dataclass."""


@dataclass(frozen=True)
class PredictionExtra:
    """`extra.<model>.prediction.*`"""

    strip_special_tokens: bool = False
    """`text_clean` is the answer without its end token and without whole grounding spans; off, it is `text_raw`. CER
    is the same either way."""


@dataclass(frozen=True)
class VisualizationExtra:
    """`extra.<model>.visualization.*`"""

    max_images: Annotated[Count | None, Meta(description="an integer >= 0, or null for all pages")] = 16
    """Pages with a section and images in the gallery; null: all, 0: the table alone."""
    thumbnail_width: Positive = 480
    """Width of a thumbnail in pixels; an image is never enlarged."""


@dataclass(frozen=True)
class OutputExtra:
    """What this package reads of any model's `extra` block: the whole block of a model without a class of its own."""

    prediction: PredictionExtra = PredictionExtra()
    visualization: VisualizationExtra = VisualizationExtra()


@dataclass(frozen=True)
class StageSettings:
    """`pipeline.<stage>.*`"""

    enable: bool = True
    """Whether the stage's tool runs. Off, the stage still measures and writes its outputs."""
    options: Any = None
    """An instance of the stage's own frozen options dataclass (None where it has none)."""
    output: OutputSettings | None = None
    """None for stages that have no output block."""


@dataclass(frozen=True)
class Settings:
    """One test's configuration in one stage, resolved and checked."""

    stages: tuple[str, ...]
    model: ModelSettings
    infer: InferSettings
    measure: MeasureSettings
    gate: GateSettings
    dataset: DatasetSettings
    pipeline: Mapping[str, StageSettings]
    test: str
    """`llmprof.test`: the test's directory under the run directory."""
    stage: str
    """`llmprof.stage`."""
    choices: Mapping[str, str]
    """The preset chosen for each group: {"model": "deepseek_ocr_tiny", ...}."""
    saved: Callable[[], tuple[str, str]] = field(compare=False, repr=False)
    """Gives the resolved configuration as YAML without the block `llmprof`, and its digest."""
    set_in: Callable[[str], str] | None = field(default=None, compare=False, repr=False)
    """Gives where a key was set, "on the command line"; None where that is not known."""

    @property
    def yaml(self) -> str:
        """The resolved configuration, as written to config.yaml."""
        from pytest_llmprof.config.render import to_yaml

        return self.saved()[0] + to_yaml({"llmprof": {"test": self.test, "stage": self.stage}})

    @property
    def digest(self) -> str:
        """Equal where two tests have the same configuration."""
        return self.saved()[1]

    def where(self, key: str) -> str:
        """Where *key* was set, for a message: ", set on the command line"; empty where that is not known."""
        return f", set {self.set_in(key)}" if self.set_in is not None else ""

    def save_dir(self, kind: str) -> str:
        """This stage's `save_dir` for *kind*, "prediction" or "visualization"; null or empty is its default."""
        block = getattr(self.current.output, kind)
        given: str | None = block.save_dir
        return given if given and given.strip() else type(block)().save_dir

    def save_dir_key(self, kind: str) -> str:
        """Its key."""
        return f"pipeline.{self.stage}.output.{kind}.save_dir"

    def save_dir_named(self, kind: str) -> str:
        """Its key for a message, with where it was set."""
        key = self.save_dir_key(kind)
        return f"{key} (set {self.set_in(key)})" if self.set_in is not None else key

    @property
    def current(self) -> StageSettings:
        """The settings of this test's own stage."""
        return self.pipeline[self.stage]
