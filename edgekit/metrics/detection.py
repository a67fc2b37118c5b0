"""Detection accuracy by the COCO protocol, through faster_coco_eval.

IoU thresholds 0.50:0.05:0.95, 101 recall points, the 100 best detections per image and class,
crowd regions neither found nor missed. https://cocodataset.org/#detection-eval
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.metrics.datasets.base import Truth
from edgekit.metrics.matching import (
    IOU_THRESHOLDS,
    MAX_PER_CLASS,
    ImageMatch,
    Matches,
    OperatingPoint,
    join,
    match_image,
)
from edgekit.metrics.postprocess import Detections
from edgekit.require import require

if TYPE_CHECKING:
    from numpy.typing import NDArray

# classes x images that the library gets at once
_PAIRS = 6000


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageResult:
    """What was found and what was there, on one image, both in source pixels."""

    found: Detections
    truth: Truth

    @functools.cached_property
    def match(self) -> ImageMatch:
        """Which detection found which object; worked out once."""
        return match_image(self.found, self.truth)


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionFigures:
    """Detection accuracy, fractions of 1.

    `point` holds precision and recall at the one confidence with the best mean F1 over the classes
    (IoU 0.5), None without ground truth. `per_class` is mAP50-95 of the classes that occur.
    `matches` lets resampling compute the same figures for other weights of the images.
    """

    map50_95: float
    map50: float
    map75: float
    point: OperatingPoint
    per_class: dict[str, float]
    matches: Matches = field(repr=False)


def evaluate(results: Sequence[ImageResult], names: Sequence[str]) -> DetectionFigures:
    """The figures over all images; classes that never occur in the ground truth do not count.

    With no ground truth at all every figure is 0.
    """
    table = average_precision(results, len(names))
    present = ~np.isnan(table[:, 0])
    matches = join([result.match for result in results], len(names))

    def mean(columns: Any) -> float:
        return float(table[present][:, columns].mean()) if present.any() else 0.0

    return DetectionFigures(
        map50_95=mean(slice(None)),
        map50=mean(_column(0.50)),
        map75=mean(_column(0.75)),
        point=matches.best_f1(),
        per_class={
            names[number]: float(table[number].mean())
            for number in np.flatnonzero(present).tolist()
        },
        matches=matches,
    )


def _column(iou: float) -> int:
    return int(np.argmin(np.abs(IOU_THRESHOLDS - iou)))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """Boxes of all images in one table, as the library takes them: x, y, width, height."""

    image: NDArray[np.int64]
    number: NDArray[np.int64]
    sides: NDArray[np.float64]
    value: NDArray[np.float64]

    @classmethod
    def of(cls, parts: Sequence[tuple[Any, Any, Any]]) -> _Rows:
        """From (boxes [N, 4], classes [N], value [N]) per image; images count from 1."""
        sides = np.concatenate([np.zeros((0, 4)), *(boxes for boxes, _, _ in parts)])
        sides[:, 2:] -= sides[:, :2]
        lengths = [len(classes) for _, classes, _ in parts]
        return cls(
            image=np.repeat(np.arange(1, len(parts) + 1), lengths),
            number=np.concatenate([np.zeros(0, np.int64), *(classes for _, classes, _ in parts)]),
            sides=sides.astype(np.float64),
            value=np.concatenate([np.zeros(0), *(value for _, _, value in parts)]),
        )

    def within(
        self, numbers: Sequence[int], floors: Mapping[int, float] | None = None
    ) -> Iterator[tuple[int, int, list[float], float]]:
        """(image, class, sides, value) of the boxes of some classes, from a class's floor upwards."""
        mine = np.isin(self.number, numbers)
        if floors is not None and len(self.number):
            lowest = np.full(int(self.number.max()) + 1, np.inf)
            for number in numbers:
                lowest[number] = floors[number]
            mine &= self.value >= lowest[self.number]
        yield from zip(
            self.image[mine].tolist(),
            self.number[mine].tolist(),
            self.sides[mine].tolist(),
            self.value[mine].tolist(),
            strict=True,
        )


def average_precision(results: Sequence[ImageResult], num_classes: int) -> NDArray[np.float64]:
    """AP of each class at each IoU threshold: float64 [K, 10], nan for classes without truth.

    A few classes at a time: the library keeps a dict per box and a list per class and image, and a
    large set has millions of them. For the same reason it does not see what cannot change its answer:
    detections of a class that rank below the last one that lies on an object. Behind it recall stays
    where it is, and no precision at a recall that was reached gets better.
    """
    coco: Any = require("faster_coco_eval", "Computing mAP")
    objects = _Rows.of([(r.truth.boxes, r.truth.classes, r.truth.crowd) for r in results])
    detections = _Rows.of(
        [(r.found.boxes.astype(np.float64), r.found.classes, r.found.scores) for r in results]
    )
    floors: dict[int, float] = {}
    for result in results:
        for number, score in result.match.floor.items():
            floors[number] = min(score, floors.get(number, score))
    present = np.unique(objects.number[objects.value == 0])  # the value of an object: is it a crowd
    table = np.full((num_classes, len(IOU_THRESHOLDS)), np.nan)
    table[present] = 0.0
    found = [number for number in present.tolist() if number in floors]
    at_once = max(1, _PAIRS // max(1, len(results)))
    for start in range(0, len(found), at_once):
        part = found[start : start + at_once]
        table[part] = _of_classes(coco, part, objects.within(part), detections.within(part, floors))
    return table


def _of_classes(
    coco: Any,
    numbers: Sequence[int],
    objects: Iterable[tuple[int, int, list[float], float]],
    detections: Iterable[tuple[int, int, list[float], float]],
) -> NDArray[np.float64]:
    """AP per class and IoU threshold, float64 [len(numbers), 10]; every class has objects.

    Object sizes do not matter: one range holds them all.
    """
    # ids count from 1: the library takes an id of 0 for "not matched"
    truth: list[dict[str, Any]] = [
        {
            "id": key,
            "image_id": image,
            "category_id": number,
            "bbox": sides,
            "area": sides[2] * sides[3],
            "iscrowd": int(crowd),
        }
        for key, (image, number, sides, crowd) in enumerate(objects, start=1)
    ]
    # "segmentation" is given so that the library does not make a polygon of every box
    found: list[dict[str, Any]] = [
        {
            "image_id": image,
            "category_id": number,
            "bbox": sides,
            "score": score,
            "segmentation": [],
        }
        for image, number, sides, score in detections
    ]
    images = sorted({box["image_id"] for box in (*truth, *found)})
    reference = coco.COCO(
        {
            "images": [{"id": key} for key in images],
            "annotations": truth,
            "categories": [{"id": number, "name": str(number)} for number in numbers],
        }
    )
    evaluation = coco.COCOeval_faster(reference, reference.loadRes(found), "bbox")
    evaluation.params.iouThrs = IOU_THRESHOLDS
    evaluation.params.maxDets = [MAX_PER_CLASS]
    evaluation.params.areaRng = [[0.0, 1e10]]
    evaluation.params.areaRngLbl = ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    # [thresholds, recalls, classes by rising id, areas, limits]
    precision: NDArray[np.float64] = evaluation.eval["precision"][:, :, :, 0, 0]
    result: NDArray[np.float64] = precision.mean(axis=1).T
    return result
