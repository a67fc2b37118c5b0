"""Class-wise greedy non-maximum suppression, exact, in vectorised numpy.

Definition: candidates are taken by falling score (of equal scores the earlier first); one is kept
unless a kept one of its class overlaps it by more than `iou`; the first `max_det` kept are the
answer.

How it is fast: candidates are looked at in blocks by falling score, and the work ends as soon as
`max_det` are kept. Within a block, with S[i, j] true when i comes before j and suppresses it, the
kept ones are the only solution of kept[j] = not any_i(kept[i] and S[i, j]). Repeating that
assignment from "all kept" settles at least one more level of the suppression chains each time, so
it ends at exactly the greedy answer, after a few rounds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK = 256


def _suppresses(
    boxes: NDArray[np.float32],
    area: NDArray[np.float32],
    classes: NDArray[np.int64],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    iou: float,
) -> NDArray[np.bool_]:
    """[F, S]: same class and intersection > iou * union, for indices `first` [F], `second` [S]."""
    a, b = boxes[first], boxes[second]
    width = np.minimum(a[:, None, 2], b[None, :, 2])
    width -= np.maximum(a[:, None, 0], b[None, :, 0])
    np.maximum(width, 0, out=width)
    height = np.minimum(a[:, None, 3], b[None, :, 3])
    height -= np.maximum(a[:, None, 1], b[None, :, 1])
    np.maximum(height, 0, out=height)
    width *= height
    union = area[first][:, None] + area[second][None, :]
    union -= width
    union *= np.float32(iou)
    result: NDArray[np.bool_] = width > union
    result &= classes[first][:, None] == classes[second][None, :]
    return result


def nms(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    classes: NDArray[np.int64],
    *,
    iou: float = 0.65,
    max_det: int = 300,
    candidates: int = 10_000,
) -> NDArray[np.int64]:
    """Indices of the kept boxes, best first.

    boxes float32 [N, 4] (x1, y1, x2, y2), scores [N], classes [N]. Only the `candidates` best are
    looked at, `max_det` at most are kept.
    """
    order = np.argsort(-scores, kind="stable")[:candidates]
    boxes = np.asarray(boxes, dtype=np.float32)[order]
    classes = np.asarray(classes)[order]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = np.empty(0, dtype=np.int64)
    for start in range(0, len(order), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(order)))
        if len(kept):
            block = block[~_suppresses(boxes, area, classes, kept, block, iou).any(axis=0)]
        within = np.triu(_suppresses(boxes, area, classes, block, block, iou), k=1)
        alive: NDArray[np.bool_] = np.ones(len(block), dtype=np.bool_)
        while True:
            survivors: NDArray[np.bool_] = np.logical_not((within & alive[:, None]).any(axis=0))
            if np.array_equal(survivors, alive):
                break
            alive = survivors
        kept = np.concatenate([kept, block[alive]])
        if len(kept) >= max_det:
            break
    result: NDArray[np.int64] = order[kept[:max_det]]
    return result
