"""How many bytes of weights may stay float: INT8 is also asked to make the file small."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

LARGEST = 0.35
"""Bytes of the initializers, of those of the float graph: what a QDQ graph may come to."""
# what may be spent on float layers where INT8 alone is above that already
_SMALLEST_ROOM = 0.02
# float32 instead of int8
_ADDED_BYTES = 3


class WeightRoom:
    """The room between a graph with all of `layers` in INT8 and the largest that it may become.

    `plain` is the float graph, `whole_bytes` the bytes of the initializers of its QDQ graph.
    """

    def __init__(self, plain: onnx.ModelProto, layers: Iterable[str], whole_bytes: int) -> None:
        sizes = {item.name: _values(item) for item in plain.graph.initializer}
        wanted = set(layers)
        self._values = {
            node.name: sizes.get(node.input[1], 0)
            for node in plain.graph.node
            if node.name in wanted and len(node.input) > 1
        }
        self._plain_bytes = max(1, initializer_bytes(plain))
        share = LARGEST - whole_bytes / self._plain_bytes
        self._room = (share if share > 0 else _SMALLEST_ROOM) * self._plain_bytes

    def fits(self, keep: Iterable[str]) -> bool:
        """Whether the layers of `keep` can be float together."""
        return sum(_ADDED_BYTES * self._values.get(name, 0) for name in set(keep)) <= self._room

    def shares(self) -> Mapping[str, float]:
        """Share of each layer's weights in the bytes of the float graph."""
        return {name: 4 * count / self._plain_bytes for name, count in self._values.items()}


def initializer_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all initializers as the runtime holds them."""
    import onnx

    return sum(
        _values(item) * onnx.helper.tensor_dtype_to_np_dtype(item.data_type).itemsize
        for item in model.graph.initializer
    )


def _values(item: onnx.TensorProto) -> int:
    count = 1
    for size in item.dims:
        count *= size
    return count
