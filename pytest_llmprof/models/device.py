"""Where a model runs and in which type: what `model.device` and `model.dtype` mean on this machine."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from pytest_llmprof.errors import ModelError, nearest
from pytest_llmprof.measure.collector import paused_garbage_collector

if TYPE_CHECKING:
    import torch


def check_choice(key: str, value: str, allowed: Collection[str]) -> None:
    """Raise `ModelError` where the *value* of *key* is not allowed."""
    if value not in allowed:
        raise ModelError(f"{key}={value} is not one of {', '.join(allowed)}{nearest(value, allowed)}")


def pick_device(name: str) -> torch.device:
    """Return the device that *name* (auto, cpu, cuda or cuda:N) means here. Raises `ModelError`."""
    with paused_garbage_collector():
        import torch

    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda:0" if present else "cpu")
    kind, colon, number = name.partition(":")
    if kind not in {"cpu", "cuda"} or (colon and (kind == "cpu" or not number.isdecimal())):
        raise ModelError(f"model.device={name} is not one of auto, cpu, cuda, cuda:N")
    if kind == "cpu":
        return torch.device("cpu")
    if not present:
        build = "" if torch.version.cuda else f" (torch {torch.__version__} is built without CUDA)"
        raise ModelError(f"model.device={name}, but torch sees no CUDA GPU{build}; use auto or cpu")
    index = int(number or 0)
    if index >= present:
        raise ModelError(f"model.device={name}, but torch sees {present} CUDA GPU(s); the last is cuda:{present - 1}")
    return torch.device("cuda", index)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype that *name* means on *device*; auto is bfloat16 on CUDA and float32 on a CPU."""
    import torch

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    check_choice("model.dtype", name, ("auto", *dtypes))
    return dtypes[name]
