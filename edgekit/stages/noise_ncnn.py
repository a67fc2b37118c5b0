"""What the noise of an ncnn model's layers is measured by: whose errors count, and which layers are loud."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.errors import BadInput
from edgekit.metrics.heads import choose_head
from edgekit.stages.layout import HEADS
from edgekit.types import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.block import Block

# share of the noise whose layers are measured by every method
_LOUD = 0.9
# confidence above which a prediction of the float model counts
SURE = 0.05


def loudest(noises: Mapping[str, float]) -> list[str]:
    """Names by noise, the loudest first, as far as they make `_LOUD` of the sum."""
    loud: list[str] = []
    missing = _LOUD * sum(noises.values())
    for name in sorted(noises, key=lambda name: noises[name], reverse=True):
        if missing <= 0:
            break
        loud.append(name)
        missing -= noises[name]
    return loud


def meanings(blocks: Sequence[Block], outputs: Mapping[str, NDArray[Any]]) -> list[int]:
    """For each block the number of its meaning: boxes, scores … of all scales count together."""
    numbers: dict[Any, int] = {}
    found = []
    for block in blocks:
        shape = outputs[block.output].shape
        axes = [axis for axis in range(1, len(shape)) if shape[axis] > 1]
        across = min(axes, key=lambda axis: shape[axis], default=0)
        place = block.axes[across] if len(block.axes) > across else ()
        found.append(numbers.setdefault((block.output, place), len(numbers)))
    return found


def sure(output: NDArray[Any], head: str | None) -> NDArray[Any] | float:
    """1 for the predictions of `output` [1, …] that have a confidence, 0 for the others.

    1 where the head is unknown, or nothing is found.
    """
    import numpy as np

    columns = HEADS.get(head or "")
    if columns is None or output.ndim != 3:
        return 1.0
    across = 1 if head == "yolov8" and output.shape[1] <= output.shape[2] else 2
    by_column = np.moveaxis(output, across, 1)
    start, stop = columns.get("classes", columns.get("score", (4, None)))
    confidence = by_column[:, start:stop].max(axis=1)
    if "objectness" in columns:
        low, high = columns["objectness"]
        confidence = confidence * by_column[:, low:high].max(axis=1)
    mask = (confidence > SURE).astype(np.float64)
    return np.expand_dims(mask, across) if mask.any() else 1.0


def head_name(
    outputs: Mapping[str, NDArray[Any]], size: tuple[int, int], head: str | None, task: str | None
) -> str | None:
    """The head that decodes these outputs, None when none does."""
    specs = [
        TensorSpec(name=name, shape=tuple(array.shape), dtype=str(array.dtype))
        for name, array in outputs.items()
    ]
    try:
        return choose_head(specs, size, name=head, task=task).head.name
    except BadInput:
        return None
