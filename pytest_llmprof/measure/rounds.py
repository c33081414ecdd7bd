"""The measured loop: passes over the pages, the clock running only while the model works.

`run_batch` is the whole of what is timed. Reading pictures, decoding tokens to text, scoring and writing files
happen between batches, with the clock stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_llmprof.datasets.base import Page
from pytest_llmprof.errors import LlmprofError
from pytest_llmprof.measure.phases import TOP_PHASES, PhaseRecorder
from pytest_llmprof.models.base import LoadedModel

if TYPE_CHECKING:
    from PIL.Image import Image

    from pytest_llmprof.config.schema import InferSettings

__all__ = ["Answer", "Failure", "Sample", "batches", "describe_error", "generate_batch", "run_batch"]


@dataclass(frozen=True)
class Sample:
    """Times of one page in one round (milliseconds). In a batch, phases and total are the batch's own."""

    round: int
    page: str
    batch_id: int
    tokens: int
    """Generated tokens, EOS included."""
    ttft_ms: float | None
    """From the decoded picture in memory to the first token on the host (preprocess included)."""
    tpot_ms: float | None
    """(last - first token) / (tokens - 1); None for fewer than two tokens."""
    total_ms: float
    """Until the batch's last token was on the host and the model had ended."""
    other_ms: float
    """total less the sum of preprocess, vision, prefill and decode."""
    phases: dict[str, float]
    peak_bytes: int | None
    """Peak device memory of the batch; None on a CPU."""


@dataclass
class Answer:
    """The tokens of one page as they came."""

    ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    times_ns: list[int] = field(default_factory=list)
    finish: str | None = None

    def text(self, model: LoadedModel) -> str:
        """The answer's text, special tokens included."""
        return model.text(self.ids) if self.ids else "".join(self.pieces)

    def key(self) -> tuple[int, ...] | str:
        """What must be equal in every round."""
        return tuple(self.ids) if self.ids else "".join(self.pieces)


@dataclass(frozen=True)
class Failure:
    """A page that could not be read or run."""

    page: str
    error: str
    details: str | None = None
    """The traceback of an error that is not a known kind."""


def batches(pages: Sequence[Page], size: int) -> Iterator[tuple[int, Sequence[Page]]]:
    """Consecutive groups of *size* pages with their number."""
    for batch_id, start in enumerate(range(0, len(pages), size)):
        yield batch_id, pages[start : start + size]


def describe_error(error: BaseException, recorder: PhaseRecorder, names: Sequence[str], device: str) -> str:
    """One line for a failed batch; an out-of-memory names the phase, the batch and the peak."""
    if isinstance(error, LlmprofError):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError":
        import torch

        peak = torch.cuda.max_memory_allocated(torch.device(device)) / 2**30
        return (
            f"out of device memory in phase {recorder.where or 'unknown'}, batch of {len(names)} "
            f"({names[0]} ... {names[-1]}), peak {peak:.1f} GiB allocated: lower infer.batch_size or model.mode"
        )
    text = " ".join(str(error).split())
    where = f" in phase {recorder.where}" if recorder.where else ""
    return f"{type(error).__name__}{where}: {text[:500]}"


def generate_batch(
    model: LoadedModel, images: Sequence[Image], infer: InferSettings, recorder: PhaseRecorder
) -> tuple[list[Answer], int, int]:
    """Run one batch to its end. Returns the answers and the clock (ns) before and after."""
    answers = [Answer() for _ in images]
    begin = time.perf_counter_ns()
    for token in model.generate(images, infer, recorder):
        answer = answers[token.row]
        answer.times_ns.append(token.time_ns)
        if token.id is not None:
            answer.ids.append(token.id)
        elif token.text is not None:
            answer.pieces.append(token.text)
        if token.finish is not None:
            answer.finish = token.finish
    end = time.perf_counter_ns()
    return answers, begin, end


def run_batch(
    model: LoadedModel,
    names: Sequence[str],
    images: Sequence[Image],
    infer: InferSettings,
    recorder: PhaseRecorder,
    *,
    round_index: int,
    batch_id: int,
    memory: Callable[[], int | None],
) -> tuple[list[Answer], list[Sample], float]:
    """Time one batch. Returns answers, samples and the batch's seconds.

    *memory* gives the peak bytes since it was last called and resets the counter; it runs outside the clock.
    """
    memory()
    recorder.take()
    answers, begin, end = generate_batch(model, images, infer, recorder)
    phases = recorder.take()
    peak = memory()
    total = (end - begin) / 1e6
    other = total - sum(phases.get(name, 0.0) for name in TOP_PHASES)
    samples = []
    for name, answer in zip(names, answers, strict=True):
        times = answer.times_ns
        samples.append(
            Sample(
                round=round_index,
                page=name,
                batch_id=batch_id,
                tokens=len(times),
                ttft_ms=(times[0] - begin) / 1e6 if times else None,
                tpot_ms=(times[-1] - times[0]) / 1e6 / (len(times) - 1) if len(times) > 1 else None,
                total_ms=total,
                other_ms=other,
                phases=dict(phases),
                peak_bytes=peak,
            )
        )
    return answers, samples, total / 1e3
