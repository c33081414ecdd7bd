from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.outputs.predictions import PredictionWriter, read_predictions
from pytest_llmprof.records.files import encode_json
from pytest_llmprof.records.predictions import Box, Prediction

KEYS = [
    "schema",
    "page",
    "image",
    "stage",
    "prompt",
    "status",
    "error",
    "batch_id",
    "batch_size",
    "round",
    "text_raw",
    "text_clean",
    "boxes",
    "bad_boxes",
    "tokens",
    "finish_reason",
    "preprocess_ms",
    "vision_ms",
    "prefill_ms",
    "decode_ms",
    "other_ms",
    "total_ms",
    "ttft_ms",
    "tokens_per_s",
    "cer",
    "wer",
    "box_iou",
    "repetition",
    "runaway",
    "scores",
]


def test_fields_and_their_order(tmp_path: Path, make_record) -> None:
    path = tmp_path / "new" / "predictions.jsonl"
    boxes = (Box("title", (1, 2, 30, 40), "Hello"),)
    with PredictionWriter(path) as writer:
        writer.add(make_record("a", boxes=boxes, cer=0.25))
    line = json.loads(path.read_text())
    assert list(line) == KEYS
    assert tuple(KEYS) == Prediction.__struct_fields__
    assert read_predictions(path) == [make_record("a", boxes=boxes, cer=0.25)]
    assert line["schema"] == 1
    assert line["image"] == "pages/a.png"
    assert line["boxes"] == [{"label": "title", "box": [1, 2, 30, 40], "text": "Hello"}]
    assert (line["cer"], line["wer"], line["runaway"]) == (0.25, None, False)


HARD = [
    "",
    "\x00\x01\x1b[31mred\x7f\x85\x9b",
    "a\u2028b\u2029c\x0bd\x0ce\x1cf\r\ng",
    'quotes " and \\ and </script>',
    "lone \ud800 and \udfff, a pair \ud83d\ude00",
    "\ufdd0\uffff\U0010ffff",
    "long " * 210_000,
]


@pytest.mark.parametrize("text", HARD, ids=range(len(HARD)))
def test_any_text_gives_one_valid_line(tmp_path: Path, make_record, text: str) -> None:
    path = tmp_path / "predictions.jsonl"
    with PredictionWriter(path) as writer:
        writer.add(make_record("a", text, boxes=(Box(text[:99], (0, 0, 1, 1), text[:99]),), error=text))
        writer.add(make_record("b"))
    content = path.read_text(encoding="utf-8")
    # Whatever a program takes for a line end, there are two lines.
    assert len(content.splitlines()) == len(content.split("\n")) - 1 == 2
    assert not any(0x7F <= ord(character) <= 0x9F for character in content)
    first, second = read_predictions(path)
    expected = (
        text.replace("\ud83d\ude00", "\U0001f600").replace("\ud800", "\ufffd").replace("\udfff", "\ufffd")
    )
    assert first.text_raw == first.text_clean == first.error == expected
    assert second.text_raw == "Hello"


def test_random_text_comes_back(tmp_path: Path, make_record) -> None:
    rng = random.Random(5)
    texts = [
        "".join(chr(rng.choice((rng.randrange(0xD800), rng.randrange(128)))) for _ in range(60))
        for _ in range(80)
    ]
    path = tmp_path / "predictions.jsonl"
    with PredictionWriter(path) as writer:
        for number, text in enumerate(texts):
            writer.add(make_record(str(number), text))
    assert [line.text_raw for line in read_predictions(path)] == texts


def test_figures_that_are_no_numbers_are_null(make_record, tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    with PredictionWriter(path) as writer:
        writer.add(make_record("a", cer=float("nan"), total_ms=float("inf")))
    line = json.loads(path.read_text())
    assert (line["cer"], line["total_ms"]) == (None, None)


def test_each_line_is_there_at_once(tmp_path: Path, make_record) -> None:
    path = tmp_path / "predictions.jsonl"
    writer = PredictionWriter(path)
    for number in range(3):
        writer.add(make_record(str(number)))
        # Read while the file is open: what a killed run would leave.
        assert [line.page for line in read_predictions(path)] == [
            str(done) for done in range(number + 1)
        ]
    writer.close()
    writer.close()


def test_an_earlier_file_is_replaced(tmp_path: Path, make_record) -> None:
    path = tmp_path / "predictions.jsonl"
    for page in ("old", "new"):
        with PredictionWriter(path) as writer:
            writer.add(make_record(page))
    assert [line.page for line in read_predictions(path)] == ["new"]


def test_only_a_cut_last_line_is_left_out(tmp_path: Path, make_record) -> None:
    path = tmp_path / "predictions.jsonl"
    with PredictionWriter(path) as writer:
        writer.add(make_record("a"))
        writer.add(make_record("ü"))
    data = path.read_bytes()
    first = data.index(b"\n") + 1
    for end in range(first, len(data) - 1):
        path.write_bytes(data[:end])
        assert [line.page for line in read_predictions(path)] == ["a"]
    path.write_bytes(data[:-1])  # whole but for its line feed
    assert [line.page for line in read_predictions(path)] == ["a", "ü"]
    path.write_bytes(b"{broken\n" + data)
    with pytest.raises(ArtifactError, match=r"predictions\.jsonl, line 1, is not JSON"):
        read_predictions(path)
    path.write_bytes(data + b"[1]\n")
    with pytest.raises(ArtifactError, match="line 3"):
        read_predictions(path)
    with pytest.raises(ArtifactError, match="cannot read"):
        read_predictions(tmp_path / "missing.jsonl")


def test_a_full_disk_is_one_clear_error(make_record, tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    writer = PredictionWriter(path)
    error = pytest.raises(ArtifactError, match=r"cannot write .*predictions\.jsonl: No space left on device")
    with open("/dev/full", "wb", buffering=0) as writer._file, error:
        writer.add(make_record("a"))


def test_a_line_that_did_not_fit_is_taken_back(make_record, tmp_path: Path) -> None:
    """A limit on the file's size stands in for the full disk; the child must not be killed by its signal."""
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    path = tmp_path / "predictions.jsonl"
    writer = PredictionWriter(path)
    writer.add(make_record("a"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, hard))
        with pytest.raises(ArtifactError, match="cannot write"):
            writer.add(make_record("b"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    writer.add(make_record("c"))
    writer.close()
    assert path.read_bytes().count(b"\n") == 2
    assert [line.page for line in read_predictions(path)] == ["a", "c"]


def test_a_record_of_whole_unicode(make_record) -> None:
    assert json.loads(encode_json(make_record("a\ud800")))["page"] == "a\ufffd"
