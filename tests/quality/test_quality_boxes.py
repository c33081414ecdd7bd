from __future__ import annotations

import pytest

from pytest_llmprof.models.base import Box
from pytest_llmprof.quality.boxes import iou, score_boxes


def test_iou() -> None:
    assert iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1.0
    assert iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(50 / 150)
    assert iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0.0  # they touch
    assert iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0.0


def test_missing_wrong_and_extra_boxes_cost() -> None:
    truth = [Box("title", (0, 0, 10, 10)), Box("text", (0, 20, 10, 30)), Box("text", (0, 40, 10, 50))]
    answer = [Box("Title ", (0, 0, 10, 10)), Box("image", (0, 20, 10, 30)), Box("text", (0, 40, 10, 48))]
    score = score_boxes(truth, answer)
    assert score is not None
    assert score.mean_iou == pytest.approx((1.0 + 0.0 + 0.8) / 3)
    assert score.precision == pytest.approx(2 / 3)
    assert score.recall == pytest.approx(2 / 3)
    assert (score.truth, score.answered) == (3, 3)


def test_one_to_one_best_pair_first() -> None:
    truth = [Box("text", (0, 0, 10, 10))]
    answer = [Box("text", (0, 0, 10, 9)), Box("text", (0, 0, 10, 10))]
    score = score_boxes(truth, answer)
    assert score is not None
    assert (score.mean_iou, score.precision, score.recall) == (1.0, 0.5, 1.0)


def test_below_the_threshold_counts_for_the_mean_alone() -> None:
    score = score_boxes([Box("text", (0, 0, 10, 10))], [Box("text", (0, 0, 10, 4))])
    assert score is not None
    assert (score.mean_iou, score.precision, score.recall) == (pytest.approx(0.4), 0.0, 0.0)


def test_no_truth_and_no_answer() -> None:
    assert score_boxes(None, [Box("text", (0, 0, 1, 1))]) is None
    assert score_boxes((), []) is None
    score = score_boxes([Box("text", (0, 0, 1, 1))], [])
    assert score is not None
    assert (score.mean_iou, score.precision, score.recall) == (0.0, 0.0, 0.0)
