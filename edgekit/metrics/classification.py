"""Classification accuracy: top-1, top-5, confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassificationFigures:
    """Fractions of 1. `confusion` int64 [K, K]: rows are the truth, columns what was predicted.

    `correct` and `within_five` bool [N] say it per image; `per_class` is the share of a class's
    images that were recognized, for the classes that occur.
    """

    top1: float
    top5: float
    per_class: dict[str, float]
    confusion: NDArray[np.int64]
    correct: NDArray[np.bool_]
    within_five: NDArray[np.bool_]

    def weighted(self, weights: NDArray[Any], top: int = 1) -> float:
        """top-1 (or top-5) with image i counted weights[i] times."""
        values = self.correct if top == 1 else self.within_five
        return float(np.dot(weights, values) / np.sum(weights))


def evaluate(
    ranked: Sequence[NDArray[np.int64]], labels: Sequence[int], names: Sequence[str]
) -> ClassificationFigures:
    """From each image's five best classes, best first, and its label.

    `names` covers every class that the model can answer.
    """
    truth = np.asarray(labels, dtype=np.int64)
    first = np.array([best[0] for best in ranked], dtype=np.int64)
    correct = first == truth
    within = np.array(
        [label in best[:5] for best, label in zip(ranked, labels, strict=True)], dtype=np.bool_
    )
    size = len(names)
    confusion = np.bincount(truth * size + first, minlength=size * size).reshape(size, size)
    totals = confusion.sum(axis=1)
    return ClassificationFigures(
        top1=float(correct.mean()) if len(correct) else 0.0,
        top5=float(within.mean()) if len(within) else 0.0,
        per_class={
            names[number]: float(confusion[number, number] / totals[number])
            for number in np.flatnonzero(totals).tolist()
        },
        confusion=confusion.astype(np.int64),
        correct=correct,
        within_five=within,
    )
