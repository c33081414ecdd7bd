"""How well answered boxes fit the true ones.

IoU is the area of the intersection over the area of the union (P. Jaccard, 1912; as in Everingham et al.,
"The PASCAL Visual Object Classes (VOC) Challenge", 2010). Boxes are matched one to one, and only where the
labels are equal (case aside): the pair with the highest IoU first, as PASCAL VOC and COCO match, then the
next among those still free. Ties go to the earlier true box, then to the earlier answered one. A true box
without a partner has IoU 0, so both a missing box and a wrong label cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_llmprof.models.base import Box

__all__ = ["BoxScore", "iou", "score_boxes"]

Corners = tuple[int, int, int, int]


@dataclass(frozen=True)
class BoxScore:
    """The boxes of one page against the truth."""

    mean_iou: float
    """Mean over the true boxes of the IoU with their partner (0 without one)."""
    precision: float
    """Share of answered boxes whose partner has IoU >= the threshold; 0.0 where none was answered."""
    recall: float
    """Share of true boxes whose partner has IoU >= the threshold."""
    truth: int
    """Number of true boxes."""
    answered: int
    """Number of answered boxes."""


def iou(one: Corners, other: Corners) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2), 0.0 to 1.0; 0.0 where both are empty."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / (areas - shared)


def score_boxes(
    truth: Sequence[Box] | None, answer: Sequence[Box], threshold: float = 0.5
) -> BoxScore | None:
    """Match *answer* to *truth* and score it; precision and recall count pairs of IoU >= *threshold*.

    None where there is no truth (unknown, or a page without boxes).
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
    matched: list[float] = []
    for negative, row, column in pairs:
        if row not in rows and column not in columns:
            rows.add(row)
            columns.add(column)
            matched.append(-negative)
    hits = sum(value >= threshold for value in matched)
    return BoxScore(
        mean_iou=sum(matched) / len(truth),
        precision=hits / len(answer) if answer else 0.0,
        recall=hits / len(truth),
        truth=len(truth),
        answered=len(answer),
    )


def _label(box: Box) -> str:
    return box.label.strip().casefold()
