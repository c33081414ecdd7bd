"""The measured loop: passes over the pages, the clock running only while the model works.

`run_batch` is the whole of what is timed. Reading pictures, decoding tokens to text, scoring and writing files
happen between batches, with the clock stopped.
"""

from __future__ import annotations

import gc
import re
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from pytest_llmprof.datasets.base import Page
from pytest_llmprof.errors import LlmprofError, ModelError
from pytest_llmprof.measure.memory import Peak, PeakMemory
from pytest_llmprof.measure.phases import CALL, TOP_PHASES, PhaseRecorder
from pytest_llmprof.models.base import LoadedModel

if TYPE_CHECKING:
    from PIL.Image import Image

    from pytest_llmprof.config.schema import InferSettings

__all__ = [
    "Answer",
    "Failure",
    "Sample",
    "batch_rate",
    "batches",
    "describe_error",
    "generate_batch",
    "let_go",
    "out_of_memory",
    "run_batch",
    "time_per_token",
]


_OUT_OF_MEMORY = re.compile(r"\b(?:CUDA|HIP)\b[\w\]: ]* out of memory|_STATUS_ALLOC_FAILED")


@dataclass(frozen=True)
class Sample:
    """Times of one page in one round (milliseconds). In a batch, phases and `other_ms` are the batch's own."""

    round: int
    page: str
    batch_id: int
    tokens: int
    """Generated tokens, EOS included."""
    ttft_ms: float | None
    """From the decoded picture in memory to the first token on the host (preprocess included)."""
    tpot_ms: float | None
    """(last - first arrival) / tokens that came after the first arrival; None where none did."""
    total_ms: float
    """Until the page's last token was on the host; of the batch's last page, until the model had ended."""
    other_ms: float
    """The batch's total less the sum of preprocess, vision, prefill and decode."""
    phases: dict[str, float]
    peak_bytes: int | None
    """Peak device memory of the batch in tensors; None on a CPU."""
    peak_reserved_bytes: int | None = None
    """Peak device memory that torch had taken from the card during the batch; None on a CPU."""
    batch_total_ms: float | None = None
    """Until the batch's last token was on the host and the model had ended."""
    batch_size: int = 1
    """Pages in its batch: the last one may have fewer than `infer.batch_size`."""
    batch_tokens_per_s: float | None = None
    """Tokens of all rows after their first arrival / time from the first arrival of all to the last."""


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


def out_of_memory(error: BaseException) -> bool:
    """Whether device memory ran out: in torch's allocator (a compiler wraps what it raises), or below it in the
    driver or a library."""
    if type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


def describe_error(error: BaseException, recorder: PhaseRecorder, names: Sequence[str], device: str) -> str:
    """One line for a failed batch or callable; an out-of-memory names the phase, the batch and the peak.

    Takes what the recorder knows of peaks: its readings have reset torch's counters on the way out.
    """
    where = recorder.where
    peak = Peak(0, 0)
    for found in recorder.take_peaks().values():
        peak = found.union(peak)
    if isinstance(error, LlmprofError):
        return str(error)
    text = " ".join(str(error).split())
    if out_of_memory(error):
        wanted = re.search(r"Tried to allocate ([\d.]+ \w+)", text)
        asked = f", {wanted[1]} more asked for" if wanted else ""
        if where == CALL:
            return f"out of device memory in the callable {names[0]}{_peak_now(device, peak)}{asked}"
        pages = f"batch of {len(names)} ({names[0]}{f' ... {names[-1]}' if len(names) > 1 else ''})"
        return (
            f"out of device memory in phase {where or 'unknown'}, {pages}{_peak_now(device, peak)}{asked}: lower "
            f"{'infer.batch_size, ' if len(names) > 1 else ''}infer.max_new_tokens or model.mode"
        )
    place = f" in phase {where}" if where else ""
    return f"{type(error).__name__}{place}: {text[:500]}"


def _peak_now(device: str, known: Peak) -> str:
    if not device.startswith("cuda"):
        return ""
    import torch

    card = torch.device(device)
    peak = known.union(Peak(torch.cuda.max_memory_allocated(card), torch.cuda.max_memory_reserved(card)))
    allocated, reserved = peak.allocated_bytes / 2**30, peak.reserved_bytes / 2**30
    total = torch.cuda.get_device_properties(card).total_memory / 2**30
    return f", peak {allocated:.2f} GiB allocated and {reserved:.2f} GiB reserved of {total:.1f} GiB"


def let_go(error: BaseException, device: str) -> None:
    """Drop what the frames of *error* and of its causes hold (a batch's tensors), and free the cached memory."""
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        one = chain.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        chain += [one.__cause__, one.__context__]
        traceback.clear_frames(one.__traceback__)
        one.__traceback__ = None
    if device.startswith("cuda"):
        import torch

        gc.collect()  # modules and caches may refer to one another in circles
        torch.cuda.empty_cache()


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
    memory: PeakMemory,
) -> tuple[list[Answer], list[Sample], float]:
    """Time one batch. Returns answers, samples and the batch's seconds.

    *memory* is read outside the clock.
    """
    memory.take()
    recorder.take()
    answers, begin, end = generate_batch(model, images, infer, recorder)
    for name, answer in zip(names, answers, strict=True):
        _check_times(name, [begin, *answer.times_ns, end])
    phases = recorder.take()
    peak = memory.take()
    total = (end - begin) / 1e6
    other = total - sum(phases.get(name, 0.0) for name in TOP_PHASES)
    last = max((answer.times_ns[-1] for answer in answers if answer.times_ns), default=end)
    rate = batch_rate([answer.times_ns for answer in answers])
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
                tpot_ms=time_per_token(times),
                total_ms=(times[-1] - begin) / 1e6 if times and times[-1] < last else total,
                other_ms=other,
                phases=dict(phases),
                peak_bytes=None if peak is None else peak.allocated_bytes,
                peak_reserved_bytes=None if peak is None else peak.reserved_bytes,
                batch_total_ms=total,
                batch_size=len(names),
                batch_tokens_per_s=rate,
            )
        )
    return answers, samples, total / 1e3


def _check_times(page: str, times_ns: Sequence[int]) -> None:
    """Refuse tokens that came before their batch began, after it ended, or before the one in front of them."""
    last = len(times_ns) - 2
    for number, (before, after) in enumerate(pairwise(times_ns), start=1):
        if after < before:
            raise ModelError(
                f"page {page}: the time of token {min(number, last)} is before that of the token in front of "
                "it, or outside its batch: Token.time_ns is time.perf_counter_ns() when the token was there"
            )


def time_per_token(times_ns: Sequence[int]) -> float | None:
    """Milliseconds a token after the first arrival; None where all tokens came at once.

    Tokens that an engine hands over in one block arrive together: of those that came with the first one the time
    is not known, so they don't count.
    """
    after = sum(time > times_ns[0] for time in times_ns)
    return (times_ns[-1] - times_ns[0]) / 1e6 / after if after else None


def batch_rate(rows_ns: Sequence[Sequence[int]]) -> float | None:
    """Tokens a second of all rows together, after each row's first arrival; None where no row had a second one."""
    rows = [times for times in rows_ns if times]
    after = sum(time > times[0] for times in rows for time in times)
    if not after:
        return None
    return after / (max(times[-1] for times in rows) - min(times[0] for times in rows)) * 1e9
