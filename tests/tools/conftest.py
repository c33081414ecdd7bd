"""The tools' modules on the path: they are folders of scripts, no packages. All tests use Pillow's own font."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
sys.path[:0] = [str(TOOLS), str(TOOLS / "train_tiny_reader")]


@pytest.fixture(scope="module", autouse=True)
def precision() -> Iterator[None]:
    """Training lowers it for the whole process."""
    import torch

    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="session")
def painter() -> Any:
    from fonts import BUILTIN
    from pages import Painter
    from text import Source

    return Painter(Source.load(None), BUILTIN, None)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained reader of the tests' size, exported."""
    from export import write
    from model import TINY_SIZES, build

    folder = tmp_path_factory.mktemp("reader")
    write(build(TINY_SIZES), TINY_SIZES, folder)
    return folder
