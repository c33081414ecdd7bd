"""metrics.json: what one test measured in one stage.

Times are milliseconds of the host's clock unless a name says otherwise. A value that cannot be known is null.
A stage adds blocks of its own beside these fields (`pytest_llmprof.records.stage`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from pytest_llmprof.text.numbers import change, change_range, number

SCHEMA = 1
"""Version of metrics.json."""


class Sample(Struct, frozen=True):
    """One page in one round. In a batch, `phases`, `other_ms`, the peaks and `batch_*` are the batch's own."""

    round: int
    page: str
    batch_id: int
    tokens: int
    """Generated tokens, EOS included."""
    ttft_ms: float | None
    """From the decoded image in memory to the first token on the host (preprocess included)."""
    tpot_ms: float | None
    """(last - first arrival) / tokens that came after the first arrival; null where none did."""
    total_ms: float
    """Until the page's last token was on the host; of the batch's last page, until the model had ended."""
    other_ms: float
    """The batch's total less the sum of preprocess, vision, prefill and decode."""
    phases: dict[str, float]
    """Milliseconds by phase."""
    peak_bytes: int | None
    """Peak device memory of the batch in tensors; null on a CPU."""
    peak_reserved_bytes: int | None = None
    """Peak device memory that torch had taken from the GPU during the batch; null on a CPU."""
    batch_total_ms: float | None = None
    """Until the batch's last token was on the host and the model had ended; null for a callable."""
    batch_size: int = 1
    """Pages in its batch: the last one may have fewer than `infer.batch_size`."""
    batch_tokens_per_s: float | None = None
    """Tokens of all rows after their first arrival / time from the first arrival of all to the last."""


class Peak(Struct, frozen=True):
    """The most memory that was in use at once, in bytes."""

    allocated_bytes: int
    """In tensors."""
    reserved_bytes: int
    """Taken from the GPU by the allocator: tensors, what is cached for the next ones, CUDA graphs' pools."""

    def union(self, other: Peak | None) -> Peak:
        """The higher of both, part by part."""
        if other is None:
            return self
        return Peak(
            max(self.allocated_bytes, other.allocated_bytes), max(self.reserved_bytes, other.reserved_bytes)
        )


class RoundEnergy(Struct, frozen=True):
    """The energy of one round."""

    energy_j: float | None
    span_s: float | None
    """Seconds between the two readings of the counter: a little more than the round."""
    reason: str | None
    """Why `energy_j` is null."""


class Energy(Struct):
    """The GPU's energy counter around the rounds."""

    reason: str | None = None
    """Why there is no energy at all."""
    update_s: float | None = None
    """Seconds between two updates of the counter, as seen."""
    rounds: list[RoundEnergy] = []
    """One for each round; empty on a CPU."""


class RoundHost(Struct, frozen=True):
    """What one round got of the host's processors, the gaps between its batches included."""

    load: float | None
    """Processes that ran or waited to, the mean of the last minute, at its end; null where the system gives none."""
    cpu_share: float
    """CPU time of this process / time of the round: 2.0 is two whole processors."""
    waited_share: float | None
    """Time in which the thread that waited longest for a processor had none / time of the round; null where the kernel
    does not count it."""
    contended: bool
    """Whether other work kept the processors from this process, by the rule in docs/measures.md."""


CONTENDED_ROUNDS = 0.1
"""A larger share of contended rounds can reach the medians."""


class ErrorRecord(Struct):
    """One error of a test."""

    page: str | None
    """The page that failed; null where the whole stage did."""
    error: str
    """One line."""


class Spread(Struct):
    """What a metric's median hides: over the medians of pages (of batches, for what a batch's pages share)."""

    min: float
    max: float
    p50: float
    p90: float
    iqr: float | None
    """The noise: the median over pages of the interquartile range of the rounds; null for a single round."""
    p99: float | UnsetType = UNSET
    """Only from 100 pages (or batches) on."""


class GateResult(Struct):
    """A gate and its outcome."""

    name: str
    limit: str
    """As it was written, "<=0.05"."""
    figure: float | None
    """The measured value; null where there is none."""
    outcome: str
    """passed | failed | unclear | not applicable | not measured | measured in another stage"""
    reason: str | None = None
    """Why there is no value, or of how many pages it is; against a baseline, why it is unclear."""
    verdict: str | None = None
    """slower | faster | same | ... against the baseline; null for a limit on the metric itself, as all that follows."""
    baseline: float | None = None
    """The baseline's value, the median over its runs."""
    ratio: float | None = None
    """Value / baseline."""
    low: float | None = None
    """Confidence interval of the ratio; null for exact values."""
    high: float | None = None
    level: float | None = None
    """Its confidence (0..1)."""
    how: str | None = None
    """Processes on both sides, and what was assumed."""

    @property
    def change(self) -> str:
        """From the baseline's value to this one: "0.54 → 0.567, +5.1 % (+3.2 to +7.0 %)"."""
        text = f"{number(self.baseline)} → {number(self.figure)}"
        if self.ratio is None:
            return text
        within = "" if self.low is None or self.high is None else f" ({change_range(self.low, self.high)})"
        return f"{text}, {change(self.ratio)}{within}"

    @property
    def text(self) -> str:
        """The gate in one line: "cer is 0.1, limit <=0.05", "cer <=0.05 is not applicable: no page has truth",
        "tpot_ms is slower: 0.54 → 0.567, +5.1 % (+3.2 to +7.0 %), limit 2% slower"."""
        if not self.is_known:
            return f"{self.name} {self.limit} is {self.outcome}: {self.reason}"
        if self.verdict is not None:
            reason = f" ({self.reason})" if self.reason else ""
            return f"{self.name} is {self.verdict}: {self.change}, limit {self.limit}{reason}"
        return f"{self.name} is {self.figure:.6g}, limit {self.limit}" + (f" ({self.reason})" if self.reason else "")

    @property
    def is_known(self) -> bool:
        """Whether there is a value to hold against the limit."""
        return self.outcome != "not measured" and (self.verdict is not None or self.figure is not None)


def gate_texts(gates: Iterable[GateResult], *, prefix: bool = False) -> list[str]:
    """Each gate in one line, with *prefix* after the word "gate"; those without a value for one reason share theirs:
    "gates ttft_ms 2% slower, tpot_ms 2% slower are not measured: there is no baseline"."""
    groups: dict[Any, list[GateResult]] = {}
    for place, gate in enumerate(gates):
        groups.setdefault(place if gate.is_known else (gate.outcome, gate.reason), []).append(gate)
    texts = []
    for group in groups.values():
        text = group[0].text
        if len(group) > 1:
            listed = ", ".join(f"{gate.name} {gate.limit}" for gate in group)
            text = f"{listed} are {group[0].outcome}: {group[0].reason}"
        texts.append(f"gate{'s' if len(group) > 1 else ''} {text}" if prefix else text)
    return texts


class ModelInfo(Struct, frozen=True):
    """Facts about a loaded model."""

    name: str
    weights: str
    """checkpoint | embedded | random. Quality is not applicable where it is random."""
    digest: str
    """Digest of the weights ("sha256:..." of the files, or "random:<size>:<seed>")."""
    parameters: int
    device: str
    """"cpu" or "cuda:0"."""
    dtype: str
    """"float32", "bfloat16" or "float16"."""
    mode: str
    engine: str
    details: dict[str, Any] = {}
    note: str | None = None
    """What a reader must know of how it ran, in one line; null where there is nothing."""


class LeftOut(Struct, frozen=True):
    """Files of a dataset that no page was made of, for one reason."""

    reason: str
    count: int
    files: list[str]
    """The first ones, at most 20; inputs.jsonl has all."""


class DatasetInfo(Struct):
    """The pages that ran."""

    name: str
    digest: str
    pages: int
    left_out: list[LeftOut] = []


class Fingerprint(Struct):
    """What must be equal for two results to be of the same work."""

    card: str | None = None
    """The GPU's name; null on a CPU."""
    device: str | None = None
    model: str | None = None
    """Digest of the weights."""
    dataset: str | None = None
    """Digest of the pages."""
    config: str | None = None
    """Digest of the configuration."""
    versions: dict[str, str | None] | None = None
    engine: str | None = None
    """The engine that ran; null for a callable."""
    engine_reason: str | None = None
    """Why `infer.engine=auto` became this engine; null where the engine was named. It may differ between results."""


class Metrics(Struct, kw_only=True):
    """All of metrics.json but the stage's own blocks."""

    schema: int = SCHEMA
    test: str
    """The test's directory under the run directory."""
    id: str
    """pytest's node id."""
    stage: str
    kind: str | None
    """"pages" or "callable"; null where a child under a tool ended before it measured."""
    status: str
    """ok | error"""
    errors: list[ErrorRecord] = []
    rounds: int = 0
    warmup: int = 0
    """Warm-up passes."""
    iterations: int = 1
    """Calls a round of a callable, whose samples hold the time of one call; 1 for pages."""
    pages: int = 0
    """Pages that were measured."""
    batch_size: int = 1
    token_block: int | None = None
    """Tokens that the engine hands over at a time; null for a callable."""
    deterministic: bool | None = None
    """Whether later rounds gave the first one's tokens; null for a single round."""
    samples: list[Sample] = []
    round_seconds: list[float] = []
    """Seconds of each round: the sum of its batches, or of its calls."""
    round_host: list[RoundHost] = []
    """The host's processors in each round; empty under a tool."""
    phase_peaks: dict[str, Peak] | None = None
    """Peak memory of each phase in the warm-up; null on a CPU and without a warm-up."""
    energy: Energy | None = None
    """Null under a tool."""
    figures: dict[str, float | None] = {}
    """By the names of the catalogue."""
    spread: dict[str, Spread] = {}
    quality: dict[str, float | None] | None = None
    """By the names of the catalogue; null for a callable."""
    quality_reason: str | None = None
    """Why CER is null; null where it is not."""
    gates: list[GateResult] = []
    profiler_ran_before: bool = False
    """Whether a profiler ran in this process before."""
    model: ModelInfo | None = None
    """Null for a callable."""
    prompt: str | None = None
    """The full prompt; null for a callable."""
    prompt_note: str | None = None
    """How a backslash and an n in `infer.prompt` were read; null where there are none."""
    dataset: DatasetInfo | None = None
    """Null for a callable."""
    callable: str | None = None
    """The callable's name; null for pages."""
    fingerprint: Fingerprint = msgspec.field(default_factory=Fingerprint)

    @property
    def device(self) -> str:
        """Where it ran, "cpu" or "cuda:0"; empty where it is not known."""
        return self.fingerprint.device or (self.model.device if self.model else "")
