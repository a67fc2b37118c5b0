"""Decoders: the raw output of one image → candidate boxes, before suppression.

The layouts are described in edgekit.metrics.heads, which chooses among them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import BadInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

STRIDES = ((8, 16, 32), (8, 16), (8, 16, 32, 64), (16, 32), (4, 8, 16, 32), (16, 32, 64))
"""Sets of strides that published detectors have; the first is by far the commonest."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """boxes float32 [N, 4] (x1, y1, x2, y2) in input pixels; scores float32, classes int64 [N]."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Which candidates a decoder gives: scores above `conf`, the `count` best at most.

    `multi_label`: a prediction counts once for every class above `conf`, else for its best only.
    """

    conf: float = 0.001
    count: int = 10_000
    multi_label: bool = True


Size = tuple[int, int]
"""(height, width) of the model's input in pixels."""


def cells(size: Size, strides: Sequence[int]) -> int:
    """Number of cells of all maps of an input of `size`."""
    return sum(math.ceil(size[0] / s) * math.ceil(size[1] / s) for s in strides)


# --- picking candidates -------------------------------------------------------------------------


def _best(scores: NDArray[np.float32], limits: Limits) -> NDArray[np.int64]:
    """Flat indices of the scores above the threshold, the `count` highest at most.

    Of equal scores at the border the first in memory are kept, so that equal inputs give equal
    outputs.
    """
    flat = scores.ravel()
    above = np.flatnonzero(flat > limits.conf)
    if len(above) <= limits.count:
        return above
    values = flat[above]
    border = np.partition(values, len(values) - limits.count)[len(values) - limits.count]
    sure = values > border
    ties = np.flatnonzero(values == border)[: limits.count - int(sure.sum())]
    sure[ties] = True
    result: NDArray[np.int64] = above[sure]
    return result


def _pick(
    scores: NDArray[np.float32], limits: Limits
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """From scores [N, K]: prediction indices, classes and scores of the candidates."""
    if not limits.multi_label:
        classes = scores.argmax(axis=1)
        best = scores[np.arange(len(scores)), classes]
        chosen = _best(best, limits)
        return chosen, classes[chosen].astype(np.int64), best[chosen]
    chosen = _best(scores, limits)
    rows, classes = np.divmod(chosen, scores.shape[1])
    return rows, classes, scores.ravel()[chosen]


def _corners(centred: NDArray[np.float32]) -> NDArray[np.float32]:
    """cx, cy, w, h [N, 4] → x1, y1, x2, y2 [N, 4]."""
    half = centred[:, 2:4] * np.float32(0.5)
    return np.concatenate([centred[:, :2] - half, centred[:, :2] + half], axis=1)


# --- YOLOv5 and YOLOX: objectness times class ---------------------------------------------------


def _with_objectness(output: NDArray[np.float32], limits: Limits) -> tuple[Any, Candidates]:
    """Rows that can exceed the threshold (class scores are at most 1), and candidates on them.

    The candidates' boxes are the raw four values.
    """
    rows = output[np.flatnonzero(output[:, 4] > limits.conf)]
    scores = rows[:, 5:] * rows[:, 4:5]
    index, classes, values = _pick(scores, limits)
    return index, Candidates(boxes=rows[index, :4], scores=values, classes=classes)


def decode_yolov5(
    output: NDArray[np.float32], size: Size, num_classes: int, limits: Limits
) -> Candidates:
    """[N, 5 + K] → candidates; score = objectness * class score."""
    _, found = _with_objectness(output, limits)
    return Candidates(boxes=_corners(found.boxes), scores=found.scores, classes=found.classes)


@lru_cache(maxsize=8)
def _grid(size: Size, strides: tuple[int, ...]) -> NDArray[np.float32]:
    """Per cell, map by map and row by row: x, y of the cell in strides, and the stride: [N, 3]."""
    maps = []
    for stride in strides:
        height, width = math.ceil(size[0] / stride), math.ceil(size[1] / stride)
        y, x = np.mgrid[:height, :width]
        maps.append(np.stack([x.ravel(), y.ravel(), np.full(height * width, stride)], axis=1))
    return np.concatenate(maps).astype(np.float32)


def decode_yolox(
    output: NDArray[np.float32], size: Size, num_classes: int, limits: Limits
) -> Candidates:
    """[N, 5 + K] without decoded boxes → candidates; strides by the number of predictions."""
    strides = next((s for s in STRIDES if cells(size, s) == len(output)), None)
    if strides is None:
        raise BadInput(
            f"A YOLOX head of {len(output)} predictions fits no strides of a "
            f"{size[0]}x{size[1]} input."
        )
    likely = np.flatnonzero(output[:, 4] > limits.conf)
    index, found = _with_objectness(output, limits)
    grid = _grid(size, strides)[likely][index]
    centre = (found.boxes[:, :2] + grid[:, :2]) * grid[:, 2:]
    # exp overflows in float32 at 88; no side is e^20 strides long, so larger values are junk anyway
    sides = np.exp(np.minimum(found.boxes[:, 2:], 20.0)) * grid[:, 2:]
    boxes = _corners(np.concatenate([centre, sides], axis=1))
    return Candidates(boxes=boxes, scores=found.scores, classes=found.classes)


# --- YOLOv8 and its like: class scores only -----------------------------------------------------


def by_rows(output: NDArray[np.float32], num_classes: int) -> NDArray[np.float32]:
    """The output as [4 + K, N], whichever way round it is."""
    if output.shape[0] == 4 + num_classes:
        return output
    turned: NDArray[np.float32] = output.T
    return turned


def decode_yolov8(
    output: NDArray[np.float32], size: Size, num_classes: int, limits: Limits
) -> Candidates:
    """[4 + K, N] or [N, 4 + K] → candidates."""
    rows = by_rows(output, num_classes)
    scores = rows[4:]
    if limits.multi_label and scores.flags.c_contiguous:
        # flat over [K, N] as it lies in memory: no copy of the whole head
        chosen = _best(scores, limits)
        classes, index = np.divmod(chosen, scores.shape[1])
        values = scores.ravel()[chosen]
    else:
        index, classes, values = _pick(scores.T, limits)
    return Candidates(boxes=_corners(rows[:4, index].T), scores=values, classes=classes)


# --- end to end ---------------------------------------------------------------------------------


def decode_yolo26(
    output: NDArray[np.float32], size: Size, num_classes: int, limits: Limits
) -> Candidates:
    """[N, 6] rows x1, y1, x2, y2, score, class, suppressed inside the model → candidates."""
    chosen = _best(output[:, 4], limits)
    rows = output[chosen]
    return Candidates(
        boxes=rows[:, :4], scores=rows[:, 4], classes=np.rint(rows[:, 5]).astype(np.int64)
    )
