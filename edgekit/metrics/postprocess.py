"""From a model's raw output to typed answers: boxes in source pixels, or classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.metrics.heads import Candidates, HeadMatch, Limits, Size
from edgekit.metrics.nms import nms
from edgekit.preprocess import Placement

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """Found objects, best first.

    boxes float32 [N, 4] (x1, y1, x2, y2) in source pixels, scores float32 [N] in 0..1, classes
    int64 [N].
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, kw_only=True, eq=False)
class Classification:
    """The class scores of one image: logits float32 [K]."""

    logits: NDArray[np.float32]

    def ranked(self, count: int = 5) -> NDArray[np.int64]:
        """The `count` best classes, best first; of equal scores the lower number first."""
        order: NDArray[np.int64] = np.argsort(-self.logits, kind="stable")[:count]
        return order

    def probabilities(self) -> NDArray[np.float32]:
        """float32 [K] that sum to 1: softmax, unless the model's outputs are that already."""
        values = self.logits.astype(np.float64)
        if values.min() >= 0 and abs(values.sum() - 1) < 1e-3:
            return self.logits
        values = np.exp(values - values.max())
        result: NDArray[np.float32] = (values / values.sum()).astype(np.float32)
        return result


@dataclass(frozen=True, kw_only=True)
class Suppression:
    """The settings that a detection figure depends on; the defaults are the COCO protocol's usual.

    conf: lowest score; iou: overlap above which the weaker box of a class is dropped; candidates:
    how many of the best enter suppression; max_det: how many are kept; multi_label: one prediction
    may count for several classes.
    """

    conf: float = 0.001
    iou: float = 0.65
    candidates: int = 10_000
    max_det: int = 300
    multi_label: bool = True

    @property
    def limits(self) -> Limits:
        return Limits(conf=self.conf, count=self.candidates, multi_label=self.multi_label)


def decode(
    output: NDArray[np.float32], match: HeadMatch, size: Size, num_classes: int, rule: Suppression
) -> Candidates:
    """Raw output of one image, without its batch axis → candidates in input pixels."""
    if match.head.decode is None:
        raise ValueError(f"the head {match.head.name} gives no boxes")
    return match.head.decode(output, size, num_classes, rule.limits)


def suppress(
    found: Candidates, match: HeadMatch, placement: Placement, rule: Suppression
) -> Detections:
    """Candidates → detections in source pixels.

    Heads that suppress inside the model are only sorted and cut.
    """
    if match.head.suppressed:
        kept = np.argsort(-found.scores, kind="stable")[: rule.max_det]
    else:
        kept = nms(
            found.boxes,
            found.scores,
            found.classes,
            iou=rule.iou,
            max_det=rule.max_det,
            candidates=rule.candidates,
        )
    return Detections(
        boxes=placement.to_source(found.boxes[kept]).astype(np.float32),
        scores=found.scores[kept],
        classes=found.classes[kept],
    )
