"""A block: the part of an output that has one meaning, and so one measure of error.

A detector's output joins boxes in pixels with scores in 0 to 1; an error that wipes out every score
disappears in the whole tensor beside the boxes. Blocks are found in the graph
(edgekit.stages.blocks), stored in the bundle, and compared one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

Span = tuple[int, int, int]
"""start, stop, step of the indices along one axis, as in a Python slice; all are 0 or more."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """The elements of `output` whose index lies, on each axis, in one of the axis' spans.

    `axes` has one entry per axis of the output; an empty entry takes the whole axis, and empty
    `axes` take the whole output whatever its rank. Entries may leave out trailing axes.
    """

    name: str
    output: str
    axes: tuple[tuple[Span, ...], ...] = ()

    def take(self, array: NDArray[Any]) -> NDArray[Any]:
        """The block's elements, the rank of `array` kept; a view where every axis has one span.

        Raises ValueError when `array` has fewer axes than the block or is too short on one.
        """
        import numpy as np

        if len(self.axes) > array.ndim:
            raise ValueError(f"block {self.name} needs {len(self.axes)} axes, not {array.ndim}")
        for axis, spans in enumerate(self.axes):
            size = array.shape[axis]
            if not spans:
                continue
            if any(not 0 <= start < stop <= size or step < 1 for start, stop, step in spans):
                raise ValueError(f"block {self.name} does not fit the shape {list(array.shape)}")
            if len(spans) == 1:
                start, stop, step = spans[0]
                index: list[slice] = [slice(None)] * axis + [slice(start, stop, step)]
                array = array[tuple(index)]
            else:
                chosen = np.concatenate([np.arange(*span) for span in spans])
                array = np.take(array, chosen, axis=axis)
        return array

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: name, output, axes (a list of [start, stop, step] per axis)."""
        return {
            "name": self.name,
            "output": self.output,
            "axes": [[list(span) for span in spans] for spans in self.axes],
        }

    @classmethod
    def from_json(cls, value: Any) -> Block:
        """Read what `to_json` wrote. Raises ValueError for anything else."""
        try:
            axes = tuple(
                tuple((_index(a), _index(b), _index(c)) for a, b, c in spans)
                for spans in value["axes"]
            )
            name, output = value["name"], value["output"]
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a block: {value!r}") from error
        if not isinstance(name, str) or not isinstance(output, str):
            raise ValueError(f"not a block: {value!r}")
        return cls(name=name, output=output, axes=axes)


def _index(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is not an index")
    return value


def whole(outputs: Sequence[str]) -> tuple[Block, ...]:
    """One block for each output."""
    return tuple(Block(name=name, output=name) for name in outputs)
