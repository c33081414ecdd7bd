from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import msgspec
import pytest

from pytest_llmprof.config.schema import OutputExtra
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.outputs.options import output_options
from pytest_llmprof.outputs.predictions import read_predictions
from pytest_llmprof.outputs.writer import Outputs, check_writable
from pytest_llmprof.records.predictions import Box


@dataclasses.dataclass(frozen=True)
class _Visualization:
    max_images: int | None = 1
    thumbnail_width: int = 30
    style: str = "of this model alone"


@dataclasses.dataclass(frozen=True)
class _Extra:
    visualization: _Visualization = dataclasses.field(default_factory=_Visualization)
    threshold: float = 0.5


@dataclasses.dataclass(frozen=True)
class _Other:
    temperature: float = 0.0


def test_options_of_any_model() -> None:
    defaults = OutputExtra()
    assert (defaults.visualization.max_images, defaults.visualization.thumbnail_width) == (16, 480)
    assert not defaults.prediction.strip_special_tokens
    assert output_options(None) == output_options(_Other()) == output_options({}) == defaults
    assert output_options(_Extra()).visualization.max_images == 1
    assert output_options({"visualization": {"max_images": None}}).visualization.max_images is None
    assert output_options({"prediction": {"strip_special_tokens": True}}).prediction.strip_special_tokens
    with pytest.raises(msgspec.ValidationError):
        output_options({"visualization": {"max_images": "many"}})


def test_both_outputs_in_one_directory(tmp_path: Path, make_record, make_page) -> None:
    pages = [make_page("a", truth_free="Hello"), make_page("b")]
    outputs = Outputs(tmp_path / "out", tmp_path / "out", title="t", prompt_kind="free", extra=_Extra())
    for page in pages:
        outputs.add(make_record(page.name, "raw", boxes=(Box("text", (1, 1, 5, 5)),), cer=0.2), "Hallo")
    outputs.close(pages, {"Model": "tiny"})
    assert sorted(os.listdir(tmp_path / "out")) == ["pages", "predictions.jsonl", "predictions.md"]
    assert os.listdir(tmp_path / "out/pages") == ["a"]
    # The line of a page without a section is whole all the same.
    assert [
        (line.text_raw, len(line.boxes))
        for line in read_predictions(tmp_path / "out/predictions.jsonl")
    ] == [
        ("raw", 1),
        ("raw", 1),
    ]
    text = (tmp_path / "out/predictions.md").read_text()
    assert "- Model: tiny\n" in text
    assert "- Hello\n" in text  # compared with what was scored, not with the raw text
    assert "+ Hallo\n" in text
    outputs.close(pages)  # does nothing
    assert (tmp_path / "out/predictions.md").read_text() == text


def test_each_output_alone_and_none(tmp_path: Path, make_record, make_page) -> None:
    page = make_page("a")
    for prediction, visualization, files in (
        (tmp_path / "p", None, {"predictions.jsonl"}),
        (None, tmp_path / "v", {"predictions.md", "pages"}),
        (None, None, None),
    ):
        outputs = Outputs(prediction, visualization, title="t", prompt_kind="free")
        outputs.add(make_record("a"), "Hello")
        outputs.close([page])
        directory = prediction or visualization
        assert files is None or set(os.listdir(directory or "")) == files


def test_an_interrupted_run_keeps_what_it_had(tmp_path: Path, make_record, make_page) -> None:
    pages = [make_page("a"), make_page("b")]
    outputs = Outputs(tmp_path / "p", tmp_path / "v", title="t", prompt_kind="free")

    def run() -> None:
        try:
            outputs.add(make_record("a"), "Hello")
            raise KeyboardInterrupt
        finally:
            outputs.close(pages)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert [line.page for line in read_predictions(tmp_path / "p/predictions.jsonl")] == ["a"]
    assert "| [a](#page-1) | ok |" in (tmp_path / "v/predictions.md").read_text()


def test_check_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "new" / "deep")
    assert os.listdir(tmp_path / "new" / "deep") == []
    file = tmp_path / "file"
    file.write_text("in the way")
    with pytest.raises(ArtifactError, match=r"^the\.key: .*/file is not a directory$"):
        check_writable(file, "the.key")
    with pytest.raises(ArtifactError, match=r"^the\.key: cannot write in .*/file/below: Not a directory$"):
        check_writable(file / "below", "the.key")
    with pytest.raises(ArtifactError, match=r"^the\.key: .* is not a path"):
        check_writable(tmp_path / "a\0b", "the.key")
    with pytest.raises(ArtifactError, match="File name too long"):
        check_writable(tmp_path / ("x" * 300), "the.key")
    with pytest.raises(ArtifactError, match="cannot write in /proc"):
        check_writable(Path("/proc/llmprof"))


def test_outputs_refuse_what_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "v/pages").mkdir(parents=True)
    (tmp_path / "v/pages/mine.png").write_text("")
    with pytest.raises(ArtifactError, match="is not a directory"):
        Outputs(tmp_path / "file", None, title="t", prompt_kind="free")
    with pytest.raises(ArtifactError, match=r"holds 'mine\.png'"):
        Outputs(None, tmp_path / "v", title="t", prompt_kind="free")
    # Predictions alone don't touch `pages`.
    Outputs(tmp_path / "v", None, title="t", prompt_kind="free").close([])
