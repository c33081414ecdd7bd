"""The catalogue of metrics: each is declared once, and metrics.json, gates, report, terminal and docs read it.

A third party's stage or model declares metrics of its own in its plugin object, any other plugin through the hook
``pytest_llmprof_metrics``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Literal

import msgspec

from pytest_llmprof.errors import ConfigError, StageError, nearest
from pytest_llmprof.records.metrics import Sample
from pytest_llmprof.records.predictions import Prediction

Better = Literal["lower", "higher"]
Reduce = Literal["page", "batch", "page_rate", "batch_rate", "max", "mean", "sum", "given"]
"""How a metric is made of its values.

- ``page``: the median over pages of each page's median over rounds; ``batch``: the same over batches.
- ``page_rate``, ``batch_rate``: likewise for a rate. A page's median is that of its times, as the mean of two rates
  hides the slower round.
- ``max``: the highest of all samples.
- ``mean``, ``sum``: over the pages' scores (`Metric.score`).
- ``given``: a stage or the program sets it.
"""
Place = Literal["report", "phases", "quality", "terminal", "gate"]
"""Where a metric shows: the report's table of metrics, of phases or of quality; a default column of the terminal's
table; a name that gates accept."""
Section = Literal["figures", "quality"]


CALLABLE = "callable"
"""The kind of a test that measures a function, not the pages of a model."""


def of_calls(text: str, kinds: Collection[str | None]) -> str:
    """*text* with the word for what tests of these *kinds* measure: a page, a call, or both."""
    word = "page" if CALLABLE not in kinds else "call" if len(set(kinds)) == 1 else "page/call"
    return re.sub(r"\bpage\b", word, text)


class Declaration(msgspec.Struct, frozen=True):
    """What is known of a metric without code; run.json holds these, so that a run can be read without its plugins."""

    name: str
    """The key in metrics.json, the attribute of `run.*`, the name in a gate."""
    unit: str = ""
    """"ms", "GiB", "tokens/s"; empty for a plain number, "share" for 0..1."""
    label: str = ""
    """What a reader calls it, without the unit; empty: the name."""
    better: Better | None = None
    """Which way is better; None where neither is."""
    reduce: Reduce = "given"
    shown: tuple[Place, ...] = ("report", "gate")
    heading: str = ""
    """Its column heading in the terminal; empty: the label and the unit."""
    digits: int | None = None
    """Decimal places in the terminal; None: about three digits, as in the reports."""
    section: Section = "figures"
    """The object of metrics.json that holds it."""
    description: str = ""
    """Its definition, for docs/measures.md."""

    @property
    def title(self) -> str:
        """The label with the unit: "Total a page (ms)"."""
        label = self.label or self.name
        return f"{label} ({self.unit})" if self.unit and self.unit != "share" else label

    def title_for(self, kind: str | None) -> str:
        """The title in a test of *kind*: a callable has calls where a model has pages and rounds."""
        if kind != CALLABLE:
            return self.title
        return re.sub(r"\bpage(s?)\b", r"call\1", self.title).replace("Round", "Call")

    @property
    def column(self) -> str:
        """The heading of its column in the terminal."""
        return self.heading or " ".join(part for part in (self.label or self.name, self.unit) if part)


class Metric(Declaration, frozen=True):
    """A metric, with the code that computes it."""

    value: Callable[[Sample], float | None] | None = None
    """Its value in one sample. None: the sample's field of this name, or its phase (`decode_ms`: phase `decode`)."""
    score: Callable[[Any, Prediction], float | None] | None = None
    """Its value for one page, from the dataset's `Page` and the answer; called once a page outside the clock."""

    def of(self, sample: Sample) -> float | None:
        """Its value in *sample*; None where the sample has none, or one that JSON cannot hold (NaN, infinity)."""
        found: float | None
        if self.value is not None:
            found = self.value(sample)
        elif self.name in Sample.__struct_fields__:
            found = getattr(sample, self.name)
        else:
            found = sample.phases.get(self.name.removesuffix("_ms"))
        return found if found is not None and math.isfinite(found) else None

    @property
    def declaration(self) -> Declaration:
        """The part without code."""
        return msgspec.convert(self, Declaration, from_attributes=True)


def _gib(count: int | None) -> float | None:
    return None if count is None else count / 2**30


def _tokens(sample: Sample) -> float | None:
    # An answer without a token has 0 of them; a callable has none to count.
    return float(sample.tokens) if sample.tokens or sample.batch_total_ms is not None else None


def _phase(name: str, description: str, label: str = "") -> Metric:
    return Metric(
        f"{name}_ms", "ms", label or name.capitalize(), "lower", "batch", ("phases", "gate"), description=description
    )


def _quality(name: str, label: str, better: Better | None, description: str, **more: Any) -> Metric:
    shown: tuple[Place, ...] = more.pop("shown", ("quality", "gate"))
    return Metric(
        name, "", label, better, shown=shown, section="quality", description=description, **more
    )


PHASES = (
    _phase("preprocess", "CPU work and upload, until the tensors are on the device."),
    _phase("vision", "The image's features, merged into the prompt's embeddings."),
    _phase("sam", "SAM, a part of vision; its calls are summed.", "SAM"),
    _phase("clip", "CLIP, a part of vision; its calls are summed.", "CLIP"),
    _phase("projector", "The projector, a part of vision; its calls are summed."),
    _phase("prefill", "Until the first token is selected."),
    _phase("decode", "From the second forward pass to the last token."),
    _phase("other", "Batch total - (preprocess + vision + prefill + decode).", "Outside all phases"),
)
"""Times of the phases; `other_ms` is a field of each sample."""

BUILTIN: tuple[Metric, ...] = (
    Metric(
        "ttft_ms", "ms", "Time to first token", "lower", "page", ("report", "terminal", "gate"), "TTFT ms",
        description="First token on the host - start of the batch. Preprocessing is in it.",
    ),
    Metric(
        "tpot_ms", "ms", "Time per output token", "lower", "page", heading="TPOT ms",
        description="(last - first arrival) / tokens that came after the first arrival.",
    ),
    Metric(
        "tokens_per_s", "tokens/s", "Decode", "higher", "page_rate", ("report", "terminal", "gate"), "tokens/s",
        description="1000 / TPOT of each page: the decode rate of one page. Null for one token.",
        value=lambda sample: 1000.0 / sample.tpot_ms if sample.tpot_ms else None,
    ),
    Metric(
        "batch_tokens_per_s", "tokens/s", "Decode of a batch", "higher", "batch_rate",
        description="The decode rate of all pages of a batch together.",
    ),
    Metric(
        "pages_per_s", "pages/s", "Throughput", "higher",
        description="Measured pages of a round / its seconds, of the median round.",
    ),
    Metric(
        "total_ms", "ms", "Total a page", "lower", "page", ("report", "terminal", "gate"), "page ms",
        description="A page, from its image to its last token.",
    ),
    Metric(
        "batch_total_ms", "ms", "Total a batch", "lower", "batch",
        description="A batch, from its images to the last token of all.",
    ),
    *PHASES,
    Metric("round_s", "s", "Round", "lower", description="Median of the rounds; of a callable, its mean call."),
    Metric(
        "tokens", "", "Tokens a page", None, "page", value=_tokens,
        description="Generated tokens of a page, EOS included.",
    ),
    Metric(
        "peak_memory_gib", "GiB", "Peak device memory", "lower", "max",
        description="The highest `peak_bytes` of all samples / 2^30. Null on a CPU.",
        value=lambda sample: _gib(sample.peak_bytes),
    ),
    Metric(
        "peak_reserved_gib", "GiB", "Peak device memory, reserved", "lower", "max",
        description="The highest `peak_reserved_bytes` of all samples / 2^30: what the GPU must have.",
        value=lambda sample: _gib(sample.peak_reserved_bytes),
    ),
    Metric(
        "contended", "share", "Contended rounds", None, shown=("gate",),
        description="Rounds in which other work kept the processors from this process / all rounds.",
    ),
    Metric(
        "joules_per_page", "J", "Energy a page", "lower",
        description="Energy of a round / its pages (for a callable: of a call), the median over rounds.",
    ),
    Metric(
        "joules_per_token", "J", "Energy a token", "lower",
        description="Energy of a round / its generated tokens, the median over rounds. Vision and prefill are in it.",
    ),
    _quality(
        "cer", "Character error rate", "lower",
        "Sum of character edits / sum of truth characters, over the pages with truth.",
        shown=("quality", "terminal", "gate"), heading="CER",
    ),
    _quality(
        "wer", "Word error rate", "lower", "Sum of word edits / sum of truth words, over the pages with truth.",
        heading="WER",
    ),
    _quality("box_iou", "Box IoU", "higher", "Mean over all true boxes of all pages."),
    _quality("repetition", "Repeated 4-grams", "lower", "1 - distinct-4, the mean over pages."),
    _quality("runaway_pages", "Pages that ended in a loop", "lower", "Pages whose answer ended in a loop."),
    _quality("pages", "Pages scored", None, "Pages that were scored.", shown=("gate",)),
    _quality(
        "truth_pages", "Pages with truth", None, "Pages among them whose text was held against a truth.",
        shown=("gate",),
    ),
)
"""What every stage may have; a stage's own metrics are declared in its folder."""

_NAME = re.compile(r"[a-z]\w*")


class Catalogue:
    """All metrics of a session, by name, in the order they were declared."""

    def __init__(self, metrics: Iterable[Metric] = BUILTIN) -> None:
        """Raises `ConfigError` for a name that cannot be a key, or that two different metrics have."""
        self._metrics: dict[str, Metric] = {}
        for metric in metrics:
            if not _NAME.fullmatch(metric.name):
                raise ConfigError(
                    f"the metric name {metric.name!r} cannot be a key: lower case letters, digits and _ only"
                )
            if self._metrics.setdefault(metric.name, metric) != metric:
                raise ConfigError(f"two plugins declare the metric {metric.name!r}: names must differ")

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._metrics.values())

    def __contains__(self, name: object) -> bool:
        return name in self._metrics

    def __getitem__(self, name: str) -> Metric:
        return self._metrics[name]

    def shown_in(self, place: Place) -> list[Metric]:
        """The metrics that show in *place*."""
        return [metric for metric in self if place in metric.shown]

    def names(self, section: Section) -> list[str]:
        """The keys of one object of metrics.json."""
        return [metric.name for metric in self if metric.section == section]

    def undeclared(self, figures: Iterable[str], stage: str) -> StageError | None:
        """The error of *stage*, which has set *figures*, where one of them is not declared; None where all are."""
        allowed = self.names("figures")
        unknown = sorted(set(figures).difference(allowed))
        if not unknown:
            return None
        text = f"the stage {stage} reported an unknown metric: declare it in StagePlugin.metrics"
        return StageError(f"{text} ({self.unknown(unknown[0], allowed)})")

    def without_times(self) -> list[str]:
        """The keys of `figures` that need no clock: they mean the same under a tool."""
        own = [metric.name for metric in self if metric.score is not None and metric.section == "figures"]
        return ["tokens", *own]

    def unknown(self, name: str, allowed: Iterable[str] | None = None) -> str:
        """The rest of a message about an unknown metric: the nearest name, and all that are allowed."""
        names = list(self._metrics if allowed is None else allowed)
        return f"unknown metric {name}{nearest(name, names)}; allowed: {', '.join(names)}"
