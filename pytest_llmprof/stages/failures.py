"""Errors of a model or callable inside the measured loop: one line for each, and its memory freed."""

from __future__ import annotations

import gc
import re
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_llmprof.errors import LlmprofError, text_of
from pytest_llmprof.measure.phases import CALL, PhaseRecorder
from pytest_llmprof.records.metrics import Peak

_OUT_OF_MEMORY = re.compile(r"\b(?:CUDA|HIP)\b[\w\]: ]* out of memory|_STATUS_ALLOC_FAILED")


@dataclass(frozen=True)
class Failure:
    """A page that could not be read or run."""

    page: str
    error: str
    details: str | None = None
    """The traceback of an error that is not a known kind."""


def out_of_memory(error: BaseException) -> bool:
    """Whether device memory ran out: in torch's allocator (a compiler wraps what it raises), or below it in the
    driver or a library."""
    if type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(text_of(error)) is not None


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
    text = " ".join(text_of(error).split())
    if out_of_memory(error):
        wanted = re.search(r"Tried to allocate ([\d.]+ \w+)", text)
        asked = f", {wanted[1]} more asked for" if wanted else ""
        if where == CALL:
            return f"out of device memory in the callable {names[0]}{_peak_now(device, peak)}{asked}"
        pages = f"batch of {len(names)} ({names[0]}{f' ... {names[-1]}' if len(names) > 1 else ''})"
        return (
            f"out of device memory in phase {where or 'unknown'}, {pages}{_peak_now(device, peak)}{asked}: lower "
            f"{'infer.batch_size, ' if len(names) > 1 else ''}infer.max_new_tokens or the pages' size (model.mode)"
        )
    place = f" in phase {where}" if where else ""
    return f"{type(error).__name__}{place}: {text[:500]}"


def _peak_now(device: str, known: Peak) -> str:
    if not device.startswith("cuda"):
        return ""
    import torch

    gpu = torch.device(device)
    peak = known.union(Peak(torch.cuda.max_memory_allocated(gpu), torch.cuda.max_memory_reserved(gpu)))
    allocated, reserved = peak.allocated_bytes / 2**30, peak.reserved_bytes / 2**30
    total = torch.cuda.get_device_properties(gpu).total_memory / 2**30
    return f", peak {allocated:.2f} GiB allocated and {reserved:.2f} GiB reserved of {total:.1f} GiB"


def free_memory_of(error: BaseException, device: str) -> None:
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
