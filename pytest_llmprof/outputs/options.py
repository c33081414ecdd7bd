"""The output options that any model may have in its own `output.extra.<model>` block."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from typing import Any

import msgspec

from pytest_llmprof.config.schema import OutputExtra


def output_options(extra: Any) -> OutputExtra:
    """The options in *extra*: a model's own dataclass, a mapping of the same shape, or None for the defaults.

    Options that *extra* lacks have their defaults; options that only the model knows are left out.
    """
    if extra is None:
        return OutputExtra()
    block = asdict(extra) if is_dataclass(extra) and not isinstance(extra, type) else extra
    return msgspec.convert(block, OutputExtra)
