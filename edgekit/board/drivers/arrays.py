"""Tensors to numpy arrays and back, for the runtimes whose Python packages need numpy anyway."""

from __future__ import annotations

from typing import Any, Mapping

from edgekit.board.errors import BadInput
from edgekit.board.session import Spec
from edgekit.board.tensor import ITEM_BYTES, Tensor


def to_array(tensor: Tensor) -> Any:
    """A numpy array of its own memory, aligned and writable."""
    import numpy

    dtype = numpy.dtype(tensor.dtype).newbyteorder("<")
    flat = numpy.frombuffer(tensor.data, dtype=dtype)
    return flat.reshape(tensor.shape).astype(tensor.dtype, copy=True)


def to_tensor(array: Any) -> Tensor:
    """A tensor with a copy of the array's values."""
    import numpy

    name = str(array.dtype)
    if name not in ITEM_BYTES:
        raise BadInput(f"The model gives {name} values, which cannot be carried.")
    plain = numpy.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    return Tensor(tuple(array.shape), name, plain.tobytes())


def check_feeds(feeds: Mapping[str, Tensor], inputs: list[Spec]) -> None:
    """Raise BadInput unless `feeds` are the inputs, in name, dtype and (where fixed) shape."""
    names = [spec["name"] for spec in inputs]
    if sorted(feeds) != sorted(names):
        raise BadInput(f"The model takes {names}, not {sorted(feeds)}.")
    for spec in inputs:
        tensor = feeds[spec["name"]]
        fits = len(spec["shape"]) == len(tensor.shape) and all(
            not isinstance(size, int) or size == found
            for size, found in zip(spec["shape"], tensor.shape)
        )
        if tensor.dtype != spec["dtype"] or not fits:
            raise BadInput(
                f"The input '{spec['name']}' is {tensor.dtype} {list(tensor.shape)}; "
                f"the model takes {spec['dtype']} {spec['shape']}."
            )
