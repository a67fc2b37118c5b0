"""What the noise of INT8 layers is measured by: whose errors count, and which layers are loud.

A detector's output is mostly predictions that nobody reads. Errors count where the float model is sure of
what it sees, and boxes and scores each by themselves, because their units differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
# share that a float layer costs at least, so that the tiniest are not left float for nothing
_LEAST_COST = 0.01
# confidence above which a prediction of the float model counts
SURE = 0.05


class NoiseMeter:
    """Error energies of candidates against the float model's outputs `expected`, one mapping a feed.

    `size` is (height, width) of the input; without a known head every prediction counts. Attribute
    `head` is its name.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        expected: Sequence[Mapping[str, NDArray[Any]]],
        size: tuple[int, int],
        head: str | None,
        task: str | None,
    ) -> None:
        self.head = head_name(expected[0], size, head, task)
        self._blocks = blocks
        self._expected = expected
        self._meanings = meanings(blocks, expected[0])
        self._masks = [
            {name: sure(array, self.head) for name, array in outputs.items()}
            for outputs in expected
        ]

    def energies(self, found: Iterable[Mapping[str, NDArray[Any]]]) -> list[float]:
        """Summed squared error of the blocks of each meaning; `found` are outputs, one mapping a feed."""
        import numpy as np

        energies = [0.0] * (1 + max(self._meanings))
        for expected, masks, outputs in zip(self._expected, self._masks, found, strict=True):
            errors = {
                name: (outputs[name].astype(np.float64) - array) * masks[name]
                for name, array in expected.items()
            }
            for meaning, block in zip(self._meanings, self._blocks, strict=True):
                energies[meaning] += float(np.square(block.take(errors[block.output])).sum())
        return energies


def worth_float(
    sqnr_db: Mapping[str, float],
    energies: Mapping[str, Sequence[float]],
    cost: Mapping[str, float],
) -> list[str]:
    """Layers in the order in which they are to be left float: by the harm that each does alone, for what
    leaving it float costs.

    Two things can break a model: a block of the outputs that is lost (`sqnr_db` of the worst one), and
    noise where it sees something (`energies` by meaning). Both are shares of what all layers do, and
    added up. `cost` is the share of the MACs or of the bytes that leaves INT8 with the layer.
    """
    # a block is not more lost than lost
    lost = {name: min(10 ** (-value / 10), 1.0) for name, value in sqnr_db.items()}
    losses = sum(lost.values()) or 1.0
    noises = [sum(parts) or 1.0 for parts in zip(*energies.values(), strict=True)]

    def harm(name: str) -> float:
        parts = [part / noise for part, noise in zip(energies[name], noises, strict=True)]
        return lost[name] / losses + sum(parts) / max(1, len(parts))

    return sorted(sqnr_db, key=lambda name: -harm(name) / (cost.get(name, 0.0) + _LEAST_COST))


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
