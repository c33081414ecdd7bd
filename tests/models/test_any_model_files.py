"""Which files of a checkpoint make the model that results are compared of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import zoo
from test_any_model import ALONE, BOXES, preset

from pytest_llmprof.config.schema import ModelSettings
from pytest_llmprof.models.checkpoint import digest
from pytest_llmprof.models.from_transformers import checkpoint
from pytest_llmprof.models.from_transformers.loader import load


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.build(zoo.paddleocr_vl, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def digest_of(path: Path, whole: int = 1 << 30) -> str:
    source = checkpoint.open_source(ModelSettings(path=str(path)))
    return digest(source.weights, whole, source.beside)


def test_the_digest_is_of_all_that_changes_answers(path: Path):
    found = {"": digest_of(path)}
    assert load(preset("paddleocr_vl", path), ALONE, BOXES).info.digest == found[""]
    for name in (
        *("chat_template.jinja", "config.json", "generation_config.json", "processor_config.json", "tokenizer.json"),
        *("tokenizer_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "merges.txt"),
        *("special_tokens_map.json", "added_tokens.json", "tokenizer.model", "additional_chat_templates/ocr.jinja"),
    ):
        (path / name).parent.mkdir(exist_ok=True)
        with (path / name).open("a") as file:  # a line more, or a new file
            file.write("\n")
        found[name] = digest_of(path)
    assert len(set(found.values())) == len(found)
    (path / "README.md").write_text("# A model")
    (path / "trainer_state.json").write_text("{}")
    assert digest_of(path) == list(found.values())[-1]


def test_small_files_count_whole_beside_large_weights(path: Path):
    words = path / "tokenizer.json"
    text = words.read_bytes() + b" " * (3 << 20)
    digests = set()
    for change in (b" ", b"\n"):
        words.write_bytes(text[: len(text) // 2] + change + text[len(text) // 2 :])
        digests.add(digest_of(path, whole=1000))
    assert len(digests) == 2
    assert all(one.startswith("sha256-sampled:") for one in digests)
