"""Which detection found which object, kept so that figures can be computed for any weights.

The rule is COCO's (pycocotools, cocoeval.py, evaluateImg and accumulate): by falling score a
detection takes the free object of its class with the largest IoU at or above the threshold; a
crowd region may be taken by many, and a detection on it does not count at all.

The mAP that is reported comes from the library; this module gives what the library does not:
precision and recall at the best F1, and the same mAP under resampling of the images, in about a
millisecond a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.metrics.datasets.base import Truth
from edgekit.metrics.postprocess import Detections

if TYPE_CHECKING:
    from numpy.typing import NDArray

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MAX_PER_CLASS = 100
"""Detections per image and class that count, the best first."""


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """Mean precision and recall over the classes at one confidence, IoU 0.5."""

    confidence: float
    precision: float
    recall: float


def _overlaps(found: NDArray[np.float64], truth: NDArray[np.float64], crowd: Any) -> Any:
    """IoU [D, G] of boxes (x, y, width, height); over the detection's area for crowd regions."""
    low = np.maximum(found[:, None, :2], truth[None, :, :2])
    high = np.minimum(
        found[:, None, :2] + found[:, None, 2:], truth[None, :, :2] + truth[None, :, 2:]
    )
    inter = np.clip(high - low, 0.0, None).prod(axis=2)
    own = (found[:, 2] * found[:, 3])[:, None]
    union = np.where(crowd[None, :], own, own + (truth[:, 2] * truth[:, 3])[None, :] - inter)
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def _with_sides(boxes: NDArray[Any]) -> NDArray[np.float64]:
    corners = boxes.astype(np.float64)
    corners[:, 2:] -= corners[:, :2]
    return corners


def _match_class(
    overlap: NDArray[np.float64], crowd: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(hit, ignored) bool [T, D] for one image and class, from IoU [D, G]; falling score."""
    hit = np.zeros((len(IOU_THRESHOLDS), len(overlap)), dtype=np.bool_)
    ignored = np.zeros_like(hit)
    overlap = overlap[:, np.argsort(crowd, kind="stable")]
    real = int((~crowd).sum())
    needed = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[:, None]
    free = np.ones((len(needed), real), dtype=np.bool_)
    for index in np.flatnonzero(overlap.max(axis=1) >= needed[0, 0]):
        row = overlap[index]
        taken = np.zeros(len(needed), dtype=np.bool_)
        if real:
            value = np.where(free & (row[:real] >= needed), row[:real], -1.0)
            # of equal overlaps the last object is taken
            best = real - 1 - np.argmax(value[:, ::-1], axis=1)
            taken = value[np.arange(len(needed)), best] >= 0
            free[np.flatnonzero(taken), best[taken]] = False
        hit[:, index] = taken
        if real < len(row):
            ignored[:, index] = ~taken & (row[real:].max() >= needed[:, 0])
    return hit, ignored


def _running(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Running sum with a 0 in front: the sum of values[i:j] is at j minus at i."""
    return np.concatenate([[0.0], np.cumsum(values)])


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageMatch:
    """The matching of one image: its counted detections, class by class, and its real objects.

    number (class), score [D], hit and ignored bool [T, D]; object_number [G]. `floor` maps each
    class to the lowest score of a detection that lies on an object or a crowd region at all.
    """

    number: NDArray[np.int64]
    score: NDArray[np.float64]
    hit: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    object_number: NDArray[np.int64]
    floor: dict[int, float]


def match_image(found: Detections, truth: Truth) -> ImageMatch:
    """Match one image's detections (best first) with its truth, class by class."""
    counted: list[NDArray[np.int64]] = []
    hits: list[NDArray[np.bool_]] = []
    ignored: list[NDArray[np.bool_]] = []
    floor: dict[int, float] = {}
    boxes, objects = _with_sides(found.boxes), _with_sides(truth.boxes)
    for number in np.unique(found.classes).tolist():
        mine = np.flatnonzero(found.classes == number)[:MAX_PER_CLASS]
        there = truth.classes == number
        hit = skip = np.zeros((len(IOU_THRESHOLDS), len(mine)), dtype=np.bool_)
        if there.any():
            overlap = _overlaps(boxes[mine], objects[there], truth.crowd[there])
            hit, skip = _match_class(overlap, truth.crowd[there])
            # the library divides in its own order, so the bound is taken a little lower
            near = np.flatnonzero(overlap.max(axis=1) >= IOU_THRESHOLDS[0] - 1e-6)
            if len(near):
                floor[number] = float(found.scores[mine[near]].min())
        counted.append(mine)
        hits.append(hit)
        ignored.append(skip)
    order = np.concatenate([np.zeros(0, dtype=np.int64), *counted])
    nothing = np.zeros((len(IOU_THRESHOLDS), 0), dtype=np.bool_)
    return ImageMatch(
        number=found.classes[order].astype(np.int64),
        score=found.scores[order].astype(np.float64),
        hit=np.concatenate([nothing, *hits], axis=1),
        ignored=np.concatenate([nothing, *ignored], axis=1),
        object_number=truth.classes[~truth.crowd].astype(np.int64),
        floor=floor,
    )


def match(results: Iterable[tuple[Detections, Truth]], num_classes: int) -> Matches:
    """Match every image's detections (best first) with its truth, class by class."""
    return join([match_image(found, truth) for found, truth in results], num_classes)


def join(parts: Sequence[ImageMatch], num_classes: int) -> Matches:
    """The matches of all images, in their order."""

    def joined(arrays: list[Any], dtype: Any, axis: int = 0) -> Any:
        if arrays:
            return np.concatenate(arrays, axis=axis).astype(dtype)
        return np.zeros((len(IOU_THRESHOLDS), 0) if axis else 0, dtype=dtype)

    def images(lengths: list[int]) -> NDArray[np.int64]:
        return np.repeat(np.arange(len(parts), dtype=np.int64), lengths)

    score = joined([part.score for part in parts], np.float64)
    number = joined([part.number for part in parts], np.int64)
    order = np.lexsort((-score, number))
    return Matches(
        images=len(parts),
        num_classes=num_classes,
        image=images([len(part.number) for part in parts])[order],
        number=number[order],
        score=score[order],
        hit=joined([part.hit for part in parts], np.bool_, 1)[:, order],
        ignored=joined([part.ignored for part in parts], np.bool_, 1)[:, order],
        object_image=images([len(part.object_number) for part in parts]),
        object_number=joined([part.object_number for part in parts], np.int64),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Plan:
    """What every weighting of the same matches shares: where the true positives lie.

    The hits of all thresholds stand in one row, sorted by threshold, class, falling score;
    `segment` = threshold * K + class, `starts` marks the first of a segment. `image` [M] is the
    image of every detection down to the last hit of its class, in order; a hit is the detection
    number `at` of these, its class begins at `first`. `skip_image` lists the ignored detections of
    all thresholds; those ranked above a hit are skip_low to skip_high.
    """

    segment: NDArray[np.int64]
    starts: NDArray[np.bool_]
    image: NDArray[np.int64]
    hit_image: NDArray[np.int64]
    at: NDArray[np.int64]
    first: NDArray[np.int64]
    skip_image: NDArray[np.int64]
    skip_low: NDArray[np.int64]
    skip_high: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Matches:
    """Detections sorted by class, then falling score; objects that are not crowd.

    image, number (class), score [D]; hit and ignored bool [T, D]; object_image, object_number [G].
    """

    images: int
    num_classes: int
    image: NDArray[np.int64]
    number: NDArray[np.int64]
    score: NDArray[np.float64]
    hit: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    object_image: NDArray[np.int64]
    object_number: NDArray[np.int64]
    _plan: _Plan = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_plan", self._planned())

    def _planned(self) -> _Plan:
        classes = np.arange(self.num_classes)
        first = np.searchsorted(self.number, classes)
        # what ranks below the last hit of its class changes nothing (most detections do)
        last = np.full(self.num_classes, -1)
        hits = np.flatnonzero(self.hit.any(axis=0))
        last[self.number[hits]] = hits
        used = np.arange(len(self.number)) <= last[self.number]
        place = np.cumsum(used) - 1
        threshold, detection = np.nonzero(self.hit)
        number = self.number[detection]
        segment = threshold * self.num_classes + number
        starts = np.ones(len(segment), dtype=np.bool_)
        starts[1:] = segment[1:] != segment[:-1]
        # one sorted key for (threshold, detection) finds the ignored ones within a range
        width = len(self.number) + 1
        skip_threshold, skipped = np.nonzero(self.ignored)
        keys = skip_threshold * width + skipped
        return _Plan(
            segment=segment,
            starts=starts,
            image=self.image[used],
            hit_image=self.image[detection],
            at=place[detection],
            first=place[first[number]],
            skip_image=self.image[skipped],
            skip_low=np.searchsorted(keys, threshold * width + first[number]),
            skip_high=np.searchsorted(keys, threshold * width + detection),
        )

    def average_precision(self, weights: NDArray[Any] | None = None) -> NDArray[np.float64]:
        """AP float64 [K, T] with image i counted weights[i] times; nan for classes without truth.

        Precision and recall step only at true positives, so only those are visited; what ranks
        above one is counted by running sums.
        """
        if weights is None:
            weights = np.ones(self.images)
        weights = np.asarray(weights, dtype=np.float64)
        objects = np.bincount(
            self.object_number, weights[self.object_image], minlength=self.num_classes
        )
        size = len(IOU_THRESHOLDS) * self.num_classes
        table: NDArray[np.float64] = np.zeros(size)
        plan = self._plan
        if len(plan.at):
            ranked = _running(weights[plan.image])
            above = ranked[plan.at + 1] - ranked[plan.first]
            skipped = _running(weights[plan.skip_image])
            above -= skipped[plan.skip_high] - skipped[plan.skip_low]
            found = self._within_segments(weights[plan.hit_image])
            there = objects[plan.segment % self.num_classes]
            precision = np.divide(found, above, out=np.zeros_like(found), where=above > 0)
            recall = np.divide(found, there, out=np.zeros_like(found), where=there > 0)
            # the envelope: largest precision at this recall or beyond, within the segment.
            # Rising offsets towards the front restart the running maximum at each segment.
            offset = 2.0 * (size - plan.segment)
            envelope = np.maximum.accumulate((precision + offset)[::-1])[::-1] - offset
            reached = np.searchsorted(RECALLS, recall, side="right")
            before = np.concatenate([[0], reached[:-1]])
            before[plan.starts] = 0
            area = (reached - before) * envelope / len(RECALLS)
            table = np.bincount(plan.segment, area, minlength=size).astype(np.float64)
        shape = (len(IOU_THRESHOLDS), self.num_classes)
        result: NDArray[np.float64] = table.reshape(shape).T.copy()
        result[objects == 0] = np.nan
        return result

    def _within_segments(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Running sum of the hits' `values`, starting anew in each segment."""
        total = _running(values)
        starts = np.flatnonzero(self._plan.starts)
        lengths = np.diff(np.append(starts, len(values)))
        result: NDArray[np.float64] = total[1:] - np.repeat(total[starts], lengths)
        return result

    def mean_average_precision(self, weights: NDArray[Any] | None = None) -> float:
        """mAP50-95 with image i counted weights[i] times; 0 without ground truth."""
        table = self.average_precision(weights)
        present = ~np.isnan(table[:, 0])
        return float(table[present].mean()) if present.any() else 0.0

    def best_f1(self) -> OperatingPoint:
        """Where the mean F1 over the classes that occur is highest, at IoU 0.5.

        F1 of a class rises only where a true positive is added, so their scores are the only
        confidences worth trying.
        """
        objects = np.bincount(self.object_number, minlength=self.num_classes)
        present = np.flatnonzero(objects)
        hit = self.hit[0]
        confidences = np.unique(self.score[hit])
        if not len(present) or not len(confidences):
            return OperatingPoint(confidence=0.0, precision=0.0, recall=0.0)
        precision = np.zeros((len(present), len(confidences)))
        recall = np.zeros_like(precision)
        for row, number in enumerate(present):
            mine = (self.number == number) & ~self.ignored[0]
            scores = self.score[mine]
            found = np.concatenate([[0], np.cumsum(hit[mine])])
            above = np.searchsorted(-scores, -confidences, side="right")
            precision[row] = found[above] / np.maximum(above, 1)
            recall[row] = found[above] / objects[number]
        both = precision + recall
        f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
        best = int(np.argmax(f1.mean(axis=0)))
        return OperatingPoint(
            confidence=float(confidences[best]),
            precision=float(precision[:, best].mean()),
            recall=float(recall[:, best].mean()),
        )
