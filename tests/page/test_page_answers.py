"""The pages of a gallery as the page gets them."""

import json

import pytest
from page_runs import answer_of, write_gallery

from pytest_llmprof.report.page.answers import LONGEST, read_answers


def test_failed_pages_come_first_then_loops_then_the_worst(tmp_path):
    write_gallery(
        tmp_path / "one",
        [
            answer_of("good", cer=0.0),
            answer_of("bad", cer=0.5),
            answer_of("loop", cer=0.1, runaway=True),
            answer_of("failed", status="error", error="cannot be read"),
        ],
    )
    assert [answer.page for answer in read_answers(tmp_path, "one")] == ["failed", "loop", "bad", "good"]


def test_a_gallery_has_image_truth_and_boxes(tmp_path):
    write_gallery(tmp_path / "t/one", [answer_of("a")])
    (answer,) = read_answers(tmp_path, "t/one")
    assert answer.image == "t/one/viz/pages/p0/thumbnail.jpg"
    assert answer.size == (200, 100)
    assert (answer.scored, answer.truth) == ("Total 12.30", "Total 72.30")
    assert answer.boxes == [("title", 10, 10, 90, 40, "Total 12.30")]


def test_predictions_alone_are_enough(tmp_path):
    (tmp_path / "one/pred").mkdir(parents=True)
    lines = "".join(json.dumps(answer_of(page)) + "\n" for page in ("a", "b")) + '{"page": "cut o'
    (tmp_path / "one/pred/predictions.jsonl").write_text(lines)
    assert [(answer.page, answer.image) for answer in read_answers(tmp_path, "one")] == [("a", None), ("b", None)]


def test_hidden_characters_are_visible_and_long_texts_cut(tmp_path):
    write_gallery(tmp_path / "one", [answer_of("a\u202e\x1b[31m", text_raw="\x1b[31m\u202eabc" + "x" * 200_000)])
    (answer,) = read_answers(tmp_path, "one")
    assert answer.page == "a<U+202E>␛[31m"
    assert answer.raw.startswith("␛[31m<U+202E>abcxxx")
    assert answer.cut == 200_009
    assert len(answer.raw) < LONGEST + 20


@pytest.mark.parametrize("content", ["{", "[]", '{"page": 3}', "\udcff"])
def test_what_is_no_gallery_is_left_out(tmp_path, content):
    write_gallery(tmp_path / "one", [answer_of("a")])
    other = tmp_path / "one/viz/pages/other"
    other.mkdir()
    (other / "info.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert [answer.page for answer in read_answers(tmp_path, "one")] == ["a"]
