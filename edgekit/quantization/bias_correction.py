"""Bias correction: what rounding the weights adds to a layer's mean output is taken off its bias.

With W_q the weights that the integers stand for and x the layer's input,

    E[W_q x] - E[W x] = (W_q - W) * E[x]         (* is the layer's own operation)
    b' = b - (W_q - W) * E[x]                    per output channel

E[x] is the mean of each input channel over images and positions, from calibration; the rounding of x
is not in the formula. Where a convolution pads with zeros, a tap of its kernel reads the input at a
share of the output positions only, and the mean that it sees is that share of E[x].
Source: Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction,
arXiv:1906.04721, section 4.2 and appendix B (there with E[x] from BatchNorm; here it is measured).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.quantization.macs import graph_macs, static_shape
from edgekit.quantization.rules import Rules, compute_nodes, is_constant

if TYPE_CHECKING:
    from numpy.typing import NDArray

CORRECTED = ("Conv", "Gemm", "MatMul")
"""Operators whose bias can be corrected."""


def input_channels(model: Any, rules: Rules) -> dict[str, int]:
    """The tensors whose channel means a correction needs, with their channel axis; graph order.

    They are the inputs of the layers that `rules` let compute in INT8: axis 1 of a Conv's input, the
    last one of a Gemm's or MatMul's. Tensors of unknown rank are left out: their layers are not
    corrected.
    """
    graph = model.graph
    nodes, _ = compute_nodes(graph, rules, (), graph_macs(graph))
    axes: dict[str, int] = {}
    for node in nodes:
        source = node.inputs[0]
        if node.op_type not in CORRECTED or source.shape is None or not can_correct(node):
            continue
        axis = 1 if node.op_type == "Conv" else len(source.shape) - 1
        # read as channels by one layer and as rows by another: the first is served
        axes.setdefault(source.name, axis)
    return axes


def can_correct(node: Any) -> bool:
    """Whether the layer has a constant bias, or a place for one."""
    if node.op_type == "MatMul":
        return bias_of_matmul(node) is not None
    if node.op_type not in CORRECTED:
        return False
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    # a Gemm's bias may have a row for every sample; then it is no bias of channels
    return bias is None or max(static_shape(bias) or (1,)) == math.prod(static_shape(bias) or (1,))


def bias_of_matmul(node: Any) -> tuple[Any, int] | None:
    """(Add node, index of its constant) where a MatMul's only reader adds a bias [C_out] to it."""
    uses = node.outputs[0].uses()
    if len(uses) != 1 or node.outputs[0].is_graph_output() or uses[0].node.op_type != "Add":
        return None
    add, index = uses[0].node, 1 - uses[0].idx
    shape = static_shape(node.inputs[1])
    if not is_constant(add.inputs[index]) or shape is None or len(shape) != 2:
        return None
    bias = static_shape(add.inputs[index])
    return (add, index) if bias == (shape[1],) else None


def mean_shift(
    node: Any, error: NDArray[np.floating], mean: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """(W_q - W) * E[x]: what the weights' `error` adds to the mean of each output channel.

    error: W_q - W, of the weight's shape (Conv [C_out, C_in / groups, k...], Gemm [K, N] or, with
    transB, [N, K], MatMul [K, N]); mean: E[x] [C_in]. Returns float64 [C_out], None where the mean
    does not fit the layer.
    """
    wide = error.astype(np.float64)
    if node.op_type == "Conv":
        attribute = node.attributes.get("group")
        groups = 1 if attribute is None else int(attribute.as_int())
        made, taken = wide.shape[:2]
        if mean.shape != (groups * taken,):
            return None
        shares = _tap_shares(node, wide.shape[2:])
        for axis, share in enumerate(shares):
            wide = wide * share.reshape(
                (1, 1, *(-1 if a == axis else 1 for a in range(len(shares))))
            )
        taps: NDArray[np.float64] = wide.reshape(made, taken, -1).sum(axis=2)
        per_group = taps.reshape(groups, made // groups, taken)
        shift: NDArray[np.float64] = np.einsum(
            "goi,gi->go", per_group, mean.reshape(groups, taken)
        ).reshape(made)
        return shift
    if wide.ndim != 2:
        return None
    transposed = node.attributes.get("transB")
    if node.op_type == "Gemm" and transposed is not None and transposed.as_int():
        wide = wide.T
    if mean.shape != (wide.shape[0],):
        return None
    product: NDArray[np.float64] = mean @ wide
    return product


def _ints(node: Any, name: str, default: Sequence[int]) -> list[int]:
    attribute = node.attributes.get(name)
    return list(default) if attribute is None else [int(value) for value in attribute.as_ints()]


def _tap_shares(node: Any, kernel: tuple[int, ...]) -> list[NDArray[np.float64]]:
    """For each spatial axis, the share of output positions at which each tap lies inside the input.

    Ones where sizes are unknown or the padding is left to auto_pad.
    """
    rank = len(kernel)
    ones = [np.ones(size) for size in kernel]
    automatic = node.attributes.get("auto_pad")
    if automatic is not None and automatic.as_string() not in ("NOTSET", "VALID"):
        return ones
    source, result = static_shape(node.inputs[0]), static_shape(node.outputs[0])
    if source is None or result is None or len(source) != rank + 2:
        return ones
    pads = _ints(node, "pads", [0] * (2 * rank))
    strides = _ints(node, "strides", [1] * rank)
    dilations = _ints(node, "dilations", [1] * rank)
    shares = []
    for axis, size in enumerate(kernel):
        positions = np.arange(result[2 + axis]) * strides[axis] - pads[axis]
        taps = np.arange(size)[:, None] * dilations[axis] + positions[None, :]
        inside = (taps >= 0) & (taps < source[2 + axis])
        shares.append(inside.mean(axis=1) if inside.size else np.ones(size))
    return shares
