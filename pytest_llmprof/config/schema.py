"""The typed configuration: frozen dataclasses that the rest of the program reads.

`pytest_llmprof.config.compose` makes and checks them once; no other code sees a DictConfig or a default. A field's
type says what is allowed: `Meta` holds ranges and patterns, its description the words for the error message.
Each field is documented in docs/configuration.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal

from msgspec import Meta

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
class ModelSettings:
    """Which model runs and how (`model.*`)."""

    name: str = "deepseek_ocr"
    """The registered model that drives it (an adapter's name, not the preset's)."""
    path: str | None = None
    """A checkpoint's directory (absolute once resolved) or hub id; None where weights are made or shipped."""
    revision: str | None = None
    """Hub revision; only with a hub id."""
    hub_timeout_s: Seconds = 60.0
    """Loading from the hub ends where it has sent nothing for so long."""
    mode: str = "base"
    """Input resolution; one of the model's modes (DeepSeek-OCR: tiny, small, base, large, gundam)."""
    device: Annotated[str, Meta(pattern=r"^(auto|cpu|cuda(:\d+)?)\Z", description="auto, cpu, cuda or cuda:N")] = "auto"
    """auto | cpu | cuda | cuda:N. `auto` takes CUDA when there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto | float32 | bfloat16 | float16. `auto` is bfloat16 on CUDA, float32 on a CPU."""
    weights: Literal["checkpoint", "embedded", "random"] = "checkpoint"
    """checkpoint (from `path`) | embedded (shipped with the package) | random (seeded)."""
    size: Literal["full", "tiny"] = "full"
    """Size of random weights: full | tiny."""
    seed: Seed = 0
    """Seed of random weights."""
    max_new_tokens: Positive = 8192
    """New tokens a page that suit this model; `infer=reference` takes it for its own."""


@dataclass(frozen=True)
class InferSettings:
    """How it generates (`infer.*`)."""

    prompt: Annotated[str, Meta(pattern=r"\S", description="markdown, free or a prompt's text")] = "markdown"
    """A prompt's name (markdown | free) or the prompt's whole text."""
    max_new_tokens: Positive = ModelSettings.max_new_tokens
    """At most this many generated tokens a page, EOS included."""
    no_repeat_ngram_size: Count = 35
    """An n-gram of this size is never generated twice; 0 turns it off."""
    ignore_eos: bool = False
    """Go on to `max_new_tokens` whatever the model says, so that every answer has the same length."""
    batch_size: Positive = 1
    """Pages generated together."""
    engine: str = "reference"
    """How the forward passes run; one of the model's engines."""


@dataclass(frozen=True)
class MeasureSettings:
    """How often it is measured (`measure.*`)."""

    rounds: Positive = 2
    """Measured passes over the pages."""
    warmup: Count = 1
    """Passes over the distinct input shapes before the first measured one."""
    iterations: Annotated[Positive | None, Meta(description="an integer >= 1, or null to choose it")] = None
    """Calls a round of a callable; None = as many as take 10 ms, chosen in the warm-up."""
    max_failed_pages: Count | None = None
    """Pages that may fail: one more ends the test at once. None = all pages run, and any failed one fails it."""


@dataclass(frozen=True)
class GateSettings:
    """What fails a test (`gate.*`). Texts are read, and metrics' names checked, by `pytest_llmprof.run.gates`."""

    limits: Mapping[str, str | None] = field(default_factory=lambda: MappingProxyType({}))
    """Metric -> its limit, "<=200"; null for none."""
    slower: Mapping[str, str | None] = field(default_factory=lambda: MappingProxyType({}))
    """Metric -> how much worse than in the baseline it may be, "2%"."""
    worse: Mapping[str, str | float | None] = field(default_factory=lambda: MappingProxyType({}))
    """Metric of quality -> by what amount it may be worse than in the baseline, 0.005."""
    margin: Share = "0.6%"
    """The smallest change that matters where no gate says it."""
    alpha: Share = "0.2%"
    """How often a metric that did not change may be called different: of a test's gated metrics, all together."""
    process_sd: Share | None = None
    """Standard deviation between processes where too few show it; None: what was seen on an H100."""
    max_rounds: Positive = 20
    """Measured rounds at most, where a gate is unclear."""
    unclear: Literal["pass", "fail"] = "pass"
    """What an unclear gate does: pass with a line in the summary, or fail."""


@dataclass(frozen=True)
class DatasetSettings:
    """The pages (`dataset.*`)."""

    name: str = "sample_pages"
    """The registered dataset."""
    root: str | None = None
    """Directory of the pages (absolute once resolved); None for embedded datasets."""
    pattern: Annotated[
        tuple[Annotated[str, Meta(min_length=1)], ...],
        Meta(min_length=1, description="a list of at least one glob pattern"),
    ] = ("**/*",)
    """Glob patterns under `root`, a page matches any."""
    exclude: Annotated[
        tuple[Annotated[str, Meta(min_length=1)], ...], Meta(description="a list of glob patterns")
    ] = ()
    """Glob patterns under `root`, a page matches none."""
    subset: Annotated[
        Annotated[str, Meta(min_length=1)] | Texts | None,
        Meta(description="a text file, a list of at least one page name, or null"),
    ] = None
    """A text file (absolute once resolved) with one page name a line, or the names themselves; None = all."""
    limit: Annotated[Positive | None, Meta(description="an integer >= 1, or null for all pages")] = None
    """At most this many pages; None = all."""
    shuffle: bool = False
    """Shuffle (seeded) before `limit` is taken."""
    seed: Seed = 0
    """Seed of the shuffle."""
    dpi: Annotated[int, Meta(ge=10, le=2400, description="an integer from 10 to 2400")] = 144
    """Resolution that pages of PDF files are drawn at."""
    root_as_given: str | None = field(default=None, metadata=NO_KEY)
    """`root` as it was written, for what is shown."""


@dataclass(frozen=True)
class PredictionSettings:
    """`pipeline.<stage>.output.prediction.*`"""

    enable: bool = False
    """Write predictions.jsonl."""
    save_dir: str | None = "pred"
    """Relative to the stage directory, or absolute; null or empty = the default."""


@dataclass(frozen=True)
class VisualizationSettings:
    """`pipeline.<stage>.output.visualization.*`"""

    enable: bool = True
    """Write the gallery, predictions.md and pages/."""
    save_dir: str | None = "viz"
    """Relative to the stage directory, or absolute; null or empty = the default."""


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
    """Whether `text_clean` is without the end token and without whole grounding spans; off, it is `text_raw`."""


@dataclass(frozen=True)
class VisualizationExtra:
    """`extra.<model>.visualization.*`"""

    max_images: Annotated[Count | None, Meta(description="an integer >= 0, or null for all pages")] = 16
    """Pages with images in the gallery; None = all, 0 = the table alone."""
    thumbnail_width: Positive = 480
    """Width of the thumbnails in pixels; an image is never enlarged."""


@dataclass(frozen=True)
class OutputExtra:
    """What this package reads of any model's `extra` block: the whole block of a model without a class of its own."""

    prediction: PredictionExtra = PredictionExtra()
    visualization: VisualizationExtra = VisualizationExtra()


@dataclass(frozen=True)
class StageSettings:
    """`pipeline.<stage>.*`"""

    enable: bool = True
    """Whether the stage's tool runs; off, the stage still measures and writes outputs."""
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
