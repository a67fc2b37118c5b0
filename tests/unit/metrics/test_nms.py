"""Suppression against the definition, written out with loops."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.metrics.nms import nms


def by_definition(boxes, scores, classes, iou, max_det, candidates):
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:candidates]
    kept = []
    for i in order:
        if len(kept) == max_det:
            break
        for k in kept:
            if classes[k] != classes[i]:
                continue
            width = min(boxes[i, 2], boxes[k, 2]) - max(boxes[i, 0], boxes[k, 0])
            height = min(boxes[i, 3], boxes[k, 3]) - max(boxes[i, 1], boxes[k, 1])
            inter = max(width, np.float32(0)) * max(height, np.float32(0))
            own = (boxes[i, 2] - boxes[i, 0]) * (boxes[i, 3] - boxes[i, 1])
            other = (boxes[k, 2] - boxes[k, 0]) * (boxes[k, 3] - boxes[k, 1])
            if inter > np.float32(iou) * (other + own - inter):
                break
        else:
            kept.append(i)
    return kept


def scene(seed: int, count: int, classes: int, spread: float, levels: int):
    """`levels` score steps make ties; a small `spread` makes long chains of overlaps."""
    generator = np.random.default_rng(seed)
    centre = generator.uniform(0, spread, (count, 2))
    side = generator.uniform(5, 40, (count, 2))
    boxes = np.concatenate([centre - side / 2, centre + side / 2], axis=1).astype(np.float32)
    scores = (generator.integers(1, levels, count) / levels).astype(np.float32)
    return boxes, scores, generator.integers(0, classes, count)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    ("count", "classes", "spread", "levels"),
    [(40, 1, 30, 10), (300, 3, 100, 50), (700, 2, 60, 100_000), (900, 20, 400, 7)],
)
def test_same_as_the_definition(seed, count, classes, spread, levels):
    boxes, scores, labels = scene(seed, count, classes, spread, levels)
    iou = (0.3, 0.5, 0.65)[seed % 3]
    max_det = (300, 25, 1)[seed % 3]
    candidates = (10_000, 300, 10_000)[seed % 3]
    kept = nms(boxes, scores, labels, iou=iou, max_det=max_det, candidates=candidates)
    assert kept.tolist() == by_definition(boxes, scores, labels, iou, max_det, candidates)


def test_a_suppressed_box_suppresses_nothing():
    # each overlaps its neighbours by 0.6 and the next but one by 0.33
    boxes = np.array([[i * 25, 0, i * 25 + 100, 10] for i in range(5)], np.float32)
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5], np.float32)
    assert nms(boxes, scores, np.zeros(5, np.int64), iou=0.5).tolist() == [0, 2, 4]


def test_classes_do_not_suppress_each_other():
    boxes = np.array([[0, 0, 10, 10]] * 3, np.float32)
    scores = np.array([0.5, 0.9, 0.4], np.float32)
    assert nms(boxes, scores, np.array([0, 1, 0]), iou=0.5).tolist() == [1, 0]


def test_equal_scores_keep_their_order_and_overlap_at_the_limit_stays():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 5, 10, 15]], np.float32)
    scores = np.full(3, 0.5, np.float32)
    # the third overlaps the first by exactly 1/3
    assert nms(boxes, scores, np.zeros(3, np.int64), iou=1 / 3).tolist() == [0, 2]


def test_nothing_in_nothing_out_and_flat_boxes_live():
    none = nms(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    assert none.tolist() == []
    flat = np.array([[3, 3, 3, 3], [3, 3, 3, 3]], np.float32)
    assert nms(flat, np.array([0.2, 0.4], np.float32), np.zeros(2, np.int64)).tolist() == [1, 0]
