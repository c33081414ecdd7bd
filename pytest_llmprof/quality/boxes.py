"""How well answered boxes fit the true ones.

IoU is the area of the intersection over the area of the union (P. Jaccard, 1912; as in Everingham et al.,
"The PASCAL Visual Object Classes (VOC) Challenge", 2010). Boxes are matched one to one, and only where the
labels are equal (case aside): the pair with the highest IoU first, as PASCAL VOC and COCO match, then the
next among those still free. Ties go to the earlier true box, then to the earlier answered one.
"""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmprof.records.predictions import Box

Corners = tuple[int, int, int, int]


def iou(one: Corners, other: Corners) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2), 0.0 to 1.0; 0.0 where both are empty."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / (areas - shared)


def mean_iou(truth: Sequence[Box] | None, answer: Sequence[Box]) -> float | None:
    """Mean over the boxes of *truth* of the IoU with their partner in *answer*.

    A true box without a partner counts as 0, so a missing box and a wrong label both lower the mean. None where there
    is no truth (unknown, or a page without boxes).
    """
    if not truth:
        return None
    by_label: dict[str, list[int]] = {}
    for index, box in enumerate(answer):
        by_label.setdefault(_label(box), []).append(index)
    pairs = []
    for row, true_box in enumerate(truth):
        for column in by_label.get(_label(true_box), ()):
            value = iou(true_box.box, answer[column].box)
            if value > 0.0:
                pairs.append((-value, row, column))
    pairs.sort()
    rows: set[int] = set()
    columns: set[int] = set()
    total = 0.0
    for negative, row, column in pairs:
        if row not in rows and column not in columns:
            rows.add(row)
            columns.add(column)
            total -= negative
    return total / len(truth)


def share_labels(truth: Sequence[Box] | None, answer: Sequence[Box]) -> bool:
    """Whether a box of *answer* has a label of *truth*."""
    return not set(map(_label, truth or ())).isdisjoint(map(_label, answer))


def _label(box: Box) -> str:
    return box.label.strip().casefold()
