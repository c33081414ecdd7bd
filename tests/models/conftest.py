"""Fixtures of the model tests: the reference checkpoint, a tiny random model, a document model's checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from ocr_helpers import OFFICIAL, Record


@pytest.fixture
def phases() -> Record:
    return Record()


@pytest.fixture(scope="session")
def official_weights() -> Any:
    """transformers' model with the reference checkpoint's weights, through our loader."""
    import torch

    from pytest_llmprof.models.checkpoint import open_checkpoint
    from pytest_llmprof.models.deepseek_ocr.loader import load_weights

    return load_weights(open_checkpoint(OFFICIAL), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def tiny() -> Any:
    """The tiny model with random weights, in mode tiny."""
    from pytest_llmprof.config.schema import InferSettings, ModelSettings
    from pytest_llmprof.models.deepseek_ocr.loader import load

    return load(
        ModelSettings(weights="random", size="tiny", mode="tiny", device="cpu", dtype="float32"), InferSettings()
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of a document model, paddleocr_vl."""
    import zoo

    return zoo.build(zoo.paddleocr_vl, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to change or break."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))
