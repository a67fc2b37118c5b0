"""Detection quality of the example: decode, class-wise NMS, mAP by faster_coco_eval."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scenes import CLASS_NAMES, VALIDATION_SEED, scene
from torch import Tensor, nn

CONFIDENCE = 0.001
NMS_IOU = 0.7
MAX_DETECTIONS = 300


@dataclass(frozen=True)
class Score:
    """Fractions of 1; `per_class` is mAP50-95 in the order of CLASS_NAMES."""

    map50_95: float
    map50: float
    map75: float
    per_class: tuple[float, ...]

    def __str__(self) -> str:
        pairs = zip(CLASS_NAMES, self.per_class, strict=True)
        classes = ", ".join(f"{name} {100 * value:.1f}" for name, value in pairs)
        return (
            f"mAP50-95 {100 * self.map50_95:.2f}  mAP50 {100 * self.map50:.2f}  "
            f"mAP75 {100 * self.map75:.2f}  ({classes})"
        )


@dataclass(frozen=True)
class Scenes:
    """Rendered scenes: images [M, H, W, 3] uint8 RGB, and per image boxes [N, 4], classes [N]."""

    images: NDArray[np.uint8]
    boxes: list[NDArray[np.float32]]
    classes: list[NDArray[np.int64]]


def render(seed: int, count: int) -> Scenes:
    """Scenes 0 to count - 1 of a seed, all in memory (108 KiB each)."""
    drawn = [scene(seed, index) for index in range(count)]
    return Scenes(np.stack([d[0] for d in drawn]), [d[1] for d in drawn], [d[2] for d in drawn])


def to_input(images: NDArray[np.uint8]) -> Tensor:
    """Preprocessing: RGB [N, H, W, 3] uint8 -> [N, 3, H, W] float32, divided by 255."""
    tensor = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    return tensor.to(torch.float32).div_(255.0).contiguous(memory_format=torch.channels_last)


def nms(boxes: NDArray[np.float32], scores: NDArray[np.float32], limit: float) -> list[int]:
    """Greedy non-maximum suppression of boxes [N, 4] (corners): kept indices, best first."""
    order = scores.argsort(kind="stable")[::-1]
    area = (boxes[:, 2] - boxes[:, 0]).clip(0) * (boxes[:, 3] - boxes[:, 1]).clip(0)
    kept: list[int] = []
    while order.size:
        best, rest = int(order[0]), order[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[rest, :2])
        high = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        inter = (high - low).clip(0).prod(1)
        iou = inter / np.maximum(area[best] + area[rest] - inter, 1e-9)
        order = rest[iou <= limit]
    return kept


def detections(output: NDArray[np.float32], size: int) -> Iterator[tuple[int, float, list[float]]]:
    """(class, score, [x1, y1, x2, y2]) of one image's output [4 + C, A], boxes clipped to the image
    of `size` pixels; every class of a cell over the confidence counts, NMS is per class, the
    MAX_DETECTIONS best are given."""
    centre, side, scores = output[:2].T, output[2:4].T, output[4:]
    corners = np.concatenate([centre - side / 2, centre + side / 2], axis=1).clip(0, size)
    found: list[tuple[int, float, list[float]]] = []
    for label in range(scores.shape[0]):
        above = np.nonzero(scores[label] > CONFIDENCE)[0]
        for k in nms(corners[above], scores[label, above], NMS_IOU):
            cell = above[k]
            found.append((label, float(scores[label, cell]), corners[cell].tolist()))
    found.sort(key=lambda item: -item[1])
    yield from found[:MAX_DETECTIONS]


def mean_average_precision(outputs: Sequence[NDArray[np.float32]], truth: Scenes) -> Score:
    """COCO mAP of one output [4 + C, A] per image against the drawn boxes."""
    from faster_coco_eval import COCO, COCOeval_faster

    size = truth.images.shape[1]
    images = [{"id": i, "width": size, "height": size} for i in range(len(outputs))]
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for i, output in enumerate(outputs):
        for box, label in zip(truth.boxes[i].astype(float), truth.classes[i], strict=True):
            width, height = box[2] - box[0], box[3] - box[1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": int(label),
                    "bbox": [float(box[0]), float(box[1]), float(width), float(height)],
                    "area": float(width * height),
                    "iscrowd": 0,
                }
            )
        for label, score, (x1, y1, x2, y2) in detections(output, size):
            results.append(
                {
                    "image_id": i,
                    "category_id": label,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": score,
                }
            )
    if not results:
        return Score(0.0, 0.0, 0.0, (0.0,) * len(CLASS_NAMES))
    categories = [{"id": k, "name": name} for k, name in enumerate(CLASS_NAMES)]
    with contextlib.redirect_stdout(io.StringIO()):
        gold = COCO({"images": images, "annotations": annotations, "categories": categories})
        evaluation = COCOeval_faster(gold, gold.loadRes(results), "bbox")
        evaluation.run()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    per_class = tuple(float(precision[:, :, k].mean()) for k in range(len(CLASS_NAMES)))
    stats = evaluation.stats
    return Score(float(stats[0]), float(stats[1]), float(stats[2]), per_class)


def evaluate(model: nn.Module, truth: Scenes) -> Score:
    """mAP of a torch model on rendered scenes; leaves the model in eval mode."""
    model.eval()
    outputs: list[NDArray[np.float32]] = []
    for start in range(0, len(truth.images), 32):
        with torch.no_grad():
            outputs.extend(model(to_input(truth.images[start : start + 32])).numpy())
    return mean_average_precision(outputs, truth)


def validation(count: int = 200) -> Scenes:
    """The scenes on which every figure of the README was taken."""
    return render(VALIDATION_SEED, count)
