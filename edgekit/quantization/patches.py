"""What a layer's weights are multiplied with: rows of its input, for second moments E[x x^T]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def rows(
    node: Any, tensor: NDArray[Any], most: int, random: np.random.Generator
) -> NDArray[np.float32] | None:
    """Up to `most` rows of the layer's input, float32 [G, N, K] for G groups.

    node: an onnx_ir Conv, Gemm or MatMul; tensor: its first input for one image. K is C_in / groups *
    kernel for a Conv (the order of its weight), the inner dimension else. The positions are drawn by
    `random`. None for layers whose rows cannot be told: automatic padding, three spatial axes, a
    Gemm that transposes its input.
    """
    if node.op_type == "Conv":
        return _conv_rows(node, tensor, most, random)
    if node.op_type == "Gemm" and _integer(node, "transA", 0):
        return None
    flat = tensor.reshape(-1, tensor.shape[-1])
    taken: NDArray[np.float32] = _drawn(len(flat), most, random)(flat).astype(np.float32)
    return taken[None]


def matrix(node: Any, weight: NDArray[np.floating]) -> NDArray[np.floating] | None:
    """The layer's weight as [G, O, K], rows and columns as `rows` has them; None for other layers."""
    if node.op_type == "Conv":
        groups = _integer(node, "group", 1)
        return weight.reshape(groups, weight.shape[0] // groups, -1)
    if weight.ndim != 2 or node.op_type not in ("Gemm", "MatMul"):
        return None
    transposed = node.op_type == "Gemm" and _integer(node, "transB", 0)
    return (weight if transposed else weight.T)[None]


def as_weight(node: Any, levels: NDArray[np.int8], shape: tuple[int, ...]) -> NDArray[np.int8]:
    """[G, O, K] back to the weight's `shape`: the inverse of `matrix`."""
    if node.op_type == "Conv" or (node.op_type == "Gemm" and _integer(node, "transB", 0)):
        return levels.reshape(shape)
    return np.ascontiguousarray(levels[0].T)


def _conv_rows(
    node: Any, tensor: NDArray[Any], most: int, random: np.random.Generator
) -> NDArray[np.float32] | None:
    kernel = tuple(int(size) for size in node.inputs[1].shape[2:])
    automatic = node.attributes.get("auto_pad")
    if automatic is not None and automatic.as_string() not in ("NOTSET", "VALID"):
        return None
    if tensor.ndim != 2 + len(kernel) or len(kernel) not in (1, 2):
        return None
    pads = _integers(node, "pads", [0] * (2 * len(kernel)))
    strides = _integers(node, "strides", [1] * len(kernel))
    dilations = _integers(node, "dilations", [1] * len(kernel))
    image = tensor[0]
    if len(kernel) == 1:
        image, kernel = image[:, None], (1, *kernel)
        pads = [0, pads[0], 0, pads[1]]
        strides, dilations = [1, *strides], [1, *dilations]
    image = np.pad(image, ((0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    sizes = [
        (image.shape[1 + axis] - dilations[axis] * (kernel[axis] - 1) - 1) // strides[axis] + 1
        for axis in (0, 1)
    ]
    chosen = _drawn(sizes[0] * sizes[1], most, random)(np.arange(sizes[0] * sizes[1]))
    y, x = chosen // sizes[1] * strides[0], chosen % sizes[1] * strides[1]
    taps = [
        image[:, y + row * dilations[0], x + column * dilations[1]]
        for row in range(kernel[0])
        for column in range(kernel[1])
    ]
    # [C, N, taps] → [G, N, C / G * taps]
    stacked = np.stack(taps, axis=-1)
    groups = _integer(node, "group", 1)
    channels, count, size = stacked.shape
    split = stacked.reshape(groups, channels // groups, count, size).transpose(0, 2, 1, 3)
    result: NDArray[np.float32] = split.reshape(groups, count, -1).astype(np.float32)
    return result


def _drawn(count: int, most: int, random: np.random.Generator) -> Any:
    """A function that takes `most` of `count` entries along the first axis, all when there are fewer."""
    if count <= most:
        return lambda array: array
    places = np.sort(random.choice(count, most, replace=False))
    return lambda array: array[places]


def _integer(node: Any, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.as_int())


def _integers(node: Any, name: str, default: Sequence[int]) -> list[int]:
    attribute = node.attributes.get(name)
    return list(default) if attribute is None else [int(value) for value in attribute.as_ints()]
