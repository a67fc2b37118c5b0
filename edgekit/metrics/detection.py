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


def average_precision(results: Sequence[ImageResult], num_classes: int) -> NDArray[np.float64]:
    """AP of each class at each IoU threshold: float64 [K, 10], nan for classes without truth.

    One class at a time: the library keeps a dict per box, and a large set has millions of them.
    """
    coco: Any = require("faster_coco_eval", "Computing mAP")
    table = np.full((num_classes, len(IOU_THRESHOLDS)), np.nan)
    for number in range(num_classes):
        truth, found = _annotations(results, number)
        if not any(not box["iscrowd"] for box in truth):
            continue
        if not found:
            table[number] = 0.0
            continue
        images = sorted({box["image_id"] for box in (*truth, *found)})
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
        table[number] = evaluation.eval["precision"][:, :, 0, 0, 0].mean(axis=1)
    return table


def _annotations(
    results: Sequence[ImageResult], number: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Truth and detections of one class as the library takes them (bbox x, y, width, height)."""
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image, result in enumerate(results, start=1):
        mine = result.truth.classes == number
        for box, crowd, area in zip(
            _sides(result.truth.boxes[mine]),
            result.truth.crowd[mine].tolist(),
            result.truth.area[mine].tolist(),
            strict=True,
        ):
            # ids count from 1: the library takes an id of 0 for "not matched"
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": image,
                    "category_id": number,
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(crowd),
                }
            )
        chosen = np.flatnonzero(result.found.classes == number)[:MAX_PER_CLASS]
        for box, score in zip(
            _sides(result.found.boxes[chosen]), result.found.scores[chosen].tolist(), strict=True
        ):
            found.append(
                {
                    "image_id": image,
                    "category_id": number,
                    "bbox": box,
                    "score": score,
                    # given so that the library does not make a polygon of every box
                    "segmentation": [],
                }
            )
    return truth, found


def _sides(boxes: NDArray[Any]) -> Iterator[list[float]]:
    corners = boxes.astype(np.float64)
    corners[:, 2:] -= corners[:, :2]
    yield from corners.tolist()
