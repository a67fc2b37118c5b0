"""Detection accuracy by the COCO protocol, through faster_coco_eval.

IoU thresholds 0.50:0.05:0.95, 101 recall points, the 100 best detections per image and class,
crowd regions neither found nor missed. https://cocodataset.org/#detection-eval
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.metrics.datasets.base import Truth
from edgekit.metrics.matching import IOU_THRESHOLDS, MAX_PER_CLASS, Matches, OperatingPoint, match
from edgekit.metrics.postprocess import Detections
from edgekit.require import require

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageResult:
    """What was found and what was there, on one image, both in source pixels."""

    found: Detections
    truth: Truth


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
    matches = match([(result.found, result.truth) for result in results], len(names))

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

    def of_class(self, number: int) -> Iterator[tuple[int, list[float], float]]:
        mine = np.flatnonzero(self.number == number)
        yield from zip(
            self.image[mine].tolist(),
            self.sides[mine].tolist(),
            self.value[mine].tolist(),
            strict=True,
        )


def average_precision(results: Sequence[ImageResult], num_classes: int) -> NDArray[np.float64]:
    """AP of each class at each IoU threshold: float64 [K, 10], nan for classes without truth.

    One class at a time: the library keeps a dict per box, and a large set has millions of them.
    """
    coco: Any = require("faster_coco_eval", "Computing mAP")
    objects = _Rows.of([(r.truth.boxes, r.truth.classes, r.truth.crowd) for r in results])
    detections = _Rows.of(
        [(r.found.boxes.astype(np.float64), r.found.classes, r.found.scores) for r in results]
    )
    table = np.full((num_classes, len(IOU_THRESHOLDS)), np.nan)
    for number in range(num_classes):
        # ids count from 1: the library takes an id of 0 for "not matched"
        truth = [
            {
                "id": key,
                "image_id": image,
                "category_id": number,
                "bbox": sides,
                "area": sides[2] * sides[3],
                "iscrowd": int(crowd),
            }
            for key, (image, sides, crowd) in enumerate(objects.of_class(number), start=1)
        ]
        if all(box["iscrowd"] for box in truth):
            continue
        # "segmentation" is given so that the library does not make a polygon of every box
        found = [
            {
                "image_id": image,
                "category_id": number,
                "bbox": sides,
                "score": score,
                "segmentation": [],
            }
            for image, sides, score in detections.of_class(number)
        ]
        table[number] = _of_one_class(coco, truth, found) if found else 0.0
    return table


def _of_one_class(
    coco: Any, truth: list[dict[str, Any]], found: list[dict[str, Any]]
) -> NDArray[np.float64]:
    """AP per IoU threshold, float64 [10]. Object sizes do not matter: one range holds them all."""
    images = sorted({box["image_id"] for box in (*truth, *found)})
    number = truth[0]["category_id"]
    reference = coco.COCO(
        {
            "images": [{"id": key} for key in images],
            "annotations": truth,
            "categories": [{"id": number, "name": str(number)}],
        }
    )
    evaluation = coco.COCOeval_faster(reference, reference.loadRes(found), "bbox")
    evaluation.params.iouThrs = IOU_THRESHOLDS
    evaluation.params.maxDets = [MAX_PER_CLASS]
    evaluation.params.areaRng = [[0.0, 1e10]]
    evaluation.params.areaRngLbl = ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    precision: NDArray[np.float64] = evaluation.eval["precision"][:, :, 0, 0, 0]
    result: NDArray[np.float64] = precision.mean(axis=1)
    return result
