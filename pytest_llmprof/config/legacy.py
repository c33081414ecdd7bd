"""Keys of before the output plan, mapped to today's for one release."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NoReturn

from pytest_llmprof.config.provenance import Assignment
from pytest_llmprof.config.tree import Block, find
from pytest_llmprof.errors import ConfigError, nearest

__all__ = ["LEGACY_KEYS", "LEGACY_ROOTS", "is_legacy", "message", "split"]

_STAGE = "pipeline.torch_profiler.output"
_EXTRA = f"{_STAGE}.extra.deepseek_ocr"
_COMMON = {
    "save_predictions": f"{_STAGE}.prediction.enable",
    "visualization.enable": f"{_STAGE}.visualization.enable",
    "visualization.max_images": f"{_EXTRA}.visualization.max_images",
    "visualization.thumbnail_width": f"{_EXTRA}.visualization.thumbnail_width",
    "predictions.strip_special_tokens": f"{_EXTRA}.prediction.strip_special_tokens",
}

LEGACY_ROOTS = ("outputs", "output")
LEGACY_KEYS = {
    **{f"outputs.{key}": path for key, path in _COMMON.items()},
    **{f"output.{key}": path for key, path in _COMMON.items()},
    "output.prediction.enable": f"{_STAGE}.prediction.enable",
    "output.prediction.strip_special_tokens": f"{_EXTRA}.prediction.strip_special_tokens",
}
"""Legacy key -> the key to use instead: that of torch_profiler alone, where outputs were made then."""


def is_legacy(path: str) -> bool:
    """Whether *path* is, or looks like, a legacy key."""
    return path.split(".")[0] in LEGACY_ROOTS


def split(root: Block, assignments: Iterable[Assignment]) -> tuple[list[Assignment], list[Assignment]]:
    """(legacy ones mapped to today's keys, the others). A legacy null is unset. Raises `ConfigError`."""
    mapped: list[Assignment] = []
    others: list[Assignment] = []
    for one in assignments:
        if not is_legacy(one.path):
            others.append(one)
        elif one.path not in LEGACY_KEYS:
            if one.value in (None, {}) and any(key.startswith(f"{one.path}.") for key in LEGACY_KEYS):
                continue  # a section without a key in it
            _refuse(root, one)
        elif one.value is not None:
            mapped.append(replace(one, path=LEGACY_KEYS[one.path], written=one.path))
    return mapped, others


def _refuse(root: Block, one: Assignment) -> NoReturn:
    path = one.path
    rest = path.partition(".")[2]
    close = nearest(path, LEGACY_KEYS)
    today = f"{_STAGE}.{rest}"
    if rest and find(root, today):
        hint = f"use {today}"
    elif close:
        name = close.split("'")[1]
        hint = f"did you mean {name!r}, today {LEGACY_KEYS[name]!r}?"
    else:
        hint = f"outputs are set by {_STAGE}.*"
    raise ConfigError(f"{path} is an unknown key, set {one.source.where}; {hint}")


def message(used: Iterable[str]) -> str | None:
    """One text that names each legacy key used and the key to use instead; None where there is none."""
    pairs = [f"{key} (use {LEGACY_KEYS[key]})" for key in dict.fromkeys(used)]
    if not pairs:
        return None
    return f"legacy configuration keys were used, which the next release won't read: {'; '.join(pairs)}"
