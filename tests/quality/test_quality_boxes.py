from __future__ import annotations

import pytest

from pytest_llmprof.quality.boxes import iou, mean_iou
from pytest_llmprof.records.predictions import Box


def test_iou() -> None:
    assert iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1.0
    assert iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(50 / 150)
    assert iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0.0  # they touch
    assert iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0.0


def test_missing_wrong_and_extra_boxes_cost() -> None:
    truth = [Box("title", (0, 0, 10, 10)), Box("text", (0, 20, 10, 30)), Box("text", (0, 40, 10, 50))]
    answer = [Box("Title ", (0, 0, 10, 10)), Box("image", (0, 20, 10, 30)), Box("text", (0, 40, 10, 48))]
    assert mean_iou(truth, answer) == pytest.approx((1.0 + 0.0 + 0.8) / 3)


def test_one_to_one_best_pair_first() -> None:
    truth = [Box("text", (0, 0, 10, 10))]
    assert mean_iou(truth, [Box("text", (0, 0, 10, 9)), Box("text", (0, 0, 10, 10))]) == 1.0
    assert mean_iou([*truth, *truth], [Box("text", (0, 0, 10, 10))]) == 0.5


def test_a_poor_fit_counts_for_the_mean() -> None:
    assert mean_iou([Box("text", (0, 0, 10, 10))], [Box("text", (0, 0, 10, 4))]) == pytest.approx(0.4)


def test_no_truth_and_no_answer() -> None:
    assert mean_iou(None, [Box("text", (0, 0, 1, 1))]) is None
    assert mean_iou((), []) is None
    assert mean_iou([Box("text", (0, 0, 1, 1))], []) == 0.0
